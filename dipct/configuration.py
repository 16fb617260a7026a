"""Settings of a reconstruction: checked when made, from keywords or a TOML file."""

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dipct.errors import ConfigurationError

Method = Literal["fbp", "fdk", "cgls", "sirt", "tv", "dip"]
METHODS: tuple[str, ...] = get_args(Method)

SELECTIONS = ("views", "angular_range", "bin", "pixels")
"""Settings that choose what of a scan is used, and on which grid."""

_ANALYTIC = ("fbp", "fdk")
_ITERATIVE = ("cgls", "sirt", "tv", "dip")
_SWITCHES = ("nonnegative", "isotropic", "decay")
_METHODS_OF: dict[str, tuple[str, ...]] = {
    "filter": _ANALYTIC,
    "frequency_scaling": _ANALYTIC,
    "projector": _ITERATIVE,
    "backend": _ITERATIVE,
    "iterations": _ITERATIVE,
    "tolerance": ("cgls", "tv"),
    "stopping": ("cgls", "sirt", "dip"),
    "window": ("dip",),
    "patience": ("dip",),
    "nonnegative": ("sirt", "tv"),
    "tv_weight": ("tv", "dip"),
    "isotropic": ("tv", "dip"),
    "network": ("dip",),
    "input": ("dip",),
    "output": ("dip",),
    "upsampling": ("dip",),
    "precision": ("dip",),
    "learning_rate": ("dip",),
    "decay": ("dip",),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "fbp": {"filter": "ram-lak", "frequency_scaling": 1.0},
    "fdk": {"filter": "ram-lak", "frequency_scaling": 1.0},
    "cgls": {"iterations": 30, "tolerance": 1e-6, "stopping": "none"},
    "sirt": {"iterations": 200, "nonnegative": True, "stopping": "none"},
    "tv": {
        "iterations": 3000,
        "tolerance": 1e-3,
        "nonnegative": True,
        "tv_weight": 2.0,
        "isotropic": False,
    },
    "dip": {
        "iterations": 3000,
        "tv_weight": "auto",
        "isotropic": False,
        "input": "fbp",
        "output": "sigmoid",
        "upsampling": "bilinear",
        "precision": "auto",
        "learning_rate": 1e-3,
        "decay": True,
        "stopping": "discrepancy",
    },
}
_VARIANCE_DEFAULTS = {"window": 100, "patience": 1000}
_ITERATIVE_DEFAULTS = {"projector": "siddon", "backend": "matrix"}


class ReconstructionConfiguration(BaseModel):
    """Everything that decides how a scan is reconstructed.

    A setting that the method does not use must be left out: giving one is an error, so that no
    setting is ever ignored in silence. :meth:`resolved` fills in the method's defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method
    """fbp, fdk, cgls, sirt, tv or dip."""
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
    stopping: Literal["none", "discrepancy", "variance"] | None = None
    """When to stop before the last iteration: never, once the residual is as large as the noise
    (cgls, sirt, dip, and the default of dip), or where the images change least (dip)."""
    window: int | None = Field(None, ge=2)
    """Images in the moving variance by which dip stops."""
    patience: int | None = Field(None, ge=1)
    """Iterations after the least moving variance before dip stops."""
    nonnegative: bool | None = None
    """Constrain the image to be nonnegative (sirt, tv)."""
    tv_weight: float | Literal["auto", "discrepancy"] | None = None
    """Weight of total variation of the image scaled to order one; "discrepancy" chooses it so that
    the residual of a TV reconstruction is as large as the noise, "auto" the same but never less
    than 2: where the noise is underestimated, a smaller weight would fit artefacts."""
    isotropic: bool | None = None
    """Isotropic instead of anisotropic total variation."""
    network: Literal["small", "128", "walnut"] | None = None
    """Network of dip, see :func:`dipct.generator.make_network`; chosen by the size of the image
    where it is left out."""
    input: Literal["noise", "fbp", "both"] | None = None
    """What the network is fed with: noise, the filtered back-projection, or both."""
    output: Literal["identity", "sigmoid"] | None = None
    """What follows the network's last convolution; a sigmoid keeps the image nonnegative."""
    upsampling: Literal["bilinear", "nearest"] | None = None
    """Interpolation in the network; nearest has a deterministic gradient on GPUs too."""
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    """Arithmetic of the network; auto is bfloat16 where the device has instructions for it."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """Of Adam, after a short rise."""
    decay: bool | None = None
    """Whether the learning rate falls to zero over the iterations; not if stopping by the
    variance, which would fall with it."""

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
        if self.stopping == "variance" and self.method != "dip":
            raise ValueError("stopping by the variance belongs to the method dip")
        if self.stopping == "variance" and self.decay:
            raise ValueError(
                "decay and stopping by the variance exclude each other: the variance of the images "
                "falls with the learning rate"
            )
        if self.stopping != "variance" and not (self.window is None and self.patience is None):
            raise ValueError("window and patience belong to stopping variance")
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
        if self.stopping == "variance":
            defaults |= _VARIANCE_DEFAULTS | {"decay": False}
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
            sentences += [f"{_as_sentence(message)}." for message in messages]
    return " ".join(sentences)


def _as_sentence(message: str) -> str:
    """With a capital, unless it begins with the name of a setting."""
    if message.split()[0] in ReconstructionConfiguration.model_fields:
        return message
    return message[0].upper() + message[1:]
