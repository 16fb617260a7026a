"""The verb quantify: from a reconstruction by a network to how far it can be trusted."""

import hashlib
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipct.device import find_device
from dipct.errors import ConfigurationError, Interrupted
from dipct.measurement.digest import scan_digest
from dipct.objective import total_variation
from dipct.operator import ray_transform
from dipct.operator.base import LinearOperator
from dipct.pipeline.deep_image_prior import generator_of
from dipct.pipeline.inference import Inference, Regularisation
from dipct.pipeline.posterior_of_model import infer
from dipct.pipeline.stages import Stages
from dipct.pipeline.uncertainty_scores import inside, uncertainty_scores
from dipct.posterior import LinearisedModel, NetworkPasses, noise_correction
from dipct.progress import WorkDisplay
from dipct.run import Run
from dipct.settings import refuse_both
from dipct.uncertainty import Uncertainty, UncertaintySettings

_LOG = logging.getLogger(__name__)
# The image is kept as it was computed, possibly in bfloat16; a changed scan differs by more.
_ROUNDING = 0.03
_SMALLEST_RESIDUAL = 1e-4
# Of the squared residual over the noise: beyond, or below one over it, the linear model is one of
# the wrong point.
_FAR_FROM_THE_DATA = 2.0
# Share of the gradient of data and total variation that they leave of each other.
_FAR_FROM_A_MINIMUM = 0.5


def quantify(
    run: Run,
    configuration: UncertaintySettings | None = None,
    *,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **settings: Any,
) -> Run:
    """Quantify how far the image of a network can be trusted: linearised Laplace.

    The network is linearised around its trained parameters; a hierarchical Gaussian prior on its
    convolution weights, tuned by the evidence of the scan itself, becomes a posterior of images
    (Antoran et al., arXiv 2203.00479). No training data are needed.

    Args:
        run: a reconstruction by ``dip`` or ``edip``.
        configuration: how, or give its settings by name: ``quantify(run, samples=64)``.
        checkpoint: keep the results of long stages in this folder. It stays until the caller
            removes it, who knows when the result is safe.
        resume: go on with what the folder holds.
        progress: show a progress display.
        **settings: fields of :class:`dipct.uncertainty.UncertaintySettings`.

    Returns:
        The run with its ``uncertainty``.

    Raises:
        ConfigurationError: a run without network, whose scan is not the one that was
            reconstructed, or impossible settings.
        InsufficientMemoryError: what was asked for would not fit into memory.
        ConvergenceError: a covariance of the data that is not positive definite.
        Interrupted: stopped by the user; finished stages are kept.
    """
    refuse_both(configuration, settings)
    if configuration is None:
        configuration = UncertaintySettings.from_values(settings)
    began = time.perf_counter()
    device = find_device(configuration.device)
    _check_run(run)
    configuration = _resolved(configuration, run)
    inside(run.image.shape, configuration.score_margin)
    folder = None if checkpoint is None else Path(checkpoint)
    passes = NetworkPasses()
    stages = Stages(folder, _problem(run), resume=resume, passes=lambda: passes.total)
    model, scale, operator = linearised_model_of(run, device, passes=passes)
    checks = _checks(run, model)
    warnings = _warnings(checks)
    for warning in warnings:
        _LOG.warning("%s", warning)
    try:
        with WorkDisplay(progress) as display:
            found = infer(model, configuration, _regularisation(run), stages, display)
    except KeyboardInterrupt:
        raise Interrupted(stages.interrupted()) from None
    if found.advice:
        _LOG.warning("%s", found.advice)
        warnings.append(found.advice)
    result = _result(run, configuration, model, scale, operator, found)
    complete = replace(
        result,
        checks=checks | dict(result.checks),
        advice=" ".join([*warnings, result.advice]).strip(),
        network_passes=passes.total + stages.saved_passes,
        duration_s=time.perf_counter() - began + stages.saved_seconds,
        stage_seconds=dict(stages.seconds),
    )
    return replace(run, uncertainty=complete)


def _check_run(run: Run) -> None:
    """Refuse a run without what a posterior is made of, before any work."""
    if "theta" not in run.generator:
        raise ConfigurationError(
            f"The method {run.method} has no network to linearise; reconstruct the scan with dip "
            "or edip."
        )
    if run.scan.noise is None:
        raise ConfigurationError(
            "The scan of this run has no noise model, and without noise there is no posterior. "
            "Reconstruct it anew: the noise is then estimated."
        )


def linearised_model_of(
    run: Run, device: torch.device, *, passes: NetworkPasses | None = None
) -> tuple[LinearisedModel, float, LinearOperator]:
    """The linear model around the network of a run.

    Args:
        run: a reconstruction by a network.
        device: where to compute.
        passes: counts the passes through the network.

    Returns:
        The model, of the image of order one; the scale that gives the run's image; and the ray
        transform of the scaled image.

    Raises:
        ConfigurationError: no network, no noise model, or a scan that is not the reconstructed one.
    """
    _check_run(run)
    generator, theta, scale = generator_of(run)
    scan = run.scan
    assert scan.noise is not None
    operator = ray_transform(
        scan.geometry,
        scan.grid,
        backend=run.configuration.get("backend", "matrix"),
        projector=run.configuration.get("projector", "siddon"),
        device=device,
    )
    data = torch.from_numpy(scan.projections).to(device)
    projections = operator(torch.from_numpy(run.image)[None].to(device))
    _check_same("projections of its image", projections, run.projections)
    residual = float((projections - data).norm() / data.norm())
    before = run.metrics["relative_residual"]
    if not abs(residual - before) <= _ROUNDING * before + _SMALLEST_RESIDUAL:
        raise ConfigurationError(
            f"The image leaves {residual:.3g} of the projections in this run, and left "
            f"{before:.3g} when it was reconstructed: the projections have been changed since. "
            "Reconstruct anew."
        )
    scaled = scale * operator
    assert isinstance(scaled, LinearOperator)
    model = LinearisedModel(
        scaled,
        generator.to(device),
        theta.to(device),
        data,
        torch.from_numpy(np.array(scan.noise.std_of(scan.projections)) ** 2).to(device),
        passes=passes,
    )
    _check_same("image of its network", scale * model.image[0], run.image)
    return model, scale, scaled


def _regularisation(run: Run) -> Regularisation:
    configuration = run.configuration
    return Regularisation(
        float(configuration["tv_weight"]), bool(configuration.get("isotropic", False))
    )


def _checks(run: Run, model: LinearisedModel) -> dict[str, float]:
    """How well the network explains the scan, and how near it is to a minimum."""
    whitened = model.misfit.square() / model.noise_variance
    of_data = -model.to_weights((model.misfit / model.noise_variance)[None])[0]
    image = model.image.detach().requires_grad_()
    regularisation = _regularisation(run)
    variation = total_variation(image, isotropic=regularisation.isotropic)
    (slope,) = torch.autograd.grad(variation, image)
    of_prior = regularisation.tv_weight * model.jacobian.adjoint(slope)
    size = float(of_data.norm() + of_prior.norm())
    return {
        "reduced_chi_squared": float(whitened.mean()),
        "gradient": float((of_data + of_prior).norm()) / size if size else 0.0,
    }


def _warnings(checks: dict[str, float]) -> list[str]:
    found, misfit = [], checks["reduced_chi_squared"]
    gradient = f"the gradient left is {checks['gradient']:.2f} of that of its parts"
    if misfit > _FAR_FROM_THE_DATA:
        found.append(
            f"The image's residual is {misfit**0.5:.1f} times the noise (reduced chi^2 "
            f"{misfit:.1f}; {gradient}): the network is linearised far from where it explains "
            "the scan. Reconstruct with more iterations."
        )
    elif misfit < 1 / _FAR_FROM_THE_DATA:
        found.append(
            f"The image's residual is {misfit**0.5:.2f} times the noise (reduced chi^2 "
            f"{misfit:.2f}): the network has fitted noise, or the scan's noise is overstated. "
            "Reconstruct with --stopping discrepancy or more total variation."
        )
    elif checks["gradient"] > _FAR_FROM_A_MINIMUM:
        found.append(
            f"The image explains the scan, but {gradient}: the fit was still moving, or stopped "
            "early, and the linear model's own mean lies elsewhere. Compare with --mean linear, or "
            "reconstruct with more iterations."
        )
    return found


def _check_same(what: str, found: torch.Tensor, stored: np.ndarray) -> None:
    difference = np.linalg.norm(found.cpu().numpy() - stored)
    if not difference <= _ROUNDING * np.linalg.norm(stored):
        raise ConfigurationError(
            f"The {what} differ from those in the run by {difference / np.linalg.norm(stored):.0%}"
            ": its scan or network is not the one that was reconstructed. Reconstruct anew."
        )


def _resolved(configuration: UncertaintySettings, run: Run) -> UncertaintySettings:
    """With the hyperprior's defaults taken from the reconstruction."""
    weight = run.configuration.get("tv_weight")
    anisotropic = not run.configuration.get("isotropic", False)
    wanted = configuration.tv_prior
    possible = configuration.prior == "matern" and anisotropic
    if wanted and not anisotropic:
        raise ConfigurationError(
            "The total variation prior in closed form is anisotropic; this reconstruction has an "
            "isotropic one. Reconstruct with anisotropic total variation, or use --no-tv-prior."
        )
    given = configuration.tv_prior_weight
    if given and wanted is None and not possible:
        raise ConfigurationError(
            "tv_prior_weight belongs to an anisotropic total variation prior; this reconstruction "
            "has an isotropic one."
        )
    if wanted is None:
        wanted = possible and bool(given or weight)
    if not wanted and configuration.tv_prior_convention != "length-scale":
        raise ConfigurationError(
            "tv_prior_convention belongs to a total variation prior, which this one would not "
            "have: give tv_prior and tv_prior_weight, or leave the convention out."
        )
    if wanted and not (given or weight):
        raise ConfigurationError(
            "The reconstruction had no total variation whose weight the prior could take over: "
            "give tv_prior_weight, or use --no-tv-prior."
        )
    changes = {"tv_prior": wanted, "tv_prior_weight": (given or float(weight)) if wanted else None}
    return configuration.model_copy(update=changes)


def _problem(run: Run) -> str:
    digest = hashlib.sha256(scan_digest(run.scan).encode())
    if run.scan.noise is not None:
        std = run.scan.noise.std_of(run.scan.projections)
        digest.update(np.ascontiguousarray(std).tobytes())
    digest.update(np.ascontiguousarray(run.generator["theta"]).tobytes())
    return digest.hexdigest()


def _result(
    run: Run,
    configuration: UncertaintySettings,
    model: LinearisedModel,
    scale: float,
    operator: LinearOperator,
    found: Inference,
) -> Uncertainty:
    mean, std = (scale * part.cpu().numpy()[0] for part in (found.mean, found.std))
    draws = None if found.samples is None else scale * found.samples.cpu().numpy()[:, 0]
    tuning, scores, whitened = found.tuning, {}, None
    truth = run.scan.truth
    if truth is not None and np.ptp(truth) > 0:
        noise = tuning.phi[-1].exp().to(model.noise_variance) * model.noise_variance
        covariance = found.covariance
        scores, whitened = uncertainty_scores(
            truth,
            mean,
            std,
            correction=scale**2 * noise_correction(operator, noise),
            covariance=None if covariance is None else scale**2 * covariance.cpu().numpy(),
            deviations=None if draws is None else draws - mean,
            margin=configuration.score_margin,
        )
    checks = {"jitter": tuning.jitter, **found.checks}
    if found.hyperprior is not None:
        expected = found.hyperprior.expected(tuning.phi).values()
        errors = [each.value_error / each.value for each in expected if each.value]
        checks["hyperprior_error"] = max(errors, default=0.0)
    kept = None if configuration.samples is None or draws is None else draws
    return Uncertainty(
        mean=mean,
        std=std,
        hyperparameters=tuning.values,
        log_evidence=tuning.log_evidence,
        log_evidence_error=tuning.log_evidence_error,
        trace=tuning.trace,
        settings=configuration.to_values() | {"evidence": found.evidence} | found.choices,
        status=tuning.status,
        advice=tuning.advice,
        network_passes=0,
        duration_s=0.0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        samples=None if kept is None else kept[: configuration.samples],
        scores=scores,
        checks=checks,
        whitened_errors=None if whitened is None else whitened.astype(np.float32),
    )
