"""Uncertainty of counterfactuals: the posterior of tomography, with hidden features as data.

Faces of 32 pixels and the first classifier of benchmarks/counterfactuals.py: counterfactuals by an
implicit network, exact evidence, 256 samples; the data are the features that the counterfactual was
fitted with, or those of the last stage.

    python benchmarks/counterfactual_uncertainty.py               # what is not done, two at a time
    python benchmarks/counterfactual_uncertainty.py --seconds 90  # nothing begins later than that
    python benchmarks/counterfactual_uncertainty.py --table       # table and picture only
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import counterfactual_cases as cases
import numpy as np
import torch
from compared_arms import say_untuned, tuned
from counterfactual_cases import read, slug
from counterfactual_jobs import weights
from counterfactual_pictures import PICTURES
from counterfactual_plans import DEFAULT, TRUE_ONES, Plan
from job_options import on_device, options_parser, publish, run_jobs
from job_queue import Job, path_of
from measuring import RESULTS
from measuring import table as markdown

from dipct.evaluation import bootstrap_interval
from dipct.figures import inversion_uncertainty_figure, save_figure
from dipct.inversion import Counterfactual, read_counterfactual, write_inversion
from dipct.operator import LOGITS
from dipct.pipeline import counterfactual, quantify_inversion
from dipct.pretrain import TrainedClassifier
from dipct.uncertainty import UncertaintySettings

# What the image was fitted with, and what is about the class, which it was made to change. The
# second arm is fitted in image space: its data are the features of the first.
FIRST = "LSO + INR + DEP, all at once"
DATA: dict[str, dict[str, tuple[str, ...]]] = {
    FIRST: {"fitted": (), "layer4": ("layer4",)},
    "L1 + INR": {"first-stages": ("layer1", "layer2")},
}
# Only the first are enough faces to say something; each face takes a minute or more.
FACES = {(FIRST, "fitted"): 8, (FIRST, "layer4"): 3, ("L1 + INR", "first-stages"): 3}
SAMPLES = 256
PLAN = Plan(RESULTS / "counterfactual_uncertainty", {}, tuned(DATA))
ROWS = {
    "std_inside": "mean standard deviation inside the true edit region",
    "std_outside": "outside",
    "ratio": "inside over outside",
    "samples_in_target": "share of samples that the classifier sees in the target class",
    "noise_in_target": "the same of white noise with this standard deviation",
    "noise": "noise of the features, by the evidence",
    "feature_residual": "residual of the samples' features over that noise",
}


def name_of(arm: str, number: int) -> str:
    return f"face-{number}" if arm == FIRST else f"face-{number}-{slug(arm)}"


def all_jobs(plan: Plan) -> list[Job]:
    """The classifier, and each face by each arm."""
    trained = weights("faces", 0, plan=DEFAULT)
    return [
        trained,
        *(
            Job(name_of(arm, number), (trained.name,), run, (arm, number))
            for arm in plan.arms
            for number in faces_of(arm)
        ),
    ]


def faces_of(arm: str) -> range:
    return range(max(number for (each, _), number in FACES.items() if each == arm))


def run(plan: Plan, name: str, arm: str, number: int) -> Mapping[str, Any]:
    """A face."""
    trained = cases.classifier("faces", 0)
    asked = cases.queries("faces", 0, number + 1)
    scene, target = asked.scenes[number], asked.targets[number]
    settings = cases.settings_of(plan.arms[arm], cases.chosen_of("faces", arm), plan=plan)
    (found,) = counterfactual(trained, scene.image, target, settings, source=f"face {number}")
    truth = asked.task.true_counterfactuals(scene, target, draws=TRUE_ONES)
    found = replace(found, region=truth.may)
    plan.runs.mkdir(parents=True, exist_ok=True)
    wanted = UncertaintySettings(samples=SAMPLES, draws=SAMPLES, device=plan.device)
    results = {}
    for data, layers in DATA[arm].items():
        if number >= FACES[arm, data]:
            continue
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
    return {"arm": arm, "valid": found.valid, "p_target": found.p_target, "results": results}


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
    """Means over faces with intervals: a column for each arm and its data."""
    columns: list[tuple[str, list[dict[str, Any]]]] = []
    for arm, data in DATA.items():
        paths = [path_of(PLAN, name_of(arm, number)) for number in faces_of(arm)]
        results = [read(path)["results"] for path in paths if path.exists()]
        for each in data:
            of_data = [result[each] for result in results if each in result]
            if not of_data:
                continue
            how = of_data[0]["uncertainty"]
            title = f"{arm}: {', '.join(how['layers'])} ({how['features']} features)"
            columns.append((title, of_data))
    if not columns:
        return "Nothing was run yet."
    lines = [["faces", *(str(len(results)) for _, results in columns)]]
    for key, title in ROWS.items():
        of_row = [np.array([each["scores"][key] for each in results]) for _, results in columns]
        lines.append([title, *map(_cell, of_row)])
    worked = [np.mean([each["processor_seconds"] for each in results]) for _, results in columns]
    lines.append(["processor time each [s]", *(f"{seconds:.0f}" for seconds in worked)])
    return markdown(["", *(title for title, _ in columns)], lines)


def _cell(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():.3g}"
    low, high = bootstrap_interval(values)
    return f"{values.mean():.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    options = options_parser(__doc__).parse_args()
    plan = on_device(PLAN, options)
    say_untuned(DATA)
    run_jobs(plan, all_jobs(plan), options)
    publish("counterfactuals uncertainty", table(), plan.folder.glob("*.json"), options)
    first = plan.runs / f"face-0-{next(iter(DATA[FIRST]))}.h5"
    if first.exists():
        figure = inversion_uncertainty_figure(read_counterfactual(first))
        save_figure(figure, PICTURES / "counterfactuals-uncertainty.png")


if __name__ == "__main__":
    main()
