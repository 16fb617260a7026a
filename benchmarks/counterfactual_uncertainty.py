"""Uncertainty of counterfactuals: the posterior of tomography, with hidden features as data.

Faces of 32 pixels and the first classifier of benchmarks/counterfactuals.py: counterfactuals by an
implicit network, exact evidence, 256 samples; the data are the features that the counterfactual was
fitted with, or those of the last stage.

    python benchmarks/counterfactual_uncertainty.py            # what is not done, two at a time
    python benchmarks/counterfactual_uncertainty.py --table    # table and picture only
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import counterfactual_cases as cases
import numpy as np
import torch
from counterfactual_cases import Plan, read
from counterfactual_jobs import Job, work
from counterfactual_pictures import PICTURES
from measuring import RESULTS, machine, replace_section, write_result

from dipct.evaluation import bootstrap_interval
from dipct.figures import inversion_uncertainty_figure, save_figure
from dipct.inversion import Counterfactual, read_counterfactual, write_inversion
from dipct.operator import LOGITS
from dipct.pipeline import counterfactual, quantify_inversion
from dipct.pretrain import TrainedClassifier
from dipct.uncertainty import UncertaintySettings

PLAN = Plan(RESULTS / "counterfactual_uncertainty", {}, cases.ARMS)
PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
ARM, SAMPLES, FACES = "LSO + INR + DEP, all at once", 256, 6
# What the image was fitted with, and what is about the class, which it was made to change.
DATA = {"fitted": (), "layer4": ("layer4",)}
ROWS = {
    "std_inside": "mean standard deviation inside the true edit region",
    "std_outside": "outside",
    "ratio": "inside over outside",
    "samples_in_target": "share of samples that the classifier sees in the target class",
    "noise_in_target": "the same of white noise with this standard deviation",
    "noise": "noise of the features, by the evidence",
    "feature_residual": "residual of the samples' features over that noise",
}


def run(plan: Plan, name: str, number: int) -> None:
    """A face."""
    trained = cases.classifier("faces", 0)
    asked = cases.queries("faces", 0, FACES)
    scene, target = asked.scenes[number], asked.targets[number]
    settings = cases.settings_of(cases.ARMS[ARM], cases.chosen_of("faces", ARM))
    (found,) = counterfactual(trained, scene.image, target, settings, source=f"face {number}")
    truth = asked.task.true_counterfactuals(scene, target, draws=cases.TRUE_ONES)
    found = replace(found, region=truth.may)
    plan.runs.mkdir(parents=True, exist_ok=True)
    wanted = UncertaintySettings(samples=SAMPLES, draws=SAMPLES)
    results = {}
    for data, layers in DATA.items():
        began, worked = time.perf_counter(), time.process_time()
        quantified = quantify_inversion(trained, found, wanted, layers=layers)
        times = (time.perf_counter() - began, time.process_time() - worked)
        write_inversion(quantified, plan.runs / f"{name}-{data}.h5")
        scores = {key: quantified.scores[key] for key in ROWS if key in quantified.scores}
        scores["ratio"] = scores["std_inside"] / scores["std_outside"]
        scores["noise_in_target"] = noise_in_target(trained, quantified)
        results[data] = {
            "scores": scores,
            "uncertainty": dict(quantified.uncertainty),
            **dict(zip(("seconds", "processor_seconds"), times, strict=True)),
        }
    write_result(
        plan.folder / f"{name}.json",
        {
            "valid": found.valid,
            "p_target": found.p_target,
            "results": results,
            "seconds": sum(each["seconds"] for each in results.values()),
            "machine": machine(),
        },
    )


def noise_in_target(trained: TrainedClassifier, found: Counterfactual) -> float:
    """Share in the target class of as many images with independent noise of this deviation."""
    assert found.std is not None
    random = torch.Generator().manual_seed(0)
    white = torch.randn(SAMPLES, *found.image.shape, generator=random)
    images = (torch.from_numpy(found.image) + torch.from_numpy(found.std) * white).clamp(0, 1)
    with torch.no_grad():
        seen = trained.features([LOGITS])(images).argmax(-1)
    return float((seen == found.target).double().mean())


def table() -> str:
    """Means over faces with intervals."""
    results = [read(path)["results"] for path in sorted(PLAN.folder.glob("face-*.json"))]
    if not results:
        return "Nothing was run yet."
    how = {data: results[0][data]["uncertainty"] for data in DATA}
    titles = [
        f"{', '.join(how[data]['layers'])} ({how[data]['features']} features)" for data in DATA
    ]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for key, title in ROWS.items():
        cells = []
        for data in DATA:
            values = np.array([each[data]["scores"][key] for each in results])
            cell = f"{values.mean():.3g}"
            if len(values) > 1:
                low, high = bootstrap_interval(values)
                cell += f" ({low:.3g} to {high:.3g})"
            cells.append(cell)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    worked = [np.mean([each[data]["processor_seconds"] for each in results]) for data in DATA]
    lines.append("| processor time each [s] | " + " | ".join(f"{t:.0f}" for t in worked) + " |")
    faces = "One face." if len(results) == 1 else f"{len(results)} faces; 95 per cent intervals."
    return "\n".join([*lines, "", faces])


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
    first = PLAN.runs / f"face-0-{next(iter(DATA))}.h5"
    if first.exists():
        figure = inversion_uncertainty_figure(read_counterfactual(first))
        save_figure(figure, PICTURES / "counterfactuals-uncertainty.png")


if __name__ == "__main__":
    main()
