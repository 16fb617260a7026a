"""Pictures of the benchmark of counterfactuals: the same queries throughout."""

from pathlib import Path

import counterfactual_cases as cases
import torch
from counterfactual_cases import Plan, slug
from counterfactual_jobs import path_of

from dipct.figures import counterfactual_grid, save_figure

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
COLUMNS = 5
TRUE = "true counterfactual"

# The layouts of figures 3 to 6 of arXiv 2109.14274 and of figure 4 of arXiv 2010.12046.
LAYOUTS = {
    ("faces", "priors"): ("ISO + TV + l2", "LSO + TV + l2", "ISO + DIP", "LSO + DIP", TRUE),
    ("faces", "manifold"): ("LSO + INR", "LSO + INR + DUQ", "LSO + INR + DEP", TRUE),
    ("faces", "networks"): ("LSO + DIP + DEP", "LSO + INR + DEP", "PGD", "Wachter", TRUE),
    ("lesions", "networks"): ("LSO + DIP", "LSO + DIP + DEP", "LSO + INR + DEP", TRUE),
}


def write_pictures(plan: Plan) -> list[Path]:
    """Write the pictures whose runs there are, of the first queries of the first classifier."""
    written, seed = [], plan.seeds[0]
    for (case, name), arms in LAYOUTS.items():
        stems = {
            arm: f"run-{case}-{seed}-{'controls' if arm == TRUE else slug(arm)}" for arm in arms
        }
        needed = [path_of(plan, f"truth-{case}-{seed}")]
        needed += [plan.runs / f"{stem}.npz" for stem in stems.values()]
        if not all(path.exists() for path in needed):
            continue
        asked = cases.queries(case, seed, COLUMNS, plan=plan)
        # Written by this benchmark itself.
        truths = torch.load(needed[0], weights_only=False)
        figure = counterfactual_grid(
            list(asked.images),
            {
                arm: list(cases.read_images(stem, plan=plan)[:COLUMNS])
                for arm, stem in stems.items()
            },
            regions=[truth.may for truth in truths[:COLUMNS]],
        )
        path = PICTURES / f"counterfactuals-{case}-{name}.png"
        save_figure(figure, path)
        written.append(path)
    return written
