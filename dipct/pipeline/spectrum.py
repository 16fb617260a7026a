"""The verb spectrum: compare pretrained networks by what the projections see of them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dipct.device import find_device
from dipct.errors import ConfigurationError
from dipct.generator import NetworkGenerator
from dipct.measurement.scan import Scan
from dipct.operator.ray import ray_transform
from dipct.pipeline.deep_image_prior import network_input
from dipct.pipeline.pretrain import first_parameters
from dipct.pretrain import NetworkSpectrum, SpectrumSettings, network_spectra
from dipct.pretrain.pretrained_network import read_pretrained_network
from dipct.pretrain.snapshots import spread_snapshots
from dipct.solver.image_scale import image_scale

BEFORE = "before training"
"""Name of the first network's random parameters."""


def network_spectra_of(
    scan: Scan,
    networks: Sequence[str | Path],
    *,
    settings: SpectrumSettings | None = None,
    before: bool = True,
    during: int = 0,
    device: str = "cpu",
) -> list[NetworkSpectrum]:
    """Compare the spectra of pretrained networks on a scan (Barbano et al., arXiv 2111.11926).

    Singular values of the Jacobian of the projections with respect to the parameters, at the
    network's input for this scan; see :func:`dipct.pretrain.network_spectra`.

    Args:
        scan: the scan that the networks were pretrained for.
        networks: files of pretrained networks of one architecture.
        settings: how many singular values, and how exactly.
        before: also the first network's random parameters, as the first of the list.
        during: of every network also so many snapshots, equally spaced before it.
        device: where to compute.

    Returns:
        One spectrum for every network, in order; overlap and movement refer to the first. Names
        are the files', with the step of a snapshot.

    Raises:
        ConfigurationError: no network, one for another scan or of another architecture, or fewer
            snapshots than asked for.
        FileFormatError: not a pretrained network.
    """
    if not networks:
        raise ConfigurationError("Name at least one pretrained network.")
    read = [read_pretrained_network(path, snapshots=during > 0) for path in networks]
    for path, each in zip(networks, read, strict=True):
        each.check_fits(scan)
        if each.network != read[0].network:
            raise ConfigurationError(
                f"{path} is of another architecture than {networks[0]}: {dict(each.network)} and "
                f"{dict(read[0].network)}."
            )
    network, place = read[0].make_network(), find_device(device)
    operator = ray_transform(scan.geometry, scan.grid, device=place)
    data = torch.from_numpy(scan.projections).to(place)
    scale = float(image_scale(operator, data))
    z = network_input(scan, str(read[0].pairs["input"]), read[0].seed, scale, data)
    generator = NetworkGenerator(network, z, scan.grid.shape)
    thetas: dict[str, torch.Tensor] = {}
    for path, each in zip(networks, read, strict=True):
        for step, theta in spread_snapshots(each.snapshots, during, str(path)).items():
            thetas[f"{path}, step {step}"] = torch.from_numpy(theta)
        thetas[str(path)] = torch.from_numpy(each.theta)
    if before:
        thetas = {BEFORE: first_parameters(network, read[0].seed), **thetas}
    return network_spectra(
        scale * operator,
        generator,
        {name: theta.to(place) for name, theta in thetas.items()},
        settings or SpectrumSettings(),
    )
