"""Does the scan determine the diagnosis? Counterfactuals of drawn walnuts that agree with a scan.

Walnuts, intact or cracked, are scanned with many and with few views and reconstructed with total
variation. For each the classifier is asked for an image of the other class, without regard to the
scan and in agreement with it. Where its class changes at a misfit within the noise, the scan leaves
the diagnosis open.

    python benchmarks/counterfactual_scan.py            # what is not done
    python benchmarks/counterfactual_scan.py --table    # table and picture only
"""

import argparse
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counterfactual_cases import read
from counterfactual_pictures import PICTURES
from measuring import RESULTS, machine, replace_section, write_result
from measuring import table as table_of

from dipct.classifier_settings import ClassifierSettings
from dipct.figures import counterfactual_grid, save_figure
from dipct.inversion_settings import CounterfactualSettings
from dipct.objective import DataTerm, GaussianFidelity
from dipct.operator import LOGITS
from dipct.phantom import Scene, edit_region, make_task
from dipct.pipeline import (
    counterfactual,
    open_labelled,
    remove_checkpoint,
    train_classifier,
)
from dipct.pipeline.labelled import QUERY
from dipct.pretrain import (
    ScannedScenes,
    TrainedClassifier,
    read_trained_classifier,
    scan_scenes,
    write_trained_classifier,
)
from dipct.solver import PrimalDualTV, iterate

FOLDER = RESULTS / "counterfactual_scan"
RUNS = FOLDER / "runs"
PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
SIDE, VIEWS, NOISE = 32, (60, 8), 0.02
# Nuts of each class to explain, of so many that are scanned.
NUTS, CANDIDATES = 4, 40
TRAINING = {
    "number": 3000,
    "held_out_share": 0.1,
    "steps": 900,
    "batch": 32,
    "learning_rate": 3e-3,
    "noise": 0.08,
}
TV_WEIGHT, TV_STEPS = 2.0, 400
ARMS = {
    "without the scan": {},
    "in agreement with it": {"measurement_weight": 1.0},
}
SETTINGS = {"method": "lso-tv", "steps": 300, "class_weight": 1.0, "norm_weight": 0.0}
# Two standard deviations of the mean of squared standard normal numbers above its expectation.
MARGIN = 2.0
SHOWN = 3


@dataclass(frozen=True, eq=False)
class Scanned:
    """Walnuts and what a scanner makes of them.

    Attributes:
        scenes: as drawn.
        others: their true counterfactuals.
        targets: classes of those, [N].
        scans: projections with noise.
        images: reconstructions, [N 1 H W] from zero to one.
    """

    scenes: list[Scene]
    others: list[Scene]
    targets: np.ndarray
    scans: ScannedScenes
    images: torch.Tensor

    def measurement(self, nuts: np.ndarray) -> DataTerm:
        """Misfit to the scans of some."""
        std = self.scans.std[nuts, None, None]
        shape = self.scans.operator.range_shape
        fidelity = GaussianFidelity(self.scans.projections[nuts], std, range_shape=shape)
        return DataTerm(self.scans.operator, fidelity, name="measurement")


@cache
def classifier() -> TrainedClassifier:
    """Trained on drawn walnuts if it is not there."""
    path = RUNS / "classifier.h5"
    if not path.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        settings = ClassifierSettings(side=SIDE, loss_estimator=False, **TRAINING)
        training, held_out = open_labelled(settings, task="walnuts")
        kept = path.with_name(f"{path.name}.checkpoint")
        trained = train_classifier(
            training, held_out, settings, checkpoint=kept, resume=kept.exists()
        )
        write_trained_classifier(trained, path)
        remove_checkpoint(kept)
    return read_trained_classifier(path)


@cache
def scanned(views: int) -> Scanned:
    """The candidates, scanned and reconstructed."""
    task = make_task("walnuts", SIDE)
    scenes = task.sample(CANDIDATES, seed=QUERY)
    targets = 1 - task.labels(scenes)
    others = [task.counterfactual(scene, int(t)) for scene, t in zip(scenes, targets, strict=True)]
    scans = scan_scenes(scenes, views=views, noise=NOISE)
    fidelity = GaussianFidelity(
        scans.projections, scans.std[:, None, None], range_shape=scans.operator.range_shape
    )
    method = PrimalDualTV(scans.operator, fidelity, TV_WEIGHT, upper=1.0, tolerance=1e-3)
    images = iterate(method, max_iterations=TV_STEPS, every=50).value.clamp(0, 1)
    return Scanned(scenes, others, targets, scans, images)


@torch.no_grad()
def seen(images: torch.Tensor) -> torch.Tensor:
    """Probabilities of the classes, [N K]."""
    return classifier().features([LOGITS])(images).softmax(-1)


def drawn(scenes: list[Scene]) -> torch.Tensor:
    """Pictures, [N 1 H W]."""
    return torch.from_numpy(np.stack([scene.image for scene in scenes]))


def explained() -> np.ndarray:
    """Numbers of the nuts to explain: the first ones that everything is right with.

    The classifier sees their class in the drawing and in all reconstructions, and the other class
    in their true counterfactual.
    """
    found = [scanned(views) for views in VIEWS]
    targets = torch.from_numpy(found[0].targets)
    right = seen(drawn(found[0].others)).argmax(-1) == targets
    for images in (drawn(found[0].scenes), *(each.images for each in found)):
        right &= seen(images).argmax(-1) == 1 - targets
    numbers = right.nonzero().flatten().numpy()
    of_class = [numbers[found[0].targets[numbers] == target][:NUTS] for target in (0, 1)]
    if min(map(len, of_class)) < NUTS:
        raise SystemExit(
            f"Everything is right with {len(of_class[1])} intact and {len(of_class[0])} cracked "
            f"nuts of {CANDIDATES}, and {NUTS} of each are needed: raise CANDIDATES."
        )
    return np.concatenate(of_class)


@torch.no_grad()
def transfer() -> None:
    """What the classifier is worth, on drawings and on reconstructions."""
    gate = classifier().gate
    assert gate is not None
    accuracy = {}
    for views in VIEWS:
        nuts = scanned(views)
        right = seen(nuts.images).argmax(-1) == 1 - torch.from_numpy(nuts.targets)
        accuracy[str(views)] = float(right.double().mean())
    values = {
        "training": {**TRAINING, "side": SIDE},
        "accuracy": gate.accuracy,
        "causal_flips": gate.causal_flips,
        "nuisance_flips": gate.nuisance_flips,
        "is_passed": gate.is_passed,
        "accuracy_on_reconstructions": accuracy,
        "candidates": CANDIDATES,
        "seconds": classifier().duration_s,
        "machine": machine(),
    }
    write_result(FOLDER / "classifier.json", values)


def run(views: int, arm: str) -> None:
    """All nuts of a number of views, by one arm."""
    began, nuts, numbers = time.perf_counter(), scanned(views), explained()
    measurement = nuts.measurement(numbers)
    targets = nuts.targets[numbers]
    settings = CounterfactualSettings.of_method(
        SETTINGS["method"], {**SETTINGS, **ARMS[arm]} | {"method": SETTINGS["method"]}
    )
    found = counterfactual(
        classifier(),
        nuts.images[numbers],
        targets.tolist(),
        settings,
        measurement=measurement if ARMS[arm] else None,
    )
    images = torch.from_numpy(np.stack([each.image for each in found]))
    with torch.no_grad():
        misfits = {
            name: measurement.fidelity.discrepancy(measurement.operator(each)).tolist()
            for name, each in (
                ("query", nuts.images[numbers]),
                ("image", images),
                ("drawing", drawn([nuts.scenes[i] for i in numbers])),
                ("true_counterfactual", drawn([nuts.others[i] for i in numbers])),
            )
        }
    rows = [
        {
            "nut": int(number),
            "target": found[i].class_name(found[i].target),
            "valid": found[i].valid,
            "p_target_query": found[i].p_target_query,
            "p_target": found[i].p_target,
            "misfit": {name: values[i] for name, values in misfits.items()},
            "mse": found[i].scores["mse"],
        }
        for i, number in enumerate(numbers)
    ]
    values: dict[str, Any] = {
        "views": views,
        "rays": measurement.size,
        "noise": NOISE,
        "settings": settings.to_values(),
        "nuts": rows,
        "seconds": time.perf_counter() - began,
        "machine": machine(),
    }
    np.savez_compressed(RUNS / f"{stem(views, arm)}.npz", images=images.numpy())
    write_result(FOLDER / f"{stem(views, arm)}.json", values)


def stem(views: int, arm: str) -> str:
    """Name of a run."""
    return f"{views}-views-{'-'.join(arm.split())}"


def bound(result: dict[str, Any]) -> float:
    """Largest misfit per ray that the noise explains."""
    return 1 + MARGIN * (2 / result["rays"]) ** 0.5


def table() -> str:
    """Misfits and outcomes."""
    if not (FOLDER / "classifier.json").exists():
        return "Nothing was run yet."
    lines, open_ones = [], []
    for views in VIEWS:
        results = {arm: FOLDER / f"{stem(views, arm)}.json" for arm in ARMS}
        results = {arm: read(path) for arm, path in results.items() if path.exists()}
        if not results:
            continue
        first = next(iter(results.values()))
        limit = bound(first)

        def row(
            title: str, name: str, result: dict[str, Any], views: int = views, limit: float = limit
        ) -> list[str]:
            misfits = np.array([nut["misfit"][name] for nut in result["nuts"]])
            valid = [name == "true_counterfactual" or nut["valid"] for nut in result["nuts"]]
            both = sum(v and m <= limit for v, m in zip(valid, misfits, strict=True))
            of = len(misfits)
            outcome = ["", ""] if name == "query" else [f"{sum(valid)} of {of}", f"{both} of {of}"]
            span = f"{np.median(misfits):.2f} ({misfits.min():.2f} to {misfits.max():.2f})"
            return [str(views), title, span, f"{limit:.2f}", *outcome]

        lines.append(row("reconstruction", "query", first))
        lines += [row(f"counterfactual, {arm}", "image", result) for arm, result in results.items()]
        lines.append(row("true counterfactual", "true_counterfactual", first))
        bound_arm = results.get(list(ARMS)[-1])
        if bound_arm is not None:
            left = [n["valid"] and n["misfit"]["image"] <= limit for n in bound_arm["nuts"]]
            open_ones.append(f"{sum(left)} of {len(left)} with {views} views")
    found = read(FOLDER / "classifier.json")
    on_scans = " and ".join(
        f"{100 * share:.0f} % with {views} views"
        for views, share in found["accuracy_on_reconstructions"].items()
    )
    header = [
        "views",
        "image",
        "misfit per ray, median (range)",
        "limit",
        "other class",
        "and within the limit",
    ]
    return "\n".join(
        [
            table_of(header, lines),
            "",
            f"Diagnoses that the scan leaves open: {', '.join(open_ones)}. The classifier was "
            f"trained on drawn walnuts ({SIDE} pixels, {found['training']['number']} pictures, "
            f"{found['training']['steps']} steps): accuracy {100 * found['accuracy']:.1f} %, "
            f"{100 * found['causal_flips']:.1f} % of causes and "
            f"{100 * found['nuisance_flips']:.1f} % of nuisances flip it, so that it "
            f"{'passes' if found['is_passed'] else 'does not pass'} the gate; of "
            f"{found['candidates']} reconstructions it sees {on_scans} in their class.",
            "",
            "![Walnuts, their reconstructions and counterfactuals]"
            "(pictures/counterfactuals-scan.png)",
        ]
    )


def picture() -> None:
    """Some nuts of both numbers of views: reconstruction and what each arm makes of it."""
    paths = [RUNS / f"{stem(views, arm)}.npz" for views in VIEWS for arm in ARMS]
    if not all(path.exists() for path in paths):
        return
    numbers = explained()
    chosen = np.linspace(0, len(numbers) - 1, SHOWN).round().astype(int)
    queries, regions = [], []
    rows: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS} | {"as drawn": []}
    for views in VIEWS:
        nuts = scanned(views)
        for i in chosen:
            scene, other = nuts.scenes[numbers[i]], nuts.others[numbers[i]]
            queries.append(nuts.images[numbers[i]].numpy())
            regions.append(edit_region(scene.image, other.image))
            rows["as drawn"].append(scene.image)
        for arm in ARMS:
            with np.load(RUNS / f"{stem(views, arm)}.npz") as file:
                rows[arm] += list(file["images"][chosen])
    figure = counterfactual_grid(queries, rows, regions=regions)
    names = classifier().classes
    for column, axes in enumerate(figure.axes[: len(queries)]):
        views = VIEWS[column // SHOWN]
        target = scanned(views).targets[numbers[chosen[column % SHOWN]]]
        axes.set_title(f"{views} views\n{names[1 - target]}", fontsize=7)
    save_figure(figure, PICTURES / "counterfactuals-scan.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only table and picture")
    options = parser.parse_args()
    if not options.table:
        if not (FOLDER / "classifier.json").exists():
            transfer()
        for views in VIEWS:
            for arm in ARMS:
                if not (FOLDER / f"{stem(views, arm)}.json").exists():
                    run(views, arm)
                    print(stem(views, arm), flush=True)
    text = table()
    print(text)
    replace_section(PAGE, "counterfactuals scan", text)
    picture()


if __name__ == "__main__":
    main()
