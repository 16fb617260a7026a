"""Hyper-parameters and posterior of a linear model, by the means that its size allows."""

import logging
import shutil
import tempfile
from dataclasses import dataclass, field
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from dipct.errors import InsufficientMemoryError
from dipct.pipeline.stages import Stages
from dipct.posterior import (
    DensePosterior,
    EdgeVariances,
    ExactEvidence,
    FilterGroup,
    GPrior,
    LinearisedModel,
    MaternPrior,
    PathwisePosterior,
    StoredJacobian,
    TotalVariationPrior,
    Tuning,
    WeightPrior,
    edge_variances_of_gram,
    gram_matrices,
    probed_column_mean_square,
    probed_edge_variances,
    recomputed_gram_matrices,
    tune,
)
from dipct.progress import WorkDisplay
from dipct.uncertainty import UncertaintySettings

_LOG = logging.getLogger(__name__)
# Draws that know a standard deviation to two per cent.
_DRAWS = 1024
_DRAWS_OF_A_STAGE = 128
_COLUMN_PROBES = 50
# Images whose covariance is kept as a matrix.
_LARGEST_DENSE_IMAGE = 2048
# Of what is free: the estimates are not exact, and others work too.
_SHARE = 0.7
# Covariance, its inverse and copies on the way, in double precision.
_COVARIANCES_AT_ONCE = 6

Storage = Literal["dense", "memory", "disk", "recompute"]


@dataclass(frozen=True, eq=False)
class Inference:
    """What was found of a linear model.

    Attributes:
        tuning: the hyper-parameters.
        mean: what the posterior is centred on, [1 H W].
        std: of every pixel, [1 H W].
        evidence: how the hyper-parameters were tuned.
        choices: how it was done, for the record.
        samples: draws, [N 1 H W], where there are some.
        covariance: of the image, [n n], where it was formed.
    """

    tuning: Tuning
    mean: Tensor
    std: Tensor
    evidence: str
    choices: dict[str, Any] = field(default_factory=dict)
    samples: Tensor | None = None
    covariance: Tensor | None = None


def infer(
    model: LinearisedModel,
    settings: UncertaintySettings,
    stages: Stages,
    display: WorkDisplay,
) -> Inference:
    """Tune the hyper-parameters and make the posterior.

    Args:
        model: the linear model.
        settings: resolved.
        stages: keeps the results of long stages.
        display: shows how far they are.

    Raises:
        InsufficientMemoryError: what was asked for would not fit.
    """
    storage = choose_storage(model, settings)
    if storage == "dense":
        return _dense(model, settings, stages, display)
    return _exact(model, settings, stages, display, storage)


def choose_storage(model: LinearisedModel, settings: UncertaintySettings) -> Storage:
    """How the Gram matrices are computed.

    Args:
        model: the linear model.
        settings: resolved.

    Raises:
        InsufficientMemoryError: exact evidence was asked for and does not fit in any way.
    """
    if settings.storage == "auto" and model.image.numel() <= _LARGEST_DENSE_IMAGE:
        return "dense"
    device, size = model.residual.device, model.residual.element_size()
    free = free_memory(device)
    jacobian, gram = jacobian_bytes(model), gram_bytes(model, settings)
    working = _COVARIANCES_AT_ONCE * 8 * model.n_data**2
    largest = max(group.size for group in matern_of(model, settings).groups)
    on_disk = shutil.disk_usage(tempfile.gettempdir()).free
    fits: dict[Storage, bool] = {
        "memory": jacobian + gram + working <= _SHARE * free,
        "disk": gram + working <= _SHARE * free and jacobian <= _SHARE * on_disk,
        "recompute": gram + working + size * model.n_data * largest <= _SHARE * free,
    }
    if settings.storage != "auto":
        if fits[settings.storage]:
            return settings.storage
    else:
        for storage, does in fits.items():
            if does:
                return storage
    raise InsufficientMemoryError(
        f"For {model.n_data} data and {model.n_weights} weights the exact evidence needs "
        f"{(gram + working) / 2**30:.1f} GiB of memory for Gram matrices and covariances, and "
        f"{jacobian / 2**30:.1f} GiB for the Jacobian in memory or on disk; "
        f"{free / 2**30:.1f} GiB of memory and {on_disk / 2**30:.0f} GiB on disk are free. Use "
        "fewer views, bin the detector, or another storage."
    )


def free_memory(device: torch.device) -> int:
    """Bytes free on a device."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return psutil.virtual_memory().available


def jacobian_bytes(model: LinearisedModel) -> int:
    """Size of ``A J``."""
    return model.residual.element_size() * model.n_data * model.n_weights


def gram_bytes(model: LinearisedModel, settings: UncertaintySettings) -> int:
    """Size of the Gram matrices."""
    components = 1 if settings.prior == "g" else matern_of(model, settings).n_components
    return model.residual.element_size() * components * model.n_data**2


def matern_of(model: LinearisedModel, settings: UncertaintySettings) -> MaternPrior:
    """The hierarchical prior of a model's weights."""
    return MaternPrior(model.parameters, smoothness=settings.smoothness)


def _groups(model: LinearisedModel, settings: UncertaintySettings) -> tuple[FilterGroup, ...]:
    """Weights whose columns of the Jacobian lie together."""
    if settings.prior == "matern":
        return matern_of(model, settings).groups
    return (FilterGroup("all", slice(0, model.n_weights), torch.ones(1, 1, 1)),)


def _dense(
    model: LinearisedModel, settings: UncertaintySettings, stages: Stages, display: WorkDisplay
) -> Inference:
    """Small images: everything from the Gram matrices of the Jacobian of the image."""
    device = model.residual.device
    operator = model.operator.to_matrix().double()

    def compute() -> dict[str, Tensor]:
        stored = StoredJacobian.of_image(
            model, _groups(model, settings), report=display.stage("Jacobian of the image")
        )
        found = {}
        prior: WeightPrior = matern_of(model, settings)
        if settings.prior == "g":
            columns = operator.to(model.residual) @ stored.columns(stored.groups[0])
            found["column_mean_square"] = columns.square().mean(0)
            prior = GPrior(model.parameters, found["column_mean_square"])
        # Differences of neighbouring pixels cancel most digits.
        found["gram"] = gram_matrices(
            stored, prior.groups, dtype=torch.float64, report=display.stage("Gram matrices")
        )
        return found

    kept = stages("gram", compute, device)
    gram = kept["gram"]
    prior = _prior(model, settings, kept)
    of_data = torch.stack([operator @ matrix @ operator.mT for matrix in gram])
    evidence = ExactEvidence(prior, of_data, model.residual, model.noise_variance)
    edges = edge_variances_of_gram(gram, model.image, prior.groups)
    tuning = _tune(prior, evidence, edges, settings, display)
    posterior = DensePosterior(prior, tuning.phi, gram, model, mean=settings.mean)
    return Inference(
        tuning=tuning,
        mean=posterior.mean,
        std=posterior.variance().clamp(min=0).sqrt(),
        evidence="exact",
        choices={"storage": "dense"},
        samples=None
        if settings.samples is None
        else posterior.sample(settings.samples, seed=settings.seed),
        covariance=posterior.covariance,
    )


def _exact(
    model: LinearisedModel,
    settings: UncertaintySettings,
    stages: Stages,
    display: WorkDisplay,
    storage: Storage,
) -> Inference:
    """Gram matrices of the Jacobian of the data, and draws."""
    device, groups = model.residual.device, _groups(model, settings)
    stored: StoredJacobian | None = None

    def compute() -> dict[str, Tensor]:
        nonlocal stored
        found = {}
        if storage != "recompute":
            folder = tempfile.gettempdir() if storage == "disk" else None
            report = display.stage("Jacobian of the projections")
            stored = StoredJacobian.of_data(model, groups, folder=folder, report=report)
        if settings.prior == "g":
            found["column_mean_square"] = (
                probed_column_mean_square(model, probes=_COLUMN_PROBES, seed=settings.seed)
                if stored is None
                else stored.columns(groups[0]).square().mean(0)
            )
        prior = _prior(model, settings, found)
        if stored is not None:
            report = display.stage("Gram matrices")
            found["gram"] = gram_matrices(stored, prior.groups, device=device, report=report)
            return found
        needed = gram_bytes(model, settings) + _COVARIANCES_AT_ONCE * 8 * model.n_data**2
        found["gram"] = recomputed_gram_matrices(
            model,
            prior.groups,
            bytes_at_once=int(_SHARE * free_memory(device)) - needed,
            report=display.stage("Jacobian of the projections"),
        )
        return found

    kept = stages("gram", compute, device)
    prior = _prior(model, settings, kept)
    evidence = ExactEvidence(prior, kept["gram"], model.residual, model.noise_variance)
    edges = _probed_edges(model, prior, settings, stages, display)
    tuning = _tune(prior, evidence, edges, settings, display)
    posterior = PathwisePosterior(
        prior,
        tuning.phi,
        model,
        evidence.factorise(tuning.phi).solve,
        products=stored,
        mean=settings.mean,
    )
    samples = _draw(posterior, settings, stages, display)
    return Inference(
        tuning=tuning,
        mean=posterior.mean,
        std=(samples - posterior.mean).square().mean(0).sqrt(),
        evidence="exact",
        choices={"storage": storage},
        samples=samples,
    )


def _prior(
    model: LinearisedModel, settings: UncertaintySettings, kept: dict[str, Tensor]
) -> WeightPrior:
    if settings.prior == "g":
        return GPrior(model.parameters, kept["column_mean_square"])
    return matern_of(model, settings)


def _probed_edges(
    model: LinearisedModel,
    prior: WeightPrior,
    settings: UncertaintySettings,
    stages: Stages,
    display: WorkDisplay,
) -> EdgeVariances | None:
    if not settings.tv_prior:
        return None

    def compute() -> dict[str, Tensor]:
        found = probed_edge_variances(
            model.jacobian,
            prior.groups,
            probes=settings.tv_probes,
            seed=settings.seed,
            report=display.stage("Variances of differences"),
        )
        each = {f"variances_{i}": values for i, values in enumerate(found.variances)}
        return {"differences": found.differences, **each}

    kept = stages("edges", compute, model.residual.device)
    return EdgeVariances(
        kept["differences"], tuple(kept[f"variances_{i}"] for i in range(len(prior.groups)))
    )


def _tune(
    prior: WeightPrior,
    evidence: ExactEvidence,
    edges: EdgeVariances | None,
    settings: UncertaintySettings,
    display: WorkDisplay,
) -> Tuning:
    hyperprior = None
    if settings.tv_prior and isinstance(prior, MaternPrior) and edges is not None:
        assert settings.tv_prior_weight is not None
        hyperprior = TotalVariationPrior(prior, edges, settings.tv_prior_weight)
    report = display.stage("Hyper-parameters")

    def tell(iteration: int, parts: dict[str, float]) -> None:
        figures = f"log evidence {parts['log evidence']:.1f}"
        report(iteration, settings.iterations, figures)

    tuning = tune(
        evidence,
        hyperprior,
        fixed=("noise",) if settings.fixed_noise else (),
        max_iterations=settings.iterations,
        report=tell,
    )
    if tuning.advice:
        _LOG.warning("%s", tuning.advice)
    return tuning


def _draw(
    posterior: PathwisePosterior,
    settings: UncertaintySettings,
    stages: Stages,
    display: WorkDisplay,
) -> Tensor:
    """Draws, in parts that are kept one by one."""
    number = settings.samples or _DRAWS
    report, parts = display.stage("Draws"), []
    for i, start in enumerate(range(0, number, _DRAWS_OF_A_STAGE)):
        count = min(_DRAWS_OF_A_STAGE, number - start)
        # Streams of their own, so that a part does not depend on those before it.
        seed = settings.seed + _SEEDS_APART * (i + 1)
        kept = stages(
            f"draws-{i}",
            lambda count=count, seed=seed: {"draws": posterior.sample(count, seed=seed)},
            posterior.mean.device,
        )
        parts.append(kept["draws"])
        report(start + count, number)
    return torch.cat(parts)


_SEEDS_APART = 1_000_003
