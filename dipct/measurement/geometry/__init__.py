"""Scan geometries: parallel, fan and cone beam, per-view vectors, cone slices, matrices."""

from dipct.measurement.geometry.base import Beam as Beam
from dipct.measurement.geometry.base import Geometry as Geometry
from dipct.measurement.geometry.base import Rays as Rays
from dipct.measurement.geometry.circular import ConeGeometry as ConeGeometry
from dipct.measurement.geometry.circular import FanGeometry as FanGeometry
from dipct.measurement.geometry.circular import ParallelGeometry as ParallelGeometry
from dipct.measurement.geometry.cone_slice import ConeSliceGeometry as ConeSliceGeometry
from dipct.measurement.geometry.matrix import MatrixGeometry as MatrixGeometry
from dipct.measurement.geometry.vectors import VectorGeometry as VectorGeometry

KINDS: dict[str, type[Geometry]] = {
    cls.kind: cls
    for cls in (
        ParallelGeometry,
        FanGeometry,
        ConeGeometry,
        VectorGeometry,
        ConeSliceGeometry,
        MatrixGeometry,
    )
}
"""Geometry classes by the name they have in files."""
