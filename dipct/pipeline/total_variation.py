"""The total-variation problem of a scan: its scale, its data term and its weight."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipct.configuration import ReconstructionConfiguration
from dipct.errors import ConfigurationError
from dipct.measurement.noise import PoissonNoise
from dipct.measurement.scan import Scan
from dipct.objective import Fidelity, GaussianFidelity, PoissonFidelity
from dipct.operator.base import LinearOperator
from dipct.solver import (
    IterationState,
    PrimalDualTV,
    WeightChoice,
    attainable_discrepancy,
    tv_weight_by_discrepancy,
)
from dipct.solver.image_scale import DEFAULT_QUANTILE
from dipct.solver.image_scale import image_scale as image_scales

_LOG = logging.getLogger(__name__)
# Relative gap of the solves that choose the weight: the residual settles long before the image.
_SEARCH_TOLERANCE = 1e-2
# How far above the best possible fit a residual is let where none reaches the noise level.
_MISFIT_MARGIN = 1.2
# Least weight that is chosen automatically: see docs/real-scans.md for scans whose noise is
# underestimated, and whose weight by the discrepancy principle is below it.
_LEAST_WEIGHT = 2.0


def tv_problem(
    scan: Scan,
    configuration: ReconstructionConfiguration,
    operator: LinearOperator,
    choices: dict[str, Any],
) -> tuple[PrimalDualTV, float, dict[str, Any], IterationState | None]:
    """Set up the primal-dual method for a scan.

    Total variation weighs an image of order one, so that its weight has no units.

    Args:
        scan: what was measured, with a noise model.
        configuration: resolved settings of the method ``tv``.
        operator: the ray transform.
        choices: what an earlier call chose; empty to choose now.

    Returns:
        The method for the scaled image, the scale that undoes it, what was chosen, and where to
        start if choosing has led close to the solution.

    Raises:
        ConfigurationError: the discrepancy principle finds no weight.
    """
    assert scan.noise is not None and configuration.tolerance is not None
    data = torch.from_numpy(scan.projections).to(operator.device)
    scale = choices["image_scale"] if choices else image_scale(operator, data)
    scaled = scale * operator
    assert isinstance(scaled, LinearOperator)
    fidelity = fidelity_of(scan, data)
    nonnegative, solved = bool(configuration.nonnegative), None
    if not choices:
        chosen, solved = choose_tv_weight(scaled, fidelity, configuration, nonnegative=nonnegative)
        choices = {**chosen, "image_scale": scale, "data_term": scan.noise.kind}
    method = PrimalDualTV(
        scaled,
        fidelity,
        choices["tv_weight"],
        tolerance=configuration.tolerance,
        isotropic=bool(configuration.isotropic),
        nonnegative=nonnegative,
    )
    start = None
    if solved is not None:
        tensors = method.warm_start(solved)
        start = IterationState(0, tensors).recorded(method.figures(tensors))
    return method, scale, choices, start


def choose_tv_weight(
    operator: LinearOperator,
    fidelity: Fidelity,
    configuration: ReconstructionConfiguration,
    *,
    nonnegative: bool,
) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """The weight a configuration asks for: a number, or one found from the data.

    Args:
        operator: the scaled ray transform.
        fidelity: data term.
        configuration: with ``tv_weight`` and ``isotropic``.
        nonnegative: whether the images of the search are.

    Returns:
        What was chosen, for the record, and the tensors of the search's last solve if it was
        solved with the chosen weight.

    Raises:
        ConfigurationError: the discrepancy principle finds no weight.
    """
    wanted = configuration.tv_weight
    assert wanted is not None
    if not isinstance(wanted, str):
        return {"tv_weight": float(wanted), "tv_weight_chosen_by": "setting"}, None
    shared = {"isotropic": bool(configuration.isotropic), "nonnegative": nonnegative}
    found, target = _weight_by_discrepancy(operator, fidelity, shared)
    choices = {
        "tv_weight": found.weight,
        "tv_weight_chosen_by": wanted,
        "discrepancy_target": target,
    }
    if wanted == "auto" and found.weight < _LEAST_WEIGHT:
        _LOG.info("Total-variation weight raised to %.4g.", _LEAST_WEIGHT)
        return choices | {"tv_weight": _LEAST_WEIGHT}, None
    return choices, found.solution.state.tensors


def _weight_by_discrepancy(
    operator: LinearOperator, fidelity: Fidelity, shared: dict[str, bool]
) -> tuple[WeightChoice, float]:
    """The weight at which the residual is as large as the noise, or as it has to be."""
    _LOG.info("Choosing the total-variation weight by the discrepancy principle ...")
    enough = 1 / _MISFIT_MARGIN
    attainable = attainable_discrepancy(operator, fidelity, enough=enough, **shared)
    target = _MISFIT_MARGIN * attainable if attainable > enough else 1.0
    if target > 1:
        _LOG.info(
            "No image fits the projections much better than %.2f times the noise variance: a "
            "coarse grid, beam hardening, scatter, an inexact geometry, or more noise than "
            "assumed. The weight is chosen for %.2f times instead of once.",
            attainable,
            target,
        )
    try:
        chosen = tv_weight_by_discrepancy(
            operator,
            fidelity,
            target=target,
            tolerance=_SEARCH_TOLERANCE,
            report=lambda weight, ratio: _LOG.info(
                "  weight %.4g: residual %.3f times the noise variance.", weight, ratio
            ),
            **shared,
        )
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error} Or choose the weight yourself: tv_weight, a number around 1 to 30, "
            "larger for smoother images."
        ) from error
    _LOG.info("Total-variation weight %.4g after %d solves.", chosen.weight, len(chosen.trail))
    return chosen, target


def image_scale(
    operator: LinearOperator, data: Tensor, *, quantile: float = DEFAULT_QUANTILE
) -> float:
    """Size of the image values of one scan: see :func:`dipct.solver.image_scale.image_scale`.

    Args:
        operator: the ray transform.
        data: projections, [*operator.range_shape].
        quantile: which of the image values to take.
    """
    return float(image_scales(operator, data, quantile=quantile))


def fidelity_of(scan: Scan, data: Tensor) -> Fidelity:
    """The data term of a scan's noise model.

    Args:
        scan: with a noise model.
        data: its projections, where the work is done.
    """
    noise = scan.noise
    assert noise is not None
    if isinstance(noise, PoissonNoise):
        return PoissonFidelity(data, torch.as_tensor(np.array(noise.photons)).to(data))
    return GaussianFidelity(data, torch.as_tensor(np.array(noise.std)).to(data))
