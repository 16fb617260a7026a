"""Numerical linear algebra on callables and tensors; it knows nothing of imaging."""

from dipct.linalg.conjugate_gradients import LinearSolution as LinearSolution
from dipct.linalg.conjugate_gradients import Outcome as Outcome
from dipct.linalg.conjugate_gradients import conjugate_gradients as conjugate_gradients
from dipct.linalg.krylov import Tridiagonal as Tridiagonal
from dipct.linalg.log_determinant import StochasticLogDeterminant as StochasticLogDeterminant
from dipct.linalg.log_determinant import log_determinant as log_determinant
from dipct.linalg.preconditioner import LowRankPlusDiagonal as LowRankPlusDiagonal
from dipct.linalg.preconditioner import Preconditioner as Preconditioner
from dipct.linalg.preconditioner import low_rank_plus_diagonal as low_rank_plus_diagonal
from dipct.linalg.preconditioner import pivoted_cholesky as pivoted_cholesky
from dipct.linalg.randomised_svd import SingularTriplets as SingularTriplets
from dipct.linalg.randomised_svd import randomised_svd as randomised_svd
from dipct.linalg.subspaces import subspace_overlap as subspace_overlap
