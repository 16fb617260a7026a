"""The files that `dipct invert` and `dipct counterfactual` write, and what they print."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipct.terminal import check_output, print_rows, say

if TYPE_CHECKING:
    from dipct.inversion import Inversion


@dataclass(frozen=True)
class InversionFiles:
    """Where an inversion of a classifier goes: a file, a summary, a figure, stages on the way.

    Attributes:
        out: the file, .h5; all others have its name.
    """

    out: Path

    @property
    def summary(self) -> Path:
        """What was found, as text."""
        return self.out.with_suffix(".json")

    @property
    def figure(self) -> Path:
        """The picture of it."""
        return self.out.with_suffix(".png")

    @property
    def stages(self) -> Path:
        """Folder of what is finished, until all of it is."""
        return self.out.with_name(f"{self.out.name}.stages")

    def check(self, *inputs: str | Path | None) -> None:
        """Refuse, before any work, what cannot be written or would replace an input.

        Raises:
            ConfigurationError: another ending, no such folder, or a file that is an input.
        """
        for path, suffix in ((self.out, ".h5"), (self.summary, ".json"), (self.figure, ".png")):
            check_output(path, suffix, *inputs)

    def write(self, found: "Inversion") -> None:
        """Write what was found and its summary, and remove the stages."""
        from dipct.inversion import write_inversion
        from dipct.pipeline.stages import remove_stages

        write_inversion(found, self.out)
        remove_stages(self.stages)

    def report(self, found: "Inversion", rows: Mapping[str, str]) -> None:
        """Print what was found: rows of its own, the scores, the time, and what was written."""
        scores = {name.replace("_", " "): f"{v:.4g}" for name, v in found.scores.items()}
        step = f"{found.chosen_step} of {found.steps}"
        time = f"{found.duration_s:.1f} s"
        print_rows({**rows, "step": step, **scores, "time": time})
        say(f"Wrote {self.out}, {self.summary} and {self.figure}.")
