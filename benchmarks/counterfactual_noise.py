"""Claim: counterfactuals of a classifier that was trained with noise can be seen.

Faces of 32 pixels, one classifier for each standard deviation of the noise in training, explained
with the settings that benchmarks/counterfactuals.py has chosen: run its tuning first.

    python benchmarks/counterfactual_noise.py
    python benchmarks/counterfactual_noise.py --table    # table only, of what there is
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import counterfactual_cases as cases
import numpy as np
from counterfactual_cases import DEFAULT, FOLDER, Plan, read, slug
from counterfactual_jobs import standings_of
from counterfactual_tables import COLUMNS, cell
from measuring import RESULTS, machine, replace_section, write_result

PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
NOISES = (0.0, 0.1, 0.3)
ARMS = ("LSO + TV + l2", "LSO + INR", "LSO + INR + DEP", "Wachter", "PGD")
QUERIES = 24

_FACES = DEFAULT.cases["faces"]
PLAN = Plan(
    RESULTS / "counterfactual_noise",
    {
        f"faces-{noise}": replace(
            _FACES, queries=QUERIES, training={**_FACES.training, "noise": noise}
        )
        for noise in NOISES
    },
    DEFAULT.arms,
    batch=QUERIES,
)


def run(noise: float) -> None:
    """All arms of a classifier."""
    case = f"faces-{noise}"
    left = [name for name in ARMS if not path_of(noise, name).exists()]
    if not left:
        return
    trained = cases.classifier(case, 0, plan=PLAN)
    asked = cases.queries(case, 0, QUERIES, plan=PLAN)
    truths, starts = cases.truths_of(asked), {}
    for name in left:
        arm, began = PLAN.arms[name], time.perf_counter()
        chosen = cases.chosen_of("faces", name, plan=DEFAULT)
        if arm.generator != "pixels" and arm.generator not in starts:
            starts[arm.generator] = cases.start_of(asked, arm.generator, plan=PLAN)[0]
        found = cases.explain(
            trained,
            asked,
            cases.settings_of(arm, chosen),
            start=starts.get(arm.generator),
            plan=PLAN,
        )
        images = np.stack([each.image for each in found])
        # The judge of the other benchmark: the same for all classifiers.
        scores = cases.scores_of("faces", asked, truths, images, standings_of(found))
        write_result(
            path_of(noise, name),
            {
                "noise": noise,
                "arm": name,
                "accuracy": trained.accuracy,
                "settings": found[0].settings,
                "scores": scores,
                "seconds": time.perf_counter() - began,
                "machine": machine(),
            },
        )
        print(path_of(noise, name).name, flush=True)


def path_of(noise: float, arm: str) -> Path:
    return PLAN.folder / f"{noise}-{slug(arm)}.json"


def table() -> str:
    lines = [
        "| noise | | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name in ARMS:
        for noise in NOISES:
            if path_of(noise, name).exists():
                scores = read(path_of(noise, name))["scores"]
                cells = [cell(scores, [0] * len(scores), column) for column in COLUMNS]
                lines.append(f"| {noise} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else "Nothing was run yet."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only the table")
    if not parser.parse_args().table:
        if not (FOLDER / f"tuning-faces-{slug(ARMS[0])}.json").exists():
            raise SystemExit(
                "Run benchmarks/counterfactuals.py --case faces first, for its tuning."
            )
        for noise in NOISES:
            run(noise)
    replace_section(PAGE, "counterfactuals noise", table())


if __name__ == "__main__":
    main()
