"""Claim: a step of the Deep Image Prior takes at most 1 / 2.5 of deepinv's, at equal quality.

The simulated walnut (128 px, 60 views, 5 % noise) is fitted by deepinv's ``DeepImagePrior`` and by
dipct with the same network, input, first parameters, learning rate and number of steps, in one
process on all cores. deepinv fits once with its own projector, which is for time only since its
geometry is another, and once with dipct's operator as its physics: then data, operator and
network are the same, and quality can be compared.

    pip install -e . deepinv                   # in one command: see ``load_deepinv``
    python benchmarks/dip_speed.py             # about seven minutes on two cores
    python benchmarks/dip_speed.py --table     # only rewrites the table, without deepinv
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from measuring import RESULTS, machine, replace_section, table, write_result
from torch import Tensor

import dipct
from dipct.evaluation import psnr
from dipct.generator import NetworkGenerator, has_bfloat16, make_network
from dipct.objective import Fidelity
from dipct.operator.base import LinearOperator
from dipct.pipeline.deep_image_prior import network_input
from dipct.pipeline.total_variation import fidelity_of, image_scale
from dipct.solver import iterate
from dipct.solver.deep_image_prior import deep_image_prior_fit
from dipct.solver.descent import GeneratorFit

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
RESULT = RESULTS / "dip_speed.json"
PIXELS, VIEWS, NETWORK, SEED = 128, 60, "128", 0
LEARNING_RATE = 1e-3
# The time of a step does not depend on it; about what the discrepancy principle gives here.
TV_WEIGHT = 4.0
WARM_UP_STEPS = 3
# Single iterates differ by some tenths of a decibel: quality is also a mean over several.
RECORD_EVERY, RECORDS_IN_MEAN = 20, 5
OWN, SHARED = "deepinv, its own projector", "deepinv, dipct's operator"
MISSING = (
    "This benchmark needs deepinv, which is no dependency of dipct. Install both in one command, "
    "so that pip keeps a torch that suits dipct:\n\n"
    "    python -m pip install -e . deepinv\n"
)


def load_deepinv() -> ModuleType:
    """Import deepinv, also where torch is for the CPU and torchvision for CUDA.

    deepinv imports torchvision, whose wheels on PyPI are built for CUDA: next to torch for the CPU
    their compiled library cannot be loaded, and the import fails because the operators ``nms``
    and ``qnms``, which Python code there refers to, do not exist. Declaring them is enough: no
    one calls them here. Where the library does load, declaring them again would be an error.
    """
    if any(importlib.util.find_spec(name) is None for name in ("deepinv", "torchvision")):
        raise SystemExit(MISSING)
    spec = importlib.util.find_spec("torchvision")
    libraries = [f for p in spec.submodule_search_locations for f in Path(p).glob("_C.*")]
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
            )
    import deepinv

    return deepinv


@dataclass(frozen=True)
class Problem:
    """What all fits share: images of order one, and the network that makes them."""

    scan: dipct.Scan
    operator: LinearOperator
    fidelity: Fidelity
    data: Tensor
    scale: float
    generator: NetworkGenerator
    initial: Tensor

    @property
    def truth(self) -> np.ndarray:
        return np.asarray(self.scan.truth)

    def psnr(self, image: Tensor) -> float:
        """PSNR in dB of an image [1 H W] of order one."""
        return psnr(self.scale * image[0].float().numpy(), self.truth)


def make_problem() -> Problem:
    """The walnut, set up as ``dipct.reconstruct(scan, method="dip")`` does."""
    scan = dipct.example_scan("walnut", pixels=PIXELS, seed=SEED)
    if scan.geometry.n_views != VIEWS:
        raise SystemExit(f"The walnut has {scan.geometry.n_views} views instead of {VIEWS}.")
    operator = dipct.ray_transform(scan.geometry, scan.grid)
    data = torch.from_numpy(scan.projections).to(operator.dtype)
    scale = image_scale(operator, data)
    z = network_input(scan, "fbp", SEED, scale, data)
    generator = NetworkGenerator(make_network(NETWORK), z, scan.grid.shape)
    return Problem(
        scan,
        scale * operator,
        fidelity_of(scan, data),
        data,
        scale,
        generator,
        generator.initial(SEED),
    )


class NetworkModule(torch.nn.Module):
    """The network of a problem as PyTorch and deepinv know networks.

    Attributes:
        started: times at which it was called.
        images: the image of every RECORD_EVERY-th call, [1 H W].
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        generator = problem.generator
        tensors = generator.layout.split(problem.initial)
        self._network, self._names = generator.network, list(tensors)
        self._tensors = torch.nn.ParameterList(
            torch.nn.Parameter(tensor.clone()) for tensor in tensors.values()
        )
        self.register_buffer("z", generator.z[None])
        self.started: list[float] = []
        self.images: list[Tensor] = []

    def forward(self, drawn: Tensor) -> Tensor:
        """The image [1 1 H W]; in place of the input deepinv draws, that of the problem."""
        self.started.append(time.perf_counter())
        image = self._network(dict(zip(self._names, self._tensors, strict=True)), self.z)
        if (len(self.started) - 1) % RECORD_EVERY == 0:
            self.images.append(image.detach()[0])
        return image


class DeepinvFit:
    """deepinv's ``DeepImagePrior`` on a problem."""

    def __init__(self, deepinv: ModuleType, problem: Problem, physics, data: Tensor) -> None:
        self._deepinv, self._problem, self._physics, self._data = deepinv, problem, physics, data

    def _run(self, steps: int) -> NetworkModule:
        module = NetworkModule(self._problem)
        self._deepinv.models.DeepImagePrior(
            module,
            img_size=tuple(module.z.shape[1:]),
            iterations=steps,
            learning_rate=LEARNING_RATE,
        )(self._data, self._physics)
        return module

    def step_seconds(self, steps: int) -> list[float]:
        # Every step calls the network once, and so does the return of the result.
        return list(np.diff(self._run(steps).started))

    def quality(self, steps: int) -> tuple[list[float], float]:
        """PSNR of every recorded step, and the seconds of the whole run."""
        start = time.perf_counter()
        module = self._run(steps)
        seconds = time.perf_counter() - start
        return [self._problem.psnr(image) for image in module.images], seconds


class DipctFit:
    """dipct's Deep Image Prior on a problem."""

    def __init__(self, problem: Problem, precision: str, tv_weight: float) -> None:
        self._problem, self._precision, self._tv_weight = problem, precision, tv_weight

    def _fit(self, steps: int, measure: Callable | None = None) -> GeneratorFit:
        problem = self._problem
        return deep_image_prior_fit(
            problem.operator,
            problem.fidelity,
            network=problem.generator.network,
            z=problem.generator.z,
            initial=problem.initial,
            tv_weight=self._tv_weight,
            iterations=steps,
            learning_rate=LEARNING_RATE,
            warm_up=0,
            decay=False,
            precision=self._precision,
            measure=measure,
        )

    def step_seconds(self, steps: int) -> list[float]:
        fit = self._fit(steps)
        tensors, times = fit.start(), []
        for _ in range(steps):
            start = time.perf_counter()
            tensors = fit.step(tensors)
            times.append(time.perf_counter() - start)
        return times

    def quality(self, steps: int) -> tuple[list[float], float]:
        """PSNR of every recorded step, and the seconds of the whole run."""

        def measure(image: Tensor) -> dict[str, Tensor]:
            return {"psnr_db": torch.tensor(self._problem.psnr(image), dtype=torch.float64)}

        start = time.perf_counter()
        fit = self._fit(steps, measure)
        solution = iterate(fit, max_iterations=steps, every=RECORD_EVERY)
        return solution.history["psnr_db"].tolist(), time.perf_counter() - start


Fit = DeepinvFit | DipctFit


def own_projector(deepinv: ModuleType, problem: Problem):
    """deepinv's fan beam with the distances of the walnut's scanner, and its data."""
    grid, vectors = problem.scan.grid, problem.scan.geometry.vectors()[0]
    physics = deepinv.physics.Tomography(
        angles=torch.arange(VIEWS) * (360 / VIEWS),
        img_width=PIXELS,
        fan_beam=True,
        fan_parameters={
            "pixel_spacing": grid.pixel_size,
            "source_radius": float(np.linalg.norm(vectors[:2])),
            "detector_radius": float(np.linalg.norm(vectors[3:5])),
            "n_detector_pixels": problem.scan.projections.shape[-1],
            "detector_spacing": float(np.linalg.norm(vectors[6:8])),
        },
        normalize=True,
    )
    clean = physics.A(torch.from_numpy(problem.truth / problem.scale).float()[None, None])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))
    return physics, clean + 0.05 * clean.abs().mean() * noise


def fits(deepinv: ModuleType, problem: Problem) -> dict[str, Fit]:
    """All fits by name."""
    operator = problem.operator
    shared = deepinv.physics.LinearPhysics(A=lambda x, **_: operator(x), A_adjoint=operator.adjoint)
    found: dict[str, Fit] = {
        OWN: DeepinvFit(deepinv, problem, *own_projector(deepinv, problem)),
        SHARED: DeepinvFit(deepinv, problem, shared, problem.data[None]),
    }
    precisions = ["float32"]
    if has_bfloat16(torch.device("cpu")):
        precisions.append("bfloat16")
    else:
        print("This processor has no bfloat16: float32 only.")
    for precision in precisions:
        found[f"dipct, {precision}"] = DipctFit(problem, precision, 0.0)
        found[f"dipct with TV, {precision}"] = DipctFit(problem, precision, TV_WEIGHT)
    return found


def measure_times(found: dict[str, Fit], timed_steps: int, rounds: int) -> dict[str, list[float]]:
    """Median milliseconds per step of every round, in which the fits take turns."""
    medians: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, fit in found.items():
            seconds = fit.step_seconds(WARM_UP_STEPS + timed_steps)[WARM_UP_STEPS:]
            medians[name].append(1e3 * statistics.median(seconds))
            print(f"{name}: {medians[name][-1]:.1f} ms per step", flush=True)
    return medians


def measure(steps: int, timed_steps: int, rounds: int) -> None:
    deepinv = load_deepinv()
    where = machine()
    where["versions"] |= {name: version(name) for name in ("deepinv", "torchvision")}
    where["matrix_unit_for_bfloat16"] = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    problem = make_problem()
    found = fits(deepinv, problem)
    cases = {
        name: {"ms_per_step": statistics.median(medians), "ms_per_step_of_rounds": medians}
        for name, medians in measure_times(found, timed_steps, rounds).items()
    }
    for name, fit in found.items():
        if name == OWN or "TV" in name:
            continue
        recorded, seconds = fit.quality(steps)
        cases[name]["quality"] = {
            "psnr_db": recorded[-1],
            "mean_psnr_db": statistics.mean(recorded[-RECORDS_IN_MEAN:]),
            "recorded_psnr_db": recorded,
            "seconds": seconds,
        }
        print(f"{name}: {recorded[-1]:.2f} dB, {seconds:.1f} s", flush=True)
    settings = {
        "pixels": PIXELS,
        "views": VIEWS,
        "network": NETWORK,
        "parameters": problem.generator.n_parameters,
        "seed": SEED,
        "learning_rate": LEARNING_RATE,
        "tv_weight": TV_WEIGHT,
        "steps": steps,
        "timed_steps": timed_steps,
        "rounds": rounds,
        "record_every": RECORD_EVERY,
        "records_in_mean": RECORDS_IN_MEAN,
    }
    write_result(RESULT, {"machine": where, "settings": settings, "cases": cases})


def write_table() -> None:
    stored = json.loads(RESULT.read_text())
    cases, settings, where = stored["cases"], stored["settings"], stored["machine"]
    rows = []
    # Files are sorted by name; here the peers come first, then the fits without TV.
    for name in sorted(cases, key=lambda name: (name not in (OWN, SHARED), "TV" in name)):
        case = cases[name]
        rounds = case["ms_per_step_of_rounds"]
        row = [name, f"{case['ms_per_step']:.0f} ({min(rounds):.0f} to {max(rounds):.0f})"]
        row += [f"{cases[peer]['ms_per_step'] / case['ms_per_step']:.2f}" for peer in (OWN, SHARED)]
        quality = case.get("quality")
        if quality is None:
            row += ["", "", ""]
        else:
            row += [f"{quality[key]:.2f}" for key in ("psnr_db", "mean_psnr_db")]
            row.append(f"{quality['seconds']:.0f}")
        rows.append(row)
    averaged = min(settings["record_every"] * (settings["records_in_mean"] - 1), settings["steps"])
    header = ["fit", "ms per step", f"speed / {OWN}", f"speed / {SHARED}"]
    header += [f"PSNR after {settings['steps']} steps [dB]"]
    header += [f"mean over the last {averaged} steps [dB]", "whole fit [s]"]
    replace_section(PAGE, "dip-speed", f"{table(header, rows)}\n\n{_notes(settings, where)}")


def _notes(settings: dict, where: dict) -> str:
    versions = where["versions"]
    return (
        f"{where['cores']} cores ({where['processor']}), {where['threads']} threads, load "
        f"{where['load_before']:.1f} before, torch {versions['torch']}, deepinv "
        f"{versions['deepinv']}, commit {where['commit']}. Median of {settings['timed_steps']} "
        f"steps after {WARM_UP_STEPS} that do not count; the fits take turns "
        f"{settings['rounds']} times: median and range of the turns. Network "
        f"`{settings['network']}` ({settings['parameters']} parameters), fed with the filtered "
        f"back-projection; Adam with a constant learning rate of {settings['learning_rate']:g}, "
        "and the same first parameters for all.\n\n"
        "What differs: deepinv minimises the mean of squares in float32, dipct the sum over "
        "twice the noise variance and the number of values, and shortens gradients longer than "
        "1, which deepinv does not. dipct also looks for the lowest objective in every step, and "
        f"in a whole fit evaluates the image once more every {settings['record_every']} steps "
        "for the history; PSNR is that of the last iterate, not of the chosen one, as deepinv "
        "has no choice. deepinv's own projector is its fan beam (rotation by interpolation) with "
        "the scanner's distances and as many views and columns; geometry, discretisation and so "
        "the data are others, so that only its time is comparable."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only rewrite the table")
    parser.add_argument("--steps", type=int, default=600, help="of the fits for quality")
    parser.add_argument("--timed-steps", type=int, default=20, help="of a fit in each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each fit")
    options = parser.parse_args()
    if not options.table:
        measure(options.steps, options.timed_steps, options.rounds)
    write_table()


if __name__ == "__main__":
    main()
