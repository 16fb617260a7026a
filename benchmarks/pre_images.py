"""Claims A7 to A9: what a loss estimator adds to pre-images, and whether it repairs images.

Faces of 32 pixels and the first classifier of benchmarks/counterfactuals.py. Pre-images from every
stage by four methods (figure 2 of arXiv 2010.12046); pre-images of images that were cropped,
blurred or have a missing block (figure 3); and counterfactuals of those with a missing block
(figure 2 of arXiv 2109.14274).

    python benchmarks/pre_images.py                   # what is not done yet, two at a time
    python benchmarks/pre_images.py --seconds 90      # nothing begins later than that
    python benchmarks/pre_images.py --quick           # small, in a folder of its own
    python benchmarks/pre_images.py --table           # table and pictures only
"""

import argparse
from pathlib import Path

import counterfactual_cases as cases
import numpy as np
from counterfactual_cases import read
from counterfactual_jobs import work
from counterfactual_pictures import PICTURES
from measuring import replace_section, table
from pre_image_jobs import (
    DEFECTS,
    FILLING,
    METHODS,
    NETWORKS,
    NONE,
    PLAN,
    QUICK,
    REPAIRED_FROM,
    STAGES,
    PreImagePlan,
    all_jobs,
    asked,
    defective,
    holed,
    name_of,
    true_images,
)

from dipct.evaluation import bootstrap_interval
from dipct.figures import counterfactual_grid, save_figure

PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
# What is claimed of A8, and what counts as a repair or as filled, which no source says [dB].
CLAIMED, REPAIR = 0.5, 1.0


def result(plan: PreImagePlan, *parts: str) -> dict | None:
    """What a job wrote, if it is done."""
    path = plan.folder / f"{name_of(*parts)}.json"
    return read(path) if path.exists() else None


def both(plan: PreImagePlan, layer: str, defect: str) -> list[dict]:
    """Pre-images without and with the loss estimator, or nothing."""
    found = [result(plan, "pre-image", layer, method, defect) for method in NETWORKS]
    return [each for each in found if each] if all(found) else []


def interval(values: np.ndarray | list[float], *, signed: bool = False) -> str:
    """A mean with its interval."""
    sign, (low, high) = "+" if signed else "", bootstrap_interval(np.array(values))
    return f"{np.mean(values):{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def gain_of(found: dict) -> np.ndarray:
    """On the query as it was shown [dB]."""
    return np.array(found["psnr_db"]) - found["psnr_of_query_db"]


def repair_of(found: dict) -> np.ndarray:
    """Beyond the query and beyond what shows nothing, whichever is better [dB]."""
    return found["psnr_db"] - np.maximum(found["psnr_of_query_db"], found["psnr_of_plain_db"])


def gain_verdict(gain: np.ndarray) -> str:
    """Of the claim that there is a gain, of at least what is claimed."""
    low, high = bootstrap_interval(gain)
    if high < CLAIMED:
        return "refuted"
    return "confirmed" if low > 0 else "not decided"


def only_verdict(without: np.ndarray, with_it: np.ndarray) -> str:
    """Of the claim that there is a repair with the loss estimator, and none without."""
    (low, high), (low_with, high_with) = map(bootstrap_interval, (without, with_it))
    if high_with < REPAIR:
        return "refuted, there is none with it"
    if low > REPAIR:
        return "refuted, there is one without it"
    return "confirmed" if low_with > REPAIR and high < REPAIR else "not decided"


def stage_lines(plan: PreImagePlan) -> tuple[str, list[str]]:
    """Pre-images of whole queries, and claim A8."""
    rows, claims = [], []
    for layer in STAGES:
        found = [result(plan, "pre-image", layer, method, NONE) for method in METHODS]
        rows.append([layer, *(interval(each["psnr_db"]) if each else "-" for each in found)])
        if pair := both(plan, layer, NONE):
            gain = np.array(pair[1]["psnr_db"]) - pair[0]["psnr_db"]
            claims.append(
                f"A8, {layer}: the loss estimator (weight {pair[1]['weight']:g}) improves the "
                f"pre-image by {interval(gain, signed=True)} dB, n = {len(gain)}, where 0.5 to 1 "
                f"is claimed: {gain_verdict(gain)}."
            )
    return table(["stage", *METHODS], rows), claims


def repair_lines(plan: PreImagePlan) -> tuple[str, list[str]]:
    """Pre-images of defective queries, and claim A9."""
    rows, claims = [], []
    for defect in DEFECTS:
        for layer in REPAIRED_FROM:
            if not (pair := both(plan, layer, defect)):
                continue
            rows.append(
                [
                    defect,
                    layer,
                    f"{pair[1]['weight']:g}",
                    interval(pair[0]["psnr_of_query_db"]),
                    interval(pair[0]["psnr_of_plain_db"]),
                    *(interval(each["psnr_db"]) for each in pair),
                    *(interval(each["psnr_to_shown_db"]) for each in pair),
                ]
            )
            claims.append(f"A9, {defect}, {layer}: {_comparison(*pair)}")
    header = ["defect", "stage", "weight", "query", "plain", *NETWORKS]
    header += [f"{method} to the query" for method in NETWORKS]
    return table(header, rows) if rows else "", claims


def filling_lines(plan: PreImagePlan) -> tuple[str, list[str]]:
    """Counterfactuals of queries with a missing block, and claim A7."""
    found = [each for method in FILLING if (each := result(plan, "filled", method))]
    rows = [
        [
            each["method"],
            f"{sum(each['valid']):.0f} of {len(each['valid'])}",
            interval(each["psnr_of_query_db"]),
            interval(each["psnr_of_plain_db"]),
            interval(each["psnr_db"]),
        ]
        for each in found
    ]
    claims = []
    if len(found) == len(FILLING):
        claims.append(f"A7, inside the block: {_comparison(*found)}")
    header = ["method", "valid", "query", "plain", "counterfactual"]
    return table(header, rows) if rows else "", claims


def page_text(plan: PreImagePlan, pictures: list[Path]) -> str:
    """Tables, verdicts and pictures."""
    parts = []
    for lines, claims in (stage_lines(plan), repair_lines(plan), filling_lines(plan)):
        parts += [lines, "\n".join(f"* {claim}" for claim in claims)]
    parts += [f"![{path.stem}](pictures/{path.name})" for path in pictures]
    return "\n\n".join(part for part in parts if part)


def write_pictures(plan: PreImagePlan, folder: Path) -> list[Path]:
    """By stage and method; repaired images; filled blocks."""
    found = (stage_picture(plan), repair_picture(plan), filling_picture(plan))
    written = []
    for name, picture in zip(("stages", "repair", "missing-block"), found, strict=True):
        if picture is not None:
            queries, rows, titles = picture
            figure = counterfactual_grid(list(queries), rows, differences=False)
            for axes, title in zip(figure.axes, titles, strict=False):
                axes.set_title(title, fontsize="small")
            # The grid had no titles when it was arranged.
            figure.set_layout_engine("constrained")
            written.append(folder / f"counterfactuals-pre-images-{name}.png")
            save_figure(figure, written[-1])
    return written


Picture = tuple[np.ndarray, dict[str, list[np.ndarray]], list[str]]


def stage_picture(plan: PreImagePlan) -> Picture | None:
    """Two queries; a column for each stage, a row for each method."""
    if not all(result(plan, "pre-image", layer, m, NONE) for layer in STAGES for m in METHODS):
        return None
    columns = [(i, layer) for i in range(2) for layer in STAGES]
    rows = {
        method: [_images(plan, "pre-image", layer, method, NONE)[i] for i, layer in columns]
        for method in METHODS
    }
    clean = asked(plan.scored).images
    return clean[[i for i, _ in columns]], rows, [layer for _, layer in columns]


def repair_picture(plan: PreImagePlan) -> Picture | None:
    """Two queries with each defect; a row for each stage and method."""
    if not all(both(plan, layer, defect) for layer in REPAIRED_FROM for defect in DEFECTS):
        return None
    clean = asked(plan.scored).images[:2]
    rows = {
        f"{method}, {layer}": [
            image
            for defect in DEFECTS
            for image in _images(plan, "pre-image", layer, method, defect)[:2]
        ]
        for layer in REPAIRED_FROM
        for method in NETWORKS
    }
    rows["without the defect"] = [*clean] * len(DEFECTS)
    queries = np.concatenate([defective(clean, defect) for defect in DEFECTS])
    return queries, rows, [defect for defect in DEFECTS for _ in clean]


def filling_picture(plan: PreImagePlan) -> Picture | None:
    """Queries with a missing block, counterfactuals, and the true ones."""
    if not all(result(plan, "filled", method) for method in FILLING):
        return None
    queries, kept = holed(plan)
    shown = slice(0, 6)
    rows = {method: list(_images(plan, "filled", method)[shown]) for method in FILLING}
    rows["true counterfactual"] = list(true_images(plan, kept[shown]))
    return queries.images[shown], rows, []


def _images(plan: PreImagePlan, *parts: str) -> np.ndarray:
    return cases.read_images(name_of(*parts), plan=plan)


def _comparison(*found: dict) -> str:
    without, with_it = map(gain_of, found)
    return (
        f"on the query, {interval(without, signed=True)} dB without the loss estimator and "
        f"{interval(with_it, signed=True)} dB with it, a difference of "
        f"{interval(with_it - without, signed=True)} dB, n = {len(without)}; that only the loss "
        f"estimator makes good is {only_verdict(*map(repair_of, found))}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small, for a look")
    parser.add_argument("--processes", type=int, default=2, help="jobs at a time")
    parser.add_argument("--seconds", type=float, help="after which none begins any more")
    parser.add_argument("--table", action="store_true", help="only table and pictures")
    options = parser.parse_args()
    plan = QUICK if options.quick else PLAN
    if not options.table:
        # All processes read it.
        cases.classifier("faces", 0)
        todo = all_jobs()
        for name in work(plan, todo, processes=options.processes, seconds=options.seconds):
            print(name, flush=True)
    text = page_text(plan, write_pictures(plan, plan.runs if options.quick else PICTURES))
    print(text)
    if not options.quick:
        replace_section(PAGE, "pre-images", text)


if __name__ == "__main__":
    main()
