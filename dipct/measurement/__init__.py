"""What was measured: scans, geometries, grids, noise."""

from dipct.measurement.geometry import ConeGeometry as ConeGeometry
from dipct.measurement.geometry import ConeSliceGeometry as ConeSliceGeometry
from dipct.measurement.geometry import FanGeometry as FanGeometry
from dipct.measurement.geometry import Geometry as Geometry
from dipct.measurement.geometry import MatrixGeometry as MatrixGeometry
from dipct.measurement.geometry import ParallelGeometry as ParallelGeometry
from dipct.measurement.geometry import VectorGeometry as VectorGeometry
from dipct.measurement.grid import Grid as Grid
from dipct.measurement.noise import GaussianNoise as GaussianNoise
from dipct.measurement.noise import PoissonNoise as PoissonNoise
from dipct.measurement.scan import Scan as Scan
