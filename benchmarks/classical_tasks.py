"""Claim: one call solves denoising, inpainting and super-resolution as well as tomography.

The three problems of Ulyanov, Vedaldi & Lempitsky (CVPR 2018) on the walnut phantom at 128 px,
by the Deep Image Prior with the same settings and at most 1000 steps for all, stopped at the noise
level or with total variation of one weight, next to total variation alone with the best of several
weights (chosen by the truth, so that no rule can do better) and to interpolation.

    OMP_NUM_THREADS=1 python benchmarks/classical_tasks.py     # runs what is not done yet
    python benchmarks/classical_tasks.py --table               # table and picture only
"""

import argparse
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from measuring import RESULTS, machine, replace_section, table, write_result
from scipy.interpolate import griddata
from skimage.transform import resize

import dipct
from dipct.evaluation import psnr
from dipct.figures.image import IMAGE_MAP
from dipct.figures.layout import finish, new_figure, set_title
from dipct.figures.save import save_figure
from dipct.objective import GaussianFidelity
from dipct.operator import Identity, LinearOperator, Mask, PixelAverage
from dipct.phantom import make_phantom
from dipct.solver import PrimalDualTV, iterate

FOLDER = RESULTS / "classical_tasks"
RUNS = FOLDER / "runs"
RESULT = RESULTS / "classical_tasks.json"
DOCS = Path(__file__).parents[1] / "docs"
PICTURE = DOCS / "pictures" / "classical-tasks.png"
PIXELS, FACTOR, KNOWN_SHARE = 128, 2, 0.3
STEPS, LEARNING_RATE, TV_WEIGHT = 1000, 1e-3, 6.0
WEIGHTS = (1.5, 3, 6, 12, 25, 50, 100)


@dataclass(frozen=True)
class Task:
    """A problem.

    Attributes:
        name: for people.
        std: noise of the data.
        simple: what its plain interpolation is called.
    """

    name: str
    std: float
    simple: str


TASKS = {
    "denoising": Task("denoising, noise 0.1", 0.1, "the data"),
    "inpainting": Task("inpainting, 30 % known, noise 0.02", 0.02, "linear interpolation"),
    "super-resolution": Task("super-resolution x 2, noise 0.02", 0.02, "bicubic"),
}
METHODS = {
    "input": "data, unknown pixels 0",
    "simple": "interpolation",
    "tv": "TV, best weight",
    "dip": "DIP to the noise level",
    "dip-tv": "DIP + TV",
}


@cache
def truth() -> np.ndarray:
    return make_phantom("walnut", dipct.Grid((PIXELS, PIXELS)), peak=1.0)[None]


@cache
def problem(task: str) -> tuple[LinearOperator, GaussianFidelity]:
    """Operator and data, the same in every run."""
    rng = np.random.default_rng(0)
    known = rng.uniform(size=truth().shape) < KNOWN_SHARE
    operators = {
        "denoising": lambda: Identity(truth().shape),
        "inpainting": lambda: Mask(known),
        "super-resolution": lambda: PixelAverage(truth().shape, FACTOR),
    }
    operator, std = operators[task](), TASKS[task].std
    noise = rng.standard_normal(operator.range_shape, dtype=np.float32)
    data = operator(torch.from_numpy(truth())) + std * torch.from_numpy(noise)
    return operator, GaussianFidelity(data, std)


def degraded(task: str) -> np.ndarray:
    """The data as an image: unknown pixels zero, coarse ones repeated."""
    operator, fidelity = problem(task)
    scale = FACTOR**2 if task == "super-resolution" else 1
    return (scale * operator.adjoint(fidelity.projections)).numpy()


def interpolated(task: str) -> np.ndarray:
    """What needs no prior: the noisy image, or an interpolation of what is known."""
    operator, fidelity = problem(task)
    data = fidelity.projections.numpy()
    if task == "denoising":
        return data
    if task == "super-resolution":
        return resize(data, truth().shape, order=3)
    positions = np.indices(truth().shape[1:]).reshape(2, -1).T
    rows, columns = (operator(torch.from_numpy(p)) for p in np.indices(truth().shape[1:])[:, None])
    where = np.stack([rows.numpy(), columns.numpy()], 1)
    linear, nearest = (griddata(where, data, positions, m) for m in ("linear", "nearest"))
    return np.where(np.isnan(linear), nearest, linear).reshape(truth().shape)


def total_variation(task: str) -> tuple[np.ndarray, dict]:
    """The best of all weights and both kinds, by the truth."""
    operator, fidelity = problem(task)
    scores = {}
    best = None
    for isotropic in (False, True):
        for weight in WEIGHTS:
            method = PrimalDualTV(operator, fidelity, float(weight), isotropic=isotropic)
            image = iterate(method, max_iterations=1500, every=50).value.numpy()
            kind = "isotropic" if isotropic else "anisotropic"
            scores[f"{kind} {weight}"] = psnr(image, truth())
            if best is None or scores[f"{kind} {weight}"] == max(scores.values()):
                best = image
    return best, {"weights": scores, "chosen": max(scores, key=scores.get)}


def deep_image_prior(task: str, method: str) -> tuple[np.ndarray, dict]:
    operator, fidelity = problem(task)
    stopping, weight = ("none", TV_WEIGHT) if method == "dip-tv" else ("discrepancy", 0.0)
    solution = dipct.deep_image_prior(
        operator,
        fidelity,
        tv_weight=weight,
        isotropic=True,
        iterations=STEPS,
        learning_rate=LEARNING_RATE,
        stopping=stopping,
        measure=lambda image: {"psnr": torch.tensor(psnr(image.numpy(), truth()))},
    )
    history = {name: values.tolist() for name, values in solution.history.items()}
    return solution.value.numpy(), {
        "tv_weight": weight,
        "steps": solution.iterations,
        "chosen_step": int(solution.history["chosen_step"][-1]),
        "discrepancy": float(fidelity.discrepancy(operator(solution.value))),
        "status": solution.status.name,
        "best_psnr_on_the_way": max(history["psnr"]),
        "history": history,
    }


def run(task: str, method: str) -> dict:
    if method == "input":
        image, facts = degraded(task), {}
    elif method == "simple":
        image, facts = interpolated(task), {}
    elif method == "tv":
        image, facts = total_variation(task)
    else:
        image, facts = deep_image_prior(task, method)
    return {
        "task": task,
        "method": method,
        "psnr_db": psnr(image, truth()),
        **facts,
        "machine": machine(),
        # Rounded: for the picture only.
        "image": np.round(image[0].astype(float), 4).tolist(),
    }


def path_of(task: str, method: str) -> Path:
    return RUNS / f"{task}-{method}.json"


def write_picture(runs: dict[tuple[str, str], dict]) -> None:
    shown = ("input", "tv", "dip", "dip-tv")
    figure = new_figure(2.0 * (len(shown) + 1), 2.35 * len(TASKS) + 0.4)
    axes = figure.subplots(len(TASKS), len(shown) + 1)
    for row, (name, task) in zip(axes, TASKS.items(), strict=True):
        images = [truth()[0]] + [np.array(runs[name, method]["image"]) for method in shown]
        titles = ["truth"] + [
            f"{'data' if method == 'input' else METHODS[method]}\n"
            f"{runs[name, method]['psnr_db']:.1f} dB"
            for method in shown
        ]
        for panel, image, title in zip(row, images, titles, strict=True):
            # The middle, where the object is; a border of air says nothing.
            part = image[20:108, 16:112]
            panel.imshow(part, cmap=IMAGE_MAP, vmin=0, vmax=1, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            set_title(panel, title, width=2.6)
        row[0].set_ylabel(task.name.replace(", ", "\n"))
    finish(figure, ["One prior, three problems: the walnut phantom, 128 x 128 pixels (cropped)"])
    save_figure(figure, PICTURE, dots_per_inch=110)


def write_table(runs: dict[tuple[str, str], dict]) -> None:
    rows = []
    for name, task in TASKS.items():
        cells = [task.name]
        for method in METHODS:
            done = runs[name, method]
            text = f"{done['psnr_db']:.1f}"
            if method == "simple":
                text += f" ({task.simple})"
            elif method == "tv":
                text += f" ({done['chosen']})"
            elif "steps" in done:
                text += f" (step {done['chosen_step']})"
            cells.append(text)
        rows.append(cells)
    text = table(["task", *METHODS.values()], rows)
    commit = runs["denoising", "dip"]["machine"]["commit"]
    replace_section(
        DOCS / "classical-tasks.md",
        "classical-tasks",
        f"{text}\n\nPSNR in dB; in brackets the weight or the step of the result; {STEPS} steps at "
        f"most; commit {commit}.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only rewrite table and picture")
    parser.add_argument("--task", choices=TASKS, help="run this one only, and rewrite nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        for task in [arguments.task] if arguments.task else TASKS:
            for method in METHODS:
                if not path_of(task, method).exists():
                    done = run(task, method)
                    write_result(path_of(task, method), done)
                    print(task, method, f"{done['psnr_db']:.2f} dB", flush=True)
    if arguments.task:
        return
    wanted = [(task, method) for task in TASKS for method in METHODS]
    runs = {key: json.loads(path_of(*key).read_text()) for key in wanted}
    stored = [{k: v for k, v in done.items() if k != "image"} for done in runs.values()]
    write_result(RESULT, {"runs": stored})
    write_picture(runs)
    write_table(runs)


if __name__ == "__main__":
    main()
