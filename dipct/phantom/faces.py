"""Drawn faces with independent attributes: smile, glasses, hair, age."""

from collections.abc import Mapping

import numpy as np

from dipct.errors import ConfigurationError
from dipct.phantom.scenes import SceneTask

ATTRIBUTES = ("smile", "glasses", "bald", "old")

# Causes within this of zero are never drawn: no face is between two classes.
_GAP = 0.3
# Width of an edge [pixels].
_EDGE = 0.9


class FaceTask(SceneTask):
    """Faces with one attribute that makes the class; the others are drawn at will.

    Causes lie between -1 and 1, and the attribute is there where its cause is positive: ``smile``
    bends the mouth and reddens the cheeks, ``glasses`` darkens their frames, ``bald`` takes the
    hair, ``old`` draws lines on forehead and cheeks. Pose, skin, light, background and noise are
    nuisances. In units of the face: x from left to right and y downwards, the chin at one.

    Args:
        side: rows and columns.
        attribute: what makes the class.
        label_noise: see :class:`SceneTask`.
    """

    causes = ATTRIBUTES

    def __init__(
        self, side: int = 32, *, attribute: str = "smile", label_noise: float = 0.03
    ) -> None:
        super().__init__(side, label_noise=label_noise)
        if attribute not in ATTRIBUTES:
            raise ConfigurationError(
                f"attribute must be {', '.join(ATTRIBUTES)}; got {attribute!r}."
            )
        self.attribute = attribute
        self.classes = (f"not {attribute}", attribute)

    def draw_causes(self, rng: np.random.Generator) -> dict[str, float]:
        """See :meth:`SceneTask.draw_causes`."""
        return {name: _cause(rng, rng.random() < 0.5) for name in ATTRIBUTES}

    def draw_nuisances(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """See :meth:`SceneTask.draw_nuisances`."""
        tone = rng.uniform(0.35, 0.95)
        return {
            "shift": rng.uniform(-0.1, 0.1, 2),
            "turn": np.array(rng.uniform(-0.15, 0.15)),
            "scale": np.array(rng.uniform(0.8, 0.95)),
            "skin": tone * np.array([1.0, 0.78, 0.64]) + rng.uniform(-0.04, 0.04, 3),
            "hair": rng.uniform(0.05, 0.5) * np.array([1.0, 0.75, 0.5]),
            "light": np.array([rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.25)]),
            "background": rng.uniform(0.1, 0.9, 3),
            "clutter": rng.uniform(size=(3, 7)),
            "eyes": rng.uniform([0.26, 0.07], [0.34, 0.11]),
            "mouth": rng.uniform([0.3, 0.42], [0.4, 0.5]),
            "noise": np.array(rng.integers(2**31)),
        }

    def label(self, causes: Mapping[str, float]) -> int:
        """See :meth:`SceneTask.label`."""
        return int(causes[self.attribute] > 0)

    def causes_of_class(
        self, causes: Mapping[str, float], target: int, rng: np.random.Generator
    ) -> dict[str, float]:
        """See :meth:`SceneTask.causes_of_class`: the one attribute, drawn anew."""
        return {**causes, self.attribute: _cause(rng, target == 1)}

    def render(
        self, causes: Mapping[str, float], nuisances: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """See :meth:`SceneTask.render`."""
        n, canvas = nuisances, _Canvas(self.side, nuisances)
        for x, y, width, height, *colour in n["clutter"]:
            canvas.on_background(x, y, width, height, np.array(colour))
        skin, hair = n["skin"], n["hair"]
        shade = 0.75 * skin
        hair_left = np.clip(0.5 - 1.2 * causes["bald"], 0, 1)
        canvas.paint(hair, canvas.ellipse(0, -0.22, 0.8, 0.86), hair_left)
        canvas.paint(skin, canvas.ellipse(0, 0.05, 0.7, 0.92))
        fringe = np.minimum(canvas.ellipse(0, 0.05, 0.7, 0.92), canvas.above(-0.5))
        canvas.paint(hair, fringe, hair_left)
        lines = np.clip(0.5 + 1.2 * causes["old"], 0, 1)
        for y in (-0.42, -0.34):
            canvas.paint(0.6 * skin, canvas.curve(0, y, 0.34, -0.03, 0.03), 0.8 * lines)
        for side in (-1, 1):
            canvas.paint(0.6 * skin, canvas.curve(0.47 * side, 0.3, 0.07, 0.1, 0.03), 0.8 * lines)
        gap, size = n["eyes"]
        for side in (-1, 1):
            canvas.paint(np.ones(3), canvas.ellipse(gap * side, -0.1, 1.5 * size, size))
            canvas.paint(np.full(3, 0.08), canvas.ellipse(gap * side, -0.1, 0.6 * size, 0.8 * size))
            canvas.paint(0.6 * hair, canvas.curve(gap * side, -0.28, 0.15, -0.05, 0.05))
            blush = np.array([0.85, 0.3, 0.3])
            cheek = canvas.ellipse(0.44 * side, 0.24, 0.17, 0.13)
            canvas.paint(blush, cheek, 0.6 * np.clip(causes["smile"], 0, 1))
        frames = np.clip(0.5 + 1.2 * causes["glasses"], 0, 1)
        for side in (-1, 1):
            canvas.paint(np.full(3, 0.1), canvas.ring(gap * side, -0.1, 0.22, 0.17, 0.05), frames)
        canvas.paint(np.full(3, 0.1), canvas.curve(0, -0.1, gap - 0.22, -0.02, 0.05), frames)
        canvas.paint(shade, canvas.ellipse(0, 0.12, 0.07, 0.12))
        width, height = n["mouth"]
        bend = 0.2 * causes["smile"]
        lips = np.array([0.65, 0.2, 0.2])
        canvas.paint(lips, canvas.curve(0, height, width, bend, 0.09))
        return canvas.finished()


def _cause(rng: np.random.Generator, is_there: bool) -> float:
    size = rng.uniform(_GAP, 1.0)
    return float(size if is_there else -size)


class _Canvas:
    """Soft shapes in the units of a face."""

    def __init__(self, side: int, nuisances: Mapping[str, np.ndarray]) -> None:
        at = (np.arange(side) + 0.5) / side * 2 - 1
        rows, columns = np.meshgrid(at, at, indexing="ij")
        self._rows, self._columns = rows, columns
        turn, scale = float(nuisances["turn"]), float(nuisances["scale"])
        dx, dy = columns - nuisances["shift"][0], rows - nuisances["shift"][1]
        self._x = (np.cos(turn) * dx + np.sin(turn) * dy) / scale
        self._y = (-np.sin(turn) * dx + np.cos(turn) * dy) / scale
        # Of an edge, in these units.
        self._width = _EDGE * 2 / side / scale
        self._nuisances = nuisances
        self.image = np.broadcast_to(nuisances["background"][:, None, None], (3, side, side)).copy()

    def paint(self, colour: np.ndarray, cover: np.ndarray, strength: float = 1.0) -> None:
        self.image += strength * cover * (colour[:, None, None] - self.image)

    def _cover(self, distance: np.ndarray) -> np.ndarray:
        """From signed distances, negative inside."""
        t = np.clip(0.5 - distance / self._width, 0, 1)
        return t * t * (3 - 2 * t)

    def ellipse(self, x: float, y: float, a: float, b: float) -> np.ndarray:
        radius = np.hypot((self._x - x) / a, (self._y - y) / b)
        return self._cover((radius - 1) * min(a, b))

    def ring(self, x: float, y: float, a: float, b: float, thickness: float) -> np.ndarray:
        radius = np.hypot((self._x - x) / a, (self._y - y) / b)
        return self._cover(np.abs(radius - 1) * min(a, b) - thickness / 2)

    def above(self, y: float) -> np.ndarray:
        return self._cover(self._y - y)

    def curve(self, x: float, y: float, a: float, bend: float, thickness: float) -> np.ndarray:
        """A parabola of half-width a, whose ends are higher than its middle by the bend."""
        across = (self._x - x) / a
        height = self._y - (y - bend * (across.clip(-1, 1) ** 2 - 0.5))
        slope = 2 * bend / a * across.clip(-1, 1)
        along = (np.abs(across) - 1) * a
        return np.minimum(
            self._cover(np.abs(height) / np.hypot(1, slope) - thickness / 2), self._cover(along)
        )

    def on_background(
        self, x: float, y: float, width: float, height: float, colour: np.ndarray
    ) -> None:
        """A soft rectangle somewhere behind the face."""
        dx = np.abs(self._columns - (2 * x - 1)) - 0.1 - 0.4 * width
        dy = np.abs(self._rows - (2 * y - 1)) - 0.1 - 0.4 * height
        self.paint(colour, self._cover(np.maximum(dx, dy)), 0.7)

    def finished(self) -> np.ndarray:
        angle, strength = self._nuisances["light"]
        slope = np.cos(angle) * self._columns + np.sin(angle) * self._rows
        rng = np.random.default_rng(int(self._nuisances["noise"]))
        lit = self.image * (1 + strength * slope) + 0.015 * rng.standard_normal(self.image.shape)
        return lit.clip(0, 1).astype(np.float32)
