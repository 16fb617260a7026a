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
from dipct.operator import ray_transform
from dipct.operator.base import LinearOperator
from dipct.pipeline.deep_image_prior import generator_of
from dipct.pipeline.posterior_of_model import Inference, infer
from dipct.pipeline.stages import Stages
from dipct.pipeline.uncertainty_scores import uncertainty_scores
from dipct.posterior import LinearisedModel, noise_correction
from dipct.progress import WorkDisplay
from dipct.run import Run
from dipct.uncertainty import Uncertainty, UncertaintySettings

_LOG = logging.getLogger(__name__)
# The image is kept as it was computed, possibly in bfloat16; a changed scan differs by more.
_ROUNDING = 0.03
# Beyond this the linear model is one of the wrong point.
_FAR_FROM_THE_DATA = 2.0


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
    if configuration is None:
        configuration = UncertaintySettings.from_values(settings)
    elif settings:
        raise ConfigurationError(
            f"Give a configuration or settings by name, not both; got {', '.join(settings)} too."
        )
    began = time.perf_counter()
    configuration = _resolved(configuration, run)
    device = find_device(configuration.device)
    model, scale, operator = linearised_model_of(run, device)
    folder = None if checkpoint is None else Path(checkpoint)
    stages = Stages(folder, _problem(run), resume=resume)
    try:
        with WorkDisplay(progress) as display:
            found = infer(model, configuration, stages, display)
    except KeyboardInterrupt:
        raise Interrupted(stages.interrupted()) from None
    return replace(
        run, uncertainty=_result(run, configuration, model, scale, operator, found, began)
    )


def linearised_model_of(
    run: Run, device: torch.device
) -> tuple[LinearisedModel, float, LinearOperator]:
    """The linear model around the network of a run.

    Args:
        run: a reconstruction by a network.
        device: where to compute.

    Returns:
        The model, of the image of order one; the scale that gives the run's image; and the ray
        transform of the scaled image.

    Raises:
        ConfigurationError: no network, no noise model, or a scan that is not the reconstructed one.
    """
    generator, theta, scale = generator_of(run)
    scan = run.scan
    if scan.noise is None:
        raise ConfigurationError(
            "The scan of this run has no noise model, and without noise there is no posterior. "
            "Reconstruct it anew: the noise is then estimated."
        )
    operator = ray_transform(scan.geometry, scan.grid, device=device)
    image = torch.from_numpy(run.image)[None].to(device)
    _check_same("projections of its image", operator(image), run.projections)
    scaled = scale * operator
    assert isinstance(scaled, LinearOperator)
    model = LinearisedModel(
        scaled,
        generator.to(device),
        theta.to(device),
        torch.from_numpy(scan.projections).to(device),
        torch.from_numpy(np.array(scan.noise.std_of(scan.projections)) ** 2).to(device),
    )
    _check_same("image of its network", scale * model.image[0], run.image)
    misfit = float((model.misfit.square() / model.noise_variance).mean())
    if misfit > _FAR_FROM_THE_DATA:
        _LOG.warning(
            "The image's residual is %.1f times the noise (reduced chi^2 %.1f): the network is "
            "linearised far from where it explains the scan. Reconstruct with more iterations.",
            misfit**0.5,
            misfit,
        )
    return model, scale, scaled


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
    if wanted is None:
        wanted = possible and bool(given or weight)
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
    began: float,
) -> Uncertainty:
    mean, std = (scale * part.cpu().numpy()[0] for part in (found.mean, found.std))
    draws = None if found.samples is None else scale * found.samples.cpu().numpy()[:, 0]
    tuning, scores = found.tuning, {}
    truth = run.scan.truth
    if truth is not None and np.ptp(truth) > 0:
        noise = tuning.phi[-1].exp().to(model.noise_variance) * model.noise_variance
        covariance = found.covariance
        scores = uncertainty_scores(
            truth,
            mean,
            std,
            correction=scale**2 * noise_correction(operator, noise),
            covariance=None if covariance is None else scale**2 * covariance.cpu().numpy(),
            deviations=None if draws is None else draws - mean,
        )
    return Uncertainty(
        mean=mean,
        std=std,
        hyperparameters=tuning.values,
        log_evidence=tuning.log_evidence,
        trace=tuning.trace,
        settings=configuration.to_values() | {"evidence": found.evidence} | found.choices,
        status="CONVERGED" if tuning.converged else "MAX_ITERATIONS",
        advice=tuning.advice,
        network_passes=model.jacobian.passes.total,
        duration_s=time.perf_counter() - began,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        samples=draws if configuration.samples is not None else None,
        scores=scores,
    )
