"""The errors dipct raises: each says what was expected, what came and what to do.

Every class also derives from the builtin error that a caller would catch anyway.
"""


class DipctError(Exception):
    """Base class of all errors raised on purpose by dipct."""


class ShapeError(DipctError, ValueError):
    """An array or tensor does not have the shape that its place in the equation needs."""


class DtypeError(DipctError, TypeError):
    """A tensor has another floating-point type, or lies on another device, than the operator."""


class GeometryError(DipctError, ValueError):
    """A scan geometry or image grid is impossible, or the two do not fit together."""


class DataError(DipctError, ValueError):
    """Measured values cannot be what they claim to be (not finite, zero flats, wrong range)."""


class FileFormatError(DipctError, ValueError):
    """A file is truncated, foreign, or not laid out as its kind demands."""


class ConfigurationError(DipctError, ValueError):
    """A configuration has an unknown key or an impossible value."""


class InsufficientMemoryError(DipctError, MemoryError):
    """The estimate made before the work starts says that it will not fit in memory."""


class DeviceUnavailableError(DipctError, RuntimeError):
    """The requested compute device is not present on this machine."""


class BackendUnavailableError(DipctError, RuntimeError):
    """The requested backend is missing, or cannot do what is asked on this machine."""


class DownloadError(DipctError, OSError):
    """A public data set could not be fetched whole and with the right checksum."""


class ConvergenceError(DipctError, ArithmeticError):
    """An iteration diverged; what it wrote is its last valid iterate."""


class Interrupted(DipctError, RuntimeError):
    """Long work was stopped by the user; the message says what was kept and how to go on."""
