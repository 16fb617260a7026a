"""Run files: a result together with everything needed to look at it and to make it again.

Layout (HDF5), version 1:

==============================  ===========================================================
``/`` attributes                ``format`` = "dipct-run", ``version``, ``method``,
                                ``status`` (name) and ``advice``, ``iterations``, ``seed``,
                                ``duration_s``, ``created`` (ISO 8601, UTC), ``source`` (what
                                was read), ``input_sha256``, ``configuration`` (JSON, whole
                                and resolved), ``versions`` (JSON)
``reconstruction/image``        float32 (H, W) or (Z, H, W); attributes ``units``,
                                ``pixel_size``, ``length_unit``, and ``pixel_size_mm`` where
                                the length unit is mm
``reconstruction/projections``  float32, the projections of the image, shaped like the data
``reconstruction/history/*``    float64 (recorded iterations,), with ``iteration`` (int64)
``generator/*``                 float32 ``theta`` (P,) and ``input`` (C, H, W) where a network
                                made the image
``metrics`` attributes          one number each: psnr_db, ssim, relative_residual, ...
``uncertainty``                 where it was quantified, see :mod:`dipct.uncertainty`
``scan``                        the scan as it was reconstructed, laid out as in
                                :mod:`dipct.measurement.scan_file`
==============================  ===========================================================
"""

import contextlib
import functools
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dipct.configuration import SELECTIONS, settings_of
from dipct.errors import ConfigurationError, FileFormatError
from dipct.measurement.hdf5 import (
    get_attribute,
    get_dataset,
    get_group,
    open_hdf5,
    write_bytes_whole,
    write_whole,
)
from dipct.measurement.scan import Scan
from dipct.measurement.scan_file import read_scan_group, write_scan_group
from dipct.uncertainty import (
    Uncertainty,
    read_uncertainty_group,
    summarised,
    write_uncertainty_group,
)

FORMAT, VERSION = "dipct-run", 1
_EXPECTED = "a dipct run file"
_PACKAGES = ("dipct", "torch", "numpy", "scipy", "h5py", "scikit-image", "astra-toolbox", "odl")


@dataclass(frozen=True, eq=False)
class Run:
    """One reconstruction.

    Attributes:
        image: float32 (H, W) or (Z, H, W), 1/length_unit of the scan.
        projections: float32, the projections of the image, shaped like the scan's.
        scan: the scan as it was reconstructed, after selection and binning.
        configuration: every setting, resolved to what was used.
        status: name of the outcome, and
        advice: what it means and what to do about it.
        iterations: iterations done; 0 for analytic methods.
        history: what was recorded on the way: name to values, ``"iteration"`` among them.
        metrics: figures of merit.
        seed: of everything random.
        source: what was read: a file or an example's name.
        input_sha256: digest of the scan as it was given, before selection and binning.
        duration_s: seconds from the start to the image.
        created: when, ISO 8601 in UTC.
        versions: of Python and the packages.
        generator: where a network made the image, its parameters ``theta`` (P,) and its
            ``input`` (C, H, W); see :func:`dipct.generator_of`.
        uncertainty: how far the image can be trusted, where :func:`dipct.quantify` was asked.
    """

    image: np.ndarray
    projections: np.ndarray
    scan: Scan
    configuration: Mapping[str, Any]
    status: str
    advice: str
    iterations: int
    history: Mapping[str, np.ndarray]
    metrics: Mapping[str, float]
    seed: int
    source: str
    input_sha256: str
    duration_s: float
    created: str
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())
    generator: Mapping[str, np.ndarray] = field(default_factory=dict)
    uncertainty: Uncertainty | None = None

    @property
    def method(self) -> str:
        """The reconstruction method."""
        return str(self.configuration["method"])

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that make the same image from :attr:`scan` again.

        Those of :class:`dipct.configuration.ReconstructionConfiguration`, without the selections,
        which :attr:`scan` has gone through already: ``reconstruct(run.scan, **run.settings)``.
        """
        kept = settings_of(self.method) - set(SELECTIONS)
        settings = {name: value for name, value in self.configuration.items() if name in kept}
        chosen_by = self.configuration.get("tv_weight_chosen_by", "setting")
        if chosen_by != "setting":
            # The search for the weight also gives the first image.
            settings["tv_weight"] = chosen_by
        return settings

    @property
    def units(self) -> str:
        """Unit of the image values."""
        return f"1/{self.scan.length_unit}"


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    return {"python": platform.python_version(), **_package_versions()}


def write_run(run: Run, path: str | Path) -> None:
    """Write a run file, and its metrics as JSON beside it (same name, ``.json``).

    Raises:
        ConfigurationError: a name that does not end in ``.h5`` or ``.hdf5``.
        OSError: the file cannot be written; nothing is left half-written.
    """
    path = check_run_name(path)
    write_whole(path, lambda file: _fill(run, file))
    summary = {
        "method": run.method,
        "status": run.status,
        "iterations": run.iterations,
        "duration_s": run.duration_s,
        "seed": run.seed,
        "source": run.source,
        "input_sha256": run.input_sha256,
        # JSON has no infinities: the PSNR of an image equal to the truth becomes null.
        "metrics": {k: v if math.isfinite(v) else None for k, v in run.metrics.items()},
        "configuration": dict(run.configuration),
        "versions": dict(run.versions),
    }
    if run.uncertainty is not None:
        summary["uncertainty"] = summarised(run.uncertainty)
    text = json.dumps(summary, indent=2, sort_keys=True)
    write_bytes_whole(path.with_suffix(".json"), f"{text}\n".encode())


def _fill(run: Run, file: h5py.File) -> None:
    file.attrs.update(
        {
            "format": FORMAT,
            "version": VERSION,
            "method": run.method,
            "status": run.status,
            "advice": run.advice,
            "iterations": run.iterations,
            "seed": run.seed,
            "duration_s": run.duration_s,
            "created": run.created,
            "source": run.source,
            "input_sha256": run.input_sha256,
            "configuration": json.dumps(dict(run.configuration), sort_keys=True),
            "versions": json.dumps(dict(run.versions), sort_keys=True),
        }
    )
    group = file.create_group("reconstruction")
    image = group.create_dataset("image", data=np.float32(run.image), compression="gzip")
    image.attrs["units"] = run.units
    image.attrs["pixel_size"] = run.scan.grid.pixel_size
    image.attrs["length_unit"] = run.scan.length_unit
    if run.scan.length_unit == "mm":
        image.attrs["pixel_size_mm"] = run.scan.grid.pixel_size
    group.create_dataset("projections", data=np.float32(run.projections), compression="gzip")
    history = group.create_group("history")
    for name, values in run.history.items():
        history.create_dataset(name, data=np.asarray(values))
    if run.generator:
        generator = file.create_group("generator")
        for name, values in run.generator.items():
            generator.create_dataset(name, data=np.float32(values))
    metrics = file.create_group("metrics")
    metrics.attrs.update({name: float(value) for name, value in run.metrics.items()})
    if run.uncertainty is not None:
        write_uncertainty_group(run.uncertainty, file.create_group("uncertainty"))
    write_scan_group(run.scan, file.create_group("scan"))


def read_run(path: str | Path) -> Run:
    """Read a run file.

    Raises:
        FileFormatError: missing, truncated, foreign, or of a newer version.
    """
    with open_hdf5(path, _EXPECTED) as file:
        if file.attrs.get("format") != FORMAT:
            raise FileFormatError(
                f"expected {_EXPECTED}; this HDF5 file is another one (format "
                f"{file.attrs.get('format')!r}). Run files are written by `dipct reconstruct`; "
                "look at a scan with `dipct scan info`."
            )
        if get_attribute(file, "version") > VERSION:
            raise FileFormatError(
                f"the run file has version {get_attribute(file, 'version')}, this dipct reads up "
                f"to {VERSION}. Upgrade dipct."
            )
        group = get_group(file, "reconstruction")
        history = get_group(group, "history")
        scan = read_scan_group(get_group(file, "scan"))
        image, projections = (get_dataset(group, n)[()] for n in ("image", "projections"))
        if image.shape != scan.grid.shape or projections.shape != scan.projections.shape:
            raise FileFormatError(
                f"the image of shape {image.shape} and its projections of shape "
                f"{projections.shape} do not belong to the scan in the file, which has "
                f"{scan.grid.shape} and {scan.projections.shape}."
            )
        return Run(
            image=image,
            projections=projections,
            scan=scan,
            configuration=json.loads(get_attribute(file, "configuration")),
            status=str(get_attribute(file, "status")),
            advice=str(get_attribute(file, "advice")),
            iterations=int(get_attribute(file, "iterations")),
            history={name: get_dataset(history, name)[()] for name in history},
            metrics={k: float(v) for k, v in get_group(file, "metrics").attrs.items()},
            seed=int(get_attribute(file, "seed")),
            source=str(get_attribute(file, "source")),
            input_sha256=str(get_attribute(file, "input_sha256")),
            duration_s=float(get_attribute(file, "duration_s")),
            created=str(get_attribute(file, "created")),
            versions=json.loads(get_attribute(file, "versions")),
            generator=_read_generator(file),
            uncertainty=_read_uncertainty(file),
        )


def _read_generator(file: h5py.File) -> dict[str, np.ndarray]:
    if "generator" not in file:
        return {}
    group = get_group(file, "generator")
    return {name: get_dataset(group, name)[()] for name in ("theta", "input")}


def _read_uncertainty(file: h5py.File) -> Uncertainty | None:
    if "uncertainty" not in file:
        return None
    return read_uncertainty_group(get_group(file, "uncertainty"))


@functools.cache
def _package_versions() -> dict[str, str]:
    # Kept, since reading them takes longer than a reconstruction of a small scan may.
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def check_run_name(path: str | Path) -> Path:
    """The path, or a :class:`ConfigurationError` unless it ends as a run file's name must."""
    path = Path(path)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ConfigurationError(f"A run file's name must end in .h5; got {path}.")
    return path


def is_run_file(path: str | Path) -> bool:
    """Whether a file is readable HDF5 and says that it is a run file."""
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("format") == FORMAT
    except OSError:
        return False
