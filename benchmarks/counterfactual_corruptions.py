"""Claim A6: edits stay where they belong when the query is corrupted, and clean it up.

Thiagarajan et al. (arXiv 2109.14274, figure 7) show it without numbers and do not name their
corruptions. Faces of 32 pixels and the first classifier of benchmarks/counterfactuals.py, with the
settings that are chosen there. Six corruptions of three severities each; of all of them the
training had noise.

    python benchmarks/counterfactual_corruptions.py --processes 16
    python benchmarks/counterfactual_corruptions.py --table    # table and picture only
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import counterfactual_cases as cases
import numpy as np
import torch
from counterfactual_cases import DEFAULT, Plan, read, slug
from counterfactual_jobs import Job, path_of, standings_of, work
from counterfactual_pictures import PICTURES
from image_corruptions import CORRUPTIONS, corrupted
from measuring import RESULTS, machine, replace_section, write_result
from measuring import table as markdown
from scipy.stats import spearmanr

from dipct.classifier import STAGES
from dipct.evaluation import bootstrap_interval, psnr
from dipct.figures import counterfactual_grid, save_figure
from dipct.operator import LOGITS
from dipct.phantom import TrueCounterfactuals

PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
ARMS = ("LSO + INR + DEP", "LSO + INR", "PGD")
RANKED = 100
# Below this normalised mass accuracy without corruption there is no localisation to keep.
LOCALISED = 0.2
PLAN = Plan(
    RESULTS / "counterfactual_corruptions",
    {"faces": replace(DEFAULT.cases["faces"], queries=8)},
    {name: DEFAULT.arms[name] for name in ARMS},
)
QUICK = replace(
    PLAN,
    folder=PLAN.folder / "runs" / "quick",
    cases={"faces": replace(DEFAULT.cases["faces"], queries=2)},
    arms={
        name: arm if name == "PGD" else replace(arm, fixed=arm.fixed | {"steps": 10})
        for name, arm in PLAN.arms.items()
    },
)
"""For a look at how it all works; its numbers say nothing."""

COLUMNS = {"valid": "valid", "normalised_mass_accuracy": "nMA", "overlap": "IoU"}


def cells() -> list[tuple[str, int]]:
    """Corruptions and severities; nothing is corrupted at severity zero."""
    return [("noise", 0), *((name, severity) for name in CORRUPTIONS for severity in (1, 2, 3))]


def name_of(corruption: str, severity: int) -> str:
    return f"{corruption.replace(' ', '-')}-{severity}"


def all_jobs(plan: Plan) -> list[Job]:
    found = [Job(name_of(*cell), (), run, cell) for cell in cells()]
    if plan is QUICK:
        found = [job for job in found if job.arguments[1] in (0, 3)]
    return [Job("ranks", (), rank, ()), *found]


def run(plan: Plan, name: str, corruption: str, severity: int) -> None:
    """Counterfactuals of corrupted queries by every arm."""
    asked, trained = _asked(plan), cases.classifier("faces", 0)
    queries = corrupted(asked.images, corruption, severity)
    with torch.no_grad():
        seen = trained.features([LOGITS])(torch.from_numpy(queries)).argmax(-1).numpy()
    # Where the corruption made a smile of it there is nothing to ask for.
    kept = np.flatnonzero(seen == DEFAULT.cases["faces"].source)
    scores: dict[str, list[dict[str, float]]] = {arm: [] for arm in plan.arms}
    if len(kept):
        scenes = [replace(asked.scenes[i], image=queries[i]) for i in kept]
        shown = cases.Queries(asked.task, scenes, [asked.targets[i] for i in kept])
        clean = replace(shown, scenes=[asked.scenes[i] for i in kept])
        truths = cases.truths_of(clean)
        start = cases.start_of(shown, "inr")[0]
        for arm_name, arm in plan.arms.items():
            found = cases.explain(
                trained,
                shown,
                cases.settings_of(arm, cases.chosen_of("faces", arm_name)),
                start=None if arm.generator == "pixels" else start,
            )
            images = np.stack([each.image for each in found])
            # Edits are from what the classifier was shown, and right if they are where a smile is.
            rows = cases.scores_of("faces", shown, truths, images, standings_of(found))
            for row, *given in zip(rows, clean.images, truths, shown.images, images, strict=True):
                row.update(_distances(*given))
            scores[arm_name] = rows
            cases.write_images(f"{name}-{slug(arm_name)}", images, plan=plan)
    write_result(
        path_of(plan, name),
        {
            "corruption": corruption,
            "severity": severity,
            "queries": kept.tolist(),
            "scores": scores,
            "machine": machine(),
        },
    )


def _distances(
    clean: np.ndarray, truth: TrueCounterfactuals, query: np.ndarray, image: np.ndarray
) -> dict[str, float]:
    """PSNR [dB] to what was not corrupted, of the query as shown and of its counterfactual.

    To the nearest true counterfactual; and to the clean query where no smile edits it, so that a
    smile that is there is not taken for cleaning up.
    """
    outside = np.broadcast_to(~truth.may, clean.shape)
    found = {}
    for name, each in {"query": query, "image": image}.items():
        found[f"{name}_db"] = max(psnr(each, other, data_range=1.0) for other in truth.images)
        found[f"{name}_outside_db"] = psnr(each, clean, mask=outside, data_range=1.0)
    return {name: value for name, value in found.items() if np.isfinite(value)}


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
    write_result(path_of(plan, name), {"spearman": found, "machine": machine()})


def table_of(plan: Plan) -> str:
    """By corruption and severity, the arms beside each other; and the verdicts."""
    lines: list[list[str]] = []
    results = {cell: read(path) for cell in cells() if (path := _path(plan, cell)).exists()}
    reference = results.get(("noise", 0))
    for (corruption, severity), result in results.items():
        scores = [result["scores"][arm] for arm in plan.arms]
        lines.append(
            [
                corruption if severity else "none",
                str(severity),
                str(len(result["queries"])),
                *(_joined([_mean(rows, column) for rows in scores]) for column in COLUMNS),
                _joined(
                    [
                        _of_changes([each for _, each in _changes(result, reference, arm)])
                        for arm in plan.arms
                    ]
                ),
                _mean(scores[0], "query_db", "{:.1f}"),
                _joined([_mean(rows, "image_db", "{:.1f}") for rows in scores]),
                _mean(scores[0], "query_outside_db", "{:.1f}"),
                _joined([_mean(rows, "image_outside_db", "{:.1f}") for rows in scores]),
            ]
        )
    if not lines:
        return "Nothing was run yet."
    header = [
        *("corruption", "severity", "n"),
        *COLUMNS.values(),
        "nMA less severity 0",
        *("query [dB]", "counterfactual [dB]", "query outside [dB]", "outside [dB]"),
    ]
    verdicts = [each for arm in plan.arms for each in _verdicts(results, arm)]
    if path_of(plan, "ranks").exists():
        ranks = read(path_of(plan, "ranks"))["spearman"]
        found = ", ".join(f"{name} {ranks[name]:+.2f}" for name in CORRUPTIONS)
        verdicts.append(f"Rank correlation of the loss estimate with severity: {found}.")
    order = f"Of {', '.join(plan.arms)}, in this order:"
    return "\n".join([order, "", markdown(header, lines), "", *(f"* {v}" for v in verdicts)])


def _mean(rows: list[dict[str, float]], column: str, shape: str = "{:.2f}") -> str:
    """Mean of a score; whether there is one depends on the image."""
    values = [row[column] for row in rows if column in row]
    return shape.format(np.mean(values)) if values else "-"


def _joined(texts: list[str]) -> str:
    """One cell of all arms."""
    return " / ".join(texts)


def _of_changes(values: list[float]) -> str:
    return f"{np.mean(values):+.2f}" if values else "-"


def _mass(row: dict[str, float]) -> float:
    """Normalised mass accuracy, zero for what is not valid or changes nothing."""
    return row.get("normalised_mass_accuracy", 0.0) * row["valid"]


def _changes(
    result: dict[str, Any], reference: dict[str, Any] | None, arm: str, *, kept: float = 1.0
) -> list[tuple[int, float]]:
    """Each query, and its mass accuracy less a share of its own without corruption."""
    if reference is None or result["severity"] == 0:
        return []
    clean = dict(zip(reference["queries"], reference["scores"][arm], strict=True))
    return [
        (query, _mass(row) - kept * _mass(clean[query]))
        for query, row in zip(result["queries"], result["scores"][arm], strict=True)
    ]


def _verdicts(results: dict[tuple[str, int], dict[str, Any]], arm: str) -> list[str]:
    """Does localisation keep half of what it is without corruption, and is the image cleaner?"""
    reference = results.get(("noise", 0))
    others = [result for (_, severity), result in results.items() if severity]

    def paired(kept: float) -> list[tuple[int, float]]:
        return [each for result in others for each in _changes(result, reference, arm, kept=kept)]

    if reference is None or not paired(1.0):
        return []
    clean = np.mean([_mass(row) for row in reference["scores"][arm]])
    low, high, _ = _interval(paired(0.5))
    verdict = "confirmed" if low > 0 else "refuted" if high < 0 else "not decided"
    if clean < LOCALISED:
        verdict = "there is nothing to keep"
    found = [
        f"A6, {arm}: nMA (0 where not valid) is {clean:.2f} without corruption and changes by "
        f"{_interval(paired(1.0))[2]} with it, paired by query; that at least half is kept: "
        f"{verdict}."
    ]
    for ending, where in (
        ("db", "to the nearest true counterfactual"),
        ("outside_db", "to the clean query outside the smile"),
    ):
        gains = [
            (query, row[f"image_{ending}"] - row[f"query_{ending}"])
            for result in others
            for query, row in zip(result["queries"], result["scores"][arm], strict=True)
            if f"image_{ending}" in row and f"query_{ending}" in row
        ]
        if gains:
            low, high, text = _interval(gains)
            verdict = "nearer" if low > 0 else "further" if high < 0 else "neither"
            found.append(f"{arm}: PSNR {where}, less that of the query: {text} dB: {verdict}.")
    return found


def _interval(pairs: list[tuple[int, float]]) -> tuple[float, float, str]:
    """Of a mean over cells, drawn by query; as text too."""
    queries, values = np.array([q for q, _ in pairs]), np.array([value for _, value in pairs])
    low, high = bootstrap_interval(values, clusters=queries)
    return low, high, f"{values.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def picture(plan: Plan, path: Path) -> None:
    """Each corruption at its second severity, or third, as figure 7 of arXiv 2109.14274."""
    arm = ARMS[0]
    asked, found = _asked(plan), {}
    truths = cases.truths_of(asked)
    for number, corruption in enumerate(CORRUPTIONS):
        for severity in (2, 3):
            place = _path(plan, (corruption, severity))
            if not place.exists() or not (kept := read(place)["queries"]):
                continue
            # Another face in every column, where there is one.
            at = number % len(kept)
            image = cases.read_images(f"{place.stem}-{slug(arm)}", plan=plan)[at]
            query = corrupted(asked.images, corruption, severity)[kept[at]]
            found[corruption] = (query, image, truths[kept[at]].may)
            break
    if not found:
        return
    queries, images, regions = zip(*found.values(), strict=True)
    figure = counterfactual_grid(list(queries), {arm: list(images)}, regions=list(regions))
    for axes, title in zip(figure.axes, found, strict=False):
        axes.set_title(title, fontsize=8)
    # Titles need room.
    figure.set_layout_engine("constrained")
    save_figure(figure, path)


def _path(plan: Plan, cell: tuple[str, int]) -> Path:
    return path_of(plan, name_of(*cell))


def _asked(plan: Plan) -> cases.Queries:
    return cases.queries("faces", 0, plan.cases["faces"].queries)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="jobs at a time")
    parser.add_argument("--table", action="store_true", help="only table and picture")
    parser.add_argument("--quick", action="store_true", help="tiny, and no page is written")
    options = parser.parse_args()
    plan = QUICK if options.quick else PLAN
    if not options.table:
        cases.classifier("faces", 0), cases.oracle("faces")
        for name in work(plan, all_jobs(plan), processes=options.processes):
            print(name, flush=True)
    text = table_of(plan)
    print(text)
    if options.quick:
        picture(plan, plan.folder / "picture.png")
    else:
        replace_section(PAGE, "counterfactuals corruptions", text)
        picture(plan, PICTURES / "counterfactuals-corruptions.png")


if __name__ == "__main__":
    main()
