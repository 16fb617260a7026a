"""The objective: fidelities, total variation, targets and manifold consistency as terms."""

from dipct.objective.activation import FeatureActivation as FeatureActivation
from dipct.objective.class_target import AttributeTargets as AttributeTargets
from dipct.objective.class_target import ClassProbabilities as ClassProbabilities
from dipct.objective.class_target import ClassTarget as ClassTarget
from dipct.objective.conventions import CONVENTIONS as CONVENTIONS
from dipct.objective.conventions import PUBLISHED_SETTINGS as PUBLISHED_SETTINGS
from dipct.objective.conventions import Convention as Convention
from dipct.objective.conventions import PublishedSettings as PublishedSettings
from dipct.objective.fidelity import Fidelity as Fidelity
from dipct.objective.fidelity import GaussianFidelity as GaussianFidelity
from dipct.objective.fidelity import PoissonFidelity as PoissonFidelity
from dipct.objective.image_distance import FeatureFidelity as FeatureFidelity
from dipct.objective.image_distance import ImageFidelity as ImageFidelity
from dipct.objective.manifold import BatchStatistics as BatchStatistics
from dipct.objective.manifold import ClassKernel as ClassKernel
from dipct.objective.manifold import LossEstimate as LossEstimate
from dipct.objective.manifold import batch_norm_inputs as batch_norm_inputs
from dipct.objective.objective import DataTerm as DataTerm
from dipct.objective.objective import Objective as Objective
from dipct.objective.objective import OperatorTerm as OperatorTerm
from dipct.objective.objective import Term as Term
from dipct.objective.objective import TotalVariation as TotalVariation
from dipct.objective.pixel_norm import PixelNorm as PixelNorm
from dipct.objective.total_variation import gradient_norm as gradient_norm
from dipct.objective.total_variation import project_dual_ball as project_dual_ball
from dipct.objective.total_variation import total_variation as total_variation
