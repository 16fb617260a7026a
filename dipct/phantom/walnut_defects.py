"""Slices of walnuts that are intact or cracked, as a scanner sees them."""

from collections.abc import Mapping

import numpy as np

from dipct.measurement.grid import Grid
from dipct.phantom.sampling import render
from dipct.phantom.scenes import SceneTask
from dipct.phantom.walnut import Walnut

# Causes of a crack within this of zero are never drawn: no nut is between two classes.
_GAP = 0.3
# Width of a crack at the gap and at one, in pixels of a picture of so many of them. Of 300 nuts of
# 48 pixels the darkest ten degrees of an intact shell had 0.43 of its median or more, those of a
# cracked one 0.13 or less (of 32 pixels 0.31 and 0.23): nothing natural looks like a crack.
_WIDTHS, _SIDE = (6.0, 8.0), 64
# Width of an edge [pixels].
_EDGE = 1.0
# What a crack leaves of the values.
_LEFT = 0.03
# Twice as fine along each axis: finer layers of the shell are lost in pixels of this size.
_SUPERSAMPLING = 2
# A nut of scale one is so much larger than the phantom, and fills the picture.
_ZOOM = 1.2
# How far a crack reaches outwards from the outline of the nut, which has bumps, and inwards, in
# the shell alone or through the kernel. In units of the nut.
_OUTWARDS, _SHALLOW, _DEEP = 0.25, 0.18, 0.45
# Angle against the shortest way through the shell, which is too thin to show that one [rad].
_SLANTS = (0.6, 1.1)
_BEND = 1.5


class WalnutTask(SceneTask):
    """Grey slices of walnuts: intact or cracked.

    A crack is a dark, slightly curved gap through the shell, which may run on through the kernel.
    Gaps in the kernel alone would not do: it has natural ones. Causes lie between -1 and 1:
    ``crack`` is positive where there is one and then makes its width, ``part`` is positive for the
    shell alone, ``place`` times pi is the angle about the centre of the nut, from the x axis
    towards y, ``slant`` and ``bend`` make its course. Where there is no crack the other causes do
    not show. The nut itself with its hollows and thin natural cracks, the height of the slice,
    pose, brightness and noise are nuisances.

    The nuts are those of :class:`dipct.phantom.walnut.Walnut`, drawings that follow real ones in
    character alone.

    Args:
        side: rows and columns.
        label_noise: see :class:`SceneTask`.
    """

    classes = ("intact", "cracked")
    causes = ("crack", "part", "place", "slant", "bend")
    smallest_side = 32

    def __init__(self, side: int = 64, *, label_noise: float = 0.03) -> None:
        super().__init__(side, label_noise=label_noise)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C H W], grey."""
        return (1, self.side, self.side)

    def label(self, causes: Mapping[str, float]) -> int:
        """See :meth:`SceneTask.label`."""
        return int(causes["crack"] > 0)

    def draw_causes(self, rng: np.random.Generator) -> dict[str, float]:
        """See :meth:`SceneTask.draw_causes`."""
        return _crack(rng, is_there=rng.random() < 0.5)

    def causes_of_class(
        self, causes: Mapping[str, float], target: int, rng: np.random.Generator
    ) -> dict[str, float]:
        """See :meth:`SceneTask.causes_of_class`: a crack drawn anew, or the one taken away."""
        drawn = _crack(rng, is_there=target == 1)
        return drawn if target == 1 else {**causes, "crack": drawn["crack"]}

    def draw_nuisances(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """See :meth:`SceneTask.draw_nuisances`."""
        return {
            "nut": np.array(rng.integers(2**31)),
            "height": np.array(rng.uniform(-0.2, 0.2)),
            "turn": np.array(rng.uniform(-0.3, 0.3)),
            "shift": rng.uniform(-0.04, 0.04, 2),
            "scale": np.array(rng.uniform(0.85, 1.0)),
            "brightness": np.array(rng.uniform(0.8, 1.0)),
            "noise_level": np.array(rng.uniform(0.005, 0.02)),
            "noise": np.array(rng.integers(2**31)),
        }

    def render(
        self, causes: Mapping[str, float], nuisances: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """See :meth:`SceneTask.render`."""
        n = nuisances
        nut = Walnut(int(n["nut"]), turn=float(n["turn"]))
        scale, (right, up) = _ZOOM * float(n["scale"]), n["shift"]
        image = render(
            lambda z, y, x: nut(z + n["height"], (y - up) / scale, (x - right) / scale),
            Grid((self.side, self.side)),
            _SUPERSAMPLING,
        )
        if causes["crack"] > 0:
            image = image * (1 - (1 - _LEFT) * self._crack_cover(causes, n, nut))
        noise = np.random.default_rng(int(n["noise"])).standard_normal(image.shape)
        image = n["brightness"] * image + n["noise_level"] * noise
        return image.clip(0, 1).astype(np.float32)[None]

    def _crack_cover(
        self, causes: Mapping[str, float], n: Mapping[str, np.ndarray], nut: Walnut
    ) -> np.ndarray:
        """Share of every pixel that the crack takes, [H W]."""
        scale, turn = _ZOOM * float(n["scale"]), float(n["turn"])
        at = (np.arange(self.side) + 0.5) / self.side * 2 - 1
        x, y = (at[None] - n["shift"][0]) / scale, (-at[:, None] - n["shift"][1]) / scale
        x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        # The nut tapers towards its ends.
        a, b, c = nut.semi_axes
        shrink = np.sqrt(1 - (float(n["height"]) / c) ** 2)
        angle, slant = np.pi * causes["place"], causes["slant"]
        cosine, sine = np.cos(angle), np.sin(angle)
        radius = shrink / np.hypot(cosine / a, sine / b)
        middle_x, middle_y = radius * cosine, radius * sine
        least, most = _SLANTS
        course = angle + np.copysign(least + (most - least) * abs(slant), slant)
        first, last = -_SHALLOW if causes["part"] > 0 else -_DEEP, _OUTWARDS
        dx, dy = x - middle_x, y - middle_y
        along = np.cos(course) * dx + np.sin(course) * dy
        across = np.cos(course) * dy - np.sin(course) * dx
        across = across - _BEND * causes["bend"] * along**2
        width = np.interp(causes["crack"], (_GAP, 1.0), _WIDTHS) * 2 / _SIDE / scale
        beyond = np.maximum(first - along, along - last)
        distance = np.maximum(np.abs(across) - width / 2, beyond)
        t = np.clip(0.5 - distance / (_EDGE * 2 / self.side / scale), 0, 1)
        return t * t * (3 - 2 * t)


def _crack(rng: np.random.Generator, *, is_there: bool) -> dict[str, float]:
    size, part, place, slant, bend = rng.uniform([_GAP, -1, -1, -1, -1], 1.0)
    return {
        "crack": float(size if is_there else -size),
        "part": float(np.copysign(1.0, part)),
        "place": float(place),
        "slant": float(slant),
        "bend": float(bend),
    }
