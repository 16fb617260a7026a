"""Claims A7 to A9: what a loss estimator adds to pre-images, and whether it repairs images.

Faces of 32 pixels and the first classifier of benchmarks/counterfactuals.py. Pre-images from every
stage by four methods; pre-images of images that were cropped, blurred or have a missing block; and
counterfactuals of those with a missing block. The weight of the loss estimator is chosen on other
queries.

    python benchmarks/pre_images.py                   # what is not done yet, two at a time
    python benchmarks/pre_images.py --table           # table and pictures only
"""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

import counterfactual_cases as cases
import numpy as np
import torch
from counterfactual_cases import Plan, Queries, read
from counterfactual_jobs import Job, work
from counterfactual_pictures import PICTURES
from measuring import RESULTS, machine, replace_section, write_result
from scipy.ndimage import gaussian_filter

from dipct.evaluation import bootstrap_interval, psnr
from dipct.figures import counterfactual_grid, save_figure
from dipct.operator import LOGITS
from dipct.pipeline import counterfactual, pre_image

PLAN = Plan(RESULTS / "pre_images", {}, cases.ARMS)
PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
STAGES = ("layer1", "layer2", "layer3", "layer4")
METHODS = ("pixel-tv", "pixel-alpha", "dip", "dip-dep")
REPAIRED_FROM = ("layer1", "layer2")
WEIGHTS = (0.02, 0.1, 0.5)
QUERIES, TUNING, STEPS = 12, 3, 400
BLOCK = np.s_[..., 9:17, 9:17]
_CROP, _BLUR_STD = 5, 1.2


def cropped(image: np.ndarray) -> np.ndarray:
    """Black at the left and at the top."""
    found = image.copy()
    found[..., :_CROP] = 0
    found[..., :_CROP, :] = 0
    return found


def blurred(image: np.ndarray) -> np.ndarray:
    """By a Gaussian."""
    return gaussian_filter(image, (0, _BLUR_STD, _BLUR_STD)).astype(np.float32)


def with_a_hole(image: np.ndarray) -> np.ndarray:
    """Black in a block, over an eye and the nose."""
    found = image.copy()
    found[BLOCK] = 0
    return found


DEFECTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda image: image,
    "cropped": cropped,
    "blurred": blurred,
    "missing block": with_a_hole,
}


@cache
def asked(name: str) -> Queries:
    """Queries that are scored, or those that weights are chosen on."""
    if name == "tuning":
        return cases.queries("faces", 0, TUNING, first=cases.FIRST_TUNING)
    return cases.queries("faces", 0, QUERIES)


def name_of(kind: str, *parts: str | float) -> str:
    return "-".join([kind, *(str(part).replace(" ", "-") for part in parts)])


def all_jobs() -> list[Job]:
    """Networks first: they take longest."""
    found = []
    for layer in STAGES:
        for weight in WEIGHTS:
            name = name_of("choice", layer, weight)
            found.append(Job(name, (), make_choice, (layer, weight)))
    for layer in STAGES:
        needs = tuple(name_of("choice", layer, weight) for weight in WEIGHTS)
        for method in reversed(METHODS):
            for defect in DEFECTS if layer in REPAIRED_FROM and "dip" in method else ("none",):
                name = name_of("pre-image", layer, method, defect)
                asks = needs if method == "dip-dep" else ()
                found.append(Job(name, asks, make_pre_images, (layer, method, defect)))
    for method in ("lso-dip", "lso-dip-dep"):
        found.append(Job(name_of("hole", method), (), fill_hole, (method,)))
    return found


def made(
    queries: Queries, layer: str, method: str, defect: str, weight: float | None
) -> np.ndarray:
    defective = np.stack([DEFECTS[defect](image) for image in queries.images])
    extra = {} if weight is None else {"manifold_weight": weight}
    trained = cases.classifier("faces", 0)
    found = pre_image(trained, defective, method=method, layers=(layer,), steps=STEPS, **extra)
    return np.stack([each.image for each in found])


def psnrs(one: np.ndarray, other: np.ndarray) -> list[float]:
    return [float(psnr(a, b, data_range=1.0)) for a, b in zip(one, other, strict=True)]


def make_choice(plan: Plan, name: str, layer: str, weight: float) -> None:
    """Pre-images of whole and of defective queries, with a weight."""
    queries = asked("tuning")
    found = {
        defect: psnrs(made(queries, layer, "dip-dep", defect, weight), queries.images)
        for defect in (DEFECTS if layer in REPAIRED_FROM else ("none",))
    }
    write_result(plan.folder / f"{name}.json", {"psnr_db": found, "machine": machine()})


def chosen_weight(layer: str, defect: str) -> float:
    """The weight with the highest PSNR on other queries."""

    def merit(weight: float) -> float:
        result = read(PLAN.folder / f"{name_of('choice', layer, weight)}.json")
        return float(np.mean(result["psnr_db"][defect]))

    return max(WEIGHTS, key=merit)


def make_pre_images(plan: Plan, name: str, layer: str, method: str, defect: str) -> None:
    """Pre-images of all queries."""
    queries = asked("scored")
    weight = chosen_weight(layer, defect) if method == "dip-dep" else None
    found = made(queries, layer, method, defect, weight)
    defective = np.stack([DEFECTS[defect](image) for image in queries.images])
    cases.write_images(name, found, plan=plan)
    write_result(
        plan.folder / f"{name}.json",
        {
            "layer": layer,
            "method": method,
            "defect": defect,
            "weight": weight,
            "psnr_db": psnrs(found, queries.images),
            "psnr_of_query_db": [min(each, 99.0) for each in psnrs(defective, queries.images)],
            "machine": machine(),
        },
    )


def fill_hole(plan: Plan, name: str, method: str) -> None:
    """Counterfactuals of queries with a missing block: is it filled?"""
    queries, trained = asked("scored"), cases.classifier("faces", 0)
    holed = np.stack([with_a_hole(image) for image in queries.images])
    with torch.no_grad():
        seen = trained.features([LOGITS])(torch.from_numpy(holed)).argmax(-1).numpy()
    # The block may have made a smile of it.
    kept = np.flatnonzero(seen == 0)
    chosen = cases.chosen_of("faces", "LSO + DIP + DEP" if "dep" in method else "LSO + DIP")
    found = counterfactual(trained, holed[kept], 1, method=method, steps=cases.STEPS, **chosen)
    images = np.stack([each.image for each in found])
    true = np.stack([cases.truths_of(queries)[i].images[0] for i in kept])
    cases.write_images(name, images, plan=plan)
    write_result(
        plan.folder / f"{name}.json",
        {
            "method": method,
            "queries": kept.tolist(),
            "settings": found[0].settings,
            "valid": [float(each.valid) for each in found],
            "psnr_db": psnrs(images[BLOCK], true[BLOCK]),
            "psnr_of_query_db": psnrs(holed[kept][BLOCK], true[BLOCK]),
            "machine": machine(),
        },
    )


def result(*parts: str) -> dict | None:
    path = PLAN.folder / f"{name_of(*parts)}.json"
    return read(path) if path.exists() else None


def difference(one: list[float], other: list[float], expected: str) -> str:
    """Paired, with its interval, and whether what was claimed is there."""
    values = np.array(one) - np.array(other)
    low, high = bootstrap_interval(values)
    verdict = "not decided" if low <= 0 <= high else "confirmed" if low > 0 else "refuted"
    text = f"{values.mean():+.2f} dB ({low:+.2f} to {high:+.2f}, n = {len(values)})"
    return f"{expected}: {text}; {verdict}."


def table() -> str:
    lines = ["| stage | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    for layer in STAGES:
        found = [result("pre-image", layer, method, "none") for method in METHODS]
        means = ["-" if each is None else f"{np.mean(each['psnr_db']):.2f}" for each in found]
        lines.append(f"| {layer} | " + " | ".join(means) + " |")
    lines += ["", "| defect | stage | of the query | dip | dip-dep |", "|---|---|---|---|---|"]
    claims = []
    for layer in STAGES:
        one, other = (result("pre-image", layer, m, "none") for m in ("dip-dep", "dip"))
        if one and other:
            claim = f"A8, the loss estimator improves pre-images of {layer}"
            claims.append(difference(one["psnr_db"], other["psnr_db"], claim))
    for defect in list(DEFECTS)[1:]:
        for layer in REPAIRED_FROM:
            one, other = (result("pre-image", layer, m, defect) for m in ("dip-dep", "dip"))
            if not one or not other:
                continue
            before = one["psnr_of_query_db"]
            means = [np.mean(each) for each in (before, other["psnr_db"], one["psnr_db"])]
            lines.append(
                f"| {defect} | {layer} | " + " | ".join(f"{each:.2f}" for each in means) + " |"
            )
            claim = f"A9, {defect}, {layer}: DIP alone does not repair, which is to gain nothing"
            gain = np.array(other["psnr_db"]) - np.array(before)
            low, high = bootstrap_interval(gain)
            verdict = "refuted" if low > 0 else "confirmed"
            claims.append(f"{claim}: {gain.mean():+.2f} dB ({low:+.2f} to {high:+.2f}); {verdict}.")
            claim = f"A9, {defect}, {layer}: with the loss estimator it gains"
            claims.append(difference(one["psnr_db"], before, claim))
    for method in ("lso-dip", "lso-dip-dep"):
        found = result("hole", method)
        if found:
            claim = f"A7, {method} fills a missing block: PSNR in it to the true counterfactual"
            text = difference(found["psnr_db"], found["psnr_of_query_db"], claim)
            claims.append(f"{text} Valid: {np.mean(found['valid']):.0%}.")
    if not claims:
        return "Nothing was run yet."
    return "\n".join([*lines, "", *(f"* {claim}" for claim in claims)])


def pictures() -> None:
    """By stage and method; repaired images; filled blocks: the same queries throughout."""
    clean = asked("scored").images
    columns = 4

    def shown(*parts: str) -> list[np.ndarray]:
        return list(cases.read_images(name_of(*parts), plan=PLAN)[:columns])

    def write(name: str, queries: np.ndarray, rows: dict[str, list[np.ndarray]]) -> None:
        figure = counterfactual_grid(list(queries[:columns]), rows, differences=False)
        save_figure(figure, PICTURES / f"pre-images-{name}.png")

    if all(result("pre-image", layer, m, "none") for layer in STAGES for m in METHODS):
        rows = {
            f"{method}, {layer}": shown("pre-image", layer, method, "none")
            for method in METHODS
            for layer in (STAGES[0], STAGES[2])
        }
        write("stages", clean, rows)
    for defect in list(DEFECTS)[1:]:
        layer = REPAIRED_FROM[1]
        if not all(result("pre-image", layer, m, defect) for m in ("dip", "dip-dep")):
            continue
        rows = {m: shown("pre-image", layer, m, defect) for m in ("dip", "dip-dep")}
        defective = np.stack([DEFECTS[defect](image) for image in clean])
        write(defect.replace(" ", "-"), defective, rows)
    found = [result("hole", method) for method in ("lso-dip", "lso-dip-dep")]
    if all(found):
        kept = found[0]["queries"]
        holed = np.stack([with_a_hole(image) for image in clean[kept]])
        rows = {method: shown("hole", method) for method in ("lso-dip", "lso-dip-dep")}
        write("filled", holed, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="jobs at a time")
    parser.add_argument("--table", action="store_true", help="only table and pictures")
    options = parser.parse_args()
    if not options.table:
        cases.classifier("faces", 0)
        for name in work(PLAN, all_jobs(), processes=options.processes):
            print(name, flush=True)
    text = table()
    print(text)
    replace_section(PAGE, "pre-images", text)
    pictures()


if __name__ == "__main__":
    main()
