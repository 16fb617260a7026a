"""Claim: the posterior of tomography tells how far features determine a counterfactual.

Faces of 32 pixels that do not smile, explained by an implicit network; then the linearised
network's posterior with features of the query as data, hyper-parameters and noise by the exact
evidence, and 256 samples. Twelve results of about a minute each on one core.

    python benchmarks/counterfactual_uncertainty.py
    python benchmarks/counterfactual_uncertainty.py --table    # table and picture only
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import counterfactual_cases as cases
import numpy as np
import torch
from counterfactual_cases import FIT_STEPS, STEPS, read, slug
from measuring import RESULTS, machine, replace_section, write_result
from measuring import table as markdown

from dipct.figures import inversion_uncertainty_figure, save_figure
from dipct.inversion import Counterfactual, read_counterfactual, write_inversion
from dipct.operator import LOGITS
from dipct.pipeline import counterfactual, quantify_inversion
from dipct.pipeline.counterfactual_result import known_scores
from dipct.pretrain import TrainedClassifier
from dipct.uncertainty import UncertaintySettings

FOLDER = RESULTS / "counterfactual_uncertainty"
DOCS = Path(__file__).parents[1] / "docs"
PICTURE = DOCS / "pictures" / "counterfactual-uncertainty.png"
FACES, SAMPLES = 6, 256
METHOD = {
    "method": "lso-inr",
    "steps": STEPS,
    "fit_steps": FIT_STEPS,
    "class_weight": 0.3,
    "learning_rate": 1e-3,
}
# What it was fitted with, and features that are about the class, which it was made to change.
DATA = {"layer1 and layer2": ("layer1", "layer2"), "layer4": ("layer4",)}
COLUMNS = {
    "std_inside": ("std inside", 3),
    "std_outside": ("std outside", 3),
    "ratio": ("inside / outside", 2),
    "samples_in_target": ("samples in the class", 2),
    "noise_in_target": ("white noise of this std", 2),
    "noise": ("noise of the features", 2),
    "feature_residual": ("residual of samples / noise", 2),
}


def run(number: int) -> None:
    """Posteriors of a face."""
    trained = cases.classifier("faces", 0)
    left = [data for data in DATA if not path_of(number, data).exists()]
    if not left:
        return
    found = explained(trained, number)
    for data in left:
        began, worked = time.perf_counter(), time.process_time()
        settings = UncertaintySettings(samples=SAMPLES, draws=SAMPLES, tv_prior=False)
        quantified = quantify_inversion(trained, found, settings, layers=DATA[data])
        times = {
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - worked,
        }
        write_inversion(quantified, kept(number, data))
        scores = dict(quantified.scores)
        scores["ratio"] = scores["std_inside"] / scores["std_outside"]
        scores["noise_in_target"] = noise_in_target(trained, quantified)
        write_result(
            path_of(number, data),
            {
                "face": number,
                "data": data,
                "accuracy": trained.accuracy,
                "p_target": quantified.p_target,
                "settings": dict(quantified.settings),
                "scores": scores,
                "uncertainty": dict(quantified.uncertainty),
                **times,
                "machine": machine(),
            },
        )
        print(path_of(number, data).name, flush=True)


def explained(trained: TrainedClassifier, number: int) -> Counterfactual:
    """The counterfactual of a face, with the region that true ones edit."""
    asked = cases.queries("faces", 0, FACES)
    (found,) = counterfactual(
        trained, asked.images[number], asked.targets[number], source=f"face {number}", **METHOD
    )
    one = replace(asked, scenes=[asked.scenes[number]], targets=[asked.targets[number]])
    (truth,) = cases.truths_of(one)
    scores, nearest = known_scores(found.query, found.image, truth)
    return replace(found, scores={**found.scores, **scores}, region=truth.may, truth=nearest)


def noise_in_target(trained: TrainedClassifier, found: Counterfactual) -> float:
    """The share in the class of as many images with independent noise of the posterior's std."""
    random = torch.Generator().manual_seed(0)
    white = torch.randn(found.samples.shape, generator=random)
    images = (torch.from_numpy(found.image) + torch.from_numpy(found.std) * white).clamp(0, 1)
    with torch.no_grad():
        seen = trained.features([LOGITS])(images).argmax(-1)
    return float((seen == found.target).double().mean())


def path_of(number: int, data: str) -> Path:
    return FOLDER / f"{slug(data)}-{number}.json"


def kept(number: int, data: str) -> Path:
    """The counterfactual with its posterior, which is not kept with the results."""
    path = FOLDER / "runs" / f"{slug(data)}-{number}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def table() -> str:
    rows = []
    for data in DATA:
        results = [read(path) for path in sorted(FOLDER.glob(f"{slug(data)}-*.json"))]
        if not results:
            continue
        cells = []
        for name, (_, digits) in COLUMNS.items():
            values = np.array([each["scores"][name] for each in results])
            low, high = values.min(), values.max()
            cells.append(f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        features = results[0]["uncertainty"]["features"]
        rows.append([data, str(features), str(len(results)), *cells])
    if not rows:
        return "Nothing was run yet."
    return markdown(["data", "features", "faces", *(title for title, _ in COLUMNS.values())], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only table and picture")
    if not parser.parse_args().table:
        for number in range(FACES):
            run(number)
    replace_section(DOCS / "counterfactuals.md", "counterfactuals uncertainty", table())
    if (first := kept(0, next(iter(DATA)))).exists():
        save_figure(inversion_uncertainty_figure(read_counterfactual(first)), PICTURE)


if __name__ == "__main__":
    main()
