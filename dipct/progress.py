"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dipct.solver import IterationState

_LABELS = {
    "objective": "objective",
    "relative_residual": "residual",
    "relative_gap": "gap",
    "normal_residual": "normal residual",
    "discrepancy": "residual / noise",
    "moving_variance": "moving variance",
    "psnr_db": "PSNR",
    "training_loss": "loss",
    "validation_psnr_db": "validation PSNR",
}
_SECONDS_BETWEEN_LINES = 5.0


def _new_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )


class ProgressDisplay:
    """Shows the iterations of a solver as they go; used as a context and as a callback.

    Args:
        title: what is going on.
        total: most iterations.
        console: where to write; standard error by default.
        clock: seconds, for the time left.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._clock = title, total, clock
        self._console = console or Console(stderr=True)
        self._started = self._last = clock()
        self._first: int | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        """Start the display."""
        if self._console.is_terminal:
            self._bar = _new_bar(self._console)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, figures="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the display, leaving its last line."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, state: IterationState) -> None:
        """Show the state of a solver after an iteration."""
        figures = describe_figures(state.history)
        if self._first is None:
            self._first, self._started = state.iteration, self._clock()
        if self._bar is not None:
            self._bar.update(self._task, completed=state.iteration, figures=figures)
            return
        now = self._clock()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        done = state.iteration - self._first
        left = (self._total - state.iteration) * (now - self._started) / max(done, 1)
        self._console.print(
            f"{self._title}: {state.iteration}/{self._total}  {figures}  at most {left:.0f} s left",
            highlight=False,
            soft_wrap=True,
        )


def describe_figures(history: Mapping[str, Tensor]) -> str:
    """The latest recorded figures as text, the mean over a batch."""
    return "  ".join(
        f"{label} {float(history[name][-1].double().mean()):.3g}"
        for name, label in _LABELS.items()
        if name in history
    )


class WorkDisplay:
    """Shows how far work of several stages is; used as a context.

    Args:
        shown: whether to show anything.
        console: where to write; standard error by default.
        clock: seconds, for the time left.
    """

    def __init__(
        self,
        shown: bool,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shown, self._clock = shown, clock
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        """Start the display."""
        if self._shown and self._console.is_terminal:
            self._bar = _new_bar(self._console)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the display, leaving its last lines."""
        if self._bar is not None:
            self._bar.stop()

    def stage(self, title: str) -> Callable[..., None]:
        """Begin a stage.

        Args:
            title: what is going on.

        Returns:
            To be told how much of how much is done, and figures that matter as text.
        """
        began = last = self._clock()
        task = None if self._bar is None else self._bar.add_task(title, total=None, figures="")

        def report(done: int, total: int, figures: str = "") -> None:
            nonlocal last
            if self._bar is not None and task is not None:
                self._bar.update(task, completed=done, total=total, figures=figures)
                return
            now = self._clock()
            if not self._shown or now - last < _SECONDS_BETWEEN_LINES:
                return
            last = now
            left = (total - done) * (now - began) / max(done, 1)
            self._console.print(
                f"{title}: {done}/{total}  {figures}  at most {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

        return report
