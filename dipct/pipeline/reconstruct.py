"""The verb reconstruct: from a scan to an image with figures of merit and provenance."""

import hashlib
import json
import logging
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipct.checkpoint import CheckpointWriter, elapsed_of, read_checkpoint, stopped
from dipct.configuration import NETWORK_METHODS, ReconstructionConfiguration
from dipct.device import find_device
from dipct.errors import ConfigurationError
from dipct.generator import NetworkGenerator, SingularValues, Subspace
from dipct.measurement.digest import file_digest, scan_digest
from dipct.measurement.geometry import ConeSliceGeometry
from dipct.measurement.scan import Scan
from dipct.operator.base import LinearOperator
from dipct.operator.fdk import FDK
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.operator.ray import ray_transform
from dipct.operator.view_weights import angular_coverage
from dipct.pipeline.deep_image_prior import check_dip, dip_problem
from dipct.pipeline.educated_dip import check_edip, edip_problem
from dipct.pipeline.merit import figures_of_merit
from dipct.pipeline.prepare import prepare, with_noise, with_truth
from dipct.pipeline.total_variation import tv_problem
from dipct.progress import ProgressDisplay
from dipct.run import Run
from dipct.settings import refuse_both
from dipct.solver import (
    CGLS,
    SIRT,
    DiscrepancyPrinciple,
    GeneratorFit,
    IterationState,
    Method,
    Solution,
    Status,
    iterate,
)

_LOG = logging.getLogger(__name__)
_EVERY = {"cgls": 1, "sirt": 5, "tv": 10, "dip": 20, "edip": 20}


def reconstruct(
    scan: Scan,
    configuration: ReconstructionConfiguration | None = None,
    *,
    truth: str | Path | None = None,
    source: str = "",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    cache: Path | bool = False,
    progress: bool = False,
    **settings: Any,
) -> Run:
    """Reconstruct a scan.

    Args:
        scan: what was measured.
        configuration: how to reconstruct, or give its settings by name:
            ``reconstruct(scan, method="tv", views=60)``.
        truth: reference image to compare with, in place of the scan's own: a file of
            floating-point values in the scan's units, on the grid of the result.
        source: where the scan comes from, for the record.
        checkpoint: keep the state of an iterative method in this file, every minute and when
            interrupted. It stays until the caller removes it, who knows when the result is safe.
        resume: go on from the checkpoint.
        cache: keep the system matrix on disk, see :class:`dipct.operator.RayTransform`.
        progress: show a progress display.
        **settings: fields of :class:`ReconstructionConfiguration`.

    Returns:
        The image with everything that led to it.

    Raises:
        ConfigurationError: impossible or contradictory settings.
        GeometryError: the scan does not allow what is asked.
        InsufficientMemoryError: it would not fit into memory.
        DeviceUnavailableError: the device is not there.
        Interrupted: stopped by the user; the checkpoint is kept.
    """
    refuse_both(configuration, settings)
    if configuration is None:
        configuration = ReconstructionConfiguration.from_values(settings)
    elapsed = elapsed_of(Path(checkpoint)) if resume and checkpoint is not None else 0.0
    started = time.perf_counter() - elapsed
    digest = scan_digest(scan)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    configuration = configuration.resolved()
    device = find_device(configuration.device)
    scan = prepare(scan, configuration)
    if truth is not None:
        scan = with_truth(scan, truth)
    needs_noise = (
        configuration.method in ("tv", *NETWORK_METHODS) or configuration.stopping == "discrepancy"
    )
    scan = with_noise(scan, required=needs_noise)
    if configuration.method in ("fbp", "fdk"):
        if resume:
            raise ConfigurationError(f"The method {configuration.method} has nothing to resume.")
        result = _analytic(scan, configuration, device)
    else:
        result = _iterative(
            scan, configuration, device, checkpoint, resume, cache, progress, elapsed
        )
    image, projections, choices, solution, generator = result
    return Run(
        image=_array(image)[0],
        projections=_array(projections),
        scan=scan,
        configuration={**configuration.to_values(), **choices},
        status="DONE" if solution is None else solution.status.name,
        advice="" if solution is None else solution.status.advice,
        iterations=0 if solution is None else solution.iterations,
        history={} if solution is None else {k: _array(v) for k, v in solution.history.items()},
        metrics=figures_of_merit(_array(image)[0], _array(projections), scan),
        generator=generator,
        seed=configuration.seed,
        source=source,
        input_sha256=digest,
        duration_s=time.perf_counter() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


_Result = tuple[Tensor, Tensor, dict[str, Any], Solution | None, dict[str, np.ndarray]]


def _analytic(
    scan: Scan, configuration: ReconstructionConfiguration, device: torch.device
) -> _Result:
    planar = scan.geometry.is_planar
    if planar != (configuration.method == "fbp"):
        raise ConfigurationError(
            f"This scan reconstructs {'an image' if planar else 'a volume'}: use method "
            f"{'fbp' if planar else 'fdk'}, or an iterative one."
        )
    assert configuration.filter is not None and configuration.frequency_scaling is not None
    kind = FilteredBackProjection if planar else FDK
    inverse = kind(
        scan.geometry,
        scan.grid,
        filter=configuration.filter,
        frequency_scaling=configuration.frequency_scaling,
    )
    _tell_unmeasured(scan)
    image = inverse(_data(scan, device))
    return image, _project_once(scan, image.cpu()), {}, None, {}


def _tell_unmeasured(scan: Scan) -> None:
    """Say where an analytic method cannot give the right values."""
    unmeasured = angular_coverage(scan.geometry.angles, np.pi).missing
    degrees = np.rad2deg(np.diff(unmeasured, axis=1).sum())
    if degrees > 0:
        _LOG.info(
            "The views leave %.0f of 180 degrees unmeasured: the values of %s come out low there. "
            "An iterative method with a constraint (sirt, tv) does better.",
            degrees,
            "FBP" if scan.geometry.is_planar else "FDK",
        )


def _project_once(scan: Scan, image: Tensor) -> Tensor:
    """Projections of an image for its residual: one product is not worth a stored matrix."""
    by_astra = scan.geometry.is_planar and not isinstance(scan.geometry, ConeSliceGeometry)
    backend = "astra" if by_astra else "traced"
    return ray_transform(scan.geometry, scan.grid, backend=backend)(image)


def _iterative(
    scan: Scan,
    configuration: ReconstructionConfiguration,
    device: torch.device,
    checkpoint: Path | None,
    resume: bool,
    cache: Path | bool,
    progress: bool,
    elapsed: float,
) -> _Result:
    name = configuration.method
    if name == "dip":
        check_dip(scan, configuration, device)
    if name == "edip":
        check_edip(scan, configuration, device)
    problem = _problem(scan, configuration)
    state, choices = None, {}
    if resume:
        if checkpoint is None:
            raise ConfigurationError("Resuming needs the name of the checkpoint.")
        state, choices = read_checkpoint(checkpoint, problem, device)
        _LOG.info("Going on from iteration %d of %s.", state.iteration, checkpoint)
    assert configuration.backend is not None and configuration.projector is not None
    _LOG.info("Setting up the ray transform ...")
    operator = ray_transform(
        scan.geometry,
        scan.grid,
        backend=configuration.backend,
        projector=configuration.projector,
        device=device,
        cache=cache,
    )
    method, scale, choices, start = _method(scan, configuration, operator, device, choices)
    assert configuration.iterations is not None
    stopping = []
    if configuration.stopping == "discrepancy" and name not in NETWORK_METHODS:
        assert scan.noise is not None
        std = torch.tensor(np.array(scan.noise.std_of(scan.projections)), dtype=torch.float32)
        stopping = [DiscrepancyPrinciple(std.to(device))]
    writer = (
        None
        if checkpoint is None
        else CheckpointWriter(checkpoint, problem, choices, elapsed=elapsed)
    )
    display = ProgressDisplay(name, configuration.iterations) if progress else nullcontext()
    with display as shown:
        solution = iterate(
            method,
            max_iterations=configuration.iterations,
            state=start if state is None else state,
            every=_EVERY[name],
            callbacks=[callback for callback in (shown, writer) if callback is not None],
            stopping=stopping,
        )
    if solution.status is Status.INTERRUPTED:
        raise stopped(f"Stopped after {solution.iterations} iterations", solution.state, writer)
    image = scale * solution.value
    return image, operator(image), choices, solution, _generator(method, solution)


def _generator(method: Method, solution: Solution) -> dict[str, np.ndarray]:
    """What makes the image again where a network made it."""
    if not isinstance(method, GeneratorFit):
        return {}
    generator, theta = method.generator, solution.state.tensors["chosen"]
    if isinstance(generator, Subspace | SingularValues):
        generator, theta = generator.generator, generator.parameters(theta)
    if not isinstance(generator, NetworkGenerator):
        return {}
    return {"theta": _array(theta), "input": _array(generator.z)}


def _method(
    scan: Scan,
    configuration: ReconstructionConfiguration,
    operator: LinearOperator,
    device: torch.device,
    choices: dict[str, Any],
) -> tuple[Method, float, dict[str, Any], IterationState | None]:
    """The iterative method, the scale of its unknown, what was chosen, and where to start."""
    data = _data(scan, device)
    if configuration.method == "cgls":
        assert configuration.tolerance is not None
        return CGLS(operator, data, tolerance=configuration.tolerance), 1.0, choices, None
    if configuration.method == "sirt":
        assert configuration.nonnegative is not None
        return SIRT(operator, data, nonnegative=configuration.nonnegative), 1.0, choices, None
    if configuration.method == "dip":
        return *dip_problem(scan, configuration, operator, choices), None
    if configuration.method == "edip":
        return *edip_problem(scan, configuration, operator, choices), None
    return tv_problem(scan, configuration, operator, choices)


def _problem(scan: Scan, configuration: ReconstructionConfiguration) -> str:
    """Digest of all that decides the course of the iteration; its length may be changed."""
    values = configuration.to_values()
    if not configuration.decay:
        values.pop("iterations")
    if configuration.init is not None:
        # The network itself, wherever its file lies.
        values["init"] = file_digest(configuration.init)
    text = json.dumps([scan_digest(scan), values], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    if scan.noise is not None:
        digest.update(scan.noise.kind.encode())
        digest.update(np.ascontiguousarray(scan.noise.std_of(scan.projections)).tobytes())
    if configuration.method in NETWORK_METHODS and scan.truth is not None:
        # Its history holds the PSNR.
        digest.update(np.ascontiguousarray(scan.truth).tobytes())
    return digest.hexdigest()


def _data(scan: Scan, device: torch.device) -> Tensor:
    return torch.from_numpy(scan.projections).to(device)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
