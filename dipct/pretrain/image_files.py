"""Images from files of any size and kind: pictures, TIFF, NumPy arrays."""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dipct.errors import DataError, DipctError, FileFormatError

TIFF = (".tif", ".tiff")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
READABLE = (*PICTURES, *TIFF, ".npy")

SHORTEST_SIDE = 8

# Of a list of bad files, so many are named.
_NAMED = 10
# Rec. 709.
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
_KEPT_MODES = ("1", "L", "LA", "F", "RGB", "RGBA")
# White, by the type of the values.
_WHITE = {"bool": 1, "uint8": 255, "uint16": 65535}


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, by their endings, in order of their names.

    Hidden files and folders are left out.

    Args:
        folder: where to look.

    Raises:
        FileFormatError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileFormatError(f"{folder}: no such folder of images; check the name.")
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in READABLE
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise FileFormatError(
            f"{folder}: no images in this folder. Expected files with the endings "
            f"{', '.join(READABLE)}."
        )
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def names_digest(paths: Sequence[Path], folder: Path) -> str:
    """SHA-256 of the names of files within a folder, in their order."""
    names = "\n".join(path.relative_to(folder).as_posix() for path in paths)
    return hashlib.sha256(names.encode()).hexdigest()


def check_image_files(paths: list[Path], aspect: float) -> None:
    """Read all images once, and name those that cannot be trained on.

    Args:
        paths: the files.
        aspect: height over width that they will be cropped to.

    Raises:
        FileFormatError: files that are not readable images, or too small.
        DataError: readable images whose values are not finite or all the same.
    """
    failures: list[DipctError] = []
    for path in paths:
        try:
            read_normalised(path, aspect)
        except DipctError as error:
            failures.append(error)
    _raise_together(failures, len(paths))


def read_normalised(path: Path, aspect: float) -> np.ndarray:
    """Read an image, crop its centre and stretch its values to [0, 1].

    Args:
        path: a file with one of the endings :data:`READABLE`.
        aspect: height over width to crop to.

    Returns:
        [H W] of the file's own size, float32, from 0 to 1.

    Raises:
        FileFormatError: not a readable image, or too small.
        DataError: values that are not finite or all the same.
    """
    image = _grey(_decode_image(path))
    if not np.all(np.isfinite(image)):
        raise _not_finite(path)
    height, width = image.shape
    image = _centre(image, aspect)
    # Halved, so that the span of the largest numbers does not overflow.
    low, span = float(image.min()), float(image.max()) / 2 - float(image.min()) / 2
    if span == 0:
        part = "" if image.shape == (height, width) else "the part of it that is used "
        raise DataError(f"{path}: {part or 'the image '}is constant; expected some content.")
    return ((image / 2 - low / 2) / span).astype(np.float32)


def read_squares(
    paths: Sequence[Path],
    side: int,
    *,
    colour: bool,
    progress: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """Read images as :func:`read_square` does, all of them before any is complained about.

    Args:
        paths: the files.
        side: rows and columns.
        colour: three channels, or luminance alone.
        progress: told, after every image, how many of how many are read.

    Returns:
        [N C H W], float32, from 0 to 1.

    Raises:
        FileFormatError: files that are not readable images, or too small.
        DataError: readable images whose values are not finite or out of range.
    """
    images = np.empty((len(paths), 3 if colour else 1, side, side), dtype=np.float32)
    failures: list[DipctError] = []
    for number, path in enumerate(paths):
        try:
            images[number] = read_square(path, side, colour=colour)
        except DipctError as error:
            failures.append(error)
        if progress is not None:
            progress(number + 1, len(paths))
    _raise_together(failures, len(paths))
    return images


def read_square(path: Path, side: int, *, colour: bool) -> np.ndarray:
    """Read an image, crop its centre to a square and resize it with anti-aliasing.

    Values are those of the file by the largest of their type, 8 or 16 bits; floating-point values
    have to lie between 0 and 1. They are not stretched. Transparency is ignored.

    Args:
        path: a file with one of the endings :data:`READABLE`.
        side: rows and columns.
        colour: three channels, alike for a grey image, or luminance alone.

    Returns:
        [C H W], float32, from 0 to 1.

    Raises:
        FileFormatError: not a readable image, too small, or of a type without a known range.
        DataError: values that are not finite, or not between 0 and 1.
    """
    from PIL import Image

    image = _zero_to_one(_centre(_decode_image(path), 1.0), path)
    channels = _colours(image) if colour else _grey(image)[None]
    resized = [
        Image.fromarray(channel.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
        for channel in channels
    ]
    return np.stack([np.asarray(channel) for channel in resized]).clip(0, 1)


def _raise_together(failures: list[DipctError], number: int) -> None:
    """Raise one error that names the first of many, if there are any."""
    if not failures:
        return
    kind = next((type(error) for error in failures if isinstance(error, FileFormatError)), None)
    lines = [f"  {error}" for error in failures[:_NAMED]]
    if len(failures) > _NAMED:
        lines.append(f"  and {len(failures) - _NAMED} more")
    raise (kind or type(failures[0]))(
        f"{len(failures)} of {number} images cannot be trained on; remove or replace:\n"
        + "\n".join(lines)
    )


def _centre(image: np.ndarray, aspect: float) -> np.ndarray:
    """The largest centred part of a shape, of [H W] or [H W C]."""
    height, width = image.shape[:2]
    kept_height = max(1, min(height, round(width * aspect)))
    kept_width = max(1, min(width, round(height / aspect)))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    return image[top : top + kept_height, left : left + kept_width]


def _decode_image(path: Path) -> np.ndarray:
    """One image of real values, [H W] or [H W C] with up to four channels."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array = _decode_array(path)
    else:
        array = _decode_tiff(path) if suffix in TIFF else _decode_picture(path)
    if array.dtype.kind not in "buif":
        raise FileFormatError(f"{path}: expected real grey values; got type {array.dtype}.")
    if array.ndim != 2 and not (array.ndim == 3 and 1 <= array.shape[-1] <= 4):
        raise FileFormatError(
            f"{path}: expected one image [H W], or [H W 3] in colour; got shape {array.shape}. "
            "Save the images of a stack one by one."
        )
    height, width = array.shape[:2]
    if min(height, width) < SHORTEST_SIDE:
        raise FileFormatError(
            f"{path}: the image has {height} x {width} pixels; expected at least "
            f"{SHORTEST_SIDE} on the shorter side."
        )
    return array


def _decode_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(array, np.ndarray):
        raise _unreadable(path, "it is an archive of arrays")
    return array


def _decode_picture(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode in _KEPT_MODES or picture.mode.startswith("I"):
                return np.asarray(picture)
            # Palettes may be partly transparent, which RGB cannot say.
            return np.asarray(picture.convert("RGBA" if picture.mode in ("P", "PA") else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def _decode_tiff(path: Path) -> np.ndarray:
    import tifffile

    try:
        return tifffile.imread(path)
    except (
        tifffile.TiffFileError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        zlib.error,
    ) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, reason: object) -> FileFormatError:
    return FileFormatError(
        f"{path}: the image cannot be read ({reason}). It may be truncated, of another kind, or "
        "compressed in a rare way; copy it again or save it as PNG."
    )


def _not_finite(path: Path) -> DataError:
    return DataError(f"{path}: the image holds NaN or infinite values.")


def _zero_to_one(array: np.ndarray, path: Path) -> np.ndarray:
    """Values by the largest of their type."""
    if array.dtype.kind != "f":
        if array.dtype.name not in _WHITE:
            raise FileFormatError(
                f"{path}: expected 8 or 16 bits a channel, or floating-point values from 0 to 1; "
                f"got type {array.dtype}. Save it as PNG."
            )
        return array / np.float32(_WHITE[array.dtype.name])
    if not np.all(np.isfinite(array)):
        raise _not_finite(path)
    if array.min() < 0 or array.max() > 1:
        raise DataError(
            f"{path}: floating-point values must lie between 0 and 1; got {array.min():g} to "
            f"{array.max():g}."
        )
    return array


def _grey(array: np.ndarray) -> np.ndarray:
    """Luminance, float64 [H W]; transparency is ignored."""
    if array.ndim == 2:
        return array.astype(np.float64)
    weights = _LUMINANCE if array.shape[-1] > 2 else np.ones(1)
    return array[..., : len(weights)].astype(np.float64) @ weights


def _colours(array: np.ndarray) -> np.ndarray:
    """Red, green and blue, [3 H W]; transparency is ignored."""
    if array.ndim == 3 and array.shape[-1] > 2:
        return array[..., :3].transpose(2, 0, 1)
    grey = array if array.ndim == 2 else array[..., 0]
    return np.broadcast_to(grey, (3, *grey.shape))
