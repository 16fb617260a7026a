"""Claim: counterfactuals of a classifier that was trained with noise can be seen.

Faces of 32 pixels, one classifier for each standard deviation of the noise in training, explained
with the settings that benchmarks/counterfactuals.py has chosen. The classifier with the noise of
that benchmark is its first one, and its oracle judges all.

    python benchmarks/counterfactual_noise.py                  # what is not done yet, two at a time
    python benchmarks/counterfactual_noise.py --seconds 90     # nothing begins later than that
    python benchmarks/counterfactual_noise.py --table          # table only, of what there is
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import counterfactual_cases as cases
import numpy as np
from compared_arms import say_untuned, tuned
from counterfactual_cases import read, slug
from counterfactual_jobs import standings_of, weights
from counterfactual_plans import DEFAULT, NOISE, ORACLE, Plan
from counterfactual_tables import COLUMNS, cell
from job_options import on_device, options_parser, publish, run_jobs
from job_queue import Job, load, path_of, save
from measuring import RESULTS

NOISES = (0.0, 0.1, NOISE)
ARMS = ("LSO + TV + l2", "LSO + INR", "LSO + INR + DEP", "L1 + INR", "Wachter", "PGD")
QUERIES = 16

_FACES = DEFAULT.cases["faces"]
PLAN = Plan(
    RESULTS / "counterfactual_noise",
    {
        f"faces-{noise}": replace(
            _FACES, queries=QUERIES, training={**_FACES.training, "noise": noise}
        )
        for noise in NOISES
    },
    tuned(ARMS),
    batch=QUERIES,
)


def name_of(noise: float, arm: str) -> str:
    return f"{noise}-{slug(arm)}"


def classifier_of(noise: float) -> tuple[str, Plan]:
    """The case of a classifier, and the plan that it belongs to."""
    return ("faces", DEFAULT) if noise == NOISE else (f"faces-{noise}", PLAN)


def all_jobs(plan: Plan) -> list[Job]:
    """The classifiers, what each fit begins with, and the fits."""
    judge = weights("faces", ORACLE, plan=DEFAULT)
    found = [judge]
    for noise in NOISES:
        case, owner = classifier_of(noise)
        trained = weights(case, 0, plan=owner)
        found.append(trained)
        generators = {arm.generator for arm in plan.arms.values()} - {"pixels"}
        for generator in sorted(generators):
            name = f"start-{noise}-{generator}"
            found.append(Job(name, (trained.name,), start, (noise, generator)))
        for arm_name, arm in plan.arms.items():
            needs = (judge.name, trained.name)
            if arm.generator in generators:
                needs += (f"start-{noise}-{arm.generator}",)
            found.append(Job(name_of(noise, arm_name), needs, run, (noise, arm_name)))
    return found


def start(plan: Plan, name: str, noise: float, generator: str) -> None:
    """Networks that show the queries of a classifier."""
    save(path_of(plan, name), cases.start_of(_asked(noise), generator, plan=plan)[0])


def run(plan: Plan, name: str, noise: float, arm_name: str) -> Mapping[str, Any]:
    """All queries of a classifier by one arm."""
    arm, asked = plan.arms[arm_name], _asked(noise)
    case, owner = classifier_of(noise)
    trained = cases.classifier(case, 0, plan=owner)
    first = None
    if arm.generator != "pixels":
        first = load(path_of(plan, f"start-{noise}-{arm.generator}"))
    settings = cases.settings_of(arm, cases.chosen_of("faces", arm_name), plan=plan)
    found = cases.explain(trained, asked, settings, start=first, plan=plan)
    images = np.stack([each.image for each in found])
    # The judge of the other benchmark: the same for all classifiers.
    scores = cases.scores_of("faces", asked, cases.truths_of(asked), images, standings_of(found))
    return {
        "noise": noise,
        "arm": arm_name,
        "accuracy": trained.accuracy,
        "settings": found[0].settings,
        "scores": scores,
    }


def table() -> str:
    lines = [
        "| noise | | n | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for name in ARMS:
        for noise in NOISES:
            path = path_of(PLAN, name_of(noise, name))
            if path.exists():
                scores = read(path)["scores"]
                cells = [cell(scores, [0] * len(scores), column) for column in COLUMNS]
                lines.append(f"| {noise} | {name} | {len(scores)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else "Nothing was run yet."


def _asked(noise: float) -> cases.Queries:
    case, owner = classifier_of(noise)
    return cases.queries(case, 0, QUERIES, plan=owner)


def main() -> None:
    options = options_parser(__doc__).parse_args()
    plan = on_device(PLAN, options)
    say_untuned(ARMS)
    run_jobs(plan, all_jobs(plan), options)
    publish("counterfactuals noise", table(), plan.folder.glob("*.json"), options)


if __name__ == "__main__":
    main()
