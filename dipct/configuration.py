"""Settings of a reconstruction: checked when made, from keywords or a TOML file."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from dipct.errors import ConfigurationError
from dipct.settings import CheckedSettings, unknown_setting

Method = Literal["fbp", "fdk", "cgls", "sirt", "tv", "dip", "edip"]
METHODS: tuple[str, ...] = get_args(Method)

NETWORK_METHODS = ("dip", "edip")
"""Methods whose image a network makes."""

SELECTIONS = ("views", "angular_range", "bin", "pixels")
"""Settings that choose what of a scan is used, and on which grid."""

_ANALYTIC = ("fbp", "fdk")
_ITERATIVE = ("cgls", "sirt", "tv", "dip", "edip")
_NETWORK = NETWORK_METHODS
_METHODS_OF: dict[str, tuple[str, ...]] = {
    "filter": _ANALYTIC,
    "frequency_scaling": _ANALYTIC,
    "projector": _ITERATIVE,
    "backend": _ITERATIVE,
    "iterations": _ITERATIVE,
    "tolerance": ("cgls", "tv"),
    "stopping": ("cgls", "sirt", *_NETWORK),
    "window": _NETWORK,
    "patience": _NETWORK,
    "nonnegative": ("sirt", "tv"),
    "tv_weight": ("tv", *_NETWORK),
    "isotropic": ("tv", *_NETWORK),
    "network": ("dip",),
    "init": ("edip",),
    "input": _NETWORK,
    "output": ("dip",),
    "upsampling": ("dip",),
    "precision": _NETWORK,
    "learning_rate": _NETWORK,
    "warm_up": _NETWORK,
    "encoder_learning_rate": ("edip",),
    "fixed_encoder": ("edip",),
    "parameters": ("edip",),
    "dimension": ("edip",),
    "kept_share": ("edip",),
    "rank": ("edip",),
    "optimiser": ("edip",),
    "decay": _NETWORK,
}
_WARM_UP = 100
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
        "warm_up": _WARM_UP,
        "decay": True,
        "stopping": "discrepancy",
    },
    "edip": {
        "tv_weight": "auto",
        "isotropic": False,
        "fixed_encoder": False,
        "parameters": "all",
        "optimiser": "adam",
        "stopping": "discrepancy",
    },
}
_OPTIMISER_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"iterations": 1000, "precision": "auto", "warm_up": _WARM_UP, "decay": True},
    "l-bfgs": {"iterations": 250, "precision": "float32"},
    "natural-gradient": {"iterations": 100, "precision": "float32"},
}
_PARAMETER_DEFAULTS: dict[str, dict[str, Any]] = {
    "all": {},
    "subspace": {"dimension": 200, "kept_share": 1.0},
    "singular-values": {},
}
# Of Adam: a coefficient of a direction moves many parameters at once.
_LEARNING_RATES = {"all": 1e-3, "subspace": 1e-2, "singular-values": 1e-3}
_VARIANCE_DEFAULTS = {"window": 100, "patience": 1000}
_ITERATIVE_DEFAULTS = {"projector": "siddon", "backend": "matrix"}


def settings_of(method: str) -> set[str]:
    """Names of the settings that a method has."""
    others = {name for name, methods in _METHODS_OF.items() if method not in methods}
    return set(ReconstructionConfiguration.model_fields) - others


class Settings(CheckedSettings):
    """Checked settings, and the choice of what is used of a scan."""

    views: int | None = Field(default=None, ge=1)
    """Use so many equispaced views."""
    angular_range: float | None = Field(default=None, gt=0, le=720)
    """Keep the views within so many degrees of the first."""
    bin: int = Field(default=1, ge=1)
    """Average so many neighbouring detector cells."""
    pixels: int | None = Field(default=None, ge=2)
    """Pixels along the longer side of the image, same field of view."""


class ReconstructionConfiguration(Settings):
    """Everything that decides how a scan is reconstructed.

    A setting that the method does not use must be left out: giving one is an error, so that no
    setting is ever ignored in silence. :meth:`resolved` fills in the method's defaults.
    """

    method: Method
    """fbp, fdk, cgls, sirt, tv, dip or edip."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random: an example's object and noise."""
    device: str = "cpu"
    """Where to compute: cpu or a CUDA device."""
    filter: Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"] | None = None
    """Filter of FBP and FDK."""
    frequency_scaling: float | None = Field(default=None, gt=0, le=1)
    """Cut-off of the filter as a share of the Nyquist frequency."""
    projector: Literal["siddon", "joseph"] | None = None
    """How rays meet pixels: exact lengths or interpolation."""
    backend: Literal["matrix", "traced", "astra"] | None = None
    """Stored sparse matrix, rays traced anew for every product, or ASTRA's projectors."""
    iterations: int | None = Field(default=None, ge=0)
    """Most iterations; none gives the image of the pretrained network as it is (edip)."""
    tolerance: float | None = Field(default=None, gt=0, lt=1)
    """Stop at this relative duality gap (tv) or normal-equation residual (cgls)."""
    stopping: Literal["none", "discrepancy", "variance"] | None = None
    """When to stop before the last iteration: never, once the residual is as large as the noise
    (cgls, sirt, dip and edip, and the default of the latter two), or where the images change least
    (dip, edip)."""
    window: int | None = Field(default=None, ge=2)
    """Images in the moving variance by which dip stops."""
    patience: int | None = Field(default=None, ge=1)
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
    init: str | None = None
    """File of the pretrained network that edip begins with."""
    input: Literal["noise", "fbp", "both"] | None = None
    """What the network is fed with: noise, the filtered back-projection, or both; for edip what
    it was pretrained with where it is left out."""
    output: Literal["identity", "sigmoid"] | None = None
    """What follows the network's last convolution; a sigmoid keeps the image nonnegative."""
    upsampling: Literal["bilinear", "nearest"] | None = None
    """Interpolation in the network; nearest has a deterministic gradient on GPUs too."""
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    """Arithmetic of the network; auto is bfloat16 where the device has instructions for it."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Of Adam, after the warm-up."""
    warm_up: int | None = Field(default=None, ge=0)
    """Steps over which the learning rates rise."""
    encoder_learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Of the network's blocks from fine to coarse, where it is another (edip)."""
    fixed_encoder: bool | None = None
    """Keep those blocks as pretrained (edip)."""
    parameters: Literal["all", "subspace", "singular-values"] | None = None
    """What of the pretrained network is free: all parameters, those in the principal directions of
    its training, or the singular values of its convolutions (edip)."""
    dimension: int | None = Field(default=None, ge=1)
    """Number of principal directions (edip in a subspace)."""
    kept_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the parameters that change, those of the highest leverage (edip in a subspace)."""
    rank: int | None = Field(default=None, ge=1)
    """Most singular values of a convolution; the smallest beyond are set to zero (edip)."""
    optimiser: Literal["adam", "l-bfgs", "natural-gradient"] | None = None
    """How parameters are found (edip); the natural gradient is for few of them."""
    decay: bool | None = None
    """Whether the learning rate falls to zero over the iterations; not if stopping by the
    variance, which would fall with it."""

    @model_validator(mode="after")
    def _settings_of_the_method(self) -> Self:
        for name, methods in _METHODS_OF.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise ValueError(
                    f"the method {self.method} has no setting {name}; it belongs to "
                    f"{', '.join(methods)}"
                )
        if self.stopping == "variance" and self.method not in _NETWORK:
            raise ValueError("stopping by the variance belongs to the methods dip and edip")
        if self.method == "edip" and self.init is None:
            raise ValueError("the method edip needs init, the file of a pretrained network")
        if self.fixed_encoder and self.encoder_learning_rate is not None:
            raise ValueError("a fixed encoder has no encoder_learning_rate")
        self._check_restriction()
        # Shorter runs are recorded with the default.
        if self.warm_up not in (None, 0, _WARM_UP):
            iterations = self.resolved().iterations
            if iterations and self.warm_up >= iterations:
                raise ValueError(
                    f"warm_up must be shorter than the {iterations} iterations; got {self.warm_up}"
                )
        if self.iterations == 0 and self.method != "edip":
            raise ValueError("iterations must be at least 1, got 0; only edip has an image before")
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

    def _check_restriction(self) -> None:
        owners = {"dimension": "subspace", "kept_share": "subspace", "rank": "singular-values"}
        free = self.parameters or "all"
        for name, owner in owners.items():
            if getattr(self, name) is not None and free != owner:
                raise ValueError(f"{name} belongs to parameters {owner}")
        for name in ("fixed_encoder", "encoder_learning_rate"):
            if getattr(self, name) and (free, self.optimiser or "adam") != ("all", "adam"):
                raise ValueError(f"{name} belongs to parameters all and optimiser adam")
        if (self.optimiser or "adam") == "adam":
            return
        for name in ("learning_rate", "warm_up", "decay"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to optimiser adam")
        if self.precision in ("auto", "bfloat16"):
            raise ValueError(f"{self.optimiser} needs precision float32")
        if self.stopping == "variance":
            raise ValueError("stopping by the variance belongs to optimiser adam")
        if self.optimiser == "natural-gradient" and free == "all":
            raise ValueError(
                "natural-gradient stores a matrix of the parameters squared: use parameters "
                "subspace or singular-values"
            )

    def resolved(self) -> Self:
        """The same settings with the method's defaults filled in."""
        defaults = dict(_DEFAULTS[self.method])
        if self.method == "edip":
            parameters, optimiser = self.parameters or "all", self.optimiser or "adam"
            defaults |= _PARAMETER_DEFAULTS[parameters] | _OPTIMISER_DEFAULTS[optimiser]
            if optimiser == "adam":
                defaults["learning_rate"] = _LEARNING_RATES[parameters]
        if self.method in _ITERATIVE:
            defaults |= _ITERATIVE_DEFAULTS
        if self.stopping == "variance":
            defaults |= _VARIANCE_DEFAULTS | {"decay": False}
        missing = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        return self.model_copy(update=missing)


class PretrainingConfiguration(Settings):
    """Everything that decides how a network is pretrained for a scan."""

    images: str = "ellipses"
    """Training images: the name of a phantom that is drawn from seeds, or a folder."""
    steps: int = Field(default=4000, ge=1)
    """Training steps."""
    batch: int = Field(default=32, ge=1)
    """Images in a step, of all processes together."""
    noise_level: float = Field(default=0.05, ge=0, le=10)
    """Standard deviation of the noise as a share of the mean line integral of an image."""
    network: Literal["small", "128", "walnut"] | None = None
    """See :func:`dipct.generator.make_network`; chosen by the size of the image if left out."""
    input: Literal["noise", "fbp", "both"] = "fbp"
    """What the network is fed with."""
    output: Literal["identity", "sigmoid"] = "sigmoid"
    """What follows the network's last convolution."""
    upsampling: Literal["bilinear", "nearest"] = "bilinear"
    """Interpolation in the network."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network."""
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    """Highest rate of the one-cycle schedule."""
    weight_decay: float = Field(default=1e-5, ge=0, le=1)
    """Of Adam."""
    validation_images: int = Field(default=32, ge=1)
    """Images that the validation PSNR is the mean of."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between two validations."""
    snapshots: int = Field(default=0, ge=0)
    """Parameters to keep from the course of the training, for its principal directions."""
    workers: int = Field(default=0, ge=0)
    """Processes that draw images ahead of time; 0 draws them between the steps."""
    projector: Literal["siddon", "joseph"] = "siddon"
    """How rays meet pixels: exact lengths or interpolation."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first parameters, the images and the noise."""
    device: str = "cpu"
    """Where to compute: cpu or a CUDA device."""


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
    known = list(ReconstructionConfiguration.model_fields)
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ConfigurationError(
            f"{path}: {' '.join(unknown_setting(key, known) for key in unknown)}"
        )
    return values
