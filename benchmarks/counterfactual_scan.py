"""Does the scan determine the diagnosis? Counterfactuals of drawn walnuts that agree with a scan.

Walnuts, intact or cracked, are scanned with many and with few views and reconstructed with total
variation; for each number of views a classifier is trained on such reconstructions. It is asked for
images of the other class, without regard to the scan and in agreement with it. Where the class
changes at a misfit within the noise, the scan leaves the diagnosis open.

    python benchmarks/counterfactual_scan.py                 # what is not done, two at a time
    python benchmarks/counterfactual_scan.py --seconds 90    # nothing begins later than that
    python benchmarks/counterfactual_scan.py --table         # table and picture only
    python benchmarks/counterfactual_scan.py --quick         # tiny, and no page is written
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import counterfactual_cases as cases
import numpy as np
import torch
from compared_arms import say_untuned, tuned
from counterfactual_scan_tables import ARMS, DRAWN, PICTURE, Plan, table, write_picture
from job_options import options_parser, publish, run_jobs
from job_queue import Job, path_of
from measuring import RESULTS

from dipct.classifier_settings import ClassifierSettings
from dipct.objective import DataTerm, GaussianFidelity
from dipct.operator import LOGITS
from dipct.phantom import Scene, SceneTask, make_task
from dipct.pipeline import counterfactual, open_labelled, remove_checkpoint, train_classifier
from dipct.pipeline.labelled import QUERY
from dipct.pretrain import (
    LabelledImages,
    ScannedScenes,
    SceneGate,
    TrainedClassifier,
    read_trained_classifier,
    scan_scenes,
    scene_gate,
    write_trained_classifier,
)
from dipct.solver import PrimalDualTV, iterate

FOLDER = RESULTS / "counterfactual_scan"
PLAN = Plan(
    FOLDER,
    side=48,
    views=(60, 12, 6),
    training=2000,
    held_out=200,
    steps=600,
    nuts=4,
    fit_steps=300,
)
QUICK = replace(
    PLAN, folder=FOLDER / "runs" / "quick", side=32, training=300, held_out=12, steps=80, nuts=1
)
NOISE, TV_WEIGHT, TV_STEPS = 0.02, 4.0, 150
TRAINING = {"batch": 32, "learning_rate": 3e-3, "noise": 0.1, "loss_estimator": False}
# Scans are dark, and grey is nothing that they should tend to.
ARM, SETTINGS = "LSO + TV + l2", {"norm_weight": 0.0}
# Pictures that are reconstructed at once.
_AT_ONCE = 250


@dataclass(frozen=True, eq=False)
class Scanned:
    """Walnuts, their scans and the reconstructions, [N 1 H W] from zero to one."""

    scenes: list[Scene]
    scans: ScannedScenes
    images: torch.Tensor

    def misfit(self, numbers: np.ndarray) -> DataTerm:
        """To the scans of some."""
        fidelity = GaussianFidelity(
            self.scans.projections[numbers],
            self.scans.std[numbers, None, None],
            range_shape=self.scans.operator.range_shape,
        )
        return DataTerm(self.scans.operator, fidelity, name="measurement")


def reconstructed(scenes: list[Scene], views: int, *, seed: int) -> Scanned:
    """Scan walnuts and reconstruct them.

    Args:
        scenes: as drawn.
        views: of each scan.
        seed: of the noise.
    """
    found = Scanned(
        scenes, scan_scenes(scenes, views=views, noise=NOISE, seed=seed), torch.empty(0)
    )
    parts = []
    for numbers in np.array_split(np.arange(len(scenes)), -(-len(scenes) // _AT_ONCE)):
        misfit = found.misfit(numbers)
        method = PrimalDualTV(
            misfit.operator, misfit.fidelity, TV_WEIGHT, upper=1.0, tolerance=1e-3
        )
        parts.append(iterate(method, max_iterations=TV_STEPS, every=50).value.clamp(0, 1))
    return replace(found, images=torch.cat(parts))


def labelled(task: SceneTask, number: int, views: int, *, seed: int) -> LabelledImages:
    """Reconstructions with their true classes."""
    scenes = task.sample(number, seed=seed)
    return LabelledImages(
        images=reconstructed(scenes, views, seed=seed).images.numpy(),
        labels=task.labels(scenes),
        classes=task.classes,
        groups=np.arange(number),
        source={"kind": "scans of walnuts", "views": views, "number": number, "seed": seed},
    )


@torch.no_grad()
def seen(classifier: TrainedClassifier, images: torch.Tensor) -> torch.Tensor:
    """Classes, [N]."""
    parts = images.split(_AT_ONCE)
    return torch.cat([classifier.features([LOGITS])(part).argmax(-1) for part in parts])


def training_settings(plan: Plan) -> ClassifierSettings:
    return ClassifierSettings.from_values(
        {**TRAINING, "side": plan.side, "steps": plan.steps, "number": plan.training}
    )


def train(plan: Plan, name: str, views: int) -> None:
    """Train the classifier of a number of views."""
    task, path = make_task("walnuts", plan.side), path_of(plan, name)
    training, held_out = (
        labelled(task, number, views, seed=seed)
        for seed, number in enumerate((plan.training, plan.held_out))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.with_name(f"{path.name}.checkpoint")
    classifier = train_classifier(
        training, held_out, training_settings(plan), checkpoint=kept, resume=kept.exists()
    )
    write_trained_classifier(classifier, path)
    remove_checkpoint(kept)


def measure(plan: Plan, name: str, views: int) -> Mapping[str, Any]:
    """See what the predictions of a classifier follow."""
    return _measured(plan, scanned_gate(plan, classifier_of(plan, views), views))


def measure_drawn(plan: Plan, name: str) -> Mapping[str, Any]:
    """Train a classifier on as many drawings, and see what its predictions follow."""
    settings = training_settings(plan)
    # Labels of the scanned ones are all right.
    task = make_task("walnuts", plan.side, label_noise=0.0)
    training, held_out = open_labelled(settings, task=task)
    trained = train_classifier(training, held_out, settings)
    gate = scene_gate(trained.model, task, number=plan.held_out, seed=2)
    return _measured(plan, gate)


def _measured(plan: Plan, gate: SceneGate) -> dict[str, Any]:
    return {
        "training": training_settings(plan).to_values(),
        "accuracy": gate.accuracy,
        "causal_flips": gate.causal_flips,
        "nuisance_flips": gate.nuisance_flips,
        "is_passed": gate.is_passed,
        "held_out": plan.held_out,
    }


def classifier_of(plan: Plan, views: int) -> TrainedClassifier:
    return read_trained_classifier(path_of(plan, f"weights-{views}-views"))


def scanned_gate(plan: Plan, classifier: TrainedClassifier, views: int) -> SceneGate:
    """The gate of drawn tasks, of reconstructions: each picture has a scan of its own."""
    task = make_task("walnuts", plan.side)
    scenes = task.sample(plan.held_out, seed=2)
    labels = torch.from_numpy(task.labels(scenes))
    others = [task.counterfactual(s, 1 - task.label(s.causes)) for s in scenes]
    moved = [task.with_other_nuisances(s, seed=3 + i) for i, s in enumerate(scenes)]
    classes, of_others, of_moved = (
        seen(classifier, reconstructed(each, views, seed=seed).images)
        for seed, each in enumerate((scenes, others, moved), 2)
    )
    right = classes == labels
    flips = of_others[right] != labels[right]
    return SceneGate(
        accuracy=float(right.double().mean()),
        causal_flips=float(flips.double().mean()) if len(flips) else 0.0,
        nuisance_flips=float((of_moved != classes).double().mean()),
    )


def queries(plan: Plan, views: int) -> tuple[Scanned, np.ndarray, list[Scene]]:
    """Walnuts to explain: scanned ones, numbers of those to explain, and their counterfactuals.

    They are the first of each class that the classifier sees right, and whose true counterfactual,
    scanned as well, it sees in the other class.
    """
    task = make_task("walnuts", plan.side)
    classifier = classifier_of(plan, views)
    scenes = task.sample(12 * plan.nuts, seed=QUERY)
    labels = task.labels(scenes)
    others = [task.counterfactual(s, 1 - task.label(s.causes)) for s in scenes]
    nuts = reconstructed(scenes, views, seed=QUERY)
    right = (seen(classifier, nuts.images).numpy() == labels) & (
        seen(classifier, reconstructed(others, views, seed=QUERY + 1).images).numpy() != labels
    )
    of_class = [np.flatnonzero(right & (labels == label))[: plan.nuts] for label in (0, 1)]
    numbers = np.concatenate(of_class)
    return nuts, numbers, [others[i] for i in numbers]


def run(plan: Plan, name: str, views: int, arm: str) -> Mapping[str, Any]:
    """All nuts of a number of views, by one arm."""
    if not cases.read(path_of(plan, f"classifier-{views}"))["is_passed"]:
        # What does not follow the cause alone is no diagnosis that a scan could determine.
        return {"views": views, "nuts": []}
    classifier = classifier_of(plan, views)
    nuts, numbers, others = queries(plan, views)
    if not len(numbers):
        # Nothing to explain is a result too.
        return {"views": views, "nuts": []}
    misfit, images = nuts.misfit(numbers), nuts.images[numbers]
    targets = [make_task("walnuts", plan.side).label(other.causes) for other in others]
    # The misfit counts half its mean square, which then costs as much at the limit as the arm says.
    price = ARMS[arm]
    weight = {} if price is None else {"measurement_weight": 2 * price / plan.margin(misfit.size)}
    chosen = cases.chosen_of("faces", ARM) | SETTINGS | weight | {"steps": plan.fit_steps}
    settings = cases.settings_of(tuned((ARM,))[ARM], chosen)
    found = counterfactual(
        classifier, images, targets, settings, measurement=None if price is None else misfit
    )
    pictures = {
        "query": images.numpy(),
        "image": np.stack([each.image for each in found]),
        "drawing": np.stack([nuts.scenes[i].image for i in numbers]),
        "true_counterfactual": np.stack([other.image for other in others]),
    }
    with torch.no_grad():
        misfits = {
            kind: misfit.fidelity.discrepancy(misfit.operator(torch.from_numpy(each))).tolist()
            for kind, each in pictures.items()
        }
    np.savez_compressed(plan.runs / f"{name}.npz", **pictures)
    return {
        "views": views,
        "rays": misfit.size,
        "noise": NOISE,
        "tv_weight": TV_WEIGHT,
        "settings": settings.to_values(),
        "nuts": [
            {
                "nut": int(number),
                "target": each.class_name(each.target),
                "valid": each.valid,
                "p_target_query": each.p_target_query,
                "p_target": each.p_target,
                "misfit": {kind: of[i] for kind, of in misfits.items()},
                "mse": each.scores["mse"],
            }
            for i, (number, each) in enumerate(zip(numbers, found, strict=True))
        ],
    }


def all_jobs(plan: Plan) -> list[Job]:
    """The classifiers, what they are worth, and what explains them."""
    weights = {views: f"weights-{views}-views" for views in plan.views}
    found = [Job(f"classifier-{DRAWN}", (), measure_drawn, ())]
    found += [Job(name, (), train, (views,)) for views, name in weights.items()]
    for views, name in weights.items():
        found.append(Job(f"classifier-{views}", (name,), measure, (views,)))
        for arm in ARMS if tuned((ARM,)) else ():
            needs = (name, f"classifier-{views}")
            found.append(Job(f"{views}-views-{arm}", needs, run, (views, arm)))
    return found


def main() -> None:
    options = options_parser(__doc__, quick=True, device=False).parse_args()
    plan = QUICK if options.quick else PLAN
    say_untuned((ARM,))
    run_jobs(plan, all_jobs(plan), options)
    write_picture(plan, plan.runs / PICTURE.name if options.quick else PICTURE)
    publish("counterfactuals scan", table(plan), plan.folder.glob("*.json"), options)


if __name__ == "__main__":
    main()
