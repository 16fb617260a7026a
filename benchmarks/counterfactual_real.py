"""Counterfactuals of real images: handwritten digits and blood cells.

No true counterfactuals are known here. What can be said: whether an independent classifier agrees,
how large and how concentrated edits are, and what the loss estimator says of them. The settings are
those that benchmarks/counterfactuals.py has chosen on drawn faces. Reads mnist and bccd below the
folder that DIPCT_DATA names (data/README.md), and stops at once where they are missing.

Pictures go into the page only where the licence of the data says that they may; the others lie
among the runs.

    DIPCT_DATA=... python benchmarks/counterfactual_real.py                  # what is not done yet
    DIPCT_DATA=... python benchmarks/counterfactual_real.py --only digits
    python benchmarks/counterfactual_real.py --table                         # tables and pictures
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import counterfactual_cases as cases
import numpy as np
import torch
from compared_arms import say_untuned, tuned
from counterfactual_cases import read, slug
from counterfactual_pictures import NOISY_DOTS_PER_INCH, PICTURES
from counterfactual_plans import FIT_STEPS, Plan
from counterfactual_real_data import CELL_FILE, DIGIT_FILES, Parts, cells, digits, refuse_missing
from counterfactual_tables import cell
from job_options import on_device, options_parser, publish, run_jobs
from job_queue import Job, path_of
from measuring import RESULTS

from dipct.classifier import STAGES
from dipct.classifier_settings import ClassifierSettings
from dipct.evaluation import bootstrap_interval
from dipct.figures import counterfactual_grid, save_figure
from dipct.operator import LOGITS
from dipct.pipeline import counterfactual, train_classifier
from dipct.pipeline.counterfactual_result import edit_scores
from dipct.pretrain import TrainedClassifier, read_trained_classifier, write_trained_classifier

COLUMNS = {
    "valid": "valid",
    "oracle_valid": "oracle valid",
    "concentration": "concentration",
    "mse": "MSE",
    "loss_estimate_query": "estimated loss of the query",
    "loss_estimate": "of the counterfactual",
}
# Of each pair of classes.
QUERIES = 8
TV, INR, DISC, L1 = "LSO + TV + l2", "LSO + INR", "LSO + INR + DEP", "L1 + INR"
COMPARED = ((DISC, INR), (L1, INR), (DISC, L1), (INR, "PGD"), (DISC, "PGD"))


@dataclass(frozen=True)
class Case:
    """A data set of the benchmark.

    Attributes:
        read: its parts.
        files: that it is read from, below DIPCT_DATA.
        pairs: names of classes, from which and to which.
        arms: names of the methods.
        settings: of both classifiers.
        steps: of the training of the classifier, and of the independent one.
        may_be_shown: whether the licence lets pictures be published.
    """

    read: Callable[[], Parts]
    files: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    arms: tuple[str, ...]
    settings: dict[str, float]
    steps: tuple[int, int]
    may_be_shown: bool


CASES = {
    "digits": Case(
        digits,
        tuple(f"mnist/{name}" for name in DIGIT_FILES),
        (("3", "8"), ("4", "9"), ("5", "6")),
        (TV, INR, DISC, L1, "PGD"),
        {"side": 32, "noise": 0.3},
        (400, 200),
        # Commonly given as CC BY-SA 3.0, which its authors were not seen to say.
        may_be_shown=False,
    ),
    "cells": Case(
        cells,
        (f"bccd/{CELL_FILE}",),
        (("RBC", "WBC"), ("WBC", "Platelets"), ("Platelets", "RBC")),
        (INR, DISC, L1, "PGD"),
        {"side": 48, "noise": 0.2},
        (300, 150),
        may_be_shown=True,
    ),
}
PLAN = Plan(
    RESULTS / "counterfactual_real",
    {},
    tuned({arm for case in CASES.values() for arm in case.arms}),
)


@cache
def parts_of(name: str) -> Parts:
    return CASES[name].read()


def classifier(plan: Plan, name: str, *, oracle: bool = False) -> TrainedClassifier:
    """The classifier of a data set, or the independent one."""
    return read_trained_classifier(path_of(plan, weights_of(name, oracle=oracle)))


def weights_of(name: str, *, oracle: bool) -> str:
    return f"weights-{name}{'-oracle' if oracle else ''}"


def name_of(name: str, arm: str) -> str:
    return f"{name}-{slug(arm)}"


def all_jobs(plan: Plan, chosen: list[str]) -> list[Job]:
    """Both classifiers of each data set, and what explains the first."""
    found = []
    for name in chosen:
        needs = tuple(weights_of(name, oracle=oracle) for oracle in (False, True))
        for oracle, weights in enumerate(needs):
            found.append(Job(weights, (), train, (name, bool(oracle))))
        for arm in CASES[name].arms:
            if arm in plan.arms:
                found.append(Job(name_of(name, arm), needs, run, (name, arm)))
    return found


def train(plan: Plan, name: str, case: str, oracle: bool) -> None:
    """The classifier of a data set, or the independent one: another network on other images."""
    extra = {"architecture": "resnet18", "seed": 100} if oracle else {}
    # A mirrored digit is none.
    settings = ClassifierSettings(
        flip=case != "digits",
        steps=CASES[case].steps[oracle],
        device=plan.device,
        **CASES[case].settings,
        **extra,
    )
    parts, path = parts_of(case), path_of(plan, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    training = parts.others if oracle else parts.training
    write_trained_classifier(train_classifier(training, parts.queries, settings), path)


def queries(plan: Plan, name: str, source: int) -> np.ndarray:
    """The first images of a class that both classifiers see right, [N C H W]."""
    found = parts_of(name).queries
    images = found.images[found.labels == source]
    with torch.no_grad():
        for oracle in (False, True):
            judge = classifier(plan, name, oracle=oracle).features([LOGITS])
            seen = judge(torch.from_numpy(images)).argmax(-1).numpy()
            images = images[seen == source]
    return images[:QUERIES]


def run(plan: Plan, name: str, case: str, arm_name: str) -> Mapping[str, Any]:
    """All pairs of classes by an arm."""
    arm, trained = plan.arms[arm_name], classifier(plan, case)
    fitted = {} if arm.generator == "pixels" else {"fit_steps": FIT_STEPS}
    chosen = cases.chosen_of("faces", arm_name) | fitted
    settings = cases.settings_of(arm, chosen, plan=plan)
    independent = classifier(plan, case, oracle=True)
    judge = independent.features([LOGITS])
    rows, shown = [], []
    for source_name, target_name in CASES[case].pairs:
        source, target = (trained.classes.index(each) for each in (source_name, target_name))
        images = queries(plan, case, source)
        if not len(images):
            continue
        found = counterfactual(trained, images, target, settings)
        made = np.stack([each.image for each in found])
        with torch.no_grad():
            judged = judge(torch.from_numpy(made)).argmax(-1).numpy() == target
        estimates = (estimated(trained, images), estimated(trained, made))
        for i, each in enumerate(found):
            values = {
                "valid": float(each.valid),
                "oracle_valid": float(judged[i]),
                "loss_estimate_query": float(estimates[0][i]),
                "loss_estimate": float(estimates[1][i]),
                **edit_scores(images[i], made[i]),
            }
            kept = {key: value for key, value in values.items() if np.isfinite(value)}
            rows.append({"pair": f"{source_name} to {target_name}", **kept})
        shown.append(np.stack([images[:2], made[:2]]))
    cases.write_images(name, np.concatenate(shown, axis=1), plan=plan)
    return {
        "case": case,
        "arm": arm_name,
        "accuracy": trained.accuracy,
        "oracle_accuracy": independent.accuracy,
        "report": asdict(trained.report),
        "settings": settings.to_values(),
        "scores": rows,
    }


@torch.no_grad()
def estimated(trained: TrainedClassifier, images: np.ndarray) -> np.ndarray:
    """What the loss estimator says of images, above its target, [N]."""
    operator = trained.features(list(STAGES))
    found = operator.split(operator(torch.from_numpy(images)))
    return (trained.estimator([found[s] for s in STAGES]) - trained.estimator.low).numpy()


def table(plan: Plan, name: str) -> str:
    """Means over all pairs of a data set."""
    lines = [
        "| | n | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    about, scores = "", {}
    for arm_name in CASES[name].arms:
        path = path_of(plan, name_of(name, arm_name))
        if path.exists():
            result = read(path)
            rows, report = result["scores"], result["report"]
            cells_of = [cell(rows, [0] * len(rows), column) for column in COLUMNS]
            lines.append(f"| {arm_name} | {len(rows)} | " + " | ".join(cells_of) + " |")
            scores[arm_name] = rows
            about = (
                f"Accuracy {result['accuracy']:.3f}, of the independent classifier "
                f"{result['oracle_accuracy']:.3f}; loss estimator: rank correlation "
                f"{report['spearman']:.3f}, AUROC {report['auroc_misclassified']:.2f} "
                f"(misclassified) and {report['auroc_shifted']:.2f} (shifted)."
            )
    if not about:
        return "Nothing was run yet."
    said = [*verdicts(scores), *(f"{arm}: {by_pair(rows)}." for arm, rows in scores.items())]
    return "\n".join([*lines, "", about, "", *(f"* {each}" for each in said)])


def by_pair(rows: list[dict[str, Any]]) -> str:
    """In how many counterfactuals of each pair of classes both classifiers see the target."""
    found = []
    for pair in dict.fromkeys(row["pair"] for row in rows):
        believed = [row["valid"] * row["oracle_valid"] for row in rows if row["pair"] == pair]
        found.append(f"{sum(believed):.0f} of {len(believed)} ({pair})")
    return f"both classifiers see the target in {', '.join(found)}"


def verdicts(scores: dict[str, list[dict[str, float]]]) -> list[str]:
    """Do both classifiers see the target in more counterfactuals of one arm than of another?"""
    found = []
    for one, other in COMPARED:
        if one not in scores or other not in scores:
            continue
        values = np.array(
            [
                a["valid"] * a["oracle_valid"] - b["valid"] * b["oracle_valid"]
                for a, b in zip(scores[one], scores[other], strict=True)
            ]
        )
        low, high = bootstrap_interval(values)
        verdict = "more" if low > 0 else "fewer" if high < 0 else "not decided"
        found.append(
            f"Both classifiers see the target, {one} less {other}: {values.mean():+.2f} "
            f"({low:+.2f} to {high:+.2f}), paired by query: {verdict}."
        )
    return found


def picture(plan: Plan, name: str) -> None:
    """Two queries of every pair and what became of them."""
    paths = {arm: path_of(plan, f"images-{name_of(name, arm)}") for arm in CASES[name].arms}
    images = {
        arm: cases.read_images(path.stem, plan=plan) for arm, path in paths.items() if path.exists()
    }
    if not images:
        return
    figure = counterfactual_grid(
        list(next(iter(images.values()))[0]), {arm: list(found[1]) for arm, found in images.items()}
    )
    folder = PICTURES if CASES[name].may_be_shown else plan.runs
    path = folder / f"counterfactuals-{name}.png"
    save_figure(figure, path, dots_per_inch=NOISY_DOTS_PER_INCH)


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--only", choices=list(CASES), help="one data set")
    options = parser.parse_args()
    chosen = [options.only] if options.only else list(CASES)
    plan = on_device(PLAN, options)
    if not options.table:
        refuse_missing(file for name in chosen for file in CASES[name].files)
    say_untuned(dict.fromkeys(arm for name in chosen for arm in CASES[name].arms))
    run_jobs(plan, all_jobs(plan, chosen), options)
    for name in chosen:
        results = plan.folder.glob(f"*{name}*.json")
        publish(f"counterfactuals {name}", table(plan, name), results, options)
        picture(plan, name)


if __name__ == "__main__":
    main()
