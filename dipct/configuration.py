"""Settings of a reconstruction: checked when made, from keywords or a TOML file."""

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dipct.errors import ConfigurationError

Method = Literal["fbp", "fdk", "cgls", "sirt", "tv"]
METHODS: tuple[str, ...] = get_args(Method)

SELECTIONS = ("views", "angular_range", "bin", "pixels")
"""Settings that choose what of a scan is used, and on which grid."""

_ANALYTIC = ("fbp", "fdk")
_ITERATIVE = ("cgls", "sirt", "tv")
_SWITCHES = ("discrepancy_stopping", "nonnegative", "isotropic")
_METHODS_OF: dict[str, tuple[str, ...]] = {
    "filter": _ANALYTIC,
    "frequency_scaling": _ANALYTIC,
    "projector": _ITERATIVE,
    "backend": _ITERATIVE,
    "iterations": _ITERATIVE,
    "tolerance": ("cgls", "tv"),
    "discrepancy_stopping": ("cgls", "sirt"),
    "nonnegative": ("sirt", "tv"),
    "tv_weight": ("tv",),
    "isotropic": ("tv",),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "fbp": {"filter": "ram-lak", "frequency_scaling": 1.0},
    "fdk": {"filter": "ram-lak", "frequency_scaling": 1.0},
    "cgls": {"iterations": 30, "tolerance": 1e-6, "discrepancy_stopping": False},
    "sirt": {"iterations": 200, "nonnegative": True, "discrepancy_stopping": False},
    "tv": {
        "iterations": 3000,
        "tolerance": 1e-3,
        "nonnegative": True,
        "tv_weight": 2.0,
        "isotropic": False,
    },
}
_ITERATIVE_DEFAULTS = {"projector": "siddon", "backend": "matrix"}


class ReconstructionConfiguration(BaseModel):
    """Everything that decides how a scan is reconstructed.

    A setting that the method does not use must be left out: giving one is an error, so that no
    setting is ever ignored in silence. :meth:`resolved` fills in the method's defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method
    """fbp, fdk, cgls, sirt or tv."""
    views: int | None = Field(None, ge=1)
    """Reconstruct from so many equispaced views."""
    angular_range: float | None = Field(None, gt=0, le=720)
    """Keep the views within so many degrees of the first."""
    bin: int = Field(1, ge=1)
    """Average so many neighbouring detector cells."""
    pixels: int | None = Field(None, ge=2)
    """Pixels along the longer side of the image, same field of view."""
    seed: int = Field(0, ge=0)
    """Seed of everything random: an example's object and noise."""
    device: str = "cpu"
    """Where to compute: cpu or a CUDA device."""
    filter: Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"] | None = None
    """Filter of FBP and FDK."""
    frequency_scaling: float | None = Field(None, gt=0, le=1)
    """Cut-off of the filter as a share of the Nyquist frequency."""
    projector: Literal["siddon", "joseph"] | None = None
    """How rays meet pixels: exact lengths or interpolation."""
    backend: Literal["matrix", "traced", "astra"] | None = None
    """Stored sparse matrix, rays traced anew for every product, or ASTRA's projectors."""
    iterations: int | None = Field(None, ge=1)
    """Most iterations."""
    tolerance: float | None = Field(None, gt=0, lt=1)
    """Stop at this relative duality gap (tv) or normal-equation residual (cgls)."""
    discrepancy_stopping: bool | None = None
    """Stop once the residual is as large as the noise (cgls, sirt)."""
    nonnegative: bool | None = None
    """Constrain the image to be nonnegative (sirt, tv)."""
    tv_weight: float | Literal["discrepancy"] | None = None
    """Weight of total variation of the image scaled to order one, or "discrepancy" to choose it
    so that the residual is as large as the noise."""
    isotropic: bool | None = None
    """Isotropic instead of anisotropic total variation."""

    @model_validator(mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for name, value in values.items():
                if isinstance(value, bool) and name in cls.model_fields and name not in _SWITCHES:
                    raise ValueError(f"{name} cannot be true or false; got {value}")
        return values

    @model_validator(mode="after")
    def _settings_of_the_method(self) -> Self:
        for name, methods in _METHODS_OF.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise ValueError(
                    f"the method {self.method} has no setting {name}; it belongs to "
                    f"{', '.join(methods)}"
                )
        if isinstance(self.tv_weight, float) and not 0 <= self.tv_weight < float("inf"):
            raise ValueError(f"tv_weight must be zero or positive; got {self.tv_weight}")
        return self

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Check a mapping of settings.

        Raises:
            ConfigurationError: naming every wrong setting, with the nearest known names of
                unknown ones.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigurationError(_explain(error.errors())) from None

    def resolved(self) -> Self:
        """The same settings with the method's defaults filled in."""
        defaults = dict(_DEFAULTS[self.method])
        if self.method in _ITERATIVE:
            defaults |= _ITERATIVE_DEFAULTS
        missing = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        return self.model_copy(update=missing)

    def to_values(self) -> dict[str, Any]:
        """The settings that are set, as plain values."""
        return self.model_dump(exclude_none=True)


def read_configuration_file(path: Path) -> dict[str, Any]:
    """Read settings from a TOML file, unchecked but for known names.

    Raises:
        ConfigurationError: a missing or malformed file, or an unknown key.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a TOML file: {error}.") from error
    unknown = [key for key in values if key not in ReconstructionConfiguration.model_fields]
    if unknown:
        raise ConfigurationError(f"{path}: {' '.join(_unknown(key) for key in unknown)}")
    return values


def _unknown(key: str) -> str:
    known = list(ReconstructionConfiguration.model_fields)
    close = get_close_matches(key, known, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known are {', '.join(known)}."
    return f"There is no setting {key!r}. {hint}"


def _explain(details: Sequence[Any]) -> str:
    sentences = []
    # A setting of two types has two entries, one after the other.
    for name, group in groupby(details, key=lambda detail: str((*detail["loc"], "")[0])):
        found = list(group)
        if found[0]["type"] == "extra_forbidden":
            sentences.append(_unknown(name))
            continue
        messages = [detail["msg"].removeprefix("Value error, ") for detail in found]
        if name:
            wanted = " or ".join(message[0].lower() + message[1:] for message in messages)
            sentences.append(f"{name}: {wanted}; got {found[0]['input']!r}.")
        else:
            sentences += [f"{message[0].upper()}{message[1:]}." for message in messages]
    return " ".join(sentences)
