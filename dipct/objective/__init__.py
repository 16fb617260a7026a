"""Terms of the objective: data fidelities and total variation."""

from dipct.objective.fidelity import Fidelity as Fidelity
from dipct.objective.fidelity import GaussianFidelity as GaussianFidelity
from dipct.objective.fidelity import PoissonFidelity as PoissonFidelity
from dipct.objective.total_variation import gradient_norm as gradient_norm
from dipct.objective.total_variation import project_dual_ball as project_dual_ball
from dipct.objective.total_variation import total_variation as total_variation
