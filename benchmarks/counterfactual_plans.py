"""What the benchmark of counterfactuals computes: tasks, arms and plans."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from measuring import RESULTS

from dipct.inversion_settings import CounterfactualSettings
from dipct.phantom import SceneTask, make_task

FOLDER = RESULTS / "counterfactuals"
STEPS, FIT_STEPS, TRUE_ONES, ORACLE = 300, 250, 16, 100
TUNING_QUERIES, FIRST_TUNING = 8, 5000
# Of the standard deviation of the noise in training [grey values]: the gradient of a classifier
# trained without it points to edits that nobody sees.
NOISE = 0.3


@dataclass(frozen=True)
class Case:
    """A drawn task of the benchmark.

    Attributes:
        task: its name.
        side: pixels.
        queries: per seed of the classifier.
        source: class that all queries are of.
        training: settings of the classifier.
        options: other arguments of the task.
    """

    task: str
    side: int
    queries: int
    source: int
    training: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scenes(self) -> SceneTask:
        """The task itself."""
        return make_task(self.task, self.side, **self.options)


@dataclass(frozen=True)
class Arm:
    """A method of the benchmark, with the settings that are tuned.

    Attributes:
        method: the preset.
        grid: six settings to choose from.
        fixed: others.
    """

    method: str
    grid: tuple[dict[str, float], ...]
    fixed: dict[str, Any]

    @property
    def generator(self) -> str:
        """What makes its images."""
        chosen = self.fixed | self.grid[0]
        return CounterfactualSettings.of_method(self.method, chosen).generator

    def shortened(self, steps: int) -> "Arm":
        """For a look: fewer steps, unless they are chosen by tuning."""
        is_chosen = "steps" in self.grid[0]
        return self if is_chosen else replace(self, fixed=self.fixed | {"steps": steps})


def _grid(one: str, ones: tuple[float, ...], two: str, twos: tuple[float, ...]) -> tuple:
    return tuple({one: a, two: b} for a in ones for b in twos)


_CLASS = ("class_weight", (0.1, 0.3, 1.0))
_NETWORK = _grid(*_CLASS, "learning_rate", (3e-4, 1e-3))
_MANIFOLD = _grid(*_CLASS, "manifold_weight", (0.02, 0.1))
_VARIATION = _grid(*_CLASS, "tv_weight", (1e-2, 1e-1))
_STEPS = {"steps": STEPS}
_WACHTER = _grid("class_weight", (0.3, 1.0, 3.0), "learning_rate", (0.02, 0.05))
_BALLS = _grid("radius", (4 / 255, 8 / 255, 16 / 255), "steps", (20, 40))

ARMS = {
    "LSO + TV + l2": Arm("lso-tv", _VARIATION, _STEPS),
    "LSO + DIP": Arm("lso-dip", _NETWORK, _STEPS),
    "LSO + INR": Arm("lso-inr", _NETWORK, _STEPS),
    "LSO + DIP + DEP": Arm("lso-dip-dep", _MANIFOLD, _STEPS),
    "LSO + INR + DEP": Arm("lso-inr-dep", _MANIFOLD, _STEPS | {"progressive": True}),
    "LSO + INR + DEP, all at once": Arm("lso-inr-dep", _MANIFOLD, _STEPS),
    "LSO + INR + DUQ": Arm("lso-inr-duq", _MANIFOLD, _STEPS),
    "ISO + TV + l2": Arm("iso-tv", _VARIATION, _STEPS),
    "ISO + DIP": Arm("iso-dip", _NETWORK, _STEPS),
    "L1 + INR": Arm("l1-inr", _NETWORK, _STEPS),
    "Wachter": Arm("wachter", _WACHTER, _STEPS),
    "PGD": Arm("pgd", _BALLS, {}),
}


@dataclass(frozen=True)
class Plan:
    """What a call of the benchmark computes, and where.

    Attributes:
        folder: of its results.
        cases: by name.
        arms: by name.
        seeds: of the classifiers.
        batch: queries at a time.
        device: where to compute.
        oracle: architecture of the classifier that judges.
        tuning: folder with the choice of settings, if that is made elsewhere.
        order: of generators, the first ones first.
    """

    folder: Path
    cases: Mapping[str, Case]
    arms: Mapping[str, Arm]
    seeds: tuple[int, ...] = (0, 1, 2)
    batch: int = 17
    device: str = "cpu"
    oracle: str = "resnet18"
    tuning: Path | None = None
    # What is quick comes first: a call that is stopped leaves most of the table.
    order: tuple[str, ...] = ("inr", "pixels", "unet")

    @property
    def runs(self) -> Path:
        """Folder of classifiers and images, which are not kept with the results."""
        return self.folder / "runs"


_FACES = {"number": 4000, "steps": 800, "noise": NOISE}
_LESIONS = {"number": 4000, "steps": 600, "noise": NOISE, "architecture": "small-halved"}
# Few lesions of the task itself are hard, and most losses are those of wrong labels, which nothing
# in the picture tells: loss estimators then find neither misclassified nor shifted lesions. With a
# gap of 0.05 and one per cent of wrong labels that was so for one of three.
_HARD = {"gap": 0.02, "label_noise": 0.005}

DEFAULT = Plan(
    FOLDER,
    {
        "faces": Case("faces", 32, 100, 0, _FACES),
        "lesions": Case("lesions", 64, 34, 1, _LESIONS, _HARD),
    },
    ARMS,
)
FULL = Plan(
    RESULTS / "counterfactuals_full",
    {
        "faces": Case("faces", 64, 200, 0, _FACES),
        "lesions": Case("lesions", 96, 200, 1, _LESIONS | {"steps": 800}, _HARD),
    },
    ARMS,
    batch=200,
    device="cuda",
    # Weights mean the same at every size: what was chosen on small images has to do for these.
    tuning=FOLDER,
)
_QUICK_TRAINING = {"number": 3000, "steps": 300, "architecture": "small-halved"}
QUICK = Plan(
    FOLDER / "runs" / "quick",
    {"faces": Case("faces", 32, 4, 0, _FACES | _QUICK_TRAINING)},
    {name: replace(arm, grid=arm.grid[2:4]).shortened(40) for name, arm in ARMS.items()},
    seeds=(0,),
    oracle="small",
)
"""For a look at how it all works; its numbers say nothing."""
