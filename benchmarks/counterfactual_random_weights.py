"""Counterfactuals have to depend on the classifier: its weights are drawn anew.

The sanity check of Adebayo et al. (NeurIPS 2018, section 3.1): weights are randomised one stage
after another, from the last to the first. Where the edits stay as they were, they do not explain
the classifier. The negative control is the same classifier with other random numbers in the
generator: there the edits should stay.

Faces of 32 pixels and the first classifier of benchmarks/counterfactuals.py, with the settings that
are chosen there.

    python benchmarks/counterfactual_random_weights.py                # what is not done
    python benchmarks/counterfactual_random_weights.py --seconds 90   # begin nothing later
    python benchmarks/counterfactual_random_weights.py --table        # table and picture only
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import counterfactual_cases as cases
import numpy as np
import torch
from compared_arms import say_untuned, tuned
from counterfactual_cases import read, slug
from counterfactual_jobs import weights as weights_of
from counterfactual_pictures import PICTURES, save_titled
from counterfactual_plans import DEFAULT, Plan
from job_options import on_device, options_parser, publish, run_jobs
from job_queue import Job, load, path_of, save
from measuring import RESULTS, table
from scipy.stats import spearmanr
from torch import nn

from dipct.classifier import STAGES
from dipct.evaluation import bootstrap_interval, localisation, ssim
from dipct.evaluation.edits import changes
from dipct.pipeline import counterfactual, task_of
from dipct.pretrain import TrainedClassifier, make_classifier

# Without a manifold term: what is drawn anew has no loss estimator.
ARMS = ("LSO + INR", "L1 + INR", "PGD")
PLAN = Plan(
    RESULTS / "counterfactual_random_weights",
    {"faces": replace(DEFAULT.cases["faces"], queries=12)},
    tuned(ARMS),
)
QUICK = replace(
    PLAN,
    folder=PLAN.folder / "runs" / "quick",
    cases={"faces": replace(DEFAULT.cases["faces"], queries=2)},
    arms={name: arm.shortened(10) for name, arm in PLAN.arms.items()},
)
"""For a look at how it all works; its numbers say nothing."""

# What is drawn anew: the first so many of these.
PARTS = ("fc", *reversed(STAGES), "stem")
STEM = ("conv1", "bn1")
WEIGHT_SEEDS = (1000, 1001)
# Faces that the statistics of batch normalisation are of.
SEEN, SEEN_SEED = 256, 4321
REFERENCE, CONTROL = 0, 1
"""Seeds of the generator. Fits that are compared never share random numbers, so that what the
generator leaves of the query is not taken for a likeness of edits."""


def randomised(trained: TrainedClassifier, number: int, seed: int) -> TrainedClassifier:
    """The classifier with the weights of the last stages drawn anew.

    Their batch normalisation gets statistics of faces again: with those of other weights, hidden
    features would vanish, and what follows would no longer be a classifier of any image.

    Args:
        trained: is not changed.
        number: how many of :data:`PARTS`.
        seed: of the weights.
    """
    model = copy.deepcopy(trained.model)
    fresh = make_classifier(**{**trained.architecture, "seed": seed})
    names = [name for part in PARTS[:number] for name in (STEM if part == "stem" else (part,))]
    for name in names:
        model.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.train()
    task = task_of(trained)
    faces = [task.sample_one(index, seed=SEEN_SEED).image for index in range(SEEN)]
    with torch.no_grad():
        model(torch.from_numpy(np.stack(faces)))
    model.eval()
    return replace(
        trained, model=model, estimator=None, report=None, centroids=None, centroid_report=None
    )


def title_of(number: int) -> str:
    """Of a classifier with so many parts drawn anew."""
    if number == len(PARTS):
        return "all weights"
    return PARTS[0] if number == 1 else f"{PARTS[0]} to {PARTS[number - 1]}"


def run_name(arm: str, number: int, weights: int | None, generator: int) -> str:
    drawn = "trained" if weights is None else f"{number}-parts-{weights}"
    return f"{slug(arm)}-{drawn}-generator-{generator}"


def runs_of(arm: str) -> list[tuple[int, int | None, int]]:
    """Parts that are drawn anew, the seed of their weights, and that of the generator."""
    # PGD has no generator, and no random numbers at all.
    trained = [REFERENCE] if arm == "PGD" else [REFERENCE, CONTROL]
    return [
        *((0, None, generator) for generator in trained),
        *((n + 1, seed, CONTROL) for n in range(len(PARTS)) for seed in WEIGHT_SEEDS),
    ]


def all_jobs(plan: Plan) -> list[Job]:
    """The trained classifier, what the networks begin with, and the fits."""
    trained = weights_of("faces", 0, plan=DEFAULT)
    found = [trained]
    for seed in (REFERENCE, CONTROL):
        found.append(Job(f"start-faces-{seed}", (trained.name,), start, (seed,)))
    for arm in plan.arms:
        reference = run_name(arm, 0, None, REFERENCE)
        for number, weights, generator in runs_of(arm):
            name = run_name(arm, number, weights, generator)
            needs = (trained.name,) if arm == "PGD" else (trained.name, f"start-faces-{generator}")
            # Edits are compared, and those are not kept with the results.
            needs += (reference, f"images-{reference}") if name != reference else ()
            found.append(Job(name, needs, run, (arm, number, weights, generator)))
    return found


def start(plan: Plan, name: str, seed: int) -> None:
    """Implicit networks that show the queries, [N P]; no classifier has a part in it."""
    save(path_of(plan, name), cases.start_of(_asked(plan), "inr", seed=seed, plan=plan)[0])


def run(
    plan: Plan, name: str, arm_name: str, number: int, weights: int | None, generator: int
) -> Mapping[str, Any]:
    """Edits of all queries for one classifier, and how like those of the trained one they are."""
    asked, trained = _asked(plan), cases.classifier("faces", 0)
    arm = plan.arms[arm_name]
    chosen = cases.chosen_of("faces", arm_name) | {"seed": generator}
    settings = cases.settings_of(arm, chosen, plan=plan)
    found = counterfactual(
        trained if weights is None else randomised(trained, number, weights),
        asked.images,
        # The other class than it sees: what is not trained may see a smile in every face.
        None,
        settings,
        initial=None if arm_name == "PGD" else load(path_of(plan, f"start-faces-{generator}")),
    )
    edits = np.stack([each.image - each.query for each in found])
    reference = run_name(arm_name, 0, None, REFERENCE)
    wanted = edits if name == reference else read_edits(plan, reference)
    rows = []
    for each, edit, other, truth in zip(found, edits, wanted, cases.truths_of(asked), strict=True):
        where = localisation(each.query, each.image, truth.may)
        row = {
            "valid": float(each.valid),
            "normalised_mass_accuracy": where.normalised_mass_accuracy,
            **likeness(edit, other),
        }
        rows.append({column: value for column, value in row.items() if np.isfinite(value)})
    plan.runs.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(plan.runs / f"{name}.npz", edits=edits.astype(np.float32))
    return {
        "arm": arm_name,
        "parts": list(PARTS[:number]),
        "weights_seed": weights,
        "generator_seed": generator,
        "settings": found[0].settings,
        "scores": rows,
    }


def likeness(edit: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Of the sizes of two edits [C H W]: rank correlation, and SSIM with both of range one."""
    first, second = (changes(np.zeros_like(each), each)[0] for each in (edit, other))
    if first.max() == 0 or second.max() == 0:
        return {}
    return {
        "rank_correlation": float(spearmanr(first.ravel(), second.ravel()).statistic),
        "ssim": ssim(first / first.max(), second / second.max(), data_range=1.0),
    }


def read_edits(plan: Plan, name: str) -> np.ndarray:
    """What :func:`run` kept, [N C H W]."""
    with np.load(plan.runs / f"{name}.npz") as file:
        return file["edits"]


def table_of(plan: Plan) -> str:
    """By arm and what was drawn anew; and the verdict."""
    columns = ("rank_correlation", "ssim", "normalised_mass_accuracy", "valid")
    lines, verdicts = [], []
    for arm in ARMS:
        groups = _groups(plan, arm)
        for title, runs in groups.items():
            cells = [_interval(_by_query(runs, column)) for column in columns]
            lines.append([arm, title, str(sum(map(len, runs))), *cells])
        verdicts += _verdict(arm, groups)
    if not lines:
        return "Nothing was run yet."
    header = ["arm", "drawn anew", "n", "rank correlation", "SSIM", "nMA", "valid"]
    return "\n".join([table(header, lines), "", *(f"* {each}" for each in verdicts)])


def _groups(plan: Plan, arm: str) -> dict[str, list[list[dict[str, float]]]]:
    """Scores of the runs there are, by what was drawn anew."""
    found: dict[str, list[list[dict[str, float]]]] = {}
    for number, weights, generator in runs_of(arm):
        path = path_of(plan, run_name(arm, number, weights, generator))
        if not path.exists():
            continue
        if weights is not None:
            title = title_of(number)
        else:
            title = "nothing" if generator == REFERENCE else "generator alone"
        found.setdefault(title, []).append(read(path)["scores"])
    return found


def _by_query(runs: Sequence[list[dict[str, float]]], column: str) -> np.ndarray:
    """Mean over the draws of weights, for each query; NaN where a query has no value."""
    found = np.array([[row.get(column, np.nan) for row in rows] for rows in runs])
    number = np.isfinite(found).sum(0)
    return np.where(number > 0, np.nansum(found, 0) / np.maximum(number, 1), np.nan)


def _interval(values: np.ndarray, sign: str = "") -> str:
    """Mean and its interval."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    low, high = bootstrap_interval(values)
    return f"{values.mean():{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def _verdict(arm: str, groups: dict[str, list[list[dict[str, float]]]]) -> list[str]:
    """Is the edit less like that of the trained classifier than another generator makes it?"""
    control = groups.get("generator alone" if arm != "PGD" else "nothing")
    drawn = groups.get("all weights")
    if control is None or drawn is None:
        return []
    against = "another seed of the generator" if arm != "PGD" else "itself, which is 1"
    found = []
    for column, title in (("rank_correlation", "rank correlation"), ("ssim", "SSIM")):
        loss = _by_query(drawn, column) - _by_query(control, column)
        loss = loss[np.isfinite(loss)]
        if not len(loss):
            continue
        _, high = bootstrap_interval(loss)
        verdict = "the explanation changes" if high < 0 else "a change is not shown"
        found.append(
            f"{arm}, {title} with all weights drawn anew, less that with {against}: "
            f"{_interval(loss, '+')}, paired by query: {verdict}."
        )
    return found


def picture(plan: Plan, path: Path) -> None:
    """Of the first query, the counterfactual and edit of each classifier."""
    if not path_of(DEFAULT, "weights-faces-0").exists():
        return
    columns = {
        "trained": (0, None, REFERENCE),
        "other\ngenerator": (0, None, CONTROL),
        **{
            title_of(n).replace(" ", "\n", 1): (n, WEIGHT_SEEDS[0], CONTROL)
            for n in range(1, len(PARTS) + 1)
        },
    }
    asked = _asked(plan)
    query, region = asked.images[0], cases.truths_of(asked)[0].may
    rows = {}
    for arm in ARMS[:-1]:
        names = [run_name(arm, *drawn) for drawn in columns.values()]
        if all(path_of(plan, f"images-{name}").exists() for name in names):
            rows[arm] = [query + read_edits(plan, name)[0] for name in names]
    if rows:
        number = len(columns)
        save_titled(path, [query] * number, rows, columns, regions=[region] * number)


def _asked(plan: Plan) -> cases.Queries:
    return cases.queries("faces", 0, plan.cases["faces"].queries)


def main() -> None:
    options = options_parser(__doc__, quick=True).parse_args()
    plan = on_device(QUICK if options.quick else PLAN, options)
    say_untuned(ARMS)
    run_jobs(plan, all_jobs(plan), options)
    section = "counterfactuals random weights"
    publish(section, table_of(plan), plan.folder.glob("*.json"), options)
    folder = plan.runs if options.quick else PICTURES
    picture(plan, folder / "counterfactuals-random-weights.png")


if __name__ == "__main__":
    main()
