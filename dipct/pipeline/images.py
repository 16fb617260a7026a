"""Images from files: pictures, TIFF, NumPy arrays, and the images inside run and scan files."""

from pathlib import Path

import numpy as np

from dipct.errors import DataError, FileFormatError
from dipct.measurement.readers import read_scan
from dipct.run import is_run_file, read_run

TIFF = (".tif", ".tiff")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF)
READABLE = (*PICTURES, ".npy", ".h5", ".hdf5")


def read_image(path: str | Path, *, largest: float | None = None) -> np.ndarray:
    """Read a grey image or volume.

    Args:
        path: a picture, TIFF stack, ``.npy`` array, run file (its image) or scan file (its
            truth).
        largest: what the largest value of an integer type stands for; without it a picture of
            whole numbers is refused.

    Returns:
        float32 (H, W) or (Z, H, W). Whole numbers are scaled to [0, ``largest``];
        floating-point values are kept. Colours become luminance.

    Raises:
        FileFormatError: not a readable image.
        DataError: values that are not finite, or have no meaning.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise FileFormatError(f"{path}: no such image file; check the name.")
    if suffix in TIFF:
        array = _read_tiff(path)
    elif suffix in PICTURES:
        array = _read_picture(path)
    elif suffix == ".npy":
        array = _read_npy(path)
    elif suffix in (".h5", ".hdf5"):
        array = _read_result(path)
    else:
        raise FileFormatError(
            f"{path}: expected an image with one of the endings {', '.join(READABLE)}."
        )
    array = _grey(array, path, largest)
    if not np.all(np.isfinite(array)):
        raise DataError(f"{path}: the image holds NaN or infinite values; correct them first.")
    return array


def _read_picture(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            # Palettes and inks to colours; what is grey stays so.
            if picture.mode in ("P", "CMYK", "YCbCr"):
                picture = picture.convert("RGB")
            # Some versions read 16-bit grey as 32-bit integers.
            return np.asarray(picture, dtype=np.uint16 if picture.mode == "I" else None)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _read_tiff(path: Path) -> np.ndarray:
    import tifffile

    try:
        return tifffile.imread(path)
    except (tifffile.TiffFileError, OSError, ValueError, LookupError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{path}: the picture cannot be read ({error}). It may be truncated or of another kind; "
        "copy it again."
    )


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


def _grey(array: np.ndarray, path: Path, largest: float | None) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise FileFormatError(f"{path}: expected real grey values; got type {array.dtype}.")
    whole = array.dtype.kind in "bui"
    if whole and largest is None:
        raise DataError(
            f"{path}: the image holds whole numbers ({array.dtype}), which do not tell the "
            "attenuation. Give floating-point values in the scan's units, as a TIFF or .npy file."
        )
    if _is_colour(array, path):
        # Rec. 709 luminance; transparency is ignored.
        weights = [0.2126, 0.7152, 0.0722] if array.shape[-1] > 2 else [1.0]
        grey = array[..., : len(weights)] @ np.array(weights, dtype=np.float32)
    else:
        grey = array
    if grey.ndim not in (2, 3):
        raise FileFormatError(
            f"{path}: expected an image (H, W) or a volume (Z, H, W); got {array.shape}."
        )
    if whole:
        top = 1 if array.dtype.kind == "b" else np.iinfo(array.dtype).max
        grey = grey.astype(np.float32) * np.float32(largest / top)
    return np.ascontiguousarray(grey, dtype=np.float32)


def _is_colour(array: np.ndarray, path: Path) -> bool:
    """Whether the last axis holds colours: always in pictures, in a TIFF if it has 3 or 4."""
    if array.ndim != 3 or path.suffix.lower() not in PICTURES:
        return False
    if path.suffix.lower() in TIFF:
        return array.dtype.kind == "u" and array.shape[-1] in (3, 4)
    return True
