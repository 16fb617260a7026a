"""Pictures whose true counterfactuals are known: drawn from causes and nuisances."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from dipct.errors import ConfigurationError

# A pixel belongs to the edit if a channel changes by more; and so many pixels around it do.
_CHANGED, _DILATION = 0.02, 2
_SEEDS_APART = 1_000_003


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what it was drawn from.

    Attributes:
        causes: attributes by name; classes are functions of these alone.
        nuisances: all else, by name; ``noise`` is a number of the picture's own.
        image: float32 [C H W] from zero to one.
    """

    causes: Mapping[str, float]
    nuisances: Mapping[str, np.ndarray]
    image: np.ndarray


@dataclass(frozen=True, eq=False)
class TrueCounterfactuals:
    """Several right answers to a query.

    Attributes:
        images: each [C H W].
        may: where any of them edits the query, bool [H W].
        must: where all of them do, likewise.
    """

    images: tuple[np.ndarray, ...]
    may: np.ndarray
    must: np.ndarray


class SceneTask(ABC):
    """A classification task on pictures that are drawn.

    For every picture the true counterfactual is known: the same nuisances, and the causes of
    another class. With it the region that an explanation has to edit is known, which no set of
    photographs tells.

    Args:
        side: rows and columns of the pictures.
        label_noise: share of training labels that are wrong, so that a classifier is never sure.

    Attributes:
        classes: names of the classes.
        causes: names of the causes.

    Raises:
        ConfigurationError: pictures that are too small, or a share outside [0, 0.5).
    """

    classes: tuple[str, ...]
    causes: tuple[str, ...]
    smallest_side: int = 16

    def __init__(self, side: int, *, label_noise: float = 0.0) -> None:
        if not isinstance(side, int | np.integer) or side < self.smallest_side:
            raise ConfigurationError(
                f"These pictures need {self.smallest_side} pixels or more along a side; got "
                f"{side!r}."
            )
        if not 0 <= label_noise < 0.5:
            raise ConfigurationError(f"label_noise must lie in [0, 0.5); got {label_noise}.")
        self.side, self.label_noise = int(side), label_noise

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C H W]."""
        return (3, self.side, self.side)

    @abstractmethod
    def draw_causes(self, rng: np.random.Generator) -> dict[str, float]:
        """Causes of a picture."""

    @abstractmethod
    def draw_nuisances(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Nuisances of a picture."""

    @abstractmethod
    def render(
        self, causes: Mapping[str, float], nuisances: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The picture, float32 [C H W] from zero to one."""

    @abstractmethod
    def label(self, causes: Mapping[str, float]) -> int:
        """Class of a picture with these causes."""

    @abstractmethod
    def causes_of_class(
        self, causes: Mapping[str, float], target: int, rng: np.random.Generator
    ) -> dict[str, float]:
        """Causes that are like these and belong to the target class."""

    def sample(self, number: int, *, seed: int) -> list[Scene]:
        """Draw pictures; each depends on its number and the seed alone.

        Args:
            number: how many.
            seed: another seed, other pictures.
        """
        return [self.sample_one(i, seed=seed) for i in range(number)]

    def sample_one(self, index: int, *, seed: int) -> Scene:
        """The picture of a number; see :meth:`sample`.

        Args:
            index: its number, from zero on.
            seed: another seed, other pictures.
        """
        return self._scene(np.random.default_rng([seed, index]))

    def _scene(self, rng: np.random.Generator) -> Scene:
        causes, nuisances = self.draw_causes(rng), self.draw_nuisances(rng)
        return Scene(causes, nuisances, self.render(causes, nuisances))

    def labels(self, scenes: list[Scene], *, seed: int | None = None) -> np.ndarray:
        """Classes of pictures, int64 [N].

        Args:
            scenes: the pictures.
            seed: of the labels that are wrong; default: none is.
        """
        right = np.array([self.label(scene.causes) for scene in scenes], dtype=np.int64)
        if seed is None:
            return right
        rng = np.random.default_rng([seed, _SEEDS_APART])
        others = (right + rng.integers(1, len(self.classes), len(right))) % len(self.classes)
        return np.where(rng.random(len(right)) < self.label_noise, others, right)

    def counterfactual(self, scene: Scene, target: int, *, seed: int = 0) -> Scene:
        """The picture with the same nuisances and causes of another class.

        Args:
            scene: the picture.
            target: wanted class.
            seed: of what the target class leaves open.

        Raises:
            ConfigurationError: no such class, or that of the picture.
        """
        if not 0 <= target < len(self.classes) or target == self.label(scene.causes):
            raise ConfigurationError(
                f"target must be another class than {self.label(scene.causes)} from 0 to "
                f"{len(self.classes) - 1} ({', '.join(self.classes)}); got {target}."
            )
        # Not the same draw for every picture.
        rng = np.random.default_rng([seed, int(scene.nuisances["noise"])])
        causes = self.causes_of_class(scene.causes, target, rng)
        return replace(scene, causes=causes, image=self.render(causes, scene.nuisances))

    def with_other_nuisances(self, scene: Scene, *, seed: int) -> Scene:
        """The picture with the same causes and other nuisances."""
        nuisances = self.draw_nuisances(np.random.default_rng([seed, _SEEDS_APART]))
        return replace(scene, nuisances=nuisances, image=self.render(scene.causes, nuisances))

    def true_counterfactuals(
        self, scene: Scene, target: int, *, draws: int = 16
    ) -> TrueCounterfactuals:
        """Draw several.

        Args:
            scene: the picture.
            target: wanted class.
            draws: how many.

        Raises:
            ConfigurationError: no such class, or that of the picture.
        """
        images = tuple(self.counterfactual(scene, target, seed=k).image for k in range(draws))
        regions = [edit_region(scene.image, image) for image in images]
        return TrueCounterfactuals(images, np.any(regions, axis=0), np.all(regions, axis=0))


def edit_region(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pixels at or next to which two pictures differ.

    Args:
        image: [C H W].
        other: likewise.

    Returns:
        bool [H W].
    """
    changed = np.abs(other - image).max(0) > _CHANGED
    return ndimage.binary_dilation(changed, iterations=_DILATION) if changed.any() else changed
