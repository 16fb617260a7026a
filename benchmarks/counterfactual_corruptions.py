"""Claim A6: edits stay where they belong when the query is corrupted, and clean it up.

Faces of 32 pixels and the first classifier of benchmarks/counterfactuals.py, with the settings that
are chosen there. Six corruptions of three severities each; of all of them the training had noise.

    python benchmarks/counterfactual_corruptions.py            # what is not done, two at a time
    python benchmarks/counterfactual_corruptions.py --table    # table and picture only
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import counterfactual_cases as cases
import numpy as np
import torch
from counterfactual_cases import Plan, read, slug
from counterfactual_jobs import Job, standings_of, work
from counterfactual_pictures import PICTURES
from measuring import RESULTS, machine, replace_section, write_result
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from dipct.classifier import STAGES
from dipct.evaluation import bootstrap_interval, psnr
from dipct.figures import counterfactual_grid, save_figure
from dipct.operator import LOGITS
from dipct.pipeline import counterfactual

PLAN = Plan(RESULTS / "counterfactual_corruptions", {}, cases.ARMS)
PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
ARMS = ("LSO + INR + DEP", "LSO + INR", "PGD")
QUERIES, RANKED = 12, 100
Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian."""
    return image + (0.0, 0.04, 0.08, 0.16)[severity] * rng.standard_normal(image.shape)


def blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """By a Gaussian."""
    std = (0.0, 0.4, 0.7, 1.0)[severity]
    return gaussian_filter(image, (0, std, std))


def contrast(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Less of it."""
    return image.mean() + (1.0, 0.75, 0.5, 0.3)[severity] * (image - image.mean())


def brightness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """More of it."""
    return image + (0.0, 0.1, 0.2, 0.3)[severity]


def block(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Black, anywhere in the upper half."""
    size, found = (0, 4, 7, 10)[severity], image.copy()
    side = image.shape[-1]
    row, column = rng.integers(0, side // 2 - size // 2), rng.integers(0, side - size)
    found[:, row : row + size, column : column + size] = 0
    return found


def crop(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Black along the left."""
    found = image.copy()
    found[..., : (0, 2, 4, 7)[severity]] = 0
    return found


CORRUPTIONS: dict[str, Corruption] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "brightness": brightness,
    "missing block": block,
    "crop": crop,
}


def corrupted(images: np.ndarray, name: str, severity: int) -> np.ndarray:
    """Images [N C H W] with a corruption; the same noise for every arm."""
    rng = np.random.default_rng([list(CORRUPTIONS).index(name), severity])
    found = np.stack([CORRUPTIONS[name](image, severity, rng) for image in images])
    return found.clip(0, 1).astype(np.float32)


def cells() -> list[tuple[str, int]]:
    """Corruptions and severities; nothing is corrupted at severity zero."""
    return [("noise", 0), *((name, severity) for name in CORRUPTIONS for severity in (1, 2, 3))]


def name_of(corruption: str, severity: int, arm: str) -> str:
    return f"{corruption.replace(' ', '-')}-{severity}-{slug(arm)}"


def all_jobs() -> list[Job]:
    found = [
        Job(name_of(corruption, severity, arm), (), run, (corruption, severity, arm))
        for arm in ARMS
        for corruption, severity in cells()
    ]
    return [*found, Job("ranks", (), rank, ())]


def run(plan: Plan, name: str, corruption: str, severity: int, arm_name: str) -> None:
    """Counterfactuals of corrupted queries by an arm."""
    asked, trained = cases.queries("faces", 0, QUERIES), cases.classifier("faces", 0)
    queries = corrupted(asked.images, corruption, severity)
    with torch.no_grad():
        seen = trained.features([LOGITS])(torch.from_numpy(queries)).argmax(-1).numpy()
    # Where the corruption made a smile of it there is nothing to ask for.
    kept = np.flatnonzero(seen == 0)
    rows: list[dict[str, float]] = []
    images = np.zeros((0, *queries.shape[1:]), np.float32)
    if len(kept):
        part = cases.Queries(
            asked.task, [asked.scenes[i] for i in kept], [asked.targets[i] for i in kept]
        )
        truths = cases.truths_of(part)
        arm = cases.ARMS[arm_name]
        settings = cases.settings_of(arm, cases.chosen_of("faces", arm_name))
        found = counterfactual(trained, queries[kept], part.targets, settings)
        images = np.stack([each.image for each in found])
        # Edits are from what the classifier was shown, and right if they are where a smile is.
        rows = cases.scores_of(
            "faces", part, truths, images, standings_of(found), shown=queries[kept]
        )
        for row, truth, query, image in zip(rows, truths, queries[kept], images, strict=True):
            clean = truth.images[0]
            row["psnr_to_clean_db"] = psnr(image, clean, data_range=1.0)
            row["psnr_of_query_to_clean_db"] = psnr(query, clean, data_range=1.0)
    cases.write_images(name, images, plan=plan)
    write_result(
        plan.folder / f"{name}.json",
        {
            "corruption": corruption,
            "severity": severity,
            "arm": arm_name,
            "queries": kept.tolist(),
            "scores": rows,
            "machine": machine(),
        },
    )


def rank(plan: Plan, name: str) -> None:
    """Rank correlation of the loss estimate with severity, for each corruption."""
    asked, trained = cases.queries("faces", 0, RANKED), cases.classifier("faces", 0)
    operator = trained.features(list(STAGES))
    found = {}
    for corruption in CORRUPTIONS:
        estimates = []
        for severity in range(4):
            images = torch.from_numpy(corrupted(asked.images, corruption, severity))
            with torch.no_grad():
                parts = operator.split(operator(images))
                estimates.append(trained.estimator([parts[stage] for stage in STAGES]).numpy())
        severities = np.repeat(np.arange(4), RANKED)
        found[corruption] = float(spearmanr(severities, np.concatenate(estimates)).statistic)
    write_result(plan.folder / f"{name}.json", {"spearman": found, "machine": machine()})


def mean(rows: list[dict[str, float]], column: str, *, of_valid: bool = True) -> str:
    kept = [row[column] for row in rows if column in row and (row["valid"] or not of_valid)]
    return f"{np.mean(kept):.2f}" if kept else "-"


def table() -> str:
    """By corruption and severity, for every arm; and the verdict."""
    columns = {
        "valid": "valid",
        "normalised_mass_accuracy": "nMA",
        "overlap": "IoU",
        "psnr_of_query_to_clean_db": "query to clean [dB]",
        "psnr_to_clean_db": "counterfactual to clean [dB]",
    }
    lines = [
        "| arm | corruption | severity | n | " + " | ".join(columns.values()) + " |",
        "|---|---|---|---|" + "---|" * len(columns),
    ]
    verdicts = []
    for arm in ARMS:
        by_severity: dict[int, list[dict[str, float]]] = {}
        for corruption, severity in cells():
            path = PLAN.folder / f"{name_of(corruption, severity, arm)}.json"
            if not path.exists():
                continue
            rows = read(path)["scores"]
            by_severity.setdefault(severity, []).extend(rows)
            title = corruption if severity else "none"
            values = [mean(rows, each, of_valid=each != "valid") for each in columns]
            lines.append(f"| {arm} | {title} | {severity} | {len(rows)} | {' | '.join(values)} |")
        verdicts += _verdict(arm, by_severity)
    ranks = PLAN.folder / "ranks.json"
    if ranks.exists():
        found = ", ".join(f"{k} {v:.2f}" for k, v in read(ranks)["spearman"].items())
        verdicts.append(f"Rank correlation of the loss estimate with the severity: {found}.")
    if len(lines) == 2:
        return "Nothing was run yet."
    return "\n".join([*lines, "", *(f"* {verdict}" for verdict in verdicts)])


def _verdict(arm: str, by_severity: dict[int, list[dict[str, float]]]) -> list[str]:
    """Does localisation keep half of what it is without corruption, and is the image cleaner?"""
    mass = "normalised_mass_accuracy"

    def masses(rows: list[dict[str, float]]) -> list[float]:
        return [row.get(mass, 0.0) * row["valid"] for row in rows]

    corrupted_rows = [row for severity in (1, 2, 3) for row in by_severity.get(severity, [])]
    if not corrupted_rows or 0 not in by_severity:
        return []
    clean, found = np.mean(masses(by_severity[0])), np.array(masses(corrupted_rows))
    low, high = bootstrap_interval(found)
    gains = np.array(
        [row["psnr_to_clean_db"] - row["psnr_of_query_to_clean_db"] for row in corrupted_rows]
    )
    least, most = bootstrap_interval(gains)
    half = 0.5 * clean
    verdict = "confirmed" if low > half else "refuted" if high < half else "not decided"
    return [
        f"A6, {arm}: nMA (0 where it is not valid) {found.mean():.2f} ({low:.2f} to {high:.2f}) "
        f"over all corruptions, {clean:.2f} without; that more than half is kept is {verdict}. "
        f"PSNR to the clean counterfactual, less that of the query: {gains.mean():+.2f} dB "
        f"({least:+.2f} to {most:+.2f})."
    ]


def picture() -> None:
    """Queries with each corruption at the second severity, and their counterfactuals."""
    arm = ARMS[0]
    queries, images = [], []
    for corruption in CORRUPTIONS:
        name = name_of(corruption, 2, arm)
        path = PLAN.folder / f"{name}.json"
        if not path.exists() or not read(path)["queries"]:
            continue
        first = read(path)["queries"][0]
        asked = cases.queries("faces", 0, QUERIES)
        queries.append(corrupted(asked.images, corruption, 2)[first])
        images.append(cases.read_images(name, plan=PLAN)[0])
    if queries:
        figure = counterfactual_grid(queries, {arm: images})
        save_figure(figure, PICTURES / "counterfactuals-corruptions.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="jobs at a time")
    parser.add_argument("--table", action="store_true", help="only table and picture")
    options = parser.parse_args()
    if not options.table:
        cases.classifier("faces", 0), cases.oracle("faces")
        for name in work(PLAN, all_jobs(), processes=options.processes):
            print(name, flush=True)
    text = table()
    print(text)
    replace_section(PAGE, "counterfactuals corruptions", text)
    picture()


if __name__ == "__main__":
    main()
