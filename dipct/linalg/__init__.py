"""Numerical linear algebra on callables and tensors; it knows nothing of imaging."""

from dipct.linalg.randomised_svd import SingularTriplets as SingularTriplets
from dipct.linalg.randomised_svd import randomised_svd as randomised_svd
from dipct.linalg.subspaces import subspace_overlap as subspace_overlap
