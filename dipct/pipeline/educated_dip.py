"""Educated DIP of a scan: fine-tuning of a pretrained network."""

import logging
from typing import Any

import torch
from torch import Tensor

from dipct.configuration import ReconstructionConfiguration
from dipct.errors import ConfigurationError
from dipct.generator import (
    ParameterLayout,
    SingularValues,
    Subspace,
    UNet,
    principal_directions,
    sparsify,
)
from dipct.measurement.digest import file_digest
from dipct.measurement.scan import Scan
from dipct.operator.base import LinearOperator
from dipct.pipeline.deep_image_prior import check_network, choose_precision, network_fit
from dipct.pipeline.total_variation import choose_tv_weight, fidelity_of
from dipct.pretrain.pretrained_network import (
    PretrainedNetwork,
    count_snapshots,
    read_pretrained_network,
)
from dipct.solver import LBFGS, GeneratorFit, NaturalGradient, Optimiser
from dipct.solver.deep_image_prior import Restriction
from dipct.solver.image_scale import image_scale

_LOG = logging.getLogger(__name__)
# The largest value of a sharp image is above that of a blurred one.
_HEADROOM = 1.25


def edip_problem(
    scan: Scan,
    configuration: ReconstructionConfiguration,
    operator: LinearOperator,
    choices: dict[str, Any],
) -> tuple[GeneratorFit, float, dict[str, Any]]:
    """Set up the fine-tuning of a pretrained network (Barbano et al., arXiv 2111.11926).

    Args:
        scan: what was measured, with a noise model.
        configuration: resolved settings of the method ``edip``.
        operator: the ray transform.
        choices: what an earlier call chose; empty to choose now.

    Returns:
        As :func:`dipct.pipeline.deep_image_prior.dip_problem`.

    Raises:
        ConfigurationError: no weight of total variation is found.
    """
    pretrained = _pretrained(configuration)
    theta = torch.from_numpy(pretrained.theta)
    free: dict[str, Any] = {"initial": theta}
    if configuration.parameters != "all":
        free = {"restriction": _restriction(configuration, theta)}
    elif configuration.optimiser == "adam":
        rate = _learning_rate(configuration, pretrained.make_network())
        free["learning_rate"] = rate.to(operator.device)
    free["optimiser"] = _optimiser(configuration)
    choices = choices or _choose(scan, configuration, operator, pretrained)
    return network_fit(scan, configuration, operator, choices, **free)


def check_edip(
    scan: Scan, configuration: ReconstructionConfiguration, device: torch.device
) -> None:
    """Refuse what :func:`edip_problem` cannot do, before any work.

    Args:
        scan: what was measured.
        configuration: resolved settings of the method ``edip``.
        device: where it will run.

    Raises:
        FileFormatError: no file of a pretrained network.
        ConfigurationError: a network for another scan or input, or with too few snapshots.
    """
    pretrained = _pretrained(configuration)
    pretrained.check_fits(scan)
    network, kind = pretrained.make_network(), _input(configuration, pretrained)
    if (kind == "both") != (network.in_channels == 2):
        raise ConfigurationError(
            f"The network was pretrained with input {pretrained.pairs['input']}, of "
            f"{network.in_channels} channels; it cannot be fed with {kind}."
        )
    check_network(scan, configuration, network, kind, device)
    if configuration.parameters == "subspace":
        _check_subspace(configuration, len(pretrained.theta))


def _optimiser(configuration: ReconstructionConfiguration) -> Optimiser | None:
    """None for Adam, which comes with a schedule that the fit makes."""
    if configuration.optimiser == "l-bfgs":
        return LBFGS()
    if configuration.optimiser == "natural-gradient":
        return NaturalGradient(seed=configuration.seed)
    return None


def _check_subspace(configuration: ReconstructionConfiguration, n_parameters: int) -> None:
    assert configuration.init is not None and configuration.dimension is not None
    # Those of a network that was chosen were left behind, those of one that diverged are fewer.
    kept = count_snapshots(configuration.init)
    if kept < configuration.dimension:
        raise ConfigurationError(
            f"The file {configuration.init} holds {kept} snapshots of its training, which span no "
            f"subspace of {configuration.dimension} dimensions. Pretrain with more --snapshots, or "
            "ask for a smaller dimension."
        )
    assert configuration.kept_share is not None
    rows = round(configuration.kept_share * n_parameters)
    if rows < configuration.dimension:
        raise ConfigurationError(
            f"kept_share {configuration.kept_share:g} keeps {rows} parameters, fewer than the "
            f"{configuration.dimension} dimensions; keep more of them, or use a smaller dimension."
        )


def _restriction(configuration: ReconstructionConfiguration, theta: Tensor) -> Restriction:
    """What makes the generator of few parameters; see :class:`dipct.generator.Subspace`."""
    if configuration.parameters == "singular-values":
        return lambda generator: SingularValues(
            generator, theta.to(generator.z.device), rank=configuration.rank
        )
    assert configuration.init is not None and configuration.dimension is not None
    snapshots = read_pretrained_network(configuration.init, snapshots=True).snapshots
    assert snapshots is not None and configuration.kept_share is not None
    basis = principal_directions(torch.from_numpy(snapshots.thetas), configuration.dimension)
    if configuration.kept_share < 1:
        basis = sparsify(basis, round(configuration.kept_share * len(basis)))
    return lambda generator: Subspace(
        generator, theta.to(generator.z.device), basis.to(generator.z.device)
    )


def _pretrained(configuration: ReconstructionConfiguration) -> PretrainedNetwork:
    assert configuration.init is not None
    return read_pretrained_network(configuration.init)


def _input(configuration: ReconstructionConfiguration, pretrained: PretrainedNetwork) -> str:
    return configuration.input or str(pretrained.pairs["input"])


def _learning_rate(configuration: ReconstructionConfiguration, network: UNet) -> Tensor:
    """One rate, or one per parameter where the encoder has its own."""
    rate = torch.tensor(configuration.learning_rate)
    encoder = 0.0 if configuration.fixed_encoder else configuration.encoder_learning_rate
    if encoder is None:
        return rate
    layout = ParameterLayout(network.parameters)
    return torch.where(layout.mask(blocks=network.encoder_blocks), encoder, rate)


def _choose(
    scan: Scan,
    configuration: ReconstructionConfiguration,
    operator: LinearOperator,
    pretrained: PretrainedNetwork,
) -> dict[str, Any]:
    data = torch.from_numpy(scan.projections).to(operator.device)
    scale = float(image_scale(operator, data))
    network = pretrained.make_network()
    if network.output == "sigmoid":
        largest = _HEADROOM * float(image_scale(operator, data, quantile=1.0))
        if largest > network.ceiling * scale:
            _LOG.info(
                "The image has values up to %.1f times its usual ones, beyond the reach of the "
                "pretrained network: it is scaled down to fit.",
                largest / scale,
            )
            scale = largest / network.ceiling
    scaled = scale * operator
    assert isinstance(scaled, LinearOperator) and scan.noise is not None
    weight, _ = choose_tv_weight(scaled, fidelity_of(scan, data), configuration, nonnegative=True)
    assert configuration.init is not None
    return {
        "network": pretrained.network["name"],
        "output": network.output,
        "ceiling": network.ceiling,
        "upsampling": network.upsampling,
        "input": _input(configuration, pretrained),
        "init_sha256": file_digest(configuration.init),
        "precision": choose_precision(configuration, operator.device or torch.device("cpu")),
        "image_scale": scale,
        **weight,
        "data_term": scan.noise.kind,
    }
