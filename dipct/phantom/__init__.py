"""Seeded synthetic images and volumes, functions of the grid and independent of its resolution.

White noise in a disc is the one exception: see :func:`noise_disc`.
"""

from dipct.phantom.catalogue import (
    default_peak,
    find_phantom,
    make_phantom,
    phantom_names,
    seeded_phantom_names,
)
from dipct.phantom.discs import DISCS, disc_centers, discs
from dipct.phantom.ellipses import (
    ellipses,
    ellipses_in_disc,
    random_ellipses,
    random_ellipsoids,
)
from dipct.phantom.ellipsoids import Ellipsoid
from dipct.phantom.faces import ATTRIBUTES, FaceTask
from dipct.phantom.lesions import SIGNS, LesionTask
from dipct.phantom.noise_masks import noise_disc
from dipct.phantom.rectangles import Rectangle, random_rectangles, rectangles
from dipct.phantom.scenes import Scene, SceneTask, TrueCounterfactuals, edit_region
from dipct.phantom.shepp_logan import shepp_logan, shepp_logan_ellipsoids
from dipct.phantom.tasks import describe_task, make_task, task_names
from dipct.phantom.walnut import walnut
from dipct.phantom.walnut_defects import WalnutTask

__all__ = [
    "ATTRIBUTES",
    "DISCS",
    "SIGNS",
    "Ellipsoid",
    "FaceTask",
    "LesionTask",
    "Rectangle",
    "Scene",
    "SceneTask",
    "TrueCounterfactuals",
    "WalnutTask",
    "default_peak",
    "describe_task",
    "disc_centers",
    "discs",
    "edit_region",
    "ellipses",
    "ellipses_in_disc",
    "find_phantom",
    "make_phantom",
    "make_task",
    "noise_disc",
    "phantom_names",
    "random_ellipses",
    "random_ellipsoids",
    "random_rectangles",
    "rectangles",
    "seeded_phantom_names",
    "shepp_logan",
    "shepp_logan_ellipsoids",
    "task_names",
    "walnut",
]
