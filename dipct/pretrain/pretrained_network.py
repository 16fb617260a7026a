"""Files of pretrained networks: the parameters with everything needed to use them rightly.

Layout (HDF5), version 1. Nothing in it is ever executed.

===================  ==============================================================================
``/`` attributes     ``format`` = "dipct-pretrained-network", ``version``, ``status`` (name),
                     ``steps``, ``best_step``, ``seed``, ``duration_s``, ``created`` (ISO 8601,
                     UTC), ``fbp_psnr_db`` and ``validation_psnr_db``; as JSON ``network`` (its
                     name and options), ``scan`` (what it was trained for), ``pairs`` (images,
                     noise and input), ``settings`` (of the training), ``versions``
``theta``            float32 (P,): the parameters with the highest validation PSNR
``history/*``        (records,): ``iteration``, ``training_loss``, ``validation_psnr_db`` ...
``snapshots/*``      where some were kept: ``steps`` (S,) and float32 ``thetas`` (S, P)
===================  ==============================================================================
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dipct.errors import ConfigurationError, DataError, FileFormatError
from dipct.generator import ParameterLayout, UNet, make_network
from dipct.measurement.digest import geometry_digest
from dipct.measurement.hdf5 import (
    check_format,
    get_attribute,
    get_dataset,
    get_group,
    open_hdf5,
    write_whole,
)
from dipct.measurement.scan import Scan
from dipct.pretrain.snapshots import Snapshots

FORMAT, VERSION = "dipct-pretrained-network", 1
_EXPECTED = "a pretrained network, as written by `dipct pretrain`"
_TEXTS = ("status", "created")
_WHOLE = ("steps", "best_step", "seed")
_NUMBERS = ("duration_s", "fbp_psnr_db", "validation_psnr_db")
_JSON = ("network", "scan", "pairs", "settings", "versions")


@dataclass(frozen=True, eq=False)
class PretrainedNetwork:
    """A network after supervised training.

    Attributes:
        theta: parameters with the highest validation PSNR, float32 [P].
        network: options of :func:`dipct.generator.make_network`, ``name`` among them.
        scan: what it was trained for, see :func:`describe_scan`.
        pairs: images, noise and input.
        settings: of the training.
        history: what was recorded on the way, by name.
        status: name of the outcome.
        steps: training steps done.
        best_step: the step that ``theta`` is from.
        fbp_psnr_db: of filtered back-projection on the validation images, dB; NaN where the
            network is fed with noise.
        validation_psnr_db: of the network on them, dB.
        seed: of the first parameters, the images and the noise.
        duration_s: seconds of training.
        created: when, ISO 8601 in UTC.
        versions: of Python and the packages.
        snapshots: parameters on the way; None where none were kept or read.
    """

    theta: np.ndarray
    network: Mapping[str, Any]
    scan: Mapping[str, Any]
    pairs: Mapping[str, Any]
    settings: Mapping[str, Any]
    history: Mapping[str, np.ndarray]
    status: str
    steps: int
    best_step: int
    fbp_psnr_db: float
    validation_psnr_db: float
    seed: int
    duration_s: float
    created: str
    versions: Mapping[str, str]
    snapshots: Snapshots | None = None

    def make_network(self) -> UNet:
        """The architecture."""
        return make_network(**self.network)

    def check_fits(self, scan: Scan) -> None:
        """Raise a :class:`ConfigurationError` unless this was trained for a scan's operator.

        Args:
            scan: as it will be reconstructed, after selection and binning.
        """
        wanted = describe_scan(scan)
        if wanted["geometry_sha256"] == self.scan["geometry_sha256"]:
            return
        differing = [
            f"{name.replace('_', ' ')}: {self.scan.get(name)} there, {value} here"
            for name, value in wanted.items()
            if name != "geometry_sha256" and value != self.scan.get(name)
        ]
        raise ConfigurationError(
            "The network was pretrained for another scan geometry ("
            + ("; ".join(differing) or "angles, positions or spacings differ")
            + "). Give the scan and the selection of views, bins and pixels that it was trained "
            "with, or pretrain again for this one."
        )


def describe_scan(scan: Scan) -> dict[str, Any]:
    """What of a scan a pretrained network depends on, in plain values.

    Args:
        scan: as it will be reconstructed.
    """
    return {
        "geometry": scan.geometry.kind,
        "views": scan.geometry.n_views,
        "detector_shape": list(scan.geometry.detector_shape),
        "image_shape": list(scan.grid.shape),
        "pixel_size": scan.grid.pixel_size,
        "length_unit": scan.length_unit,
        "geometry_sha256": geometry_digest(scan.geometry, scan.grid),
    }


def write_pretrained_network(pretrained: PretrainedNetwork, path: str | Path) -> None:
    """Write a pretrained network, whole or not at all.

    Raises:
        OSError: the file cannot be written; nothing is left half-written.
    """

    def fill(file: h5py.File) -> None:
        file.attrs.update(format=FORMAT, version=VERSION)
        for name in (*_TEXTS, *_WHOLE, *_NUMBERS):
            file.attrs[name] = getattr(pretrained, name)
        for name in _JSON:
            file.attrs[name] = json.dumps(dict(getattr(pretrained, name)), sort_keys=True)
        file.create_dataset("theta", data=np.float32(pretrained.theta))
        history = file.create_group("history")
        for name, values in pretrained.history.items():
            history.create_dataset(name, data=np.asarray(values))
        if pretrained.snapshots is not None:
            group = file.create_group("snapshots")
            group.create_dataset("steps", data=pretrained.snapshots.steps)
            group.create_dataset("thetas", data=pretrained.snapshots.thetas)

    write_whole(path, fill)


def read_pretrained_network(path: str | Path, *, snapshots: bool = False) -> PretrainedNetwork:
    """Read a pretrained network.

    Args:
        path: the file.
        snapshots: read them too, which can be large.

    Raises:
        FileFormatError: missing, truncated, foreign, of a newer version, or with parameters that
            do not belong to its network.
        DataError: parameters that are not finite.
    """
    with open_hdf5(path, _EXPECTED) as file:
        check_format(file, FORMAT, VERSION, _EXPECTED)
        history = get_group(file, "history")
        found = PretrainedNetwork(
            theta=get_dataset(file, "theta")[()],
            history={name: get_dataset(history, name)[()] for name in history},
            snapshots=_read_snapshots(file) if snapshots and "snapshots" in file else None,
            **{name: str(get_attribute(file, name)) for name in _TEXTS},
            **{name: int(get_attribute(file, name)) for name in _WHOLE},
            **{name: float(get_attribute(file, name)) for name in _NUMBERS},
            **{name: json.loads(get_attribute(file, name)) for name in _JSON},
        )
        size = ParameterLayout(found.make_network().parameters).size
        if found.theta.shape != (size,):
            raise FileFormatError(
                f"the network {found.network['name']} has {size} parameters, the file holds "
                f"{found.theta.shape}."
            )
        if not np.isfinite(found.theta).all():
            raise DataError("the parameters are not finite; pretrain again.")
        if found.snapshots is not None:
            _check_snapshots(found.snapshots, size)
        return found


def count_snapshots(path: str | Path) -> int:
    """How many snapshots the file of a pretrained network holds, without reading them.

    Raises:
        FileFormatError: missing, truncated or foreign.
    """
    with open_hdf5(path, _EXPECTED) as file:
        if "snapshots" not in file:
            return 0
        return len(get_dataset(get_group(file, "snapshots"), "steps"))


def _read_snapshots(file: h5py.File) -> Snapshots:
    group = get_group(file, "snapshots")
    return Snapshots(*(get_dataset(group, name)[()] for name in ("steps", "thetas")))


def _check_snapshots(snapshots: Snapshots, size: int) -> None:
    shape = (len(snapshots.steps), size)
    if snapshots.thetas.shape != shape:
        raise FileFormatError(
            f"the snapshots should have shape {shape}; they have {snapshots.thetas.shape}."
        )
    if not np.isfinite(snapshots.thetas).all():
        raise DataError("the snapshots are not finite; pretrain again.")
