"""A procedural walnut: shell with seam, septum and a kernel of convoluted lobes."""

import numpy as np

from dipct.measurement.grid import Grid
from dipct.phantom.random_field import RandomField
from dipct.phantom.sampling import render
from dipct.phantom.walnut_kernel import draw_half, smooth_maximum, union

# Width over which one material turns into another, as blurred as in a real scan.
EDGE = 0.006
# Nothing of the nut lies outside this ellipsoid, (x and y, z).
REACH = (0.85, 0.97)

# Shortest wavelength, longest wavelength and number of waves of every field of noise.
_FIELDS = {
    "form": (0.7, 1.4, 16),
    "wave": (0.26, 0.45, 32),
    "furrow": (0.12, 0.20, 48),
    "slow": (0.4, 0.8, 24),
    "slow_too": (0.4, 0.8, 24),
    "warp_x": (0.18, 0.45, 32),
    "warp_y": (0.18, 0.45, 32),
    "middle": (0.10, 0.20, 32),
    "patchy": (0.05, 0.12, 48),
    "fine": (0.018, 0.036, 64),
    "grain": (0.010, 0.020, 64),
}


def _cover(distance: np.ndarray) -> np.ndarray:
    return np.clip(np.float32(0.5) - distance * np.float32(1 / EDGE), 0, 1)


def _line(distance: np.ndarray, thickness: float | np.ndarray) -> np.ndarray:
    return _cover(np.abs(distance) - thickness / 2)


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((values - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def _paint(image: np.ndarray, value: float | np.ndarray, cover: np.ndarray) -> np.ndarray:
    return image + cover * (value - image)


class Walnut:
    """One walnut, a function of unit coordinates with values in [0, 1].

    The nut's own frame has x across the seam (suture) on both sides, y along the septum and z
    along the nut.

    Args:
        seed: another seed, another walnut.
        turn: angle of the nut's frame against the image's, rad; default: a small one by seed.
    """

    def __init__(self, seed: int, *, turn: float | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.fields = {
            name: RandomField.draw(rng, shortest, longest, n_waves)
            for name, (shortest, longest, n_waves) in _FIELDS.items()
        }
        own_turn = rng.uniform(-0.25, 0.25)
        self.turn = own_turn if turn is None else turn
        self.semi_axes = np.array([0.590, 0.645, 0.74]) * rng.uniform(0.98, 1.02, 3)
        self.seam_height = rng.uniform(0.105, 0.135, 2)
        self.seam_width = rng.uniform(0.075, 0.105, 2)
        self.seam_power = rng.uniform(1.6, 3.0, 2)
        self.seam_shift = rng.uniform(-0.06, 0.06, 2)
        self.septum_lean = rng.uniform(-0.12, 0.12)
        self.lens_height = rng.uniform(0.21, 0.27, 2)
        self.lens_width = rng.uniform(0.08, 0.105, 2)
        self.fingers = [draw_half(rng, -1), draw_half(rng, 1)]
        self.island = (int(rng.integers(2)), float(rng.choice([-1.0, 1.0])))
        # Angular place away from the seam, middle along z, and the side on which a curl is open.
        self.curls = [
            (
                rng.uniform(0.4, np.pi - 0.4) + np.pi * rng.integers(2),
                rng.uniform(-0.25, 0.25),
                rng.uniform(0, 2 * np.pi),
            )
            for _ in range(5)
        ]

        self.cracks = [
            # Along the middle of each half, then shorter ones anywhere in it.
            (side * 0.23, 0.02, rng.normal(0, 0.12), rng.uniform(0.10, 0.2), 0.007)
            for side in (-1, 1)
        ] + [
            (
                side * rng.uniform(0.15, 0.28),
                rng.choice([-1, 1]) * rng.uniform(0.12, 0.38),
                rng.uniform(0, np.pi),
                rng.uniform(0.04, 0.09),
                0.005,
            )
            for side in (-1, 1, 1)
        ]

    def __call__(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Evaluate the walnut on a tensor grid.

        Args:
            z: coordinates ``[Z]``.
            y: coordinates ``[H]``.
            x: coordinates ``[W]``.

        Returns:
            Values ``[Z, H, W]``, float32.
        """
        image = np.zeros((len(z), len(y), len(x)), dtype=np.float32)
        near_z = np.flatnonzero(np.abs(z) < REACH[1])
        reach = REACH[0] * np.sqrt(
            1 - np.min(np.abs(z[near_z]), initial=REACH[1]) ** 2 / REACH[1] ** 2
        )
        near_y, near_x = (np.flatnonzero(np.abs(axis) <= reach) for axis in (y, x))
        if not (len(near_z) and len(near_y) and len(near_x)):
            return image
        box = tuple(slice(near[0], near[-1] + 1) for near in (near_z, near_y, near_x))
        z, y, x = z[box[0]], y[box[1]], x[box[2]]
        noise = {name: field(z, y, x) for name, field in self.fields.items()}
        image[box] = [
            self._slice(float(height), y, x, {name: values[k] for name, values in noise.items()})
            for k, height in enumerate(z)
        ]
        return image

    def _slice(
        self, z: float, y: np.ndarray, x: np.ndarray, noise: dict[str, np.ndarray]
    ) -> np.ndarray:
        cosine, sine = np.cos(self.turn), np.sin(self.turn)
        plane_x = (cosine * x[None, :] + sine * y[:, None]).astype(np.float32)
        plane_y = (cosine * y[:, None] - sine * x[None, :]).astype(np.float32)
        parts = self._shell_depth(plane_x, plane_y, z, noise)

        # From here on only the points of the nut itself are worked on, as flat arrays [N].
        inside = parts[1] < EDGE
        depth, outside, thickness, body = (part[inside] for part in parts)
        plane_x, plane_y = plane_x[inside], plane_y[inside]
        noise = {name: values[inside] for name, values in noise.items()}
        values = self._septum(plane_x, plane_y, noise)
        values = self._lining(values, plane_x, plane_y, z, depth - thickness, noise)
        values = self._kernel(values, plane_x, plane_y, z, depth - thickness, noise)
        values = values * _cover(thickness - depth)
        values = self._shell(values, depth, thickness, noise)
        values = self._seam(values, plane_x, plane_y, z, depth, body, noise)
        image = np.zeros(inside.shape, dtype=np.float32)
        image[inside] = np.clip(values * _cover(outside), 0, 1)
        return image

    def _shell_depth(
        self, x: np.ndarray, y: np.ndarray, z: float, noise: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        a, b, c = (float(axis) for axis in self.semi_axes)
        radius = np.sqrt(x * x + y * y + z * z) + 1e-6
        relative = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2) + 1e-6
        body = radius * (1 - 1 / relative) - 0.012 * noise["form"] - 0.009 * noise["wave"]

        width = self._beside(self.seam_width, x, z)
        power = self._beside(self.seam_power, x, z)
        from_seam = y - self._beside(self.seam_shift, x, z) - 0.010 * noise["slow_too"]
        offset = np.abs(from_seam) / width + 1e-6
        bump = self._beside(self.seam_height, x, z) * np.exp(-(offset**power))
        bump = bump * (1 + 0.1 * noise["slow"])
        notch = 0.020 * np.exp(-(((offset - 1.9) / 0.45) ** 2))
        # Dividing by the slope of the bump keeps the shell as thick on its flanks.
        slope = bump * power * offset ** (power - 1) / width
        furrows = 0.015 * np.tanh(1.2 * np.abs(noise["furrow"])) - 0.008
        fade = np.exp(-(offset**2))
        outside = body - bump + notch - furrows * (1 - 0.6 * fade) - 0.002 * noise["patchy"]
        outside = outside / np.sqrt(1 + (0.8 * slope) ** 2)
        thickness = 0.060 * (1 + 0.14 * noise["slow"] + 0.10 * noise["middle"])
        # The inner wall is smoother than the outer one.
        depth = -outside - 0.6 * furrows * (1 - 0.6 * fade)
        return depth, outside, thickness, body

    def _shell(
        self,
        image: np.ndarray,
        depth: np.ndarray,
        thickness: np.ndarray,
        noise: dict[str, np.ndarray],
    ) -> np.ndarray:
        fraction = depth / thickness
        spongy = _ramp(fraction + 0.10 * noise["patchy"] + 0.05 * noise["fine"], 0.45, 1.0)
        pores = _ramp(noise["grain"] + 0.5 * noise["patchy"], 1.0, 2.6) * _ramp(fraction, 0.1, 0.5)
        value = 0.90 + 0.03 * noise["slow"] + 0.012 * noise["grain"] - 0.62 * spongy
        return _paint(image, value * (1 - 0.35 * pores), _cover(depth - thickness))

    def _lining(
        self,
        image: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        z: float,
        to_wall: np.ndarray,
        noise: dict[str, np.ndarray],
    ) -> np.ndarray:
        loose = 0.010 + 0.016 * np.maximum(noise["slow_too"] + 0.3 * noise["middle"], 0)
        lining = to_wall - loose
        image = _paint(image, 0.52 + 0.08 * noise["patchy"], _line(lining, 0.006))
        a, b, c = (float(axis) for axis in self.semi_axes)
        shrink = max(1 - (z / c) ** 2, 0) ** 0.5
        for angle, middle, start in self.curls:
            cosine, sine = float(np.cos(angle)), float(np.sin(angle))
            dx, dy = x - shrink * (a - 0.105) * cosine, y - shrink * (b - 0.105) * sine
            distance = np.sqrt(dx * dx + dy * dy + 1e-12)
            open_side = dx * float(np.cos(start)) + dy * float(np.sin(start))
            arc = np.maximum(np.abs(distance - 0.013) - 0.0035, open_side - 0.007)
            outwards = dx * cosine + dy * sine
            sideways = dx * sine - dy * cosine
            ends = np.maximum(0.013 - outwards, np.maximum(distance - 0.09, -lining))
            stem = np.maximum(np.abs(sideways) - 0.0025, ends)
            curl = np.maximum(np.minimum(arc, stem), abs(z - middle) - 0.3)
            image = _paint(image, 0.62, _cover(curl))
        return image

    def _seam(
        self,
        image: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        z: float,
        depth: np.ndarray,
        body: np.ndarray,
        noise: dict[str, np.ndarray],
    ) -> np.ndarray:
        shift = self._beside(self.seam_shift, x, z)
        top = self._beside(self.seam_height, x, z)
        # Layers of tissue that meet at the tip of the seam.
        from_tip = np.maximum(top - body, 0)
        half_width = 0.016 + 0.19 * from_tip
        across = (y - shift - 0.010 * noise["slow_too"] + 0.002 * noise["patchy"]) / half_width
        layers = np.cos(6.5 * across + 0.7 * noise["slow"])
        wedge = np.maximum((np.abs(across) - 1) * half_width, 0.026 - depth)
        wedge = np.maximum(wedge, -body - 0.085 - 0.018 * layers - 0.006 * noise["patchy"])
        value = 0.60 + 0.20 * layers + 0.05 * noise["patchy"] + 0.15 * _ramp(-depth, -0.07, -0.03)
        image = _paint(image, value, _cover(wedge))
        for place, thin in ((0.17, 0.0025), (-0.55, 0.0035), (0.72, 0.0020)):
            crack = np.abs(across - place - 0.08 * noise["slow"]) * half_width
            opening = thin * _ramp(noise["middle"] + noise["slow"], -1.6, 0.6)
            image = _paint(image, 0.10, _cover(np.maximum(crack - opening, wedge + 0.004)))
        return image

    def _septum(self, x: np.ndarray, y: np.ndarray, noise: dict[str, np.ndarray]) -> np.ndarray:
        from_septum = self._from_septum(x, y, noise)
        width = self._lens(y)
        image = np.zeros(from_septum.shape, dtype=np.float32)

        single = _line(from_septum, 0.008 + 0.004 * noise["slow"])
        image = _paint(image, 0.42 + 0.05 * noise["middle"], single * (width <= 0.004))
        wall = (np.abs(from_septum) - width) * 0.8
        bright = 0.60 + 0.16 * noise["middle"] + 0.10 * noise["fine"]
        wall_cover = _line(wall, 0.0075 + 0.0025 * noise["patchy"]) * (width > 0.004)
        image = _paint(image, np.clip(bright, 0.3, 0.95), wall_cover)

        # Bundles of vessels hang on the septum inside both lenses.
        for index, up in enumerate((1.0, -1.0)):
            dy = up * y - 0.72 * float(self.lens_height[index])
            bundle = np.sqrt((from_septum / 0.9) ** 2 + dy * dy) - 0.044 - 0.010 * noise["middle"]
            cells = 0.30 + 0.5 * _ramp(0.6 - np.abs(noise["fine"]), 0, 0.5) + 0.1 * noise["patchy"]
            rim = 0.8 * _line(bundle + 0.004, 0.006)
            image = _paint(image, np.maximum(cells, rim), _cover(bundle))
            taper = np.abs(from_septum) - 0.010 * np.clip(1 - dy / 0.14, 0, 1)
            image = _paint(image, 0.5, _cover(np.maximum(taper, np.maximum(-dy, dy - 0.14))))

        radius = np.sqrt(from_septum**2 + y * y + 1e-12) + 0.006 * noise["patchy"]
        image = _paint(image, 0.0, _cover(radius - 0.034))
        ring = np.abs(radius - 0.024) - 0.006 - 0.003 * noise["fine"]
        image = _paint(image, np.clip(0.75 + 0.15 * noise["fine"], 0.4, 0.95), _cover(ring))
        wisp = _line(noise["middle"] * 0.02, 0.004) * _ramp(noise["slow"], 0.2, 0.6)
        inside_lens = (np.abs(from_septum) < width - 0.01) & (np.abs(y) > 0.06)
        return _paint(image, 0.4, wisp * inside_lens)

    def _from_septum(
        self, x: np.ndarray, y: np.ndarray, noise: dict[str, np.ndarray]
    ) -> np.ndarray:
        lean = self.septum_lean * y * np.abs(y)
        return x - lean - 0.016 * noise["slow"] * np.minimum(np.abs(y) * 4, 1)

    def _lens(self, y: np.ndarray) -> np.ndarray:
        up = (y > 0).astype(np.int64)
        reach = np.clip(np.abs(y) / self._pick(self.lens_height, up), 0, 1)
        return self._pick(self.lens_width, up) * np.maximum(np.sin(np.pi * reach**0.85), 0) ** 0.9

    @staticmethod
    def _beside(values: np.ndarray, x: np.ndarray, z: float) -> np.ndarray:
        # The seam runs round the nut over both ends, where its two sides have to meet.
        left, right = values.astype(np.float32)
        share = 0.5 + 0.5 * x / np.sqrt(x * x + z * z + 1e-6)
        return left + (right - left) * share

    @staticmethod
    def _pick(values: np.ndarray, index: np.ndarray) -> np.ndarray:
        return values[::-1].astype(np.float32)[index]

    def _kernel(
        self,
        image: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        z: float,
        to_wall: np.ndarray,
        noise: dict[str, np.ndarray],
    ) -> np.ndarray:
        from_septum = self._from_septum(x, y, noise)
        warped_x = x + 0.022 * noise["warp_x"] + 0.003 * noise["middle"]
        warped_y = y + 0.022 * noise["warp_y"]
        # The hollow tapers towards the ends of the nut and the lobes with it.
        shrink = max(1 - (z / float(self.semi_axes[2] * 0.93)) ** 2, 0.05) ** 0.5
        warped_x, warped_y = warped_x / shrink, warped_y / shrink

        kernel = hull = None
        for half, fingers in enumerate(self.fingers):
            part, bridged = union(fingers, warped_x, warped_y, z, (0.035, 0.09))
            if half == self.island[0]:
                strait = np.abs(warped_y - 0.19 * self.island[1] - 0.025 * noise["slow_too"])
                part = smooth_maximum(part, 0.016 + 0.006 * noise["middle"] - strait, 0.03)
            kernel = part if kernel is None else np.minimum(kernel, part)
            hull = bridged if hull is None else np.minimum(hull, bridged)

        room = 0.030 + 0.010 * noise["slow"] - to_wall
        septum_gap = self._lens(y) + 0.022 + 0.008 * noise["slow_too"] - np.abs(from_septum)
        limits = smooth_maximum(room, septum_gap, 0.02)
        kernel = smooth_maximum(kernel, limits, 0.03)

        peel = _line(np.maximum(hull, septum_gap), 0.004) * _ramp(noise["slow_too"], -0.6, 0.1)
        peel = peel * _cover(room - 0.02) * (septum_gap < -0.02)
        image = _paint(image, 0.36 + 0.06 * noise["patchy"], peel)

        value = 0.565 + 0.008 * noise["slow"] + 0.006 * noise["middle"] + 0.004 * noise["patchy"]
        value = value + 0.07 * _line(kernel + 0.005, 0.007)
        image = _paint(image, value, _cover(kernel))

        for crack_x, crack_y, angle, length, opening in self.cracks:
            dx, dy = x - float(crack_x), y - float(crack_y)
            cosine, sine = float(np.cos(angle)), float(np.sin(angle))
            along = (cosine * dx + sine * dy) / length
            across = cosine * dy - sine * dx + 0.010 * noise["warp_x"] + 0.002 * noise["patchy"]
            uneven = np.clip(1 + 0.5 * noise["middle"] + 0.4 * noise["slow"], 0, 1.3)
            width = opening * np.maximum(1 - along**2, 0) * uneven - EDGE / 2
            gap = np.maximum(np.abs(across) - width, kernel + 0.004)
            image = _paint(image, 0.06, _cover(gap))
        return image


def walnut(grid: Grid, *, seed: int = 0) -> np.ndarray:
    """Draw a walnut in the manner of a CT slice, or the whole nut on a 3-D grid.

    Drawn from scratch with implicit functions and seeded noise; in character it follows the
    micro-CT walnuts of Der Sarkissian et al. 2019 (Scientific Data 6:215) and Hämäläinen et al.
    2015 (arXiv 1502.04064), without using their data. It is about two thirds of the field of
    view wide, as in the former's 50.1 mm reconstructions.

    Args:
        grid: the image grid, 2-D (the slice through the middle) or 3-D.
        seed: another seed, another walnut.

    Returns:
        Image ``[*grid.shape]``, float32, dimensionless in [0, 1].
    """
    supersampling = int(np.clip(np.ceil(1000 / max(grid.shape[-2:])), 2, 4))
    return render(Walnut(seed), grid, supersampling)
