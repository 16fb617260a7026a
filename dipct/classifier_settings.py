"""Settings of the training of a classifier: the command line's and the verb's."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dipct.errors import ConfigurationError
from dipct.settings import CheckedSettings

PRESETS: dict[str, dict[str, Any]] = {
    # Both papers: ResNet-18, beta_1 = 1, beta_2 = 0.5, one image in ten held out. The first
    # does not say how large its images are: it has those of the second here.
    "s1": {"architecture": "resnet18", "side": 96, "variant": "s1", "held_out_share": 0.1},
    # arXiv 2109.14274, section 4: batches of 128 and Adam at 1e-4.
    "disc": {
        "architecture": "resnet18",
        "side": 96,
        "variant": "disc",
        "held_out_share": 0.1,
        "batch": 128,
        "learning_rate": 1e-4,
    },
}
"""What the papers say of the training; neither says for how long. The loss estimator of s1 has the
ranking loss as it is printed there, which has the same minimisers."""


class ClassifierSettings(CheckedSettings):
    """Everything that decides how a classifier and its heads are trained."""

    architecture: Literal["small", "small-halved", "resnet18"] = "small"
    """A residual network for 32 to 64 pixels, the same on images that it halves first, or
    ResNet-18."""
    side: int | None = Field(default=None, ge=16)
    """Pixels along the sides of the images; default: 32 for faces, 64 for everything else."""
    steps: int = Field(default=1500, ge=1)
    """Of the classifier, with its loss estimator."""
    batch: int = Field(default=64, ge=2)
    """Images in a step."""
    learning_rate: float = Field(default=2e-3, gt=0, allow_inf_nan=False)
    """Highest rate of Adam, over one cycle."""
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    """Of Adam."""
    loss_estimator: bool = True
    """Train a loss estimator with it."""
    ranking_weight: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Of the loss estimator's loss."""
    variant: Literal["s1", "disc"] = "disc"
    """Of the ranking loss."""
    detach_after: float | None = Field(default=None, ge=0, le=1)
    """Share of the steps after which the ranking loss no longer shapes the classifier."""
    centroids: bool = False
    """Fit centroids of the classes to the trained classifier (DUQ)."""
    centroid_steps: int = Field(default=300, ge=1)
    """Of that fit."""
    flip: bool = True
    """Mirror images at random."""
    shift: int = Field(default=2, ge=0)
    """Move images at random by up to so many pixels."""
    noise: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Add Gaussian noise of a standard deviation drawn from zero to this one for each image."""
    number: int = Field(default=5000, ge=8)
    """Pictures to draw, of a drawn task."""
    held_out_share: float = Field(default=0.2, gt=0, lt=1)
    """Of the images, for the report and for the target of the loss estimator."""
    seed: int = Field(default=0, ge=0, lt=2**62)
    """Of parameters, images, batches and of what is held out."""
    device: str = "cpu"
    """Where to compute: cpu or a CUDA device."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, part in (
            ("detach_after", "loss_estimator"),
            ("ranking_weight", "loss_estimator"),
            ("variant", "loss_estimator"),
            ("centroid_steps", "centroids"),
        ):
            is_default = getattr(self, name) == type(self).model_fields[name].default
            if not getattr(self, part) and not is_default:
                raise ValueError(f"{name} has no effect without {part}; leave it out")
        return self

    @classmethod
    def of_preset(cls, preset: str | None, values: Mapping[str, Any]) -> Self:
        """Settings of a preset, with others in the place of some.

        Args:
            preset: ``s1``, ``disc``, or None for the defaults.
            values: of fields, by name.

        Raises:
            ConfigurationError: an unknown preset, unknown fields or impossible values.
        """
        if preset is not None and preset not in PRESETS:
            raise ConfigurationError(f"preset must be {' or '.join(PRESETS)}; got {preset!r}.")
        return cls.from_values({**PRESETS.get(preset or "", {}), **dict(values)})
