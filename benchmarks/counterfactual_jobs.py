"""The jobs of the benchmark of counterfactuals: what each needs, computes and writes."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import counterfactual_cases as cases
import numpy as np
import torch
from counterfactual_cases import (
    DEFAULT,
    FIRST_TUNING,
    FULL,
    QUICK,
    TUNING_QUERIES,
    Plan,
    Queries,
    slug,
)
from measuring import machine, write_result

from dipct.inversion import Counterfactual
from dipct.pretrain import ClassifierTrainingSettings, classifier_discrepancy
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
_TEST_IMAGES, _DISCREPANCY_STEPS, _GATE_SEED = 1000, 150, 12345
_WORKING = 5.0


class Job(NamedTuple):
    """Something to compute.

    Attributes:
        name: of the file that it writes.
        needs: names of the jobs that come before.
        action: what writes the file, called with the plan and the arguments.
        arguments: see there.
    """

    name: str
    needs: tuple[str, ...]
    action: Callable[..., None]
    arguments: tuple[Any, ...]

    def path(self, plan: Plan) -> Path:
        """What it writes."""
        return path_of(plan, self.name)


def path_of(plan: Plan, name: str) -> Path:
    """The file of a job: results are JSON, all else lies among the runs."""
    if name.startswith("tuning-"):
        return (plan.tuning or plan.folder) / f"{name}.json"
    is_kept_apart = name.startswith(("start-", "truth-"))
    return plan.runs / f"{name}.pt" if is_kept_apart else plan.folder / f"{name}.json"


def jobs(plan: Plan, case: str) -> list[Job]:
    """All jobs of a task, the most urgent first."""
    found: list[Job] = []
    judge = f"oracle-{case}"
    for seed in plan.seeds:
        found.append(Job(f"classifier-{case}-{seed}", (), train, (case, seed)))
    found.append(Job(judge, (), train_oracle, (case,)))
    used = {arm.generator for arm in plan.arms.values()}
    generators = [g for g in plan.order if g in used and g != "pixels"]
    for seed, name in _sets(plan):
        needs = (f"classifier-{case}-{seed}",)
        found += [
            Job(f"start-{case}-{name}-{g}", needs, start, (case, name, g)) for g in generators
        ]
        found.append(Job(f"truth-{case}-{name}", needs, draw_truth, (case, name)))
    order = sorted(plan.arms, key=lambda name: plan.order.index(_of(plan, name)))
    for name in order if plan.tuning is None else ():
        needs = (judge, *_starts(plan, case, "tuning", name))
        found.append(Job(f"tuning-{case}-{slug(name)}", needs, tune, (case, name)))
    for name in order:
        for seed in plan.seeds:
            tuning = f"tuning-{case}-{slug(name)}"
            needs = (judge, tuning, *_starts(plan, case, str(seed), name))
            found.append(Job(f"run-{case}-{seed}-{slug(name)}", needs, run, (case, seed, name)))
    for seed in plan.seeds:
        needs = (judge, f"truth-{case}-{seed}")
        found.append(Job(f"run-{case}-{seed}-controls", needs, run_controls, (case, seed)))
    if plan.cases[case].queries * len(plan.seeds) >= LEAST_COUNTERFACTUALS:
        for name in (*DISCREPANCY_ARMS, _TRUE):
            source = "controls" if name == _TRUE else slug(name)
            needs = tuple(f"run-{case}-{seed}-{source}" for seed in plan.seeds)
            found.append(Job(f"discrepancy-{case}-{slug(name)}", needs, discrepancy, (case, name)))
    return found


def work(
    plan: Plan, todo: Iterable[Job], *, processes: int, seconds: float | None = None
) -> Iterator[str]:
    """Do what is not done yet, as many jobs at once as there are processes.

    Args:
        plan: what is computed.
        todo: jobs, the most urgent first.
        processes: each of one thread.
        seconds: after which none begins any more.

    Yields:
        The name of each job that is done.
    """
    began = time.perf_counter()
    waiting = [job for job in todo if not job.path(plan).exists()]
    running: dict[Future[None], Job] = {}
    context = get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        try:
            while True:
                is_time = seconds is None or time.perf_counter() - began < seconds
                for job in list(waiting) if is_time else ():
                    is_ready = all(path_of(plan, name).exists() for name in job.needs)
                    if is_ready and len(running) < processes:
                        waiting.remove(job)
                        running[pool.submit(job.action, plan, job.name, *job.arguments)] = job
                if not running:
                    return
                done, _ = wait(running, timeout=_WORKING, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future).name
                    future.result()
                    yield name
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train(plan: Plan, name: str, case: str, seed: int) -> None:
    """A classifier; one that cannot be explained stops the benchmark."""
    began = time.perf_counter()
    trained = cases.classifier(case, seed, plan=plan)
    report, gate = trained.report, trained.gate
    if not gate.is_passed or not report.is_usable:
        raise SystemExit(f"{name} cannot be explained: {gate}, {report}")
    _write(
        plan,
        name,
        began,
        {
            "accuracy": trained.accuracy,
            "report": asdict(report),
            "centroids": asdict(trained.centroid_report),
            "gate": asdict(gate),
        },
    )


def train_oracle(plan: Plan, name: str, case: str) -> None:
    """The other classifier, which says whether counterfactuals are of their class."""
    began = time.perf_counter()
    judge = cases.oracle(case, plan=plan)
    if not judge.gate.is_passed:
        raise SystemExit(f"{name} cannot judge: {judge.gate}")
    _write(plan, name, began, {"accuracy": judge.accuracy, "gate": asdict(judge.gate)})


def start(plan: Plan, name: str, case: str, queries: str, generator: str) -> None:
    """Networks that show the queries, which all arms with such a network begin with."""
    began = time.perf_counter()
    parameters, images = cases.start_of(_queries(plan, case, queries), generator, plan=plan)
    seconds = time.perf_counter() - began
    _save(path_of(plan, name), {"parameters": parameters, "images": images, "seconds": seconds})


def draw_truth(plan: Plan, name: str, case: str, queries: str) -> None:
    """Right answers to the queries."""
    _save(path_of(plan, name), cases.truths_of(_queries(plan, case, queries)))


def tune(plan: Plan, name: str, case: str, arm_name: str) -> None:
    """What each setting is worth, on queries that are not scored."""
    arm, began = plan.arms[arm_name], time.perf_counter()
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
    _write(plan, name, began, {"tried": tried})


def run(plan: Plan, name: str, case: str, seed: int, arm_name: str) -> None:
    """All queries of a classifier by one arm."""
    arm, began = plan.arms[arm_name], time.perf_counter()
    chosen = cases.chosen_of(case, arm_name, plan=plan)
    asked, trained = _queries(plan, case, str(seed)), cases.classifier(case, seed, plan=plan)
    found = cases.explain(
        trained,
        asked,
        cases.settings_of(arm, chosen, plan=plan),
        start=_first(plan, case, str(seed), arm.generator),
        plan=plan,
    )
    seconds = time.perf_counter() - began
    cases.write_images(name, np.stack([each.image for each in found]), plan=plan)
    values = {
        "arm": arm_name,
        "case": case,
        "seed": seed,
        "settings": found[0].settings,
        "scores": _scores(plan, case, str(seed), found),
        "seconds_per_query": seconds / len(found),
    }
    _write(plan, name, began, values)


def run_controls(plan: Plan, name: str, case: str, seed: int) -> None:
    """What every score should be for the true answer, for nothing, and for noise."""
    asked, began = _queries(plan, case, str(seed)), time.perf_counter()
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
    _write(plan, name, began, {"case": case, "seed": seed, "scores": found})


def discrepancy(plan: Plan, name: str, case: str, arm_name: str) -> None:
    """What a classifier learns from the counterfactuals of an arm in place of pictures."""
    began, found = time.perf_counter(), plan.cases[case]
    stems = [
        f"run-{case}-{seed}-{'controls' if arm_name == _TRUE else slug(arm_name)}"
        for seed in plan.seeds
    ]
    images = np.concatenate([cases.read_images(stem, plan=plan) for stem in stems])
    trained = cases.classifier(case, plan.seeds[0], plan=plan)
    asked = [_queries(plan, case, str(seed)) for seed in plan.seeds]
    (target,) = {target for each in asked for target in each.targets}
    sources = np.concatenate([each.images for each in asked])
    generator = None if arm_name == _TRUE else _of(plan, arm_name)
    shown = None
    if generator in ("unet", "inr"):
        names = [f"start-{case}-{seed}-{generator}" for seed in plan.seeds]
        shown = np.concatenate([_load(path_of(plan, each))["images"] for each in names])
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
        steps=_DISCREPANCY_STEPS, batch=64, noise=found.training["noise"]
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
    )
    trained.model.cpu()
    _write(plan, name, began, {"arm": arm_name, "case": case, **asdict(measured)})


def _sets(plan: Plan) -> list[tuple[int, str]]:
    """Sets of queries: the seed of their classifier, and their name."""
    tuned = [] if plan.tuning is not None else [(plan.seeds[0], "tuning")]
    return [*tuned, *((seed, str(seed)) for seed in plan.seeds)]


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
    return _load(path_of(plan, f"start-{case}-{queries}-{generator}"))["parameters"]


def _truths(plan: Plan, case: str, queries: str) -> list[Any]:
    return _load(path_of(plan, f"truth-{case}-{queries}"))


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


def _load(path: Path) -> Any:
    # Written by this benchmark itself.
    return torch.load(path, weights_only=False)


def _save(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(values, temporary)
    temporary.replace(path)


def _write(plan: Plan, name: str, began: float, values: dict[str, Any]) -> None:
    seconds = time.perf_counter() - began
    write_result(path_of(plan, name), values | {"seconds": seconds, "machine": machine()})
