"""Uncertainty of counterfactuals: the posterior of tomography, with hidden features as data.

Faces of 32 pixels and the first classifier of benchmarks/counterfactuals.py: counterfactuals by an
implicit network, exact evidence of the features of the third stage, 256 samples.

    python benchmarks/counterfactual_uncertainty.py            # what is not done, two at a time
    python benchmarks/counterfactual_uncertainty.py --table    # table and picture only
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import counterfactual_cases as cases
import numpy as np
from counterfactual_cases import Plan, read
from counterfactual_jobs import Job, work
from counterfactual_pictures import PICTURES
from measuring import RESULTS, machine, replace_section, write_result

from dipct.evaluation import bootstrap_interval
from dipct.figures import inversion_uncertainty_figure, save_figure
from dipct.inversion import read_counterfactual, write_inversion
from dipct.pipeline import counterfactual, quantify_inversion
from dipct.uncertainty import UncertaintySettings

PLAN = Plan(RESULTS / "counterfactual_uncertainty", {}, cases.ARMS)
PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
ARM, LAYERS, SAMPLES, FACES = "LSO + INR + DEP, all at once", ("layer3",), 256, 8
ROWS = {
    "std_inside": "mean standard deviation inside the true edit region",
    "std_outside": "outside",
    "ratio": "inside over outside",
    "samples_in_target": "share of samples that the classifier sees in the target class",
    "noise": "noise of the features, by the evidence",
    "feature_residual": "residual of the samples' features over that noise",
}


def run(plan: Plan, name: str, number: int) -> None:
    """A face."""
    began, trained = time.perf_counter(), cases.classifier("faces", 0)
    asked = cases.queries("faces", 0, FACES)
    scene, target = asked.scenes[number], asked.targets[number]
    settings = cases.settings_of(cases.ARMS[ARM], cases.chosen_of("faces", ARM))
    (found,) = counterfactual(trained, scene.image, target, settings)
    truth = asked.task.true_counterfactuals(scene, target, draws=cases.TRUE_ONES)
    found = replace(found, region=truth.may)
    wanted = UncertaintySettings(samples=SAMPLES, tv_prior=False)
    quantified = quantify_inversion(trained, found, wanted, layers=LAYERS)
    plan.runs.mkdir(parents=True, exist_ok=True)
    write_inversion(quantified, plan.runs / f"{name}.h5")
    scores = {key: quantified.scores[key] for key in ROWS if key in quantified.scores}
    write_result(
        plan.folder / f"{name}.json",
        {
            "valid": found.valid,
            "scores": scores,
            "seconds": time.perf_counter() - began,
            "machine": machine(),
        },
    )


def table() -> str:
    """Means over faces with intervals."""
    results = [read(path) for path in sorted(PLAN.folder.glob("face-*.json"))]
    if not results:
        return "Nothing was run yet."
    rows = [each["scores"] for each in results]
    for row in rows:
        row["ratio"] = row["std_inside"] / row["std_outside"]
    lines = ["| | mean | 95 per cent |", "|---|---|---|"]
    for key, title in ROWS.items():
        values = np.array([row[key] for row in rows])
        low, high = bootstrap_interval(values)
        lines.append(f"| {title} | {values.mean():.3g} | {low:.3g} to {high:.3g} |")
    seconds = np.mean([each["seconds"] for each in results])
    return "\n".join([*lines, "", f"{len(rows)} faces, {seconds:.0f} s each."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="jobs at a time")
    parser.add_argument("--table", action="store_true", help="only table and picture")
    options = parser.parse_args()
    if not options.table:
        cases.classifier("faces", 0)
        todo = [Job(f"face-{number}", (), run, (number,)) for number in range(FACES)]
        for name in work(PLAN, todo, processes=options.processes):
            print(name, flush=True)
    text = table()
    print(text)
    replace_section(PAGE, "counterfactuals uncertainty", text)
    first = PLAN.runs / "face-0.h5"
    if first.exists():
        figure = inversion_uncertainty_figure(read_counterfactual(first))
        save_figure(figure, PICTURES / "counterfactuals-uncertainty.png")


if __name__ == "__main__":
    main()
