"""Seeded synthetic images and volumes, functions of the grid and independent of its resolution."""

from dipct.phantom.catalogue import default_peak, make_phantom, phantom_names
from dipct.phantom.discs import DISCS, disc_centers, discs
from dipct.phantom.ellipses import (
    ellipses,
    ellipses_in_disc,
    random_ellipses,
    random_ellipsoids,
)
from dipct.phantom.ellipsoids import Ellipsoid
from dipct.phantom.rectangles import Rectangle, random_rectangles, rectangles
from dipct.phantom.shepp_logan import shepp_logan, shepp_logan_ellipsoids
from dipct.phantom.walnut import walnut

__all__ = [
    "DISCS",
    "Ellipsoid",
    "Rectangle",
    "default_peak",
    "disc_centers",
    "discs",
    "ellipses",
    "ellipses_in_disc",
    "make_phantom",
    "phantom_names",
    "random_ellipses",
    "random_ellipsoids",
    "random_rectangles",
    "rectangles",
    "shepp_logan",
    "shepp_logan_ellipsoids",
    "walnut",
]
