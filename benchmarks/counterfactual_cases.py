"""Tasks, classifiers, queries, arms and scores of the benchmark of counterfactuals."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipct.classifier_settings import ClassifierSettings
from dipct.inversion import Counterfactual
from dipct.inversion_settings import CounterfactualSettings
from dipct.operator import LOGITS
from dipct.phantom import Scene, SceneTask
from dipct.pipeline import counterfactual, open_labelled, task_of, train_classifier
from dipct.pipeline.counterfactual_result import edit_scores, known_scores
from dipct.pipeline.labelled import QUERY
from dipct.pretrain import (
    TrainedClassifier,
    read_trained_classifier,
    write_trained_classifier,
)

FOLDER = Path(__file__).parent / "results" / "counterfactuals"
RUNS = FOLDER / "runs"
SEEDS, STEPS, FIT_STEPS, BATCH, TRUE_ONES = (0, 1, 2), 300, 500, 17, 16
TUNING_QUERIES, FIRST_TUNING = 8, 5000


@dataclass(frozen=True)
class Case:
    """A drawn task of the benchmark.

    Attributes:
        task: its name.
        side: pixels.
        queries: per seed of the classifier.
        training: settings of the classifier.
        source: class that all queries are of; None for any.
    """

    task: str
    side: int
    queries: int
    training: dict[str, Any]
    source: int | None = None


CASES = {
    "faces": Case("faces", 32, 100, {"number": 4000, "steps": 800}, source=0),
    "lesions": Case("lesions", 64, 34, {"number": 4000, "steps": 600}),
}


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


def _grid(one: str, ones: tuple[float, ...], two: str, twos: tuple[float, ...]) -> tuple:
    return tuple({one: a, two: b} for a in ones for b in twos)


_CLASS = ("class_weight", (0.03, 0.1, 0.3))
_NETWORK = _grid(*_CLASS, "learning_rate", (1e-4, 3e-4))
_MANIFOLD = _grid(*_CLASS, "manifold_weight", (0.02, 0.1))
_VARIATION = _grid(*_CLASS, "tv_weight", (1e-2, 1e-1))
_SAME = {"steps": STEPS, "fit_steps": FIT_STEPS}

ARMS = {
    "LSO + TV + l2": Arm("lso-tv", _VARIATION, {"steps": STEPS}),
    "LSO + DIP": Arm("lso-dip", _NETWORK, _SAME),
    "LSO + INR": Arm("lso-inr", _NETWORK, _SAME),
    "LSO + DIP + DEP": Arm("lso-dip-dep", _MANIFOLD, _SAME),
    "LSO + INR + DEP": Arm("lso-inr-dep", _MANIFOLD, _SAME | {"progressive": True}),
    "LSO + INR + DEP, all at once": Arm("lso-inr-dep", _MANIFOLD, _SAME),
    "LSO + INR + DUQ": Arm("lso-inr-duq", _MANIFOLD, _SAME),
    "ISO + TV + l2": Arm("iso-tv", _VARIATION, {"steps": STEPS}),
    "ISO + DIP": Arm("iso-dip", _NETWORK, _SAME),
    "ISO + INR": Arm("iso-inr", _NETWORK, _SAME),
    "Wachter": Arm("wachter", _grid("class_weight", (0.1, 0.3, 1.0), "learning_rate", (0.02, 0.1)),
                   {"steps": STEPS}),
    "PGD": Arm(
        "pgd", _grid("radius", (4 / 255, 8 / 255, 16 / 255), "steps", (20, 40)), {}
    ),
}  # fmt: skip


@cache
def classifier(case: str, seed: int, *, oracle: bool = False) -> TrainedClassifier:
    """The classifier of a seed; the oracle is another network trained on other pictures."""
    name = f"{case}-oracle" if oracle else f"{case}-{seed}"
    path = RUNS / f"{name}.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = CASES[case]
        extra = {"architecture": "resnet18"} if oracle else {"centroids": True}
        settings = ClassifierSettings(side=found.side, seed=seed, **found.training, **extra)
        training, held_out = open_labelled(settings, task=found.task)
        write_trained_classifier(train_classifier(training, held_out, settings), path)
    return read_trained_classifier(path)


def oracle(case: str) -> TrainedClassifier:
    """What decides whether a counterfactual is of its class, beside the classifier."""
    return classifier(case, 100, oracle=True)


@dataclass(frozen=True, eq=False)
class Queries:
    """Pictures to explain.

    Attributes:
        task: that they are of.
        scenes: what they were drawn from.
        targets: wanted classes.
    """

    task: SceneTask
    scenes: list[Scene]
    targets: list[int]

    @property
    def images(self) -> np.ndarray:
        """[N C H W]."""
        return np.stack([scene.image for scene in self.scenes])


def queries(case: str, seed: int, number: int, *, first: int = 0) -> Queries:
    """Those that the classifier sees right, and whose true counterfactuals flip it."""
    trained = classifier(case, seed)
    task = task_of(trained)
    logits = trained.features([LOGITS])
    rng = np.random.default_rng([seed, first, 17])
    scenes, targets, index = [], [], first
    while len(scenes) < number:
        scene = task.sample_one(index, seed=QUERY + seed)
        index += 1
        own = task.label(scene.causes)
        if CASES[case].source not in (None, own):
            continue
        target = int((own + rng.integers(1, len(task.classes))) % len(task.classes))
        pair = np.stack([scene.image, task.counterfactual(scene, target).image])
        with torch.no_grad():
            seen = logits(torch.from_numpy(pair)).argmax(-1).tolist()
        if seen == [own, target]:
            scenes.append(scene)
            targets.append(target)
    return Queries(task, scenes, targets)


def settings_of(arm: Arm, chosen: dict[str, float]) -> CounterfactualSettings:
    """Settings of an arm with what was chosen for it."""
    return CounterfactualSettings.of_method(arm.method, arm.fixed | chosen)


def explain(
    trained: TrainedClassifier, asked: Queries, settings: CounterfactualSettings
) -> list[Counterfactual]:
    """Counterfactuals of all queries, some at a time."""
    found: list[Counterfactual] = []
    for start in range(0, len(asked.scenes), BATCH):
        part = slice(start, start + BATCH)
        found += counterfactual(trained, asked.images[part], asked.targets[part], settings)
    return found


def scores_of(
    case: str, asked: Queries, images: np.ndarray, seen: list[dict[str, float]]
) -> list[dict[str, float]]:
    """Scores of images against what is known, for each query."""
    judge = oracle(case).features([LOGITS])
    with torch.no_grad():
        judged = judge(torch.from_numpy(images)).argmax(-1).tolist()
    found = []
    for i, (scene, target, image) in enumerate(
        zip(asked.scenes, asked.targets, images, strict=True)
    ):
        known, _, _ = known_scores(scene.image, image, asked.task, scene, target, draws=TRUE_ONES)
        values = {
            **seen[i],
            "oracle_valid": float(judged[i] == target),
            **edit_scores(scene.image, image),
            **known,
        }
        # JSON has neither NaN nor infinity: what does not exist is left out.
        found.append({name: value for name, value in values.items() if np.isfinite(value)})
    return found


def standings(
    trained: TrainedClassifier, images: np.ndarray, targets: list[int]
) -> list[dict[str, float]]:
    """What the classifier makes of images that no arm made."""
    with torch.no_grad():
        probabilities = trained.features([LOGITS])(torch.from_numpy(images)).softmax(-1)
    found = []
    for row, target in zip(probabilities, targets, strict=True):
        is_valid = int(row.argmax()) == target
        found.append(
            {
                "valid": float(is_valid),
                "confident": float(is_valid and float(row[target]) >= 0.9),
                "p_target": float(row[target]),
            }
        )
    return found


def merit(scores: list[dict[str, float]]) -> float:
    """Mean normalised mass accuracy, where one that is not valid or changes nothing counts zero."""
    values = [each.get("normalised_mass_accuracy", 0.0) * each["valid"] for each in scores]
    return float(np.mean(values))


def slug(name: str) -> str:
    """Name of an arm in the name of a file."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def read(path: Path) -> dict[str, Any]:
    """A result."""
    return json.loads(path.read_text())


def write_images(name: str, images: np.ndarray) -> None:
    """Keep images, as bytes, for pictures and for the discrepancy of classifiers."""
    RUNS.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(RUNS / f"{name}.npz", images=np.round(255 * images).astype(np.uint8))


def read_images(name: str) -> np.ndarray | None:
    """What :func:`write_images` kept, [N C H W] from zero to one; None if it is not there."""
    path = RUNS / f"{name}.npz"
    if not path.exists():
        return None
    with np.load(path) as file:
        return file["images"].astype(np.float32) / 255
