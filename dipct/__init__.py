"""Tomographic reconstruction as one inverse problem: ``y = A(x) + noise``."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dipct.configuration import ReconstructionConfiguration as ReconstructionConfiguration
    from dipct.inversion import Counterfactual as Counterfactual
    from dipct.inversion import PreImage as PreImage
    from dipct.inversion import read_counterfactual as read_counterfactual
    from dipct.inversion import read_pre_image as read_pre_image
    from dipct.inversion import write_inversion as write_inversion
    from dipct.measurement import ConeGeometry as ConeGeometry
    from dipct.measurement import ConeSliceGeometry as ConeSliceGeometry
    from dipct.measurement import FanGeometry as FanGeometry
    from dipct.measurement import GaussianNoise as GaussianNoise
    from dipct.measurement import Grid as Grid
    from dipct.measurement import MatrixGeometry as MatrixGeometry
    from dipct.measurement import ParallelGeometry as ParallelGeometry
    from dipct.measurement import PoissonNoise as PoissonNoise
    from dipct.measurement import Scan as Scan
    from dipct.measurement import VectorGeometry as VectorGeometry
    from dipct.measurement.readers import read_scan as read_scan
    from dipct.measurement.scan_file import write_scan as write_scan
    from dipct.operator import RayTransform as RayTransform
    from dipct.operator import ray_transform as ray_transform
    from dipct.pipeline import counterfactual as counterfactual
    from dipct.pipeline import example_scan as example_scan
    from dipct.pipeline import generator_of as generator_of
    from dipct.pipeline import open_classifier as open_classifier
    from dipct.pipeline import pre_image as pre_image
    from dipct.pipeline import pretrain as pretrain
    from dipct.pipeline import quantify as quantify
    from dipct.pipeline import reconstruct as reconstruct
    from dipct.pipeline import simulate as simulate
    from dipct.pretrain import read_pretrained_network as read_pretrained_network
    from dipct.pretrain import write_pretrained_network as write_pretrained_network
    from dipct.run import Run as Run
    from dipct.run import read_run as read_run
    from dipct.run import write_run as write_run
    from dipct.solver import deep_image_prior as deep_image_prior
    from dipct.uncertainty import Uncertainty as Uncertainty

# Loaded at first use: torch takes seconds, and much of the command line does without it.
_HOMES = {
    "dipct.configuration": ("ReconstructionConfiguration",),
    "dipct.inversion": (
        "Counterfactual",
        "PreImage",
        "read_counterfactual",
        "read_pre_image",
        "write_inversion",
    ),
    "dipct.measurement": (
        "ConeGeometry",
        "ConeSliceGeometry",
        "FanGeometry",
        "GaussianNoise",
        "Grid",
        "MatrixGeometry",
        "ParallelGeometry",
        "PoissonNoise",
        "Scan",
        "VectorGeometry",
    ),
    "dipct.measurement.readers": ("read_scan",),
    "dipct.measurement.scan_file": ("write_scan",),
    "dipct.operator": ("RayTransform", "ray_transform"),
    "dipct.pipeline": (
        "counterfactual",
        "example_scan",
        "generator_of",
        "open_classifier",
        "pre_image",
        "pretrain",
        "quantify",
        "reconstruct",
        "simulate",
    ),
    "dipct.pretrain": ("read_pretrained_network", "write_pretrained_network"),
    "dipct.run": ("Run", "read_run", "write_run"),
    "dipct.solver": ("deep_image_prior",),
    "dipct.uncertainty": ("Uncertainty",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = list(_HOME_OF)


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name in _HOME_OF:
            found = getattr(import_module(_HOME_OF[name]), name)
        elif not name.startswith("_") and find_spec(f"{self.__name__}.{name}"):
            found = import_module(f"{self.__name__}.{name}")
        else:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__dict__[name] = found
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        # An import of the subpackage of this name would hide the verb.
        if not (name == "pretrain" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *__all__})


# Not a `__getattr__` of the module: type checkers would take any name for one of its own.
sys.modules[__name__].__class__ = _Package
