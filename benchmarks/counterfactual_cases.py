"""Classifiers, queries, counterfactuals and scores of the benchmark of counterfactuals."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counterfactual_plans import DEFAULT, FIT_STEPS, ORACLE, TRUE_ONES, Arm, Plan

from dipct.classifier_settings import ClassifierSettings
from dipct.inversion import Counterfactual
from dipct.inversion_settings import CounterfactualSettings
from dipct.operator import LOGITS
from dipct.phantom import Scene, SceneTask, TrueCounterfactuals
from dipct.pipeline import counterfactual, open_labelled, task_of, train_classifier
from dipct.pipeline.counterfactual_result import edit_scores, known_scores
from dipct.pipeline.labelled import QUERY
from dipct.pipeline.query_generator import fit_to_queries, query_generator
from dipct.pretrain import (
    TrainedClassifier,
    read_trained_classifier,
    write_trained_classifier,
)
from dipct.solver import iterate

_read_classifier = cache(read_trained_classifier)


def classifier(case: str, seed: int, *, plan: Plan = DEFAULT) -> TrainedClassifier:
    """The classifier of a seed, trained if it is not there."""
    path = plan.runs / f"{case}-{'oracle' if seed == ORACLE else seed}.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = training_of(case, seed, plan=plan)
        training, held_out = open_labelled(settings, task=plan.cases[case].scenes)
        write_trained_classifier(train_classifier(training, held_out, settings), path)
    return _read_classifier(path)


def training_of(case: str, seed: int, *, plan: Plan = DEFAULT) -> ClassifierSettings:
    """How the classifier of a seed is trained."""
    found = plan.cases[case]
    # The oracle is another network, trained on other pictures.
    own = {"architecture": plan.oracle} if seed == ORACLE else {"centroids": True}
    return ClassifierSettings(
        side=found.side, seed=seed, device=plan.device, **(dict(found.training) | own)
    )


def oracle(case: str, *, plan: Plan = DEFAULT) -> TrainedClassifier:
    """What decides whether a counterfactual is of its class, beside the classifier."""
    return classifier(case, ORACLE, plan=plan)


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


def queries(case: str, seed: int, number: int, *, first: int = 0, plan: Plan = DEFAULT) -> Queries:
    """Those that the classifier sees right, and whose true counterfactuals flip it."""
    trained = classifier(case, seed, plan=plan)
    task = task_of(trained)
    logits = trained.features([LOGITS])
    rng = np.random.default_rng([seed, first, 17])
    scenes, targets, index = [], [], first
    while len(scenes) < number:
        scene = task.sample_one(index, seed=QUERY + seed)
        index += 1
        own = task.label(scene.causes)
        if own != plan.cases[case].source:
            continue
        target = int((own + rng.integers(1, len(task.classes))) % len(task.classes))
        pair = np.stack([scene.image, task.counterfactual(scene, target).image])
        with torch.no_grad():
            seen = logits(torch.from_numpy(pair)).argmax(-1).tolist()
        if seen == [own, target]:
            scenes.append(scene)
            targets.append(target)
    return Queries(task, scenes, targets)


def settings_of(
    arm: Arm, chosen: Mapping[str, float], *, plan: Plan = DEFAULT
) -> CounterfactualSettings:
    """Settings of an arm with what was chosen for it."""
    return CounterfactualSettings.of_method(
        arm.method, arm.fixed | dict(chosen) | {"device": plan.device}
    )


def chosen_of(case: str, name: str, *, plan: Plan = DEFAULT) -> dict[str, float]:
    """What was chosen for an arm by its tuning."""
    tried = read((plan.tuning or plan.folder) / f"tuning-{case}-{slug(name)}.json")["tried"]
    return max(tried, key=lambda each: each["merit"])["values"]


def start_of(
    asked: Queries, generator: str, *, seed: int = 0, plan: Plan = DEFAULT
) -> tuple[torch.Tensor, np.ndarray]:
    """Parameters of a generator that shows the queries, [N P], and what it shows, [N C H W]."""
    settings = CounterfactualSettings(
        method="lso-inr", generator=generator, seed=seed, device=plan.device
    )
    made = query_generator(settings, asked.images.shape[1:]).to(plan.device)
    parts, images = [], []
    for part in torch.from_numpy(asked.images).split(plan.batch):
        first = made.initial(seed).to(plan.device).expand(len(part), -1).contiguous()
        rate = settings.fit_learning_rate
        fit = fit_to_queries(made, part.to(plan.device), first, learning_rate=rate)
        solution = iterate(fit, max_iterations=FIT_STEPS, every=50)
        parts.append(solution.state.tensors["chosen"].cpu())
        images.append(solution.value.cpu().numpy())
    return torch.cat(parts), np.concatenate(images)


def explain(
    trained: TrainedClassifier,
    asked: Queries,
    settings: CounterfactualSettings,
    *,
    start: torch.Tensor | None = None,
    plan: Plan = DEFAULT,
) -> list[Counterfactual]:
    """Counterfactuals of all queries, some at a time."""
    found: list[Counterfactual] = []
    for first in range(0, len(asked.scenes), plan.batch):
        part = slice(first, first + plan.batch)
        found += counterfactual(
            trained,
            asked.images[part],
            asked.targets[part],
            settings,
            initial=None if start is None else start[part],
        )
    return found


def truths_of(asked: Queries) -> list[TrueCounterfactuals]:
    """Right answers to each query."""
    return [
        asked.task.true_counterfactuals(scene, target, draws=TRUE_ONES)
        for scene, target in zip(asked.scenes, asked.targets, strict=True)
    ]


def scores_of(
    case: str,
    asked: Queries,
    truths: list[TrueCounterfactuals],
    images: np.ndarray,
    seen: list[dict[str, float]],
    *,
    shown: np.ndarray | None = None,
    plan: Plan = DEFAULT,
) -> list[dict[str, float]]:
    """Scores of images against what is known, for each query.

    Args:
        case: the task.
        asked: queries.
        truths: right answers.
        images: to score, [N C H W].
        seen: what the classifier makes of them.
        shown: what it was shown, if not the queries as drawn.
        plan: that the oracle is of.
    """
    shown = asked.images if shown is None else shown
    judge = oracle(case, plan=plan).features([LOGITS])
    found = []
    for query, target, truth, image, standing in zip(
        shown, asked.targets, truths, images, seen, strict=True
    ):
        with torch.no_grad():
            judged = int(judge(torch.from_numpy(image)).argmax())
        values = {
            **standing,
            "oracle_valid": float(judged == target),
            **edit_scores(query, image),
            **known_scores(query, image, truth)[0],
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
    """Mean normalised mass accuracy, where what either classifier is not convinced by counts zero.

    One that changes nothing counts zero too.
    """
    values = [
        each.get("normalised_mass_accuracy", 0.0) * each["valid"] * each["oracle_valid"]
        for each in scores
    ]
    return float(np.mean(values))


def slug(name: str) -> str:
    """Name of an arm in the name of a file."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def read(path: Path) -> dict[str, Any]:
    """A result."""
    return json.loads(path.read_text())


def write_images(name: str, images: np.ndarray, *, plan: Plan = DEFAULT) -> None:
    """Keep images, as bytes, for pictures and for the discrepancy of classifiers."""
    plan.runs.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(plan.runs / f"{name}.npz", images=np.round(255 * images).astype(np.uint8))


def read_images(name: str, *, plan: Plan = DEFAULT) -> np.ndarray:
    """What :func:`write_images` kept, [N C H W] from zero to one."""
    with np.load(plan.runs / f"{name}.npz") as file:
        return file["images"].astype(np.float32) / 255
