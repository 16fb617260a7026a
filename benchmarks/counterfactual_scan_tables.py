"""Table and picture of the benchmark of scanned walnuts, from what there is of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from counterfactual_cases import read
from counterfactual_pictures import PICTURES, save_titled
from job_queue import path_of
from measuring import table as table_of

from dipct.phantom import edit_region

PICTURE = PICTURES / "counterfactuals-scan.png"
# What a misfit at the limit of the noise costs, in nats of the target class; None: the scan is not
# looked at.
ARMS = {"without": None, "weak": 0.1, "middle": 0.3, "strong": 1.0}
TITLES = {"without": "without the scan"} | {
    arm: f"with the scan, {price:g} nats" for arm, price in ARMS.items() if price is not None
}
# In place of a number of views: pictures that were not scanned.
DRAWN = "drawn"
_IN_THE_PICTURE = ("without", "middle")
# Nuts of each number of views in the picture.
_SHOWN = 2


@dataclass(frozen=True)
class Plan:
    """What is computed.

    Attributes:
        folder: of the results.
        side: pixels along the sides.
        views: numbers of them.
        training: pictures for each classifier.
        held_out: pictures that show what it is worth.
        steps: of its training.
        nuts: of each class to explain.
        fit_steps: of each counterfactual.
    """

    folder: Path
    side: int
    views: tuple[int, ...]
    training: int
    held_out: int
    steps: int
    nuts: int
    fit_steps: int

    @property
    def runs(self) -> Path:
        """Folder of images and classifiers."""
        return self.folder / "runs"

    @staticmethod
    def margin(rays: int) -> float:
        """Three standard deviations of the mean of so many squared standard normal numbers."""
        return 3 * (2 / rays) ** 0.5


def table(plan: Plan) -> str:
    """What the classifiers are worth, misfits, and what the scans leave open."""
    parts = [_of_classifiers(plan), _of_counterfactuals(plan)]
    parts += [_open_ones(plan, views) for views in plan.views]
    if not any(parts):
        return "Nothing was run yet."
    if PICTURE.exists():
        parts.append(
            f"![walnuts, their reconstructions and counterfactuals](pictures/{PICTURE.name})"
        )
    return "\n\n".join(part for part in parts if part)


def _of_classifiers(plan: Plan) -> str:
    rows = []
    for views in (DRAWN, *plan.views):
        path = path_of(plan, f"classifier-{views}")
        if path.exists():
            found = read(path)
            shares = (found[n] for n in ("accuracy", "causal_flips", "nuisance_flips"))
            cells = [f"{100 * share:.1f} %" for share in shares]
            verdict = "passed" if found["is_passed"] else "not passed, and nothing explained"
            rows.append([str(views), *cells, verdict])
    header = ["views", "accuracy", "flipped by the cause", "flipped by nuisances", "gate"]
    return table_of(header, rows) if rows else ""


def _results(plan: Plan, views: int) -> dict[str, dict[str, Any]]:
    """By arm, those that there are and that explain anything."""
    paths = {arm: path_of(plan, f"{views}-views-{arm}") for arm in ARMS}
    found = {arm: read(path) for arm, path in paths.items() if path.exists()}
    return {arm: result for arm, result in found.items() if result["nuts"]}


def _limits(result: dict[str, Any]) -> np.ndarray:
    """Largest misfits within the noise of the queries, [N]."""
    margin = Plan.margin(result["rays"])
    return np.array([nut["misfit"]["query"] + margin for nut in result["nuts"]])


def _of_counterfactuals(plan: Plan) -> str:
    rows = []
    for views in plan.views:
        results = _results(plan, views)
        if not results:
            continue
        first = next(iter(results.values()))
        shown = [("query", "query", first)]
        shown += [(TITLES[arm], "image", result) for arm, result in results.items()]
        shown.append(("true counterfactual", "true_counterfactual", first))
        for title, name, result in shown:
            misfits = np.array([nut["misfit"][name] for nut in result["nuts"]])
            span = f"{np.median(misfits):.2f} ({misfits.min():.2f} to {misfits.max():.2f})"
            valid = np.array([nut["valid"] or name != "image" for nut in result["nuts"]])
            within = [
                f"{(valid & (misfits <= limit)).sum()} of {len(misfits)}"
                for limit in (_limits(result), 1 + Plan.margin(result["rays"]))
            ]
            outcome = [f"{valid.sum()} of {len(valid)}", *within] if name != "query" else [""] * 3
            rows.append([str(views), title, span, *outcome])
    header = [
        "views",
        "image",
        "misfit per ray, median (range)",
        "other class",
        "and within the noise of the query",
        "and of the scan",
    ]
    return table_of(header, rows) if rows else ""


def _open_ones(plan: Plan, views: int) -> str:
    """How many diagnoses a number of views leaves open: by any of the arms."""
    results = _results(plan, views)
    if len(results) < len(ARMS):
        return ""
    first = next(iter(results.values()))
    targets = np.array([nut["target"] for nut in first["nuts"]])
    margin, counts = Plan.margin(first["rays"]), []
    for limits in (_limits(first), np.full(len(targets), 1 + margin)):
        is_open = np.zeros(len(targets), dtype=bool)
        for result in results.values():
            misfits = np.array([nut["misfit"]["image"] for nut in result["nuts"]])
            is_open |= np.array([nut["valid"] for nut in result["nuts"]]) & (misfits <= limits)
        each = ", ".join(
            f"{is_open[targets == target].sum()} of {(targets == target).sum()} towards {target}"
            for target in np.unique(targets)
        )
        counts.append(f"{is_open.sum()} of {len(is_open)} ({each})")
    return (
        f"{views} views ({first['rays']} rays) leave {counts[0]} diagnoses open with misfits of up "
        f"to {margin:.2f} above that of the query, and {counts[1]} with misfits of up to "
        f"{1 + margin:.2f}."
    )


def write_picture(plan: Plan, path: Path = PICTURE) -> None:
    """Nuts of each number of views: reconstruction, counterfactuals, and as they were drawn."""
    queries, regions, titles = [], [], []
    names = [*(TITLES[arm] for arm in _IN_THE_PICTURE), "true counterfactual"]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for views in plan.views:
        results = _results(plan, views)
        files = {arm: plan.runs / f"{views}-views-{arm}.npz" for arm in _IN_THE_PICTURE}
        if len(results) < len(ARMS) or not all(file.exists() for file in files.values()):
            continue
        nuts = results["without"]["nuts"]
        chosen = np.unique(np.linspace(0, len(nuts) - 1, _SHOWN).round().astype(int))
        titles += [f"{views} views\nto {nuts[i]['target']}" for i in chosen]
        for arm, file in files.items():
            with np.load(file) as images:
                rows[TITLES[arm]] += list(images["image"][chosen])
                if arm == "without":
                    drawn, other = images["drawing"][chosen], images["true_counterfactual"][chosen]
                    queries += list(images["query"][chosen])
                    rows["true counterfactual"] += list(other)
                    regions += [edit_region(a, b) for a, b in zip(drawn, other, strict=True)]
    if not queries:
        return
    save_titled(path, queries, rows, titles, regions=regions)
