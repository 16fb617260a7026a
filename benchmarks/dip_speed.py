"""Claim: a Deep Image Prior as good as deepinv's in at most 1 / 2.5 of its time.

The simulated walnut (128 px, 60 views, 5 % noise) is fitted by deepinv's ``DeepImagePrior`` and by
dipct with the same network, input, first parameters, learning rate and number of steps, in one
process on all cores. deepinv fits once with its own projector, which is for time only since its
geometry is another, and once with dipct's operator as its physics: then data, operator and
network are the same, and quality can be compared.

    pip install -e . deepinv torch==2.13.0     # the torch you have: see ``MISSING``
    python benchmarks/dip_speed.py             # about four minutes on two cores
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
from dipct.objective.objective import DataTerm, Objective
from dipct.operator.base import LinearOperator
from dipct.pipeline.deep_image_prior import network_input
from dipct.pipeline.total_variation import fidelity_of, image_scale
from dipct.solver import iterate
from dipct.solver.adam import Adam
from dipct.solver.deep_image_prior import deep_image_prior_fit
from dipct.solver.descent import GeneratorFit

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
RESULT = RESULTS / "dip_speed.json"
PIXELS, NETWORK, SEED = 128, "128", 0
LEARNING_RATE = 1e-3
# The time of a step does not depend on it; about what the discrepancy principle gives here.
TV_WEIGHT = 4.0
WARM_UP_STEPS, TIMED_STEPS, ROUNDS = 3, 20, 3
# Single iterates differ by some tenths of a decibel: quality is also a mean over several.
RECORD_EVERY, RECORDS_IN_MEAN = 20, 5
OWN, SHARED = "deepinv, its own projector", "deepinv, dipct's operator"
UNCLIPPED = "dipct without clipping"
# Naming torch keeps pip from replacing it by the one that the newest torchvision is built for.
MISSING = (
    "This benchmark needs deepinv, which is no dependency of dipct. In the folder of dipct:\n\n"
    f"    python -m pip install -e . deepinv torch=={torch.__version__.split('+')[0]}\n"
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
                f"torchvision::{name}",
                "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor",
            )
    import deepinv

    return deepinv


@dataclass(frozen=True)
class Problem:
    """What all fits share: images of order one, and the network that makes them."""

    scan: dipct.Scan
    operator: LinearOperator
    data: Tensor
    scale: float
    generator: NetworkGenerator
    initial: Tensor

    @property
    def fidelity(self) -> Fidelity:
        return fidelity_of(self.scan, self.data)

    def psnr(self, image: Tensor) -> float:
        """PSNR in dB of an image [1 H W] of order one."""
        return psnr(self.scale * image[0].float().numpy(), self.scan.truth)


def make_problem() -> Problem:
    """The walnut, set up as ``dipct.reconstruct(scan, method="dip")`` does."""
    scan = dipct.example_scan("walnut", pixels=PIXELS, seed=SEED)
    operator = dipct.ray_transform(scan.geometry, scan.grid)
    data = torch.from_numpy(scan.projections).to(operator.dtype)
    scale = image_scale(operator, data)
    z = network_input(scan, "fbp", SEED, scale, data)
    generator = NetworkGenerator(make_network(NETWORK), z, scan.grid.shape)
    initial = generator.initial(SEED)
    return Problem(scan, scale * operator, data, scale, generator, initial)


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
        self.started, self.images = [], []

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

    def run(self, steps: int) -> NetworkModule:
        """Fit a new network."""
        module = NetworkModule(self._problem)
        size = tuple(module.z.shape[1:])
        fit = self._deepinv.models.DeepImagePrior(module, size, steps, LEARNING_RATE)
        fit(self._data, self._physics)
        return module

    def step_seconds(self, steps: int) -> list[float]:
        # Every step calls the network once, and so does the return of the result.
        return list(np.diff(self.run(steps).started))

    def quality(self, steps: int) -> tuple[list[float], float]:
        """PSNR of every recorded step, and the seconds of the whole run."""
        start = time.perf_counter()
        module = self.run(steps)
        seconds = time.perf_counter() - start
        return [self._problem.psnr(image) for image in module.images], seconds


class DipctFit:
    """dipct's Deep Image Prior on a problem."""

    def __init__(self, problem: Problem, precision: str, tv_weight: float) -> None:
        self._problem, self._precision, self._tv_weight = problem, precision, tv_weight

    def fit(self, steps: int, measure: Callable | None = None) -> GeneratorFit:
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
        fit = self.fit(steps)
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
        fit = self.fit(steps, measure)
        solution = iterate(fit, max_iterations=steps, every=RECORD_EVERY)
        return solution.history["psnr_db"].tolist(), time.perf_counter() - start


class UnclippedFit(DipctFit):
    """dipct's Deep Image Prior with gradients of any length, as deepinv takes them."""

    def fit(self, steps: int, measure: Callable | None = None) -> GeneratorFit:
        problem = self._problem
        return GeneratorFit(
            problem.generator.with_precision(self._precision),
            Objective([(1.0, DataTerm(problem.operator, problem.fidelity))]),
            problem.initial,
            optimiser=Adam(LEARNING_RATE),
            measure=measure,
        )


Fit = DeepinvFit | DipctFit


def own_projector(deepinv: ModuleType, problem: Problem):
    """Fan beam of deepinv with the distances of the walnut's scanner, and its data."""
    grid, vectors = problem.scan.grid, problem.scan.geometry.vectors()[0]
    views, columns = problem.scan.projections.shape
    physics = deepinv.physics.Tomography(
        angles=torch.arange(views) * (360 / views),
        img_width=PIXELS,
        fan_beam=True,
        fan_parameters={
            "pixel_spacing": grid.pixel_size,
            "source_radius": float(np.linalg.norm(vectors[:2])),
            "detector_radius": float(np.linalg.norm(vectors[3:5])),
            "n_detector_pixels": columns,
            "detector_spacing": float(np.linalg.norm(vectors[6:8])),
        },
        normalize=True,
    )
    clean = physics.A(torch.from_numpy(problem.scan.truth / problem.scale).float()[None, None])
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
        found[f"{UNCLIPPED}, {precision}"] = UnclippedFit(problem, precision, 0.0)
    return found


def difference_without_clipping(problem: Problem, peer: DeepinvFit, fit: UnclippedFit) -> float:
    """Relative difference of the images of two fits after RECORD_EVERY steps."""
    last = iterate(fit.fit(RECORD_EVERY), max_iterations=RECORD_EVERY, every=RECORD_EVERY).state
    image, other = problem.generator(last.tensors["theta"]), peer.run(RECORD_EVERY).images[-1]
    return float((image - other).norm() / other.norm())


def measure_times(found: dict[str, Fit]) -> dict[str, list[float]]:
    """Median milliseconds per step of every round, in which the fits take turns."""
    medians: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, fit in found.items():
            seconds = fit.step_seconds(WARM_UP_STEPS + TIMED_STEPS)[WARM_UP_STEPS:]
            medians[name].append(1e3 * statistics.median(seconds))
            print(f"{name}: {medians[name][-1]:.1f} ms per step", flush=True)
    return medians


def measure(steps: int) -> None:
    deepinv = load_deepinv()
    where = machine()
    where["versions"] |= {name: version(name) for name in ("deepinv", "torchvision")}
    where["matrix_unit_for_bfloat16"] = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    problem = make_problem()
    found = fits(deepinv, problem)
    timed = {name: fit for name, fit in found.items() if not isinstance(fit, UnclippedFit)}
    cases: dict[str, dict] = {name: {} for name in found}
    for name, medians in measure_times(timed).items():
        cases[name] = {"ms_per_step": medians}
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
    difference = difference_without_clipping(problem, found[SHARED], found[f"{UNCLIPPED}, float32"])
    print(f"relative difference without clipping: {difference:.2g}")
    settings = {
        "problem": f"walnut {PIXELS} px, {problem.scan.geometry.n_views} views, seed {SEED}",
        "network": f"{NETWORK}, {problem.generator.n_parameters} parameters",
        "learning_rate": LEARNING_RATE,
        "tv_weight": TV_WEIGHT,
        "steps": steps,
        "timed_steps": TIMED_STEPS,
        "rounds": ROUNDS,
    }
    result = {"machine": where, "settings": settings, "cases": cases}
    write_result(RESULT, result | {"difference_without_clipping": difference})


def write_table() -> None:
    stored = json.loads(RESULT.read_text())
    cases, settings = stored["cases"], stored["settings"]
    rows = []
    for name in sorted(cases, key=_place):
        case = cases[name]
        row = [name, "", "", ""]
        if "ms_per_step" in case:
            times = case["ms_per_step"]
            row[1] = f"{statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f})"
            row[2:] = [_ratio(cases[peer]["ms_per_step"], times) for peer in (OWN, SHARED)]
        quality = case.get("quality", {})
        shown = {"psnr_db": ".2f", "mean_psnr_db": ".2f", "seconds": ".0f"}
        row += [f"{quality[k]:{f}}" if quality else "" for k, f in shown.items()]
        rows.append([*row, _to_equal_quality(cases, name)])
    averaged = min(RECORD_EVERY * (RECORDS_IN_MEAN - 1), settings["steps"])
    header = ["fit", "ms per step", f"speed / {OWN}", f"speed / {SHARED}"]
    after = f"PSNR after {settings['steps']} steps [dB]"
    header += [after, f"mean over the last {averaged} steps [dB]", "whole fit [s]"]
    header += [f"time to the mean of {SHARED}, times shorter"]
    replace_section(PAGE, "dip-speed", f"{table(header, rows)}\n\n{_notes(stored)}")


def _place(name: str) -> tuple[bool, bool, bool]:
    """Peers first, then the fits without TV, last those that were not timed."""
    return (name not in (OWN, SHARED), UNCLIPPED in name, "TV" in name)


def _to_equal_quality(cases: dict, name: str) -> str:
    """How many times sooner a fit's mean PSNR of some records is that of deepinv at its end."""
    case, peer = cases[name], cases[SHARED]
    if name == SHARED or "quality" not in case or "ms_per_step" not in case:
        return ""
    values = np.array(case["quality"]["recorded_psnr_db"])
    means = np.convolve(values, np.ones(RECORDS_IN_MEAN) / RECORDS_IN_MEAN, mode="valid")
    reached = np.flatnonzero(means >= peer["quality"]["mean_psnr_db"])
    if len(reached) == 0:
        return "not reached"
    step = RECORD_EVERY * (int(reached[0]) + RECORDS_IN_MEAN - 1)
    steps = RECORD_EVERY * (len(peer["quality"]["recorded_psnr_db"]) - 1)
    own, other = (statistics.median(each["ms_per_step"]) for each in (case, peer))
    return f"{steps * other / (step * own):.1f} (step {step})"


def _ratio(peer: list[float], own: list[float]) -> str:
    # Of neighbours in time: the machine's speed may drift between the turns.
    return f"{statistics.median(p / o for p, o in zip(peer, own, strict=True)):.2f}"


def _notes(stored: dict) -> str:
    settings, where = stored["settings"], stored["machine"]
    versions = where["versions"]
    unit = "with" if where["matrix_unit_for_bfloat16"] else "without"
    return (
        f"{where['cores']} cores ({where['processor']}, {unit} AMX), {where['threads']} threads, "
        f"load {where['load_before']:.1f} before, torch {versions['torch']}, deepinv "
        f"{versions['deepinv']}, commit {where['commit']}. Median of {settings['timed_steps']} "
        f"steps after {WARM_UP_STEPS} that do not count; the fits take turns "
        f"{settings['rounds']} times: median and range of the turns, and the median of the "
        "ratios of each turn (above 1: faster than deepinv). "
        f"Network {settings['network']}, fed with the "
        "filtered back-projection; Adam with a constant learning rate of "
        f"{settings['learning_rate']:g}, and the same first parameters for all.\n\n"
        "What differs: deepinv minimises the mean of squares in float32, dipct the sum over "
        "twice the noise variance and the number of values, shortens long gradients and averages "
        "their squares over fewer steps. "
        f"Without the last two their images after {RECORD_EVERY} "
        f"steps in float32 differ by {stored['difference_without_clipping']:.1g} of their norm. "
        "dipct also looks for the lowest objective in every step, and in a whole fit evaluates "
        f"the image once more every {RECORD_EVERY} steps for the history; PSNR is "
        "that of the last iterate, not of the chosen one, as deepinv has no choice. deepinv's "
        "own projector is its fan beam (rotation by interpolation) with the scanner's distances "
        "and as many views and columns; geometry, discretisation and so the data are others, so "
        "that only its time is comparable."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only rewrite the table")
    parser.add_argument("--steps", type=int, default=600, help="of the fits for quality")
    options = parser.parse_args()
    if not options.table:
        measure(options.steps)
    write_table()


if __name__ == "__main__":
    main()
