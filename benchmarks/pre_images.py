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

from pathlib import Path

import counterfactual_cases as cases
import numpy as np
from compared_arms import say_untuned
from counterfactual_cases import read
from counterfactual_pictures import PICTURES, save_titled
from counterfactual_plans import DEFAULT
from job_options import on_device, options_parser, publish, run_jobs
from job_queue import path_of
from measuring import table
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
    filled,
    holed,
    name_of,
    true_answers,
)

from dipct.evaluation import bootstrap_interval

# What is claimed of A8, and what counts as a repair or as filled, which no source says [dB].
CLAIMED, REPAIR = 0.5, 1.0
# Queries in the pictures.
_SHOWN, _FILLED = 2, 6
# Without and with a network, of those that have no loss estimator.
PRIORS = ("pixel-tv", "dip")


def result(plan: PreImagePlan, *parts: str) -> dict | None:
    """What a job wrote, if it is done."""
    path = path_of(plan, name_of(*parts))
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
    return "confirmed" if low >= CLAIMED else "not decided"


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
        if any(found):
            rows.append([layer, *(interval(each["psnr_db"]) if each else "-" for each in found)])
        of_tv, of_dip = (result(plan, "pre-image", layer, method, NONE) for method in PRIORS)
        if of_tv and of_dip:
            lead = np.array(of_dip["psnr_db"]) - of_tv["psnr_db"]
            claims.append(
                f"{layer}: {PRIORS[1]} less {PRIORS[0]} {interval(lead, signed=True)} dB, "
                "paired by query."
            )
        if pair := both(plan, layer, NONE):
            gain = np.array(pair[1]["psnr_db"]) - pair[0]["psnr_db"]
            claims.append(
                f"A8, {layer}: the loss estimator (weight {pair[1]['weight']:g}) improves the "
                f"pre-image by {interval(gain, signed=True)} dB, n = {len(gain)}, where 0.5 to 1 "
                f"is claimed: {gain_verdict(gain)}."
            )
    return table(["stage", *METHODS], rows) if rows else "", claims


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
    found = [each for arm in FILLING if (each := result(plan, filled(arm)))]
    rows = [
        [
            each["arm"],
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
    header = ["arm", "valid", "query", "plain", "counterfactual"]
    return table(header, rows) if rows else "", claims


def page_text(plan: PreImagePlan) -> str:
    """Tables and verdicts."""
    parts = []
    for lines, claims in (stage_lines(plan), repair_lines(plan), filling_lines(plan)):
        parts += [lines, "\n".join(f"* {claim}" for claim in claims)]
    if not any(parts):
        return "Nothing was run yet."
    return "\n\n".join(part for part in parts if part)


def write_pictures(plan: PreImagePlan, folder: Path) -> None:
    """By stage and method; repaired images; filled blocks. Those of which there are images."""
    if not path_of(DEFAULT, "weights-faces-0").exists():
        return
    for name, picture in PICTURES_OF.items():
        drawn = picture(plan)
        if drawn is not None:
            queries, rows, titles = drawn
            path = folder / f"counterfactuals-pre-images-{name}.png"
            save_titled(path, list(queries), rows, titles, differences=False)


Picture = tuple[np.ndarray, dict[str, list[np.ndarray | None]], list[str]]


def stage_picture(plan: PreImagePlan) -> Picture | None:
    """Two queries; a column for each stage, a row for each method."""
    rows = {
        method: [
            _image(plan, number, "pre-image", layer, method, NONE)
            for number in range(_SHOWN)
            for layer in STAGES
        ]
        for method in METHODS
    }
    queries = asked(plan.scored).images[:_SHOWN].repeat(len(STAGES), axis=0)
    return _picture(queries, rows, [*STAGES] * _SHOWN)


def repair_picture(plan: PreImagePlan) -> Picture | None:
    """Two queries with each defect; a row for each stage and method."""
    clean = asked(plan.scored).images[:_SHOWN]
    rows = {
        f"{method}, {layer}": [
            _image(plan, number, "pre-image", layer, method, defect)
            for defect in DEFECTS
            for number in range(_SHOWN)
        ]
        for layer in REPAIRED_FROM
        for method in NETWORKS
    }
    queries = np.concatenate([defective(clean, defect) for defect in DEFECTS])
    found = _picture(queries, rows, [defect for defect in DEFECTS for _ in clean])
    if found is not None:
        found[1]["without the defect"] = [*clean] * len(DEFECTS)
    return found


def filling_picture(plan: PreImagePlan) -> Picture | None:
    """Queries with a missing block, counterfactuals, and the true ones."""
    if not any(path_of(plan, f"images-{filled(arm)}").exists() for arm in FILLING):
        return None
    queries, kept = holed(plan)
    shown = range(min(_FILLED, len(kept)))
    rows = {arm: [_image(plan, number, filled(arm)) for number in shown] for arm in FILLING}
    found = _picture(queries.images[: len(shown)], rows, [])
    if found is not None:
        found[1]["true counterfactual"] = list(true_answers(plan, kept)[: len(shown)])
    return found


PICTURES_OF = {
    "stages": stage_picture,
    "repair": repair_picture,
    "missing-block": filling_picture,
}


def _picture(
    queries: np.ndarray, rows: dict[str, list[np.ndarray | None]], titles: list[str]
) -> Picture | None:
    """With the rows that have any image, if there is one."""
    rows = {name: row for name, row in rows.items() if any(image is not None for image in row)}
    return (queries, rows, titles) if rows else None


def _image(plan: PreImagePlan, number: int, *parts: str) -> np.ndarray | None:
    """That of a query, if it was kept."""
    name = name_of(*parts)
    is_kept = path_of(plan, f"images-{name}").exists()
    return cases.read_images(name, plan=plan)[number] if is_kept else None


def _comparison(*found: dict) -> str:
    without, with_it = map(gain_of, found)
    return (
        f"on the query, {interval(without, signed=True)} dB without the loss estimator and "
        f"{interval(with_it, signed=True)} dB with it, a difference of "
        f"{interval(with_it - without, signed=True)} dB, n = {len(without)}; that only the loss "
        f"estimator makes good is {only_verdict(*map(repair_of, found))}."
    )


def main() -> None:
    options = options_parser(__doc__, quick=True).parse_args()
    plan = on_device(QUICK if options.quick else PLAN, options)
    say_untuned(FILLING)
    run_jobs(plan, all_jobs(plan), options)
    write_pictures(plan, plan.runs if options.quick else PICTURES)
    publish("pre-images", page_text(plan), plan.folder.glob("*.json"), options)


if __name__ == "__main__":
    main()
