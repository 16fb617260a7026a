"""Settings of pre-images and counterfactuals, and the methods that are presets of them."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dipct.errors import ConfigurationError
from dipct.settings import CheckedSettings

GeneratorName = Literal["pixels", "unet", "inr", "deep-decoder"]
Manifold = Literal["none", "loss-estimator", "centroids", "batch-statistics"]

# Of logits of pixels, of networks that show the query already, and of random ones.
_LEARNING_RATES = {"pixels": 5e-2, "fit": 3e-4, "random": 1e-3}
_PIXELS: dict[str, Any] = {"generator": "pixels"}
# The middle of what benchmarks/counterfactuals.py tries on drawn faces, which most arms choose.
_OF_FEATURES = {"class_weight": 0.3}
_GENERATORS: dict[str, dict[str, Any]] = {
    "dip": {"generator": "unet"},
    "inr": {"generator": "inr"},
    "deep-decoder": {"generator": "deep-decoder"},
}
_MANIFOLDS: dict[str, dict[str, Any]] = {
    "": {},
    "-dep": {"manifold": "loss-estimator"},
    "-duq": {"manifold": "centroids"},
    "-bn": {"manifold": "batch-statistics"},
}

_WHY = {
    "width": "on this generator, which has no such width",
    "frequency_std": "but on an implicit network",
    "manifold_weight": "without a manifold term",
    "norm_exponent": "without norm_weight",
    "distance": "where an activation is maximised",
    "class_margin": "but on class_loss margin",
    "class_probability": "but on class_loss probability",
    "probability": "where class_probability asks for what lies between two classes",
    "relaxation": "unless the fit is progressive",
    "start": "on pixels, which begin at the query",
    "fit_steps": "unless a network is fitted to the query first",
    "fit_learning_rate": "unless a network is fitted to the query first",
    "decay": "but on optimiser adam",
    "radius": "but on optimiser sign",
    "scales": "but on optimiser normalised",
}

PRE_IMAGE_METHODS: dict[str, dict[str, Any]] = {
    "pixel-tv": _PIXELS | {"tv_weight": 1e-2},
    # Mahendran & Vedaldi (CVPR 2015, section 4): the alpha-norm, with alpha 6.
    "pixel-alpha": _PIXELS | {"norm_weight": 1.0, "norm_exponent": 6.0},
    **{
        f"{name}{ending}": generator | manifold
        for name, generator in _GENERATORS.items()
        for ending, manifold in _MANIFOLDS.items()
        if ending != "-duq"
    },
}
"""Settings of each method of pre-images, where they are not the defaults; the weights are dipct's
own."""

COUNTERFACTUAL_METHODS: dict[str, dict[str, Any]] = {
    "s1": {
        "space": "features",
        "layers": ("layer1",),
        "generator": "unet",
        "manifold": "loss-estimator",
        "start": "random",
        "steps": 5000,
        "decay": False,
    },
    "disc": {
        "space": "features",
        "generator": "inr",
        "manifold": "loss-estimator",
        "progressive": True,
        "steps": 1500,
        **_OF_FEATURES,
    },
    **{
        f"{start}-{name}{ending}": space | prior | manifold
        for start, space in (
            ("lso", {"space": "features"} | _OF_FEATURES),
            ("iso", {"space": "image"}),
        )
        for name, prior in {
            "tv": _PIXELS | {"tv_weight": 1e-2, "norm_weight": 1e-3},
            **_GENERATORS,
        }.items()
        for ending, manifold in _MANIFOLDS.items()
    },
    # The distance of Wachter et al. for a network: an edit in few places.
    **{
        f"l1-{name}{ending}": {
            "space": "image",
            "distance": "l1",
            **generator,
            **_OF_FEATURES,
            **manifold,
        }
        for name, generator in _GENERATORS.items()
        for ending, manifold in _MANIFOLDS.items()
    },
    # Wachter et al. (Harvard J. Law & Tech. 31, 2018, eq. 1), on pixels.
    "wachter": _PIXELS
    | {"space": "image", "distance": "l1", "class_loss": "probability", "class_weight": 0.3},
    # Madry et al. (ICLR 2018); the ball is that of most evaluations of adversarial images.
    "pgd": {
        "space": "image",
        "generator": "pixels",
        "optimiser": "sign",
        "fidelity_weight": 0.0,
        "class_weight": 1.0,
        "learning_rate": 2 / 255,
        "radius": 8 / 255,
        "steps": 40,
    },
    # Mordvintsev, Olah & Tyka (2015), towards the logit of the target.
    "deep-dream": _PIXELS
    | {
        "space": "image",
        "optimiser": "normalised",
        "fidelity_weight": 0.0,
        "class_loss": "logit",
        "class_weight": 1.0,
        "tv_weight": 1e-1,
        "jitter": 2,
        "scales": (0.0, 1.0, 2.0),
        "steps": 40,
    },
    # Yin et al. (CVPR 2020), from the query, whose own statistics are not held against it.
    "deep-inversion": _PIXELS
    | {
        "space": "image",
        "manifold": "batch-statistics",
        "manifold_weight": 5e-2,
        "fidelity_weight": 0.0,
        "class_weight": 1.0,
        "tv_weight": 1e-2,
        "norm_weight": 1e-3,
        "jitter": 2,
    },
}
"""Settings of each method of counterfactuals, where they are not the defaults. ``s1`` is arXiv
2010.12046 and ``disc`` arXiv 2109.14274, as far as these state their settings; what they do not
state is dipct's own, and so are all weights but the defaults."""


class InversionSettings(CheckedSettings):
    """What pre-images and counterfactuals have in common.

    The objective is ``fidelity_weight * distance + manifold_weight * consistency + tv_weight * TV /
    pixels + norm_weight * norm``: distances are relative and all else is a mean, so that weights
    mean the same at every size.
    """

    methods: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    method: str
    """Name of the preset that these settings began as."""
    layers: tuple[str, ...] = ()
    """Layers of the features; default: the first two stages of dipct's own classifiers."""
    generator: GeneratorName = "inr"
    """What makes the image: pixels, a U-Net from noise, an implicit network, a deep decoder."""
    width: int = Field(default=64, ge=4)
    """Channels of an implicit network, or of a deep decoder."""
    frequency_std: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of the frequencies of an implicit network [cycles per image]; default: see
    :func:`dipct.generator.fourier_features`."""
    manifold: Manifold = "none"
    """Manifold consistency: by the loss estimator, the centroids, or batch statistics."""
    distance: Literal["relative", "mean-square", "l2", "l1"] = "relative"
    """From the query; l1 in image space alone."""
    fidelity_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Of the distance from the query, or of the activation that is maximised."""
    manifold_weight: float = Field(default=0.02, ge=0, allow_inf_nan=False)
    """Of manifold consistency; 0.02 in arXiv 2010.12046."""
    tv_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of total variation per pixel."""
    norm_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of the mean distance of pixels from mid-grey, to some power."""
    norm_exponent: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    """That power."""
    steps: int = Field(default=300, ge=1)
    """Of the fit."""
    learning_rate: float = Field(default=_LEARNING_RATES["random"], gt=0, allow_inf_nan=False)
    """Of the optimiser; of methods by default 0.05 for pixels, 0.0003 for networks that show the
    query already and 0.001 for random ones."""
    decay: bool = False
    """Whether the rate of Adam rises over the first tenth of the steps and falls by a cosine to
    zero; of a progressive fit in every stage. The first steps of Adam are of full size in every
    parameter, whatever the gradient, and take an image apart that was there."""
    seed: int = Field(default=0, ge=0, lt=2**62)
    """Of networks and all else that is random."""
    device: str = "cpu"
    """Where to compute: cpu or a CUDA device."""

    def to_values(self) -> dict[str, Any]:
        """The settings that are set, as plain values that files hold as they are."""
        return self.model_dump(mode="json", exclude_none=True)

    def _check_effect(self, effective: Mapping[str, bool]) -> None:
        """Refuse settings that were changed and have no effect.

        Args:
            effective: by name of a setting, whether it has one.
        """
        for name, has_effect in effective.items():
            if not has_effect and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect {_WHY[name]}; leave it out")

    def _effective(self) -> dict[str, bool]:
        """Whether settings that belong to others have an effect."""
        return {
            "width": self.generator in ("inr", "deep-decoder"),
            "frequency_std": self.generator == "inr",
            "manifold_weight": self.manifold != "none",
            "norm_exponent": self.norm_weight > 0,
        }

    @classmethod
    def of_method(cls, method: str, values: Mapping[str, Any] | None = None) -> Self:
        """Settings of a method, with others in the place of some.

        The learning rate is that of the generator, unless the method or the values have one.

        Args:
            method: its name.
            values: of fields, by name.

        Raises:
            ConfigurationError: an unknown method, unknown fields or impossible values.
        """
        if method not in cls.methods:
            raise ConfigurationError(
                f"There is no method {method!r}; there are {', '.join(cls.methods)}."
            )
        given = {**cls.methods[method], "method": method, **dict(values or {})}
        default = {name: field.default for name, field in cls.model_fields.items()} | given
        # All pre-images begin at random networks.
        kind = "pixels" if default["generator"] == "pixels" else default.get("start", "random")
        rate = _LEARNING_RATES.get(str(kind), default["learning_rate"])
        return cls.from_values({"learning_rate": rate, **given})


class PreImageSettings(InversionSettings):
    """Everything that decides how a pre-image is made."""

    methods: ClassVar[Mapping[str, Mapping[str, Any]]] = PRE_IMAGE_METHODS

    maximise: str | None = None
    """In place of features like the query's: a layer, or one of its channels as ``layer3:17``, or a
    class as ``logits:1``, whose activation shall be large."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_effect(self._effective() | {"distance": self.maximise is None})
        if self.distance == "l1":
            raise ValueError("distance l1 is of images; features have relative, mean-square or l2")
        if self.manifold == "centroids":
            raise ValueError("centroids compare two classes, and a pre-image has no target")
        if self.maximise is not None and self.layers:
            raise ValueError("layers have no meaning where an activation is maximised")
        return self


class CounterfactualSettings(InversionSettings):
    """Everything that decides how a counterfactual is made.

    The objective has one term more, ``class_weight * class``.
    """

    methods: ClassVar[Mapping[str, Mapping[str, Any]]] = COUNTERFACTUAL_METHODS

    decay: bool = True
    """As of pre-images, but on by default: most fits begin at an image that is to stay."""
    space: Literal["features", "image"] = "features"
    """Where the image is to stay near the query: in hidden features, or in its pixels."""
    class_weight: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Of the target class; 0.1 in arXiv 2010.12046."""
    class_loss: Literal["cross-entropy", "margin", "probability", "logit"] = "cross-entropy"
    """How the target class is asked for."""
    class_margin: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """By which its logit shall lead, for the margin loss."""
    class_probability: float = Field(default=1.0, gt=0, le=1)
    """That it shall have, for the probability loss. Below one it is asked for what lies between two
    classes: a counterfactual is then valid, and confident, where its probability is near this
    one."""
    measurement_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Of the misfit to a scan, where one is given: of half its mean square in standard deviations
    of the noise."""
    probability: float = Field(default=0.9, gt=0, lt=1)
    """Of the target, from which on a counterfactual is called confident."""
    patience: int | None = Field(default=None, ge=1)
    """Confident steps in a row after which to stop; default: all steps are made."""
    progressive: bool = False
    """Fit more and more blocks of the network, ever more freely (arXiv 2109.14274, section 3.4), in
    as many stages as it has blocks; steps that cannot be divided among them go to the last."""
    relaxation: float = Field(default=0.7, gt=0, le=1)
    """Factor of the fidelity's weight from stage to stage."""
    start: Literal["fit", "random"] = "fit"
    """From a network that was fitted to the query, or from a random one."""
    fit_steps: int = Field(default=500, ge=1)
    """Of that fit."""
    fit_learning_rate: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    """Of Adam in that fit."""
    optimiser: Literal["adam", "sign", "normalised"] = "adam"
    """Adam, steps of one size in every pixel within a ball (PGD), or gradients divided by their
    mean size (Deep Dream)."""
    radius: float = Field(default=8 / 255, gt=0, le=1)
    """Of the ball in the maximum norm, for sign steps."""
    scales: tuple[float, ...] = (0.0,)
    """Widths of the Gaussians that the gradient is smoothed with, for normalised steps [pixels]."""
    jitter: int = Field(default=0, ge=0)
    """Pixels by which the image is moved at random before each step."""

    @property
    def is_graded(self) -> bool:
        """Whether what lies between two classes is asked for, and not a class."""
        return self.class_loss == "probability" and self.class_probability < 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        is_network = self.generator != "pixels"
        is_fitted = is_network and self.start == "fit"
        self._check_effect(
            self._effective()
            | {
                "class_margin": self.class_loss == "margin",
                "class_probability": self.class_loss == "probability",
                "probability": not self.is_graded,
                "relaxation": self.progressive,
                "start": is_network,
                "fit_steps": is_fitted,
                "fit_learning_rate": is_fitted,
                "decay": self.optimiser == "adam",
                "radius": self.optimiser == "sign",
                "scales": self.optimiser == "normalised",
            }
        )
        if self.progressive and not is_network:
            raise ValueError("progressive fits free the blocks of a network; pixels have one block")
        if self.optimiser != "adam" and is_network:
            raise ValueError(f"optimiser {self.optimiser} is for the generator pixels")
        if self.jitter and (is_network or self.fidelity_weight):
            raise ValueError(
                "jitter is for the generator pixels without a fidelity, which would compare a "
                "moved image with a query that has not moved; give fidelity_weight 0"
            )
        if self.layers and self.space == "image":
            raise ValueError("layers have no meaning in image space")
        if self.distance == "l1" and self.space == "features":
            raise ValueError("distance l1 is of images; give space image")
        return self
