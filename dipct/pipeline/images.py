"""Images from files: pictures, TIFF, NumPy arrays, and the images inside run and scan files."""

from pathlib import Path

import numpy as np

from dipct.errors import DataError, FileFormatError
from dipct.measurement.readers import read_scan
from dipct.run import is_run_file, read_run

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
READABLE = (*PICTURES, ".npy", ".h5", ".hdf5")


def read_image(path: Path) -> np.ndarray:
    """Read a grey image or volume.

    Args:
        path: a picture, TIFF stack, ``.npy`` array, run file (its image) or scan file (its
            truth).

    Returns:
        float32 (H, W) or (Z, H, W). Integers are divided by the largest value of their type, so
        that they lie in [0, 1]; floating-point values are kept. Colours become luminance.

    Raises:
        FileFormatError: not a readable image.
        DataError: values that are not finite.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileFormatError(f"{path}: no such image file; check the name.")
    if suffix in PICTURES:
        array = _read_picture(path)
    elif suffix == ".npy":
        array = _read_npy(path)
    elif suffix in (".h5", ".hdf5"):
        array = _read_result(path)
    else:
        raise FileFormatError(
            f"{path}: expected an image with one of the endings {', '.join(READABLE)}."
        )
    array = _grey(array, path)
    if not np.all(np.isfinite(array)):
        raise DataError(f"{path}: the image holds NaN or infinite values; correct them first.")
    return array


def _read_picture(path: Path) -> np.ndarray:
    from skimage import io

    try:
        return np.asarray(io.imread(path))
    except (OSError, ValueError, SyntaxError, KeyError, RuntimeError) as error:
        raise FileFormatError(
            f"{path}: the picture cannot be read ({error}). It may be truncated; copy it again."
        ) from error


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"{path}: not a readable NumPy array ({error}).") from error


def _read_result(path: Path) -> np.ndarray:
    if is_run_file(path):
        return read_run(path).image
    truth = read_scan(path).truth
    if truth is None:
        raise FileFormatError(f"{path}: the scan holds no truth image.")
    return truth


def _grey(array: np.ndarray, path: Path) -> np.ndarray:
    colour = array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8
    if array.dtype == bool:
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu":
        array = array.astype(np.float32) / np.iinfo(array.dtype).max
    elif array.dtype.kind != "f":
        raise FileFormatError(f"{path}: expected real grey values; got type {array.dtype}.")
    if colour:
        # Rec. 709 luminance; transparency is ignored.
        array = array[..., :3] @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
    if array.ndim not in (2, 3):
        raise FileFormatError(
            f"{path}: expected an image (H, W) or a volume (Z, H, W); got {array.shape}."
        )
    return np.ascontiguousarray(array, dtype=np.float32)
