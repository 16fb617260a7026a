"""Drawn skin lesions with the signs that dermatologists go by: asymmetry, border, colour, size."""

from collections.abc import Mapping

import numpy as np

from dipct.errors import ConfigurationError
from dipct.phantom.scenes import Scene, SceneTask, edit_region

SIGNS = ("asymmetry", "border", "blotch", "size")

# Causes within this of zero are never drawn, unless asked for.
_GAP = 0.15
# Width of an edge [pixels]: lesions have soft ones.
_EDGE = 1.6
_HAIRS, _FRECKLES, _DOTS = 4, 5, 9
# Waves around the outline that make a lesion lopsided, and those that make it ragged.
_ODD, _HIGH = np.array([1, 3]), np.array([7, 9, 11, 13])


class LesionTask(SceneTask):
    """Nevus or melanoma, and if asked for vascular lesion or keratosis.

    Causes lie between -1 and 1, and a sign is there where its cause is positive: ``asymmetry`` and
    ``border`` bend the outline, ``blotch`` is a blue-grey patch, ``size`` the diameter,
    ``vascular`` reddens the lesion, ``scale`` makes it waxy with pale dots. What makes a melanoma
    depends on the difficulty: 1, the blotch; 2, ragged border or blotch; 3, two or more of the four
    signs (a reading of the ABCD rule of Nachbar et al., J. Am. Acad. Dermatol. 30, 1994). Skin,
    light, place, hairs and freckles are nuisances. These are drawings: nothing about skin follows
    from them.

    Args:
        side: rows and columns.
        number_of_classes: 2 or 4.
        difficulty: 1, 2 or 3.
        shortcut: share of pictures in which a coloured tag at the side goes with melanoma, as in
            collections where doctors mark what they worry about; default: no tag. A classifier
            that is trained with it looks at the tag, and an explanation should say so.
        gap: causes within this of zero are never drawn; the less, the more lesions are hard.
        label_noise: see :class:`SceneTask`.

    Raises:
        ConfigurationError: other numbers.
    """

    causes = (*SIGNS, "vascular", "scale")

    def __init__(
        self,
        side: int = 64,
        *,
        number_of_classes: int = 2,
        difficulty: int = 1,
        shortcut: float | None = None,
        gap: float = _GAP,
        label_noise: float = 0.03,
    ) -> None:
        super().__init__(side, label_noise=label_noise)
        if number_of_classes not in (2, 4) or difficulty not in (1, 2, 3):
            raise ConfigurationError(
                "number_of_classes must be 2 or 4 and difficulty 1, 2 or 3; got "
                f"{number_of_classes} and {difficulty}."
            )
        if shortcut is not None and not 0.5 <= shortcut <= 1:
            raise ConfigurationError(f"shortcut must lie between 0.5 and 1; got {shortcut}.")
        if not 0 <= gap < 1:
            raise ConfigurationError(f"gap must be at least 0 and less than 1; got {gap}.")
        self.number_of_classes = number_of_classes
        self.gap = gap
        self.difficulty, self.shortcut = difficulty, shortcut
        self.classes = ("nevus", "melanoma", "vascular lesion", "keratosis")[:number_of_classes]

    def label(self, causes: Mapping[str, float]) -> int:
        """See :meth:`SceneTask.label`."""
        for number, name in ((2, "vascular"), (3, "scale")):
            if number < len(self.classes) and causes[name] > 0:
                return number
        signs = [causes[name] > 0 for name in SIGNS]
        if self.difficulty == 1:
            return int(causes["blotch"] > 0)
        if self.difficulty == 2:
            return int(causes["blotch"] > 0 or causes["border"] > 0)
        return int(sum(signs) >= 2)

    def draw_causes(self, rng: np.random.Generator) -> dict[str, float]:
        """See :meth:`SceneTask.draw_causes`; classes are equally frequent."""
        target = int(rng.integers(len(self.classes)))
        free = {name: self._cause(rng, rng.random() < 0.5) for name in SIGNS}
        return self.causes_of_class({**free, "vascular": -1.0, "scale": -1.0}, target, rng)

    def causes_of_class(
        self, causes: Mapping[str, float], target: int, rng: np.random.Generator
    ) -> dict[str, float]:
        """See :meth:`SceneTask.causes_of_class`.

        Signs that do not matter stay; of several that would do, some are drawn.
        """
        found = dict(causes)
        for number, name in ((2, "vascular"), (3, "scale")):
            found[name] = self._cause(rng, True) if target == number else -1.0
        if target > 1:
            return found
        deciding = {1: ("blotch",), 2: ("blotch", "border"), 3: SIGNS}[self.difficulty]
        least = 2 if self.difficulty == 3 else 1
        present = [name for name in deciding if found[name] > 0]
        absent = [name for name in deciding if found[name] <= 0]
        if target == 1:
            missing = max(least - len(present), 0)
            number = int(rng.integers(missing, len(absent) + 1)) if missing else 0
            changed, is_there = rng.permutation(absent)[:number], True
        else:
            surplus = max(len(present) - (least - 1), 0)
            number = int(rng.integers(surplus, len(present) + 1)) if surplus else 0
            changed, is_there = rng.permutation(present)[:number], False
        return found | {str(name): self._cause(rng, is_there) for name in changed}

    def draw_nuisances(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """See :meth:`SceneTask.draw_nuisances`."""
        tone = rng.uniform(0.55, 0.95)
        return {
            "centre": rng.uniform(-0.25, 0.25, 2),
            # Less than what the least difference in size makes.
            "radius": np.array(rng.uniform(0.385, 0.4)),
            "skin": tone * np.array([1.0, 0.8, 0.7]) + rng.uniform(-0.03, 0.03, 3),
            "brown": rng.uniform(0.3, 0.5) * np.array([1.0, 0.62, 0.42]),
            "patch": rng.uniform(-0.4, 0.4, 2),
            "blotch": np.append(rng.uniform(-0.4, 0.4, 2), rng.uniform(0.28, 0.4)),
            "phases": rng.uniform(0, 2 * np.pi, 2 + len(_ODD) + len(_HIGH)),
            "light": np.array([rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.2)]),
            "vignette": np.array(rng.uniform(0.0, 0.4)),
            "hairs": rng.uniform(-1, 1, (rng.integers(_HAIRS + 1), 4)),
            "freckles": rng.uniform(-0.95, 0.95, (rng.integers(_FRECKLES + 1), 3)),
            "dots": rng.uniform(-0.7, 0.7, (_DOTS, 2)),
            "tag": np.array(0.0),
            "noise": np.array(rng.integers(2**31)),
        }

    def _scene(self, rng: np.random.Generator) -> Scene:
        scene = super()._scene(rng)
        if self.shortcut is None:
            return scene
        goes_with = rng.random() < self.shortcut
        is_tagged = (self.label(scene.causes) == 1) == goes_with
        return self.with_tag(scene, bool(is_tagged))

    def with_other_nuisances(self, scene: Scene, *, seed: int) -> Scene:
        """See :meth:`SceneTask.with_other_nuisances`; the tag stays."""
        other = super().with_other_nuisances(scene, seed=seed)
        return self.with_tag(other, bool(scene.nuisances["tag"] > 0))

    def with_tag(self, scene: Scene, is_tagged: bool) -> Scene:
        """The same picture with the tag of the shortcut, or without it."""
        nuisances = {**scene.nuisances, "tag": np.array(float(is_tagged))}
        return Scene(scene.causes, nuisances, self.render(scene.causes, nuisances))

    def tag_region(self, scene: Scene) -> np.ndarray:
        """Where the tag is or would be, bool [H W]: what a classifier with the shortcut sees."""
        return edit_region(self.with_tag(scene, False).image, self.with_tag(scene, True).image)

    def render(
        self, causes: Mapping[str, float], nuisances: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """See :meth:`SceneTask.render`."""
        n, at = nuisances, (np.arange(self.side) + 0.5) / self.side * 2 - 1
        y, x = np.meshgrid(at, at, indexing="ij")
        width = _EDGE * 2 / self.side
        image = np.broadcast_to(n["skin"][:, None, None], (3, *x.shape)).copy()

        def cover(distance: np.ndarray) -> np.ndarray:
            t = np.clip(0.5 - distance / width, 0, 1)
            return t * t * (3 - 2 * t)

        def paint(colour: np.ndarray, where: np.ndarray, strength: float = 1.0) -> None:
            image[:] += strength * where * (np.asarray(colour)[:, None, None] - image)

        for fx, fy, size in n["freckles"]:
            radius = 0.05 + 0.03 * abs(size)
            paint(0.8 * n["brown"] + 0.25, cover(np.hypot(x - fx, y - fy) - radius), 0.8)
        dx, dy = x - n["centre"][0], y - n["centre"][1]
        radius = self._outline(np.arctan2(dy, dx), causes, n)
        distance = np.hypot(dx, dy)
        lesion = cover(distance - radius)
        red = np.clip(0.5 + 1.2 * causes["vascular"], 0, 1)
        wax = np.clip(0.5 + 1.2 * causes["scale"], 0, 1)
        brown = n["brown"] + red * (np.array([0.62, 0.12, 0.16]) - n["brown"])
        brown = brown + wax * (np.array([0.66, 0.52, 0.3]) - brown)
        paint(brown, lesion)
        px, py = n["patch"] * n["radius"]
        paint(0.72 * brown, lesion * cover(np.hypot(dx - px, dy - py) - 0.45 * n["radius"]), 0.8)
        for px, py in n["dots"] * n["radius"]:
            dot = lesion * cover(np.hypot(dx - px, dy - py) - 0.1 * n["radius"])
            paint(np.array([0.9, 0.85, 0.7]), dot, 0.8 * wax)
        bx, by, size = n["blotch"] * n["radius"]
        blotch = lesion * cover(np.hypot(dx - bx, dy - by) - size)
        paint([0.32, 0.38, 0.5], blotch, np.clip(0.5 + 1.2 * causes["blotch"], 0, 1))
        for hx, hy, angle, bend in n["hairs"]:
            along = np.cos(np.pi * angle) * (x - hx) + np.sin(np.pi * angle) * (y - hy)
            across = -np.sin(np.pi * angle) * (x - hx) + np.cos(np.pi * angle) * (y - hy)
            hair = cover(np.abs(across - 0.3 * bend * along**2) - 0.012) * cover(
                np.abs(along) - 0.7
            )
            paint([0.15, 0.1, 0.08], hair, 0.85)
        if n["tag"] > 0:
            tag = cover(np.maximum(np.abs(x - 0.86), np.abs(y + 0.5)) - 0.11)
            paint([0.15, 0.55, 0.3], tag)
        angle, strength = n["light"]
        lit = 1 + strength * (np.cos(angle) * x + np.sin(angle) * y)
        lit = lit * (1 - n["vignette"] * np.clip(np.hypot(x, y) - 0.8, 0, 1))
        noise = np.random.default_rng(int(n["noise"])).standard_normal(image.shape)
        return (image * lit + 0.012 * noise).clip(0, 1).astype(np.float32)

    def _outline(
        self, angle: np.ndarray, causes: Mapping[str, float], n: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Radius of the lesion in every direction."""
        lopsided = np.clip(0.5 + 1.2 * causes["asymmetry"], 0, 1)
        ragged = np.clip(0.5 + 1.2 * causes["border"], 0, 1)
        orders = np.array([2, 4, *_ODD, *_HIGH])
        amplitudes = np.array(
            [0.05, 0.02, *(lopsided * np.array([0.12, 0.16])), *(ragged * np.full(4, 0.045))]
        )
        waves = amplitudes * np.cos(orders * angle[..., None] + n["phases"])
        return n["radius"] * (1 + 0.3 * causes["size"]) * (1 + waves.sum(-1))

    def _cause(self, rng: np.random.Generator, is_there: bool) -> float:
        size = rng.uniform(self.gap, 1.0)
        return float(size if is_there else -size)
