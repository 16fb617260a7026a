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

import argparse
import gzip
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import counterfactual_cases as cases
import numpy as np
import torch
from counterfactual_cases import ARMS, DEFAULT, FIT_STEPS, Plan, read, slug
from counterfactual_pictures import PICTURES
from counterfactual_tables import cell
from measuring import RESULTS, machine, replace_section, write_result

from dipct.classifier import STAGES
from dipct.classifier_settings import ClassifierSettings
from dipct.evaluation import bootstrap_interval
from dipct.figures import counterfactual_grid, save_figure
from dipct.operator import LOGITS
from dipct.pipeline import counterfactual, train_classifier
from dipct.pipeline.counterfactual_result import edit_scores
from dipct.pretrain import (
    LabelledImages,
    TrainedClassifier,
    read_trained_classifier,
    write_trained_classifier,
)

FOLDER = RESULTS / "counterfactual_real"
PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
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
PLAN = Plan(FOLDER, {}, ARMS)
DISC, INR = "LSO + INR + DEP", "LSO + INR"


@dataclass(frozen=True)
class Parts:
    """A data set in three parts.

    Attributes:
        training: of the classifier.
        others: of the independent classifier.
        queries: seen by neither.
    """

    training: LabelledImages
    others: LabelledImages
    queries: LabelledImages


DIGIT_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
CELL_FILE = "bccd_crops_48.npz"


def digits() -> Parts:
    """Six of the ten digits of the test set of MNIST, with a border to 32 pixels."""
    folder = data_folder() / "mnist"
    with gzip.open(folder / DIGIT_FILES[0]) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / DIGIT_FILES[1]) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    numbers = np.array([3, 4, 5, 6, 8, 9])
    kept = np.isin(labels, numbers)
    padded = np.pad(images[kept], ((0, 0), (2, 2), (2, 2)))[:, None]
    classes = tuple(str(number) for number in numbers)
    whole = labelled(padded, np.searchsorted(numbers, labels[kept]), classes, "MNIST")
    fifth = len(whole.labels) // 5
    return Parts(*(part(whole, np.s_[a * fifth : b * fifth]) for a, b in ((0, 2), (2, 4), (4, 5))))


def cells() -> Parts:
    """Crops of single blood cells of 48 pixels in colour, divided by the image they are from."""
    with np.load(data_folder() / "bccd" / CELL_FILE) as file:
        images, labels = file["images"].transpose(0, 3, 1, 2), file["labels"].astype(np.int64)
        split, classes = file["split"], tuple(str(name) for name in file["class_names"])
    whole = labelled(images, labels, classes, "BCCD")
    training = np.flatnonzero(split == "train")
    return Parts(
        part(whole, training),
        part(whole, np.flatnonzero(split != "test")),
        part(whole, np.flatnonzero(split == "test")),
    )


def data_folder() -> Path:
    """The folder of measured data, which is no part of the project."""
    if not os.environ.get("DIPCT_DATA"):
        raise SystemExit(
            "This benchmark reads real images: set DIPCT_DATA to the folder that holds mnist and "
            "bccd, as data/README.md describes them."
        )
    return Path(os.environ["DIPCT_DATA"])


def refuse_missing(names: list[str]) -> None:
    """Stop before any work where a file of the data sets is not there."""
    wanted = [data_folder() / each for name in names for each in CASES[name].files]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise SystemExit(
            f"DIPCT_DATA lacks {', '.join(missing)}; data/README.md says where these come from."
        )


def labelled(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], name: str
) -> LabelledImages:
    values = (images / np.float32(255)).astype(np.float32)
    return LabelledImages(values, labels, classes, np.arange(len(labels)), {"kind": name})


def part(whole: LabelledImages, which: slice | np.ndarray) -> LabelledImages:
    return LabelledImages(
        np.ascontiguousarray(whole.images[which]),
        whole.labels[which],
        whole.classes,
        whole.groups[which],
        whole.source,
    )


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
        ("LSO + TV + l2", INR, DISC, "PGD"),
        {"side": 32, "noise": 0.3},
        (400, 200),
        # Commonly given as CC BY-SA 3.0, which its authors were not seen to say.
        may_be_shown=False,
    ),
    "cells": Case(
        cells,
        (f"bccd/{CELL_FILE}",),
        (("RBC", "WBC"), ("WBC", "Platelets"), ("Platelets", "RBC")),
        (INR, DISC, "PGD"),
        {"side": 48, "noise": 0.2},
        (300, 150),
        may_be_shown=True,
    ),
}


@cache
def parts_of(name: str) -> Parts:
    return CASES[name].read()


@cache
def classifier(name: str, *, oracle: bool = False) -> TrainedClassifier:
    """The classifier of a data set, or the independent one: another network on other images."""
    path = PLAN.runs / f"{name}{'-oracle' if oracle else ''}.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        extra = {"architecture": "resnet18", "seed": 100} if oracle else {}
        # A mirrored digit is none.
        settings = ClassifierSettings(
            flip=name != "digits", steps=CASES[name].steps[oracle], **CASES[name].settings, **extra
        )
        parts = parts_of(name)
        training = parts.others if oracle else parts.training
        write_trained_classifier(train_classifier(training, parts.queries, settings), path)
    return read_trained_classifier(path)


def queries(name: str, source: int) -> np.ndarray:
    """The first images of a class that both classifiers see right, [N C H W]."""
    found = parts_of(name).queries
    images = found.images[found.labels == source]
    with torch.no_grad():
        for judge in (classifier(name), classifier(name, oracle=True)):
            seen = judge.features([LOGITS])(torch.from_numpy(images)).argmax(-1).numpy()
            images = images[seen == source]
    return images[:QUERIES]


def run(name: str, arm_name: str) -> None:
    """All pairs of classes by an arm."""
    path = FOLDER / f"{name}-{slug(arm_name)}.json"
    if path.exists():
        return
    began, arm, trained = time.perf_counter(), ARMS[arm_name], classifier(name)
    chosen = cases.chosen_of("faces", arm_name, plan=DEFAULT)
    if arm.generator != "pixels":
        chosen |= {"fit_steps": FIT_STEPS}
    settings = cases.settings_of(arm, chosen)
    independent = classifier(name, oracle=True)
    judge = independent.features([LOGITS])
    rows, shown = [], {}
    for source_name, target_name in CASES[name].pairs:
        source, target = (trained.classes.index(each) for each in (source_name, target_name))
        images = queries(name, source)
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
        shown[f"{source_name} to {target_name}"] = np.stack([images[:2], made[:2]])
    cases.write_images(
        f"{name}-{slug(arm_name)}", np.concatenate(list(shown.values()), axis=1), plan=PLAN
    )
    write_result(
        path,
        {
            "case": name,
            "arm": arm_name,
            "accuracy": trained.accuracy,
            "oracle_accuracy": independent.accuracy,
            "report": asdict(trained.report),
            "settings": settings.to_values(),
            "scores": rows,
            "seconds": time.perf_counter() - began,
            "machine": machine(),
        },
    )
    print(path.name, flush=True)


@torch.no_grad()
def estimated(trained: TrainedClassifier, images: np.ndarray) -> np.ndarray:
    """What the loss estimator says of images, above its target, [N]."""
    operator = trained.features(list(STAGES))
    found = operator.split(operator(torch.from_numpy(images)))
    return (trained.estimator([found[s] for s in STAGES]) - trained.estimator.low).numpy()


def table(name: str) -> str:
    """Means over all pairs of a data set."""
    lines = [
        "| | n | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    about, scores = "", {}
    for arm_name in CASES[name].arms:
        path = FOLDER / f"{name}-{slug(arm_name)}.json"
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
    return "\n".join([*lines, "", about, "", *(f"* {each}" for each in verdicts(scores))])


def verdicts(scores: dict[str, list[dict[str, float]]]) -> list[str]:
    """Do both classifiers see the target in more counterfactuals of one arm than of another?"""
    found = []
    for one, other in ((DISC, INR), (INR, "PGD"), (DISC, "PGD")):
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


def picture(name: str) -> None:
    """Two queries of every pair and what became of them."""
    case = CASES[name]
    paths = {arm: PLAN.runs / f"{name}-{slug(arm)}.npz" for arm in case.arms}
    if not all(path.exists() for path in paths.values()):
        return
    images = {arm: cases.read_images(path.stem, plan=PLAN) for arm, path in paths.items()}
    asked = next(iter(images.values()))[0]
    figure = counterfactual_grid(
        list(asked), {arm: list(found[1]) for arm, found in images.items()}
    )
    folder = PICTURES if case.may_be_shown else PLAN.runs
    save_figure(figure, folder / f"counterfactuals-{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(CASES), help="one data set")
    parser.add_argument("--table", action="store_true", help="only tables and pictures")
    options = parser.parse_args()
    chosen = [options.only] if options.only else list(CASES)
    if not options.table:
        refuse_missing(chosen)
        for name in chosen:
            for arm_name in CASES[name].arms:
                run(name, arm_name)
    for name in chosen:
        print(table(name))
        replace_section(PAGE, f"counterfactuals {name}", table(name))
        picture(name)


if __name__ == "__main__":
    main()
