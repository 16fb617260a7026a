"""Tomographic reconstruction as one inverse problem: ``y = A(x) + noise``."""

from dipct.configuration import ReconstructionConfiguration as ReconstructionConfiguration
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
from dipct.pipeline import example_scan as example_scan
from dipct.pipeline import generator_of as generator_of
from dipct.pipeline import pretrain as pretrain
from dipct.pipeline import reconstruct as reconstruct
from dipct.pipeline import simulate as simulate
from dipct.pretrain import read_pretrained_network as read_pretrained_network
from dipct.pretrain import write_pretrained_network as write_pretrained_network
from dipct.run import Run as Run
from dipct.run import read_run as read_run
from dipct.run import write_run as write_run
from dipct.solver import deep_image_prior as deep_image_prior
