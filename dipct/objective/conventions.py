"""Objectives of published Deep Image Prior work, converted to and from ``tv_weight``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from dipct.errors import ConfigurationError, ShapeError

_BAYES_DIP = "Antoran et al., arXiv 2203.00479; code educating-dip/bayes_dip"
_EDUCATED_DIP = (
    "Barbano et al., arXiv 2111.11926; code educating-dip/educated_deep_image_prior, whose "
    "settings educating-dip/svd_dip repeats"
)
_DESIGN = "Barbano et al., arXiv 2207.05714; code educating-dip/bayes_dip, rectangles"
_OTERO_BAGUER = (
    "Otero Baguer, Leuschner & Schmidt, Inverse Problems 36, 2020; "
    "code oterobaguer/dip-ct-benchmark"
)


@dataclass(frozen=True)
class Convention:
    """How one publication writes its objective, ``data term + gamma TV(x)``.

    The data term is the mean of ``(A x - y)^2`` over the m measured values, or the summed Poisson
    negative log-likelihood. Ours is ``sum (A x - y)^2 / (2 std^2) + tv_weight TV(x)``, or half
    the Poisson deviance in the first place. For one image x and one std

        publication's loss = loss_scale * our objective + constant,

    where the constant is zero but for Poisson counts n: ``sum n (1 - log n)``.

    ``gamma`` and ``std`` belong to image and data in the units of the publication's loss. For
    an image ``x / c`` the weight is c times that for x; ``loss_scale`` does not change.

    Attributes:
        name: its key in ``CONVENTIONS``.
        source: publication and code.
        ndim: axes of the images it is for: 2, or 3 for volumes.
        data_term: ``mean_square`` or ``poisson``.
        mean_total_variation: mean instead of sum of the absolute differences, one mean per axis.
        drops_border: its total variation, a sum, leaves out the differences along the last row
            and those along the last column: of n x n pixels the n-th part of all differences.
            Ours has them, so the two agree only where the image is constant there.
    """

    name: str
    source: str
    ndim: Literal[2, 3] = 2
    data_term: Literal["mean_square", "poisson"] = "mean_square"
    mean_total_variation: bool = False
    drops_border: bool = False

    def tv_weight(
        self,
        gamma: float,
        *,
        n_measurements: int,
        image_shape: tuple[int, ...],
        std: float | Tensor | None = None,
    ) -> float:
        """Our weight lambda for the publication's gamma.

        Args:
            gamma: the publication's weight of total variation.
            n_measurements: m, of one scan.
            image_shape: [1 H W], or [1 Z H W] for volumes.
            std: standard deviation of the noise, one number; None for Poisson noise.

        Returns:
            lambda; for summed squares ``gamma m / (2 std^2)``.

        Raises:
            ConfigurationError: a weight, number of measurements or standard deviation that has
                no counterpart in this convention.
            ShapeError: images it is not for.
        """
        _check_weight(gamma, "gamma")
        differences = self._differences_per_mean(image_shape)
        return gamma / (self.loss_scale(n_measurements, std) * differences)

    def gamma(
        self,
        tv_weight: float,
        *,
        n_measurements: int,
        image_shape: tuple[int, ...],
        std: float | Tensor | None = None,
    ) -> float:
        """The publication's gamma for our weight: the inverse of :meth:`tv_weight`."""
        _check_weight(tv_weight, "tv_weight")
        differences = self._differences_per_mean(image_shape)
        return tv_weight * self.loss_scale(n_measurements, std) * differences

    def loss_scale(self, n_measurements: int, std: float | Tensor | None = None) -> float:
        """What turns our objective into the publication's loss, see :class:`Convention`.

        With it as the ``loss_scale`` of :class:`dipct.solver.descent.GeneratorFit`, gradients are
        clipped where the publication clips them.

        Args:
            n_measurements: m, of one scan.
            std: standard deviation of the noise, one number; None for Poisson noise.

        Returns:
            ``2 std^2 / m`` for the mean of squares, 1 for Poisson noise.

        Raises:
            ConfigurationError: see :meth:`tv_weight`.
        """
        if not n_measurements >= 1:
            raise ConfigurationError(
                f"n_measurements is the number of measured values of a scan; got {n_measurements}."
            )
        if self.data_term == "poisson":
            if std is not None:
                raise ConfigurationError(
                    f"The convention {self.name} is for Poisson noise, which has no standard "
                    f"deviation to give; got std {std}. Leave it out."
                )
            return 1.0
        return 2 * _one_number(std, self.name) ** 2 / n_measurements

    def _differences_per_mean(self, image_shape: tuple[int, ...]) -> int:
        """How many differences one mean is over; 1 where they are summed."""
        sides = tuple(image_shape[1:])
        if len(sides) != self.ndim or image_shape[0] != 1 or min(sides) < 2:
            wanted = "[1 H W]" if self.ndim == 2 else "[1 Z H W]"
            raise ShapeError(
                f"The convention {self.name} is for images {wanted} of two pixels or more along "
                f"every axis; got {tuple(image_shape)}."
            )
        if not self.mean_total_variation:
            return 1
        if len(set(sides)) > 1:
            raise ShapeError(
                f"The convention {self.name} takes a mean along every axis, which is a multiple "
                f"of the summed total variation only if all sides are equal; got {sides}."
            )
        return (sides[0] - 1) * sides[0] ** (self.ndim - 1)


def _check_weight(weight: float, name: str) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ConfigurationError(f"{name} must be zero or positive and finite; got {weight}.")


def _one_number(std: float | Tensor | None, convention: str) -> float:
    if std is None:
        raise ConfigurationError(
            f"The convention {convention} needs std, the standard deviation of the noise."
        )
    # Without the type, a Python float would be rounded to float32.
    values = torch.as_tensor(std, dtype=torch.float64)
    if values.numel() != 1:
        raise ConfigurationError(
            f"The convention {convention} weighs all measured values alike, so std must be one "
            f"number; got shape {tuple(values.shape)}. With a standard deviation per value there "
            "is no equal objective: set tv_weight itself."
        )
    number = float(values)
    if not (math.isfinite(number) and number > 0):
        raise ConfigurationError(f"std must be positive and finite; got {number}.")
    return number


CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        convention.name: convention
        for convention in (
            Convention("bayes-dip", _BAYES_DIP),
            Convention("educated-dip", _EDUCATED_DIP, drops_border=True),
            Convention("educated-dip-3d", _EDUCATED_DIP, ndim=3, mean_total_variation=True),
            Convention(
                "otero-baguer-poisson", _OTERO_BAGUER, data_term="poisson", drops_border=True
            ),
        )
    }
)
"""The conventions by name."""


@dataclass(frozen=True)
class PublishedSettings:
    """Settings of a publication for one task.

    Attributes:
        name: its key in ``PUBLISHED_SETTINGS``.
        convention: its key in ``CONVENTIONS``.
        source: publication and code.
        gamma: weight of total variation in that convention.
        iterations: steps of Adam.
        learning_rate: constant.
        views: numbers of views the settings are for.
        rays_per_view: measured values of a view.
        image_shape: [1 H W] or [1 Z H W].
        inputs: what the network was fed with, ``noise`` or ``fbp``.
        network: for :func:`dipct.generator.make_network`; None for one it does not know.
        output: what follows the network's last convolution; ``relu`` only in the result, the
            loss takes the image before it.
        relative_noise: standard deviation over the mean absolute noiseless value; None for
            measured data and for Poisson noise.
        photons: counts of an unattenuated ray, for Poisson noise.
        mu_max: attenuation, in 1/m, of the image value 1, for Poisson noise: the line integrals
            are ``mu_max A x``. None where the data are ``A x``.
        scale: image and data enter the loss multiplied by this, and std with them.
        network_scale: the network makes the image of the loss times this.
        pretrained: whether the number of iterations is for a pretrained network.
    """

    name: str
    convention: str
    source: str
    gamma: float
    iterations: int
    views: tuple[int, ...]
    rays_per_view: int
    image_shape: tuple[int, ...]
    learning_rate: float = 1e-4
    inputs: tuple[Literal["noise", "fbp"], ...] = ("fbp",)
    network: str | None = None
    output: Literal["identity", "sigmoid", "relu"] = "identity"
    relative_noise: float | None = None
    photons: float | None = None
    mu_max: float | None = None
    scale: float = 1.0
    network_scale: float = 1.0
    pretrained: bool = False


# Relative noise in per cent, views, gamma, iterations.
_KMNIST = (
    (5, 5, 1e-5, 14_000),
    (5, 10, 3e-5, 29_000),
    (5, 20, 1e-4, 41_000),
    (5, 30, 1e-4, 50_000),
    (10, 5, 3e-5, 7_400),
    (10, 10, 1e-4, 13_000),
    (10, 20, 3e-4, 17_000),
    (10, 30, 3e-4, 22_000),
)


def _kmnist(per_cent: int, views: int, gamma: float, iterations: int) -> PublishedSettings:
    return PublishedSettings(
        name=f"kmnist-{views}-views-{per_cent}-percent",
        convention="bayes-dip",
        source=_BAYES_DIP,
        gamma=gamma,
        iterations=iterations,
        views=(views,),
        rays_per_view=41,
        image_shape=(1, 28, 28),
        network="small",
        output="sigmoid",
        relative_noise=per_cent / 100,
    )


def _walnut(views: int, gamma: float, iterations: int) -> PublishedSettings:
    return PublishedSettings(
        name=f"walnut-{views}",
        convention="bayes-dip",
        source=_BAYES_DIP,
        gamma=gamma,
        iterations=iterations,
        views=(views,),
        rays_per_view=128,
        image_shape=(1, 501, 501),
        network="walnut",
        scale=14.0,
        pretrained=True,
    )


def _rectangles(name: str, gamma: float, views: tuple[int, ...]) -> PublishedSettings:
    return PublishedSettings(
        name=name,
        convention="bayes-dip",
        source=_DESIGN,
        gamma=gamma,
        iterations=30_000,
        views=views,
        rays_per_view=183,
        image_shape=(1, 128, 128),
        network="small",
        relative_noise=0.05,
    )


_LOTUS = PublishedSettings(
    name="lotus",
    convention="educated-dip",
    source=_EDUCATED_DIP,
    gamma=1e-4,
    iterations=10_000,
    views=(20, 45),
    rays_per_view=429,
    image_shape=(1, 128, 128),
    inputs=("noise", "fbp"),
    network="walnut",
    network_scale=41.0,
)

_WALNUT_3D = PublishedSettings(
    name="walnut-3d",
    convention="educated-dip-3d",
    source=_EDUCATED_DIP,
    gamma=1e-1,
    iterations=30_000,
    views=(20, 60),
    rays_per_view=324 * 256,
    image_shape=(1, 167, 167, 167),
    inputs=("noise", "fbp"),
    output="relu",
    network_scale=14.0,
)

_LODOPAB = PublishedSettings(
    name="lodopab",
    convention="otero-baguer-poisson",
    source=_OTERO_BAGUER,
    gamma=7.0,
    iterations=17_000,
    views=(1000,),
    rays_per_view=513,
    image_shape=(1, 362, 362),
    learning_rate=5e-4,
    inputs=("noise",),
    output="sigmoid",
    photons=4096.0,
    mu_max=81.35858,
)

PUBLISHED_SETTINGS: Mapping[str, PublishedSettings] = MappingProxyType(
    {
        settings.name: settings
        for settings in (
            *(_kmnist(*row) for row in _KMNIST),
            _walnut(60, 6.5e-6, 1_500),
            _walnut(120, 4e-6, 2_500),
            _LOTUS,
            _WALNUT_3D,
            _rectangles("rectangles", 3e-3, (5, 10, 15, 20, 25, 30)),
            _rectangles("rectangles-35-views", 1e-3, (35, 40)),
            _LODOPAB,
        )
    }
)
"""The published settings by name."""
