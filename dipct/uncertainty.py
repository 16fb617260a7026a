"""How far a reconstruction can be trusted: settings, result and its place in a run file.

Layout of the group ``uncertainty`` of a run file (HDF5):

==========================  ===============================================================
group attributes            ``settings`` (JSON, resolved), ``status`` and ``advice``,
                            ``log_evidence`` [nat] and ``log_evidence_error``,
                            ``network_passes``, ``duration_s``, ``created``, and one attribute
                            ``score: <name>``, ``check: <name>`` or ``seconds: <stage>``
                            for each
``mean``, ``std``           float32 (H, W), in the units of the image
``samples``                 float32 (N, H, W), where they were asked for
``whitened_errors``         float32 (n,), where truth and covariance are known
``hyperparameters/names``   names; ``hyperparameters/values`` float64, themselves and not
                            their logarithms
``trace/*``                 float64 (iterations,): parts of the objective, and logarithms of
                            the hyper-parameters
==========================  ===============================================================
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import h5py
import numpy as np
from pydantic import Field, model_validator

from dipct.errors import ConfigurationError, FileFormatError
from dipct.measurement.hdf5 import get_attribute, get_dataset, get_group
from dipct.posterior import LOWEST_VARIANCE
from dipct.settings import CheckedSettings

_SCORE, _CHECK, _SECONDS = "score: ", "check: ", "seconds: "


class UncertaintySettings(CheckedSettings):
    """Everything that decides how uncertainty is quantified."""

    evidence: Literal["auto", "exact", "stochastic", "em", "at-weights"] = "auto"
    """How hyper-parameters are tuned: by the exact evidence, by stochastic estimates of it, by
    expectation maximisation, or by the published form of it at given weights; auto is exact where
    its matrices fit into memory."""
    prior: Literal["matern", "g"] = "matern"
    """Prior of the weights: Matern over the positions of a filter, or the g-prior."""
    smoothness: Literal["1/2", "3/2", "5/2"] = "1/2"
    """Of the Matern covariance."""
    lowest_variance: float = Field(default=LOWEST_VARIANCE, gt=0, lt=1e6)
    """Of the weights of a block, in the Matern prior and for images of order one: the evidence of a
    single scan would switch most blocks off, and know more than it can."""
    tv_prior: bool | None = None
    """Prefer length scales of small total variation; default: yes where the reconstruction had an
    anisotropic total variation and the prior has length scales."""
    tv_prior_weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Weight of that preference; default: that of the reconstruction."""
    tv_prior_convention: Literal["length-scale", "bayes-dip"] = "length-scale"
    """Its density: of the length scale, or as in published code, where the weight multiplies the
    logarithm too and the derivative is by the logarithm of the length scale."""
    tv_probes: int = Field(default=20, ge=2)
    """Random sign vectors for each block, where its variances are not computed exactly."""
    mean: Literal["reconstruction", "linear"] = "reconstruction"
    """What the uncertainty is around: the image, or the linear model's own mean."""
    fixed_noise: bool = False
    """Keep the noise level of the scan, instead of tuning a factor of it."""
    samples: int | None = Field(default=None, ge=1)
    """Images of the posterior to keep; default: none."""
    draws: int = Field(default=1024, ge=2)
    """Images that the standard deviation is made of where the covariance is not formed; as many as
    samples at least."""
    score_margin: int = Field(default=0, ge=0)
    """Pixels at each border that scores leave out, where the truth is known."""
    iterations: int = Field(default=200, ge=1)
    """Most iterations of the tuning."""
    storage: Literal["auto", "memory", "host", "disk", "recompute"] = "auto"
    """Where the Jacobian of the data is kept: in the memory of the device, in that of its host, on
    disk or nowhere; auto takes the first of these that fits (memory or nowhere for stochastic
    estimates), and none for small images, for which that of the image will do."""
    product_precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """In which the covariance of the data is multiplied where the evidence is stochastic; less than
    float32 takes a stored Jacobian."""
    seed: int = Field(default=0, ge=0)
    """Of probes and draws."""
    device: str = "cpu"
    """Where to compute: cpu or a CUDA device."""

    @model_validator(mode="after")
    def _consistent(self) -> "UncertaintySettings":
        if self.prior == "g" and self.tv_prior:
            raise ValueError(
                "tv_prior is a prior of length scales, which the g-prior does not have; leave "
                "one of them out"
            )
        if self.tv_prior is False and self.tv_prior_weight is not None:
            raise ValueError("tv_prior_weight has no meaning without tv_prior")
        if self.prior == "g" and self.smoothness != "1/2":
            raise ValueError("smoothness belongs to the Matern prior")
        if self.prior == "g" and self.lowest_variance != LOWEST_VARIANCE:
            raise ValueError("lowest_variance belongs to the Matern prior")
        if self.prior == "g" and self.tv_prior_weight is not None:
            raise ValueError("tv_prior_weight has no meaning for the g-prior")
        is_convention_given = self.tv_prior_convention != "length-scale"
        if is_convention_given and (self.tv_prior is False or self.prior == "g"):
            raise ValueError("tv_prior_convention has no meaning without tv_prior")
        if self.storage == "host" and self.device == "cpu":
            raise ValueError("storage host is for other devices than the cpu; give memory")
        if self.storage == "host" and self.evidence in ("stochastic", "em"):
            raise ValueError(
                "storage host belongs to the exact evidence: others would move all of the Jacobian "
                "for every product"
            )
        if self.product_precision != "float32":
            if self.evidence != "stochastic":
                raise ValueError(
                    "product_precision belongs to the stochastic evidence; give evidence stochastic"
                )
            if self.storage == "recompute":
                raise ValueError(
                    "a product_precision below float32 takes a stored Jacobian; passes through "
                    "the network are in float32"
                )
        return self


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What is known of an image, beyond the image.

    Attributes:
        mean: what the posterior is centred on, float32 (H, W), in the units of the image.
        std: posterior standard deviation of every pixel, float32 (H, W), likewise.
        hyperparameters: by name.
        log_evidence: of the data [nat].
        log_evidence_error: its standard error; 0 where it is exact.
        trace: course of the tuning: parts of the objective and logarithms of the
            hyper-parameters, one value per iteration.
        settings: resolved.
        status: ``CONVERGED``, ``NOT_CONVERGED``, or ``DEGENERATE`` where the hyperprior has no
            meaning.
        advice: what to do about it; empty if all is well.
        network_passes: vectors that went through the network forwards or backwards.
        duration_s: seconds.
        created: when, ISO 8601 in UTC.
        samples: images of the posterior, float32 (N, H, W), where they were asked for.
        scores: how well truth and uncertainty agree, where the truth is known.
        checks: figures that should be small or near one for the result to be trusted:
            ``reduced_chi_squared`` of the image, ``gradient`` left at the network's parameters
            (of data and total variation, over the sum of their lengths), ``jitter``,
            ``hyperprior_error`` (largest relative error of a mean total variation by probes) and
            ``solver_residual`` of the draws, and ``linear_weights_gradient`` (what is left of it
            at the weights that the published form of the evidence takes).
        stage_seconds: what the long stages took, by name.
        whitened_errors: of the image, freed from the posterior's covariance, float32 (n,): normal
            numbers of variance one if it is right. Where the truth and the covariance are known.
    """

    mean: np.ndarray
    std: np.ndarray
    hyperparameters: Mapping[str, float]
    log_evidence: float
    log_evidence_error: float
    trace: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    status: str
    advice: str
    network_passes: int
    duration_s: float
    created: str
    samples: np.ndarray | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    checks: Mapping[str, float] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    whitened_errors: np.ndarray | None = None

    def interval(self, probability: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the central interval of every pixel.

        Args:
            probability: that the pixel lies inside.

        Returns:
            Lower and upper images, float32 (H, W) each, in the units of the image.

        Raises:
            ConfigurationError: a probability that is not between 0 and 1.
        """
        if not 0 < probability < 1:
            raise ConfigurationError(f"probability must lie between 0 and 1; got {probability}.")
        half = np.float32(NormalDist().inv_cdf((1 + probability) / 2)) * self.std
        return self.mean - half, self.mean + half


def summarised(found: Uncertainty) -> dict[str, Any]:
    """What a person wants to read of it, as plain values."""
    return {
        "status": found.status,
        "advice": found.advice,
        "log_evidence": found.log_evidence,
        "log_evidence_error": found.log_evidence_error,
        "checks": dict(found.checks),
        "hyperparameters": dict(found.hyperparameters),
        "scores": dict(found.scores),
        "network_passes": found.network_passes,
        "duration_s": found.duration_s,
        "stage_seconds": dict(found.stage_seconds),
        "settings": dict(found.settings),
    }


def write_uncertainty_group(found: Uncertainty, group: h5py.Group) -> None:
    """Fill the group of a run file; the layout is in the module's description."""
    group.attrs.update(
        {
            "settings": json.dumps(dict(found.settings), sort_keys=True),
            "status": found.status,
            "advice": found.advice,
            "log_evidence": found.log_evidence,
            "log_evidence_error": found.log_evidence_error,
            "network_passes": found.network_passes,
            "duration_s": found.duration_s,
            "created": found.created,
        }
    )
    for prefix, values in (
        (_SCORE, found.scores),
        (_CHECK, found.checks),
        (_SECONDS, found.stage_seconds),
    ):
        group.attrs.update({f"{prefix}{name}": value for name, value in values.items()})
    group.create_dataset("mean", data=np.float32(found.mean), compression="gzip")
    group.create_dataset("std", data=np.float32(found.std), compression="gzip")
    if found.samples is not None:
        # Noise does not compress.
        group.create_dataset("samples", data=np.float32(found.samples))
    if found.whitened_errors is not None:
        group.create_dataset("whitened_errors", data=np.float32(found.whitened_errors))
    names = np.array(list(found.hyperparameters), dtype=h5py.string_dtype())
    group.create_dataset("hyperparameters/names", data=names)
    values = np.array(list(found.hyperparameters.values()), dtype=np.float64)
    group.create_dataset("hyperparameters/values", data=values)
    trace = group.create_group("trace")
    for name, column in found.trace.items():
        trace.create_dataset(name, data=np.asarray(column, dtype=np.float64))


def read_uncertainty_group(group: h5py.Group) -> Uncertainty:
    """Read the group of a run file.

    Raises:
        FileFormatError: something is missing, or shapes differ.
    """
    mean, std = (get_dataset(group, name)[()] for name in ("mean", "std"))
    samples = group["samples"][()] if "samples" in group else None
    if mean.shape != std.shape or (samples is not None and samples.shape[1:] != mean.shape):
        raise FileFormatError(
            f"mean and std of the uncertainty must have one shape; they have {mean.shape} and "
            f"{std.shape}."
        )
    hyper = get_group(group, "hyperparameters")
    names = [str(name, "utf-8") for name in get_dataset(hyper, "names")[()]]
    values = get_dataset(hyper, "values")[()]
    trace = get_group(group, "trace")
    return Uncertainty(
        mean=mean,
        std=std,
        hyperparameters=dict(zip(names, map(float, values), strict=True)),
        log_evidence=float(get_attribute(group, "log_evidence")),
        log_evidence_error=float(get_attribute(group, "log_evidence_error")),
        trace={name: get_dataset(trace, name)[()] for name in trace},
        settings=json.loads(get_attribute(group, "settings")),
        status=str(get_attribute(group, "status")),
        advice=str(get_attribute(group, "advice")),
        network_passes=int(get_attribute(group, "network_passes")),
        duration_s=float(get_attribute(group, "duration_s")),
        created=str(get_attribute(group, "created")),
        samples=samples,
        scores=_prefixed(group, _SCORE),
        checks=_prefixed(group, _CHECK),
        stage_seconds=_prefixed(group, _SECONDS),
        whitened_errors=group["whitened_errors"][()] if "whitened_errors" in group else None,
    )


def _prefixed(group: h5py.Group, prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): float(value)
        for name, value in group.attrs.items()
        if name.startswith(prefix)
    }
