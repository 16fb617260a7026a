"""The Deep Image Prior of a scan: its scale, its network and input, and the way back from a run."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipct.configuration import ReconstructionConfiguration
from dipct.errors import ConfigurationError, GeometryError
from dipct.evaluation import psnr
from dipct.generator import NetworkGenerator, UNet, check_bfloat16, has_bfloat16, make_network
from dipct.measurement.scan import Scan
from dipct.operator.base import LinearOperator
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.pipeline.memory import check_image_memory
from dipct.pipeline.total_variation import choose_tv_weight, fidelity_of, image_scale
from dipct.run import Run
from dipct.solver import Optimiser
from dipct.solver.deep_image_prior import Restriction, deep_image_prior_fit, noise_input
from dipct.solver.descent import GeneratorFit, Measure

_LOG = logging.getLogger(__name__)
# Largest longer side of the images that a network is the default for.
_LARGEST_IMAGE = {"small": 32, "128": 256}
# A sigmoid ends at so many times the largest value of a blurred image: it must not end below the
# values of the sharp one, nor be near its ends there.
_HEADROOM = 2.0
# A pretrained network lies in a narrow valley of the objective. With the momentum and the clip of
# an untrained one Adam oscillates across it and unlearns in a hundred steps what the network knew;
# more momentum is stable at larger rates (Cohen et al., arXiv 2207.14484).
_FINE_TUNING: dict[str, Any] = {"clip": None, "betas": (0.98, 0.99)}
ACTIVATIONS_PER_CHANNEL = 20
"""Image-sized float32 arrays that a step keeps for each channel of the finest scale."""


def dip_problem(
    scan: Scan,
    configuration: ReconstructionConfiguration,
    operator: LinearOperator,
    choices: dict[str, Any],
) -> tuple[GeneratorFit, float, dict[str, Any]]:
    """Set up the Deep Image Prior for a scan.

    The network makes an image of order one, so that weights and rates have no units.

    Args:
        scan: what was measured, with a noise model.
        configuration: resolved settings of the method ``dip``.
        operator: the ray transform.
        choices: what an earlier call chose; empty to choose now.

    Returns:
        The fit, the scale that undoes that of the image, and what was chosen.

    Raises:
        ConfigurationError: no weight of total variation is found, or an operator without exact
            adjoint.
    """
    assert scan.noise is not None and configuration.iterations is not None
    data = torch.from_numpy(scan.projections).to(operator.device)
    choices = choices or _choose(scan, configuration, operator, data)
    return network_fit(scan, configuration, operator, choices)


def network_fit(
    scan: Scan,
    configuration: ReconstructionConfiguration,
    operator: LinearOperator,
    choices: dict[str, Any],
    *,
    initial: Tensor | None = None,
    learning_rate: float | Tensor | None = None,
    restriction: Restriction | None = None,
    optimiser: Optimiser | None = None,
) -> tuple[GeneratorFit, float, dict[str, Any]]:
    """The fit of a network to a scan once everything is chosen.

    Args:
        scan: what was measured, with a noise model.
        configuration: resolved settings of a network method.
        operator: the ray transform.
        choices: network, scale of the image, weight of total variation and precision.
        initial: first parameters, [P]; default: random.
        learning_rate: of Adam, one number or one per parameter; default: as configured.
        restriction: makes the generator that is fitted of that of the network.
        optimiser: in place of Adam.

    Returns:
        As :func:`dip_problem`.

    Raises:
        ConfigurationError: an operator without exact adjoint.
    """
    if not operator.matched:
        raise ConfigurationError(
            "A network needs an operator whose adjoint is its transpose, and that of this "
            "backend is not. Use backend matrix or traced."
        )
    assert configuration.iterations is not None
    data = torch.from_numpy(scan.projections).to(operator.device)
    scale, used = choices["image_scale"], {**configuration.to_values(), **choices}
    fit = deep_image_prior_fit(
        scale * operator,
        fidelity_of(scan, data),
        network=_network(used),
        z=network_input(scan, used["input"], configuration.seed, scale, data),
        tv_weight=choices["tv_weight"],
        isotropic=bool(configuration.isotropic),
        iterations=configuration.iterations,
        **_adam_settings(configuration, learning_rate),
        stopping=_given(configuration.stopping),
        **_variance_settings(configuration),
        precision=choices["precision"],
        seed=configuration.seed,
        initial=initial,
        restriction=restriction,
        optimiser=optimiser,
        measure=_measure(scan, scale),
    )
    return fit, scale, choices


def check_dip(scan: Scan, configuration: ReconstructionConfiguration, device: torch.device) -> None:
    """Refuse what :func:`dip_problem` cannot do, before any work.

    Args:
        scan: what was measured.
        configuration: resolved settings of the method ``dip``.
        device: where it will run.

    Raises:
        GeometryError: a volume.
        ShapeError: an image too small for the network.
        ConfigurationError: no filtered back-projection to feed the network with.
        InsufficientMemoryError: the network's activations are estimated not to fit.
        DeviceUnavailableError: bfloat16 on a device without it.
    """
    if not scan.geometry.is_planar:
        raise GeometryError(
            "The method dip reconstructs images; this scan is of a volume. Use tv, or take a slice."
        )
    network = make_network(configuration.network or network_name(scan))
    check_network(scan, configuration, network, _given(configuration.input), device)


def check_network(
    scan: Scan,
    configuration: ReconstructionConfiguration,
    network: UNet,
    kind: str,
    device: torch.device,
) -> None:
    """Refuse a network that cannot make a scan's image; see :func:`check_dip`.

    Args:
        scan: what was measured.
        configuration: resolved settings of a network method.
        network: the architecture.
        kind: what it is fed with.
        device: where it will run.
    """
    network.input_shape(scan.grid.shape)
    window = 3 * (configuration.window or 0)
    check_image_memory(
        scan.grid, images_at_once=ACTIVATIONS_PER_CHANNEL * network.channels[0] + window
    )
    if kind != "noise":
        _filtered_back_projection(scan)
    if configuration.precision == "bfloat16":
        check_bfloat16(device)


def generator_of(run: Run) -> tuple[NetworkGenerator, Tensor, float]:
    """The generator of a run of a network method.

    Args:
        run: as from :func:`dipct.reconstruct` or :func:`dipct.read_run`.

    Returns:
        The generator in float32 on the CPU, its parameters theta [P], and the scale c: the
        run's image is ``c * generator(theta)``, up to the rounding of its precision.

    Raises:
        ConfigurationError: a run of another method.
    """
    if "theta" not in run.generator:
        raise ConfigurationError(
            f"The method {run.method} has no generator; reconstruct the scan with dip."
        )
    settings = run.configuration
    z = torch.from_numpy(np.array(run.generator["input"]))
    generator = NetworkGenerator(_network(settings), z, run.scan.grid.shape)
    return generator, torch.from_numpy(np.array(run.generator["theta"])), settings["image_scale"]


def sigmoid_ceiling(operator: LinearOperator, data: Tensor) -> float:
    """Twice the largest value of the image, as estimated from the data: where a sigmoid ends.

    Args:
        operator: the ray transform.
        data: projections, [*operator.range_shape].
    """
    return _HEADROOM * image_scale(operator, data, quantile=1.0)


def network_input(scan: Scan, kind: str, seed: int, scale: float, data: Tensor) -> Tensor:
    """What a network is fed with for a scan.

    Args:
        scan: what was measured.
        kind: noise, fbp, or both as two channels.
        seed: of the noise.
        scale: of the image; the filtered back-projection is divided by it.
        data: the scan's projections, where the work is done.

    Returns:
        [C H W], the image of order one.

    Raises:
        ConfigurationError: no filtered back-projection for this geometry.
    """
    noise = noise_input((1, *scan.grid.shape), seed).to(data)
    if kind == "noise":
        return noise
    image = _filtered_back_projection(scan)(data) / scale
    return image if kind == "fbp" else torch.cat([noise, image])


def _filtered_back_projection(scan: Scan) -> FilteredBackProjection:
    try:
        return FilteredBackProjection(scan.geometry, scan.grid)
    except GeometryError as error:
        raise ConfigurationError(
            f"There is no filtered back-projection to feed the network with: {error} "
            "Use input noise."
        ) from error


def network_name(scan: Scan) -> str:
    """The network for images of a scan's size."""
    side = max(scan.grid.shape)
    fitting = [name for name, largest in _LARGEST_IMAGE.items() if side <= largest]
    return fitting[0] if fitting else "walnut"


def _choose(
    scan: Scan,
    configuration: ReconstructionConfiguration,
    operator: LinearOperator,
    data: Tensor,
) -> dict[str, Any]:
    name = configuration.network or network_name(scan)
    scale = image_scale(operator, data)
    bounds = {}
    if configuration.output == "sigmoid":
        bounds = {"ceiling": sigmoid_ceiling(operator, data) / scale}
    assert scan.noise is not None
    scaled = scale * operator
    assert isinstance(scaled, LinearOperator)
    weight, _ = choose_tv_weight(scaled, fidelity_of(scan, data), configuration, nonnegative=True)
    return {
        "network": name,
        "precision": choose_precision(configuration, data.device),
        "image_scale": scale,
        **bounds,
        **weight,
        "data_term": scan.noise.kind,
    }


def choose_precision(configuration: ReconstructionConfiguration, device: torch.device) -> str:
    """The network's arithmetic: what is wanted, or what the device is fast in."""
    wanted = _given(configuration.precision)
    if wanted != "auto":
        return str(wanted)
    reduced = has_bfloat16(device)
    if not reduced:
        _LOG.info("The %s has no bfloat16: the network is computed in float32.", device)
    return "bfloat16" if reduced else "float32"


def _network(settings: Mapping[str, Any]) -> UNet:
    return make_network(
        settings["network"],
        in_channels=2 if settings["input"] == "both" else 1,
        output=settings["output"],
        ceiling=settings.get("ceiling", 1.0),
        upsampling=settings["upsampling"],
    )


def _measure(scan: Scan, scale: float) -> Measure | None:
    if scan.truth is None or np.ptp(scan.truth) == 0:
        return None
    truth = scan.truth

    def measure(image: Tensor) -> dict[str, Tensor]:
        value = psnr(scale * image[0].cpu().numpy(), truth)
        return {"psnr_db": torch.tensor(value, dtype=torch.float64)}

    return measure


def _adam_settings(
    configuration: ReconstructionConfiguration, learning_rate: float | Tensor | None
) -> dict[str, Any]:
    """Where Adam is the optimiser; another has none of them."""
    rate = configuration.learning_rate if learning_rate is None else learning_rate
    if rate is None:
        return {}
    settings: dict[str, Any] = {
        "learning_rate": rate,
        "warm_up": _given(configuration.warm_up),
        "decay": bool(configuration.decay),
    }
    return settings | (_FINE_TUNING if configuration.method == "edip" else {})


def _variance_settings(configuration: ReconstructionConfiguration) -> dict[str, int]:
    if configuration.stopping != "variance":
        return {}
    return {"window": _given(configuration.window), "patience": _given(configuration.patience)}


def _given(value: Any) -> Any:
    """A setting that resolution has filled in."""
    assert value is not None
    return value
