"""Tables of the benchmark of counterfactuals, from the runs that there are."""

from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from counterfactual_cases import read, slug
from counterfactual_jobs import DISCREPANCY_ARMS, jobs
from counterfactual_plans import ARMS, FULL, Plan
from job_options import publish
from job_queue import path_of

from dipct.evaluation import bootstrap_interval
from dipct.pretrain.classifier_discrepancy import LEAST_COUNTERFACTUALS

COLUMNS = {
    "valid": "valid",
    "oracle_valid": "oracle valid",
    "normalised_mass_accuracy": "nMA",
    "concentration": "concentration",
    "mse": "MSE",
    "direction": "direction",
    "psnr_gain_db": "gain [dB]",
}
TV, DISC, DUQ = "LSO + TV + l2", "LSO + INR + DEP", "LSO + INR + DUQ"
MASS = "normalised_mass_accuracy"
# Differences of fewer queries, or of fewer classifiers, decide nothing.
LEAST, LEAST_CLASSIFIERS = 20, 3
# Of nMA and concentration: less is no difference.
MARGIN = 0.05
CONTROLS = ("true counterfactual", "identity", "random edit of the same size")


def rows_of(folder: Path, case: str) -> dict[str, tuple[list[dict[str, float]], list[int]]]:
    """Scores of all queries and the seeds of their classifiers, by arm and control."""
    found: dict[str, tuple[list, list]] = {}
    for path in sorted(folder.glob(f"run-{case}-*-controls.json")):
        result = read(path)
        for name, scores in result["scores"].items():
            rows, seeds = found.setdefault(name, ([], []))
            rows += scores
            seeds += [result["seed"]] * len(scores)
    for name in ARMS:
        for path in sorted(folder.glob(f"run-{case}-?-{slug(name)}.json")):
            result = read(path)
            rows, seeds = found.setdefault(name, ([], []))
            rows += result["scores"]
            seeds += [result["seed"]] * len(result["scores"])
    return found


def cell(rows: list[dict[str, float]], seeds: list[int], column: str) -> str:
    """Mean with its interval, over what is defined; validity over all, all else over valid ones."""
    of_all = column in ("valid", "oracle_valid")
    kept = [
        (row[column], seed)
        for row, seed in zip(rows, seeds, strict=True)
        if (of_all or row["valid"]) and column in row
    ]
    if not kept:
        return "-"
    values, of_seed = (np.array(part) for part in zip(*kept, strict=True))
    low, high = _interval(values, of_seed)
    digits = 4 if column == "mse" else 2
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(folder: Path, case: str) -> str:
    """The table of a task."""
    rows = rows_of(folder, case)
    if not rows:
        return "Nothing was run yet."
    lines = [
        "| | queries of classifiers | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name in [*ARMS, *CONTROLS]:
        if name in rows:
            scores, seeds = rows[name]
            cells = [cell(scores, seeds, column) for column in COLUMNS]
            counted = f"{len(scores)} of {len(set(seeds))}"
            lines.append(f"| {name} | {counted} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


class Paired(NamedTuple):
    """Mean difference of two arms, with the ends of its interval.

    Attributes:
        queries: that both solve.
        classifiers: that these are of.
    """

    mean: float
    low: float
    high: float
    queries: int
    classifiers: int


def paired(folder: Path, case: str, one: str, other: str, column: str) -> Paired | None:
    """Mean difference of two arms on the queries that both solve, with its interval."""
    rows = rows_of(folder, case)
    if one not in rows or other not in rows:
        return None
    first, second = (_by_query(*rows[name]) for name in (one, other))
    kept = [
        (first[query][column] - second[query][column], query[0])
        for query in sorted(first.keys() & second.keys())
        if all(arm[query]["valid"] and column in arm[query] for arm in (first, second))
    ]
    if not kept:
        return None
    values, of_seed = (np.array(part) for part in zip(*kept, strict=True))
    return Paired(float(values.mean()), *_interval(values, of_seed), len(values), len(set(of_seed)))


def _by_query(
    rows: list[dict[str, float]], seeds: list[int]
) -> dict[tuple[int, int], dict[str, float]]:
    """Scores by the seed of the classifier and the number of the query."""
    numbers: Counter[int] = Counter()
    found = {}
    for row, seed in zip(rows, seeds, strict=True):
        found[seed, numbers[seed]] = row
        numbers[seed] += 1
    return found


def _interval(values: np.ndarray, of_seed: np.ndarray) -> tuple[float, float]:
    """Drawn by classifier, where there are several."""
    return bootstrap_interval(values, clusters=of_seed if len(set(of_seed)) > 1 else None)


CLAIMS = (
    # Name, what is claimed, arm, arm it is compared with, column, sign of the difference.
    ("A1", "total variation is less concentrated than DIP", TV, "LSO + DIP", "concentration", 1),
    ("A1", "DIP is as concentrated as INR", "LSO + DIP", "LSO + INR", "concentration", 0),
    ("A1", "DEP concentrates DIP", "LSO + DIP + DEP", "LSO + DIP", "concentration", -1),
    ("A1", "DEP concentrates INR", DISC, "LSO + INR", "concentration", -1),
    ("A3", "DEP makes larger edits of DIP", "LSO + DIP + DEP", "LSO + DIP", "mse", 1),
    ("A3", "DEP makes larger edits of INR", DISC, "LSO + INR", "mse", 1),
    ("A4", "DUQ is as good as nothing", DUQ, "LSO + INR", MASS, 0),
    ("A5", "features are better than pixels with TV", TV, "ISO + TV + l2", MASS, 1),
    ("A5", "they make no difference with DIP", "LSO + DIP", "ISO + DIP", MASS, 0),
    ("A10", "DEP moves edits of DIP to where they belong", "LSO + DIP + DEP", "LSO + DIP", MASS, 1),
    ("A11", "progressive is better than all at once", DISC, f"{DISC}, all at once", MASS, 1),
)


def claims(folder: Path, case: str) -> str:
    """What was claimed, what was found, and whether the one is the other."""
    lines = [
        "| claim | | difference | queries of classifiers | |",
        "|---|---|---|---|---|",
    ]
    for name, text, one, other, column, sign in CLAIMS:
        found = paired(folder, case, one, other, column)
        if found is None:
            continue
        mean, low, high, number, classifiers = found
        if number < LEAST or classifiers < LEAST_CLASSIFIERS:
            verdict = "not decided"
        elif sign == 0:
            verdict = _of_no_difference(low, high)
        elif low <= 0 <= high:
            verdict = "not decided"
        else:
            verdict = "confirmed" if (low > 0) == (sign > 0) else "refuted"
        digits = 5 if column == "mse" else 3
        interval = f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
        counted = f"{number} of {classifiers}"
        lines.append(f"| {name} | {text} ({column}) | {interval} | {counted} | {verdict} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _of_no_difference(low: float, high: float) -> str:
    """Of the claim that there is none: a wide interval with zero in it says nothing."""
    if -MARGIN <= low and high <= MARGIN:
        return "confirmed"
    return "refuted" if low > MARGIN or high < -MARGIN else "not decided"


DISCREPANCY_CLAIMS = (("LSO + DIP", "LSO + DIP + DEP"), ("LSO + INR", DISC))


def goals(folder: Path, case: str) -> str:
    """The arm of the best localisation, against what it has to beat."""
    rows = {name: each for name, each in rows_of(folder, case).items() if name in ARMS}
    if len(rows) < len(ARMS):
        return ""

    def mean(name: str, column: str, *, of_all: bool) -> float:
        kept = [row for row in rows[name][0] if of_all or row["valid"]]
        return float(np.mean([row[column] for row in kept if column in row]))

    masses = {name: mean(name, MASS, of_all=False) for name in rows}
    best = max(masses, key=masses.__getitem__)
    oracle = mean(best, "oracle_valid", of_all=True)
    ratios = ", ".join(f"{masses[best] / masses[name]:.1f} times {name}" for name in ("PGD", TV))
    return (
        f"Best nMA: {best}, {masses[best]:.2f}, {ratios}; the oracle agrees with {oracle:.0%} of "
        "all its counterfactuals."
    )


def discrepancies(folder: Path, case: str) -> str:
    """How far counterfactuals can replace pictures, and claim A2; empty if there is none."""
    found = {}
    for name in (*DISCREPANCY_ARMS, CONTROLS[0]):
        path = folder / f"discrepancy-{case}-{slug(name)}.json"
        if path.exists():
            found[name] = read(path)
    if not found:
        return ""
    lines = ["| | n | CD | CD, matched | matched, reconstructed |", "|---|---|---|---|---|"]
    for name, result in found.items():
        cells = [
            "-" if value is None else f"{value['mean']:.3f} ± {value['std']:.3f}"
            for value in (result["full"], result["matched"], result["matched_reconstructed"])
        ]
        lines.append(f"| {name} | {result['counterfactuals']} | " + " | ".join(cells) + " |")
    lines.append("")
    for without, having in DISCREPANCY_CLAIMS:
        if without in found and having in found:
            one, other = (np.array(found[name]["full"]["values"]) for name in (without, having))
            fall = one - other
            spread = fall.std(ddof=1) / np.sqrt(len(fall))
            if abs(fall.mean()) <= 2 * spread:
                verdict = "not decided"
            else:
                verdict = "confirmed" if fall.mean() > 0 else "refuted"
            lines.append(
                f"A2, a loss estimator lowers the discrepancy of {without}: by {fall.mean():.3f} ± "
                f"{spread:.3f} from {one.mean():.3f}; {verdict}.\n"
            )
    return "\n".join(lines)


def heads(plan: Plan, case: str) -> str:
    """What the gate and both heads of each classifier found."""
    paths = [path_of(plan, f"classifier-{case}-{seed}") for seed in plan.seeds]
    found = [read(path) for path in paths if path.exists()]
    if not found:
        return ""

    def of_all(part: str, key: str) -> str:
        return ", ".join(f"{each[part][key]:.3f}" for each in found)

    finds = [
        f"{title} {of_all(part, 'auroc_misclassified')} (misclassified), "
        f"{of_all(part, 'auroc_shifted')} (shifted)"
        for part, title in (("report", "loss estimator"), ("centroids", "centroids"))
    ]
    return (
        "Of each classifier, share that true counterfactuals flip: "
        f"{of_all('gate', 'causal_flips')}; that nuisances flip: "
        f"{of_all('gate', 'nuisance_flips')}; AUROC of the {', of the '.join(finds)}."
    )


def times(plan: Plan, case: str) -> str:
    """Processor time of a query by each arm, without what networks begin with."""
    if plan.device != "cpu":
        return ""
    found = {}
    for name in plan.arms:
        paths = [path_of(plan, f"run-{case}-{seed}-{slug(name)}") for seed in plan.seeds]
        taken = [read(path)["processor_seconds_per_query"] for path in paths if path.exists()]
        if taken:
            found[name] = float(np.mean(taken))
    if not found:
        return ""
    said = ", ".join(f"{name} {taken:.1f}" for name, taken in found.items())
    return f"Processor time of a query [s], up to {plan.batch} at a time: {said}."


def missing(plan: Plan, case: str) -> str:
    """What is left to do, and what never will be done."""
    todo = jobs(plan, case)
    paths = {job.name: job.path(plan) for job in todo}
    left = [name for name, path in paths.items() if path.suffix == ".json" and not path.exists()]
    said = f"Not done yet: {', '.join(left)}." if left else ""
    if not any(job.name.startswith("discrepancy-") for job in todo):
        said += (
            f" The classifier discrepancy is not computed: it needs {LEAST_COUNTERFACTUALS} "
            "counterfactuals per arm."
        )
    return said.strip()


def write_page(plan: Plan, options: Namespace) -> None:
    """Print the tables and, unless they are of a quick call, put them into the page."""
    folder = plan.folder
    ending = " full" if folder == FULL.folder else ""
    for case in plan.cases:
        parts = [table(folder, case)]
        if rows_of(folder, case):
            parts += [part(folder, case) for part in (goals, claims, discrepancies)]
            parts += [part(plan, case) for part in (heads, times, missing)]
        text = "\n\n".join(part for part in parts if part)
        results = [path for path in folder.glob(f"*-{case}*.json") if "-" in path.stem]
        publish(f"counterfactuals {case}{ending}", text, results, options)
