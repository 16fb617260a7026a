"""Helsinki Tomography Challenge 2022: measured fan-beam scans of acrylic discs with holes.

Meaney, Silva de Moura and Siltanen, https://doi.org/10.5281/zenodo.6984868 (training data) and
https://doi.org/10.5281/zenodo.7418878 (test data), CC BY 4.0.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from dipct.errors import FileFormatError
from dipct.measurement.hdf5 import naming
from dipct.measurement.readers.fips import effective_pixel_size, fan_scan, is_ct_struct
from dipct.measurement.readers.matlab import read_mat, variable_names
from dipct.measurement.scan import Scan

STRUCTS = ("CtDataFull", "CtDataLimited")
N_PIXELS = 512
"""Pixels along each side of the organisers' images."""


def read_htc2022(path: str | Path) -> Scan:
    """Read a scan of the challenge, full or limited-angle.

    The sinogram is already the negative logarithm. The last view of a full scan repeats the
    first direction and stays in; ``scan.equispaced_views(720)`` leaves it out. The grid is the
    organisers': 512 x 512 pixels of the scan's effective pixel size, 0.1483 mm.

    Args:
        path: ``htc2022_*_full.mat`` or ``htc2022_*_limited.mat``.

    Returns:
        A fan-beam scan without truth; see :func:`read_htc2022_reference`.

    Raises:
        FileFormatError: missing, truncated or foreign file.
        DataError: values that are not finite.
        GeometryError: counts of angles and views that disagree.
    """
    with naming(path):
        scan = fan_scan(_read_struct(path), n_pixels=N_PIXELS)
    return replace(scan, metadata={"source": Path(path).name, **scan.metadata})


def read_htc2022_reference(
    path: str | Path,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read the organisers' reference images that lie beside a scan of the challenge.

    The filtered backprojection is itself a reconstruction from the full scan, not a truth.

    Args:
        path: the scan, ``htc2022_*_full.mat`` or ``htc2022_*_limited.mat``; the references are
            looked for beside it as ``*_recon_fbp.mat`` and ``*_recon_fbp_seg.mat``, under the
            scan's name with or without ``_full`` or ``_limited``, or with ``_full``.

    Returns:
        Reference filtered backprojection, float32, (512, 512), 1/mm, and reference
        segmentation, bool, (512, 512), True in acrylic; None for each that does not exist.

    Raises:
        FileFormatError: the scan is missing, or a file is truncated or foreign.
    """
    path = Path(path)
    fbp_path, segmentation_path = (_beside(path, end) for end in ("fbp", "fbp_seg"))
    fbp = segmentation = None
    if fbp_path is not None:
        # Written per pixel.
        pixel = effective_pixel_size(_read_struct(path))
        fbp = (_read_image(fbp_path, "reconFullFbp") / pixel).astype(np.float32)
    if segmentation_path is not None:
        segmentation = _read_image(segmentation_path, "reconFullFbpSeg") > 0
    return fbp, segmentation


def _read_struct(path: str | Path) -> dict:
    names = variable_names(path)
    with naming(path):
        chosen = [name for name in STRUCTS if name in names]
        if len(chosen) != 1:
            raise FileFormatError(
                f"expected an HTC 2022 scan, with one struct {' or '.join(STRUCTS)}; got "
                f"variables {', '.join(sorted(names)) or 'none'}."
            )
        struct = read_mat(path, chosen)[chosen[0]]
        if not is_ct_struct(struct):
            raise FileFormatError(f"{chosen[0]} must be a struct with sinogram and parameters.")
    return struct


def _beside(path: Path, end: str) -> Path | None:
    bare = path.stem.removesuffix("_full").removesuffix("_limited")
    for stem in (path.stem, bare, f"{bare}_full"):
        candidate = path.with_name(f"{stem}_recon_{end}.mat")
        if candidate.exists():
            return candidate
    return None


def _read_image(path: Path, name: str) -> np.ndarray:
    variables = read_mat(path, [name])
    with naming(path):
        image = variables.get(name)
        if not isinstance(image, np.ndarray) or image.shape != (N_PIXELS, N_PIXELS):
            raise FileFormatError(
                f"expected an image {name} of {N_PIXELS} x {N_PIXELS} pixels; got "
                f"{getattr(image, 'shape', 'none')}."
            )
    return image
