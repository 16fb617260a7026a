"""The jobs of the benchmark of counterfactuals: what each needs, computes and writes."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import counterfactual_cases as cases
import numpy as np
import torch
from counterfactual_cases import Queries, read, slug
from counterfactual_plans import DEFAULT, FIRST_TUNING, FULL, ORACLE, QUICK, TUNING_QUERIES, Plan
from job_queue import Job, load, path_of, save

from dipct.inversion import Counterfactual
from dipct.pipeline.inversion import digest_of_models
from dipct.pretrain import ClassifierTrainingSettings, TrainedClassifier, classifier_discrepancy
from dipct.pretrain.classifier_discrepancy import LEAST_COUNTERFACTUALS

# Of the arms of table 1 of arXiv 2109.14274, and one that is known to be adversarial.
DISCREPANCY_ARMS = (
    "LSO + TV + l2",
    "LSO + DIP",
    "LSO + INR",
    "LSO + DIP + DEP",
    "LSO + INR + DEP",
    "PGD",
)
_TRUE = "true counterfactual"
# What a result says of a classifier, without what it took.
_TELLING = ("accuracy", "parameters_sha256", "report", "centroids", "gate")
_TEST_IMAGES, _GATE_SEED = 1000, 12345
# Half as many images in a step and twice as many steps as of 150 with 64, which left one of three
# trainings on the true answers themselves with an accuracy of 0.67.
_DISCREPANCY_STEPS, _DISCREPANCY_BATCH = 300, 32


def weights(case: str, seed: int, *, plan: Plan | None = None) -> Job:
    """The classifier of a seed for others to read, where it is not there.

    Args:
        case: the task.
        seed: of the classifier, or that of the oracle.
        plan: that it belongs to, where this is another than that of the call.
    """
    name = "oracle" if seed == ORACLE else seed
    return Job(f"weights-{case}-{name}", (), train_again, (case, seed), plan)


def jobs(plan: Plan, case: str) -> list[Job]:
    """All jobs of a task, the most urgent first."""
    found: list[Job] = []
    judge, networks = f"weights-{case}-oracle", [f"weights-{case}-{seed}" for seed in plan.seeds]
    for seed in plan.seeds:
        found.append(Job(f"classifier-{case}-{seed}", (), train, (case, seed)))
    found.append(Job(f"oracle-{case}", (), train_oracle, (case,)))
    for seed in plan.seeds:
        found.append(weights(case, seed)._replace(needs=(f"classifier-{case}-{seed}",)))
    found.append(weights(case, ORACLE)._replace(needs=(f"oracle-{case}",)))
    used = {arm.generator for arm in plan.arms.values()}
    generators = [g for g in plan.order if g in used and g != "pixels"]
    for seed, name in _sets(plan):
        needs = (f"weights-{case}-{seed}",)
        found += [
            Job(f"start-{case}-{name}-{g}", needs, start, (case, name, g)) for g in generators
        ]
        found.append(Job(f"truth-{case}-{name}", needs, draw_truth, (case, name)))
    order = sorted(plan.arms, key=lambda name: plan.order.index(_of(plan, name)))
    for name in order if plan.tuning is None else ():
        needs = (judge, networks[0], *_starts(plan, case, "tuning", name))
        found.append(Job(f"tuning-{case}-{slug(name)}", needs, tune, (case, name)))
    for name in order:
        for seed, network in zip(plan.seeds, networks, strict=True):
            tuning = f"tuning-{case}-{slug(name)}"
            needs = (judge, network, tuning, *_starts(plan, case, str(seed), name))
            found.append(Job(f"run-{case}-{seed}-{slug(name)}", needs, run, (case, seed, name)))
    for seed, network in zip(plan.seeds, networks, strict=True):
        needs = (judge, network, f"truth-{case}-{seed}")
        found.append(Job(f"run-{case}-{seed}-controls", needs, run_controls, (case, seed)))
    if plan.cases[case].queries * len(plan.seeds) >= LEAST_COUNTERFACTUALS:
        compared = [name for name in DISCREPANCY_ARMS if name in plan.arms]
        for name in (_TRUE, *compared):
            stems = [f"run-{case}-{s}-{_source(name)}" for s in plan.seeds]
            # Without the images, which are not kept with the results, there is nothing to train on.
            needs = (*networks, *stems, *(f"images-{stem}" for stem in stems))
            if name != _TRUE:
                # Networks begin as reconstructions, of which classifiers are trained as well; those
                # trained on as many real images are the same for all arms.
                needs += tuple(
                    each for s in plan.seeds for each in _starts(plan, case, str(s), name)[1:]
                )
                needs += (f"discrepancy-{case}-{slug(_TRUE)}",)
            found.append(Job(f"discrepancy-{case}-{slug(name)}", needs, discrepancy, (case, name)))
    return found


def train_again(plan: Plan, name: str, case: str, seed: int) -> None:
    """The weights of a classifier, which are not kept with the results."""
    trained = cases.classifier(case, seed, plan=plan)
    is_oracle = seed == ORACLE
    path = path_of(plan, f"oracle-{case}" if is_oracle else f"classifier-{case}-{seed}")
    if not path.exists():
        return
    # To the last digit: numbers of heads and gate tell weights apart that are nearly the same.
    kept = {name: value for name, value in read(path).items() if name in _TELLING}
    now = {name: value for name, value in _described(trained).items() if name in kept}
    if kept != now:
        warnings.warn(
            f"{name} are not those that {path.name} is of, but of {now} where that has {kept}. "
            "Other processors round differently. Results of both are not of the same classifier: "
            "take those of this seed away, or compare arms of either only.",
            stacklevel=1,
        )


def train(plan: Plan, name: str, case: str, seed: int) -> Mapping[str, Any]:
    """A classifier; one that cannot be explained stops the benchmark."""
    trained = cases.classifier(case, seed, plan=plan)
    report, gate = trained.report, trained.gate
    if not gate.is_passed or not report.is_usable:
        raise SystemExit(f"{name} cannot be explained: {gate}, {report}")
    return _described(trained)


def train_oracle(plan: Plan, name: str, case: str) -> Mapping[str, Any]:
    """The other classifier, which says whether counterfactuals are of their class."""
    judge = cases.oracle(case, plan=plan)
    if not judge.gate.is_passed:
        raise SystemExit(f"{name} cannot judge: {judge.gate}")
    return _described(judge)


def _described(trained: TrainedClassifier) -> dict[str, Any]:
    """What it is worth, and its heads where it has them."""
    parts = {
        "report": trained.report,
        "centroids": trained.centroid_report,
        "gate": trained.gate,
    }
    found = {name: asdict(part) for name, part in parts.items() if part is not None}
    digest = digest_of_models([trained.model])
    return {"accuracy": trained.accuracy, "parameters_sha256": digest, **found}


def start(plan: Plan, name: str, case: str, queries: str, generator: str) -> None:
    """Networks that show the queries, which all arms with such a network begin with."""
    parameters, images = cases.start_of(_queries(plan, case, queries), generator, plan=plan)
    save(path_of(plan, name), {"parameters": parameters, "images": images})


def draw_truth(plan: Plan, name: str, case: str, queries: str) -> None:
    """Right answers to the queries."""
    save(path_of(plan, name), cases.truths_of(_queries(plan, case, queries)))


def tune(plan: Plan, name: str, case: str, arm_name: str) -> Mapping[str, Any]:
    """What each setting is worth, on queries that are not scored."""
    arm = plan.arms[arm_name]
    trained, asked = (
        cases.classifier(case, plan.seeds[0], plan=plan),
        _queries(plan, case, "tuning"),
    )
    first = _first(plan, case, "tuning", arm.generator)
    tried = []
    for values in arm.grid:
        settings = cases.settings_of(arm, values, plan=plan)
        found = cases.explain(trained, asked, settings, start=first, plan=plan)
        tried.append({"values": values, "merit": cases.merit(_scores(plan, case, "tuning", found))})
    return {"tried": tried}


def run(plan: Plan, name: str, case: str, seed: int, arm_name: str) -> Mapping[str, Any]:
    """All queries of a classifier by one arm."""
    arm = plan.arms[arm_name]
    chosen = cases.chosen_of(case, arm_name, plan=plan)
    asked, trained = _queries(plan, case, str(seed)), cases.classifier(case, seed, plan=plan)
    began, worked = time.perf_counter(), time.process_time()
    found = cases.explain(
        trained,
        asked,
        cases.settings_of(arm, chosen, plan=plan),
        start=_first(plan, case, str(seed), arm.generator),
        plan=plan,
    )
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    cases.write_images(name, np.stack([each.image for each in found]), plan=plan)
    return {
        "arm": arm_name,
        "case": case,
        "seed": seed,
        "settings": found[0].settings,
        "parameters_sha256": found[0].classifier["parameters_sha256"],
        "scores": _scores(plan, case, str(seed), found),
        "seconds_per_query": seconds / len(found),
        "processor_seconds_per_query": processor / len(found),
    }


def run_controls(plan: Plan, name: str, case: str, seed: int) -> Mapping[str, Any]:
    """What every score should be for the true answer, for nothing, and for noise."""
    asked = _queries(plan, case, str(seed))
    truths, trained = _truths(plan, case, str(seed)), cases.classifier(case, seed, plan=plan)
    rng = np.random.default_rng([seed, 4])
    true = np.stack([truth.images[0] for truth in truths])
    noise = rng.standard_normal(true.shape)
    sizes = np.linalg.norm((true - asked.images).reshape(len(true), -1), axis=1)
    lengths = sizes / np.linalg.norm(noise.reshape(len(true), -1), axis=1)
    random = (asked.images + lengths[:, None, None, None] * noise).clip(0, 1).astype(np.float32)
    rows = {_TRUE: true, "identity": asked.images, "random edit of the same size": random}
    found = {}
    for title, images in rows.items():
        seen = cases.standings(trained, images, asked.targets)
        found[title] = cases.scores_of(case, asked, truths, images, seen, plan=plan)
    cases.write_images(name, true, plan=plan)
    return {"case": case, "seed": seed, "scores": found}


def discrepancy(plan: Plan, name: str, case: str, arm_name: str) -> Mapping[str, Any]:
    """What a classifier learns from the counterfactuals of an arm in place of pictures."""
    found = plan.cases[case]
    stems = [f"run-{case}-{seed}-{_source(arm_name)}" for seed in plan.seeds]
    images = np.concatenate([cases.read_images(stem, plan=plan) for stem in stems])
    trained = cases.classifier(case, plan.seeds[0], plan=plan)
    asked = [_queries(plan, case, str(seed)) for seed in plan.seeds]
    (target,) = {target for each in asked for target in each.targets}
    sources = np.concatenate([each.images for each in asked])
    generator = None if arm_name == _TRUE else _of(plan, arm_name)
    shown = None
    if generator in ("unet", "inr"):
        names = [f"start-{case}-{seed}-{generator}" for seed in plan.seeds]
        shown = np.concatenate([load(path_of(plan, each))["images"] for each in names])
    task = asked[0].task
    pictures, index = {found.source: [], target: []}, 0
    wanted = {found.source: _TEST_IMAGES // 2, target: _TEST_IMAGES // 2 + len(images)}
    while any(len(pictures[label]) < number for label, number in wanted.items()):
        scene = task.sample_one(index, seed=_GATE_SEED)
        index += 1
        of_class = pictures.get(task.label(scene.causes), [])
        of_class.append(scene.image)
    half = _TEST_IMAGES // 2
    others = {label: np.stack(each) for label, each in pictures.items()}
    test = np.concatenate([others[found.source][:half], others[target][:half]])
    training = ClassifierTrainingSettings(
        steps=_DISCREPANCY_STEPS, batch=_DISCREPANCY_BATCH, noise=found.training["noise"]
    )

    def moved(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).float().to(plan.device)

    measured = classifier_discrepancy(
        trained.model.to(plan.device),
        sources=moved(sources),
        targets=moved(others[target][half:]),
        counterfactuals=moved(images),
        test_images=moved(test),
        test_labels=torch.tensor([found.source, target], device=plan.device).repeat_interleave(
            half
        ),
        settings=training,
        pair=(found.source, target),
        reconstructions=None if shown is None else moved(shown),
        architecture=found.training.get("architecture", "small"),
        control=None if arm_name == _TRUE else _control(plan, case),
    )
    trained.model.cpu()
    return {"arm": arm_name, "case": case, **asdict(measured)}


def _control(plan: Plan, case: str) -> list[float]:
    """Accuracies that are the same for all arms, from the one that is measured first."""
    measured = cases.read(path_of(plan, f"discrepancy-{case}-{slug(_TRUE)}"))
    return measured["accuracy_control"]["values"]


def _sets(plan: Plan) -> list[tuple[int, str]]:
    """Sets of queries: the seed of their classifier, and their name."""
    tuned = [] if plan.tuning is not None else [(plan.seeds[0], "tuning")]
    return [*tuned, *((seed, str(seed)) for seed in plan.seeds)]


def _source(arm_name: str) -> str:
    """What the name of a run with the images of an arm ends with."""
    return "controls" if arm_name == _TRUE else slug(arm_name)


def _of(plan: Plan, arm_name: str) -> str:
    return plan.arms[arm_name].generator


def _starts(plan: Plan, case: str, queries: str, arm_name: str) -> tuple[str, ...]:
    generator = _of(plan, arm_name)
    found = (f"truth-{case}-{queries}",)
    return found if generator == "pixels" else (*found, f"start-{case}-{queries}-{generator}")


def _queries(plan: Plan, case: str, name: str) -> Queries:
    return _queries_of(plan.folder, case, name)


@cache
def _queries_of(folder: Path, case: str, name: str) -> Queries:
    # They do not depend on the device, which is all that a call changes of a plan.
    plan = next(each for each in (DEFAULT, FULL, QUICK) if each.folder == folder)
    if name == "tuning":
        return cases.queries(case, plan.seeds[0], TUNING_QUERIES, first=FIRST_TUNING, plan=plan)
    return cases.queries(case, int(name), plan.cases[case].queries, plan=plan)


def _first(plan: Plan, case: str, queries: str, generator: str) -> torch.Tensor | None:
    if generator == "pixels":
        return None
    return load(path_of(plan, f"start-{case}-{queries}-{generator}"))["parameters"]


def _truths(plan: Plan, case: str, queries: str) -> list[Any]:
    return load(path_of(plan, f"truth-{case}-{queries}"))


def _scores(
    plan: Plan, case: str, queries: str, found: list[Counterfactual]
) -> list[dict[str, float]]:
    return cases.scores_of(
        case,
        _queries(plan, case, queries),
        _truths(plan, case, queries),
        np.stack([each.image for each in found]),
        standings_of(found),
        plan=plan,
    )


def standings_of(found: list[Counterfactual]) -> list[dict[str, float]]:
    """What the classifier makes of counterfactuals."""
    return [
        {
            "valid": float(each.valid),
            "confident": float(each.confident),
            "p_target": each.p_target,
            "chosen_step": each.chosen_step,
            "loss_estimate": each.scores.get("loss_estimate", float("nan")),
        }
        for each in found
    ]
