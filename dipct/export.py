"""Reconstructions in the file formats of other programs: TIFF and NIfTI."""

import io
from pathlib import Path

import numpy as np

from dipct.errors import ConfigurationError
from dipct.measurement.hdf5 import write_bytes_whole
from dipct.run import Run

FORMATS = {"tiff": ".tif", "nifti": ".nii.gz"}
"""Formats and the endings of their files."""


def export_run(run: Run, path: str | Path, *, to: str) -> None:
    """Write the image of a run.

    Args:
        run: the reconstruction.
        path: the file; replaced if it exists.
        to: ``"tiff"`` (float32, one page a slice, pixel size in the resolution tags and in
            ImageJ's metadata) or ``"nifti"`` (float32, axes x, y, z pointing right, up and
            along z, world coordinates in mm in the affine).

    Raises:
        ConfigurationError: an unknown format.
        OSError: the file cannot be written; nothing is left half-written.
    """
    if to not in FORMATS:
        raise ConfigurationError(f"The format must be one of {', '.join(FORMATS)}; got {to!r}.")
    contents = _tiff(run) if to == "tiff" else _nifti(run)
    write_bytes_whole(path, contents)


def _tiff(run: Run) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    grid = run.scan.grid
    axes = "YX" if run.image.ndim == 2 else "ZYX"
    # TIFF's own resolution tags know centimetres, not millimetres; ImageJ reads the unit here.
    metadata: dict[str, object] = {"axes": axes, "unit": run.scan.length_unit}
    if run.image.ndim == 3:
        metadata["spacing"] = grid.pixel_size
    resolution = (1 / grid.pixel_size,) * 2
    tifffile.imwrite(
        buffer,
        np.float32(run.image),
        imagej=True,
        resolution=resolution,
        metadata=metadata,
    )
    return buffer.getvalue()


def _nifti(run: Run) -> bytes:
    import gzip

    import nibabel

    volume = run.image if run.image.ndim == 3 else run.image[None]
    # Our rows run downwards; NIfTI's second axis points up.
    data = np.ascontiguousarray(volume[:, ::-1, :].transpose(2, 1, 0), dtype=np.float32)
    grid = run.scan.grid
    lower = [*grid.lower, 0.0][:3]
    affine = np.diag([grid.pixel_size] * 3 + [1.0])
    affine[:3, 3] = [low + grid.pixel_size / 2 for low in lower]
    if run.image.ndim == 2:
        affine[2, 3] = 0.0
    picture = nibabel.Nifti1Image(data, affine)
    if run.scan.length_unit == "mm":
        picture.header.set_xyzt_units("mm")
    picture.header["descrip"] = f"dipct {run.method}, {run.units}".encode()
    # A fixed time stamp makes the same image the same file.
    return gzip.compress(picture.to_bytes(), mtime=0)
