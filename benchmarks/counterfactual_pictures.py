"""Pictures of the benchmark of counterfactuals: the same queries throughout."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import counterfactual_cases as cases
import numpy as np
from counterfactual_cases import slug
from counterfactual_plans import Plan
from job_queue import load, path_of

from dipct.figures import counterfactual_grid, save_figure

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
COLUMNS = 5
TRUE = "true counterfactual"
# Noise does not compress: at the usual resolution pictures of skin and cells are over a megabyte.
NOISY_DOTS_PER_INCH = 100

# The layouts of figures 3 to 6 of arXiv 2109.14274 and of figure 4 of arXiv 2010.12046.
LAYOUTS = {
    ("faces", "priors"): ("ISO + TV + l2", "LSO + TV + l2", "ISO + DIP", "LSO + DIP", TRUE),
    ("faces", "manifold"): ("LSO + INR", "LSO + INR + DUQ", "LSO + INR + DEP", TRUE),
    ("faces", "networks"): (
        "LSO + DIP + DEP",
        "LSO + INR + DEP",
        "L1 + INR",
        "PGD",
        "Wachter",
        TRUE,
    ),
    ("lesions", "networks"): (
        "LSO + DIP",
        "LSO + DIP + DEP",
        "LSO + INR + DEP",
        "L1 + INR",
        "Wachter",
        TRUE,
    ),
}


def write_pictures(plan: Plan) -> list[Path]:
    """Write the pictures of what there is, of the first queries of the first classifier."""
    written, seed = [], plan.seeds[0]
    for (case, name), arms in LAYOUTS.items():
        stems = {
            arm: f"run-{case}-{seed}-{'controls' if arm == TRUE else slug(arm)}" for arm in arms
        }
        kept = {arm: s for arm, s in stems.items() if path_of(plan, f"images-{s}").exists()}
        truth = path_of(plan, f"truth-{case}-{seed}")
        needed = (truth, path_of(plan, f"weights-{case}-{seed}"))
        if not kept.keys() - {TRUE} or not all(path.exists() for path in needed):
            continue
        asked = cases.queries(case, seed, COLUMNS, plan=plan)
        figure = counterfactual_grid(
            list(asked.images),
            {arm: list(cases.read_images(s, plan=plan)[:COLUMNS]) for arm, s in kept.items()},
            regions=[each.may for each in load(truth)[:COLUMNS]],
        )
        path = PICTURES / f"counterfactuals-{case}-{name}.png"
        how = {"dots_per_inch": NOISY_DOTS_PER_INCH} if case == "lesions" else {}
        save_figure(figure, path, **how)
        written.append(path)
    return written


def save_titled(
    path: Path, queries: Sequence[np.ndarray], rows: Mapping[str, Any], titles: Iterable[str], **how
) -> None:
    """Write a grid of counterfactuals or pre-images with a title over each column.

    Args:
        path: of the picture.
        queries: of each column, [C H W].
        rows: as of :func:`dipct.figures.counterfactual_grid`.
        titles: of the columns.
        **how: as of that.
    """
    figure = counterfactual_grid(list(queries), rows, **how)
    for axes, title in zip(figure.axes, titles, strict=False):
        axes.set_title(title, fontsize=7)
    # The grid had no titles when it was arranged.
    figure.set_layout_engine("constrained")
    save_figure(figure, path)
