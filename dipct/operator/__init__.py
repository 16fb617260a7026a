"""Operators: maps between images and data, their algebra, derivatives and adjoints.

``dipct.operator.astra_ray`` and ``dipct.operator.odl_bridge`` are imported on their own, since
they load ASTRA and ODL.
"""

from dipct.operator.algebra import stack as stack
from dipct.operator.base import LinearOperator as LinearOperator
from dipct.operator.base import Operator as Operator
from dipct.operator.features import INPUT as INPUT
from dipct.operator.features import LOGITS as LOGITS
from dipct.operator.features import FeatureOperator as FeatureOperator
from dipct.operator.gradient import Gradient as Gradient
from dipct.operator.jacobian import Jacobian as Jacobian
from dipct.operator.matrix import MatrixOperator as MatrixOperator
from dipct.operator.normalisation import NORMALISATIONS as NORMALISATIONS
from dipct.operator.normalisation import Normalised as Normalised
from dipct.operator.normalisation import with_normalisation as with_normalisation
from dipct.operator.ray import RayTransform as RayTransform
from dipct.operator.ray import ray_transform as ray_transform
from dipct.operator.sampling import Identity as Identity
from dipct.operator.sampling import Mask as Mask
from dipct.operator.sampling import PixelAverage as PixelAverage
from dipct.operator.scipy_bridge import from_scipy as from_scipy
from dipct.operator.scipy_bridge import to_scipy as to_scipy
from dipct.operator.symmetric_ray import SymmetricRayTransform as SymmetricRayTransform
