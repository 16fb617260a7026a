"""The linearised Laplace posterior: priors on weights, evidence, samples."""

from dipct.posterior.edge_variances import EdgeVariances as EdgeVariances
from dipct.posterior.edge_variances import edge_variances_of_gram as edge_variances_of_gram
from dipct.posterior.edge_variances import probed_edge_variances as probed_edge_variances
from dipct.posterior.evidence import ExactEvidence as ExactEvidence
from dipct.posterior.evidence import Factorisation as Factorisation
from dipct.posterior.evidence import GramEvidence as GramEvidence
from dipct.posterior.evidence import Valued as Valued
from dipct.posterior.evidence import factorise as factorise
from dipct.posterior.evidence_at_weights import EvidenceAtWeights as EvidenceAtWeights
from dipct.posterior.expectation_maximisation import (
    expected_log_density as expected_log_density,
)
from dipct.posterior.expectation_maximisation import posterior_moments as posterior_moments
from dipct.posterior.expectation_maximisation import (
    tune_by_expectation_maximisation as tune_by_expectation_maximisation,
)
from dipct.posterior.g_prior import GPrior as GPrior
from dipct.posterior.g_prior import probed_column_mean_square as probed_column_mean_square
from dipct.posterior.gram import gram_matrices as gram_matrices
from dipct.posterior.gram import gram_working_bytes as gram_working_bytes
from dipct.posterior.gram import recomputed_gram_matrices as recomputed_gram_matrices
from dipct.posterior.hyperparameter_space import HyperparameterSpace as HyperparameterSpace
from dipct.posterior.linear_weights import LinearisedGenerator as LinearisedGenerator
from dipct.posterior.linear_weights import LinearWeights as LinearWeights
from dipct.posterior.linear_weights import linear_weights as linear_weights
from dipct.posterior.linearised_model import LinearisedModel as LinearisedModel
from dipct.posterior.linearised_model import NetworkPasses as NetworkPasses
from dipct.posterior.linearised_model import WeightJacobian as WeightJacobian
from dipct.posterior.matern_prior import LOWEST_VARIANCE as LOWEST_VARIANCE
from dipct.posterior.matern_prior import MaternPrior as MaternPrior
from dipct.posterior.noise_correction import noise_correction as noise_correction
from dipct.posterior.pixel_process import PixelProcess as PixelProcess
from dipct.posterior.posterior import DensePosterior as DensePosterior
from dipct.posterior.posterior import PathwisePosterior as PathwisePosterior
from dipct.posterior.posterior import Posterior as Posterior
from dipct.posterior.stochastic_evidence import EvidenceEstimate as EvidenceEstimate
from dipct.posterior.stochastic_evidence import GradientEstimate as GradientEstimate
from dipct.posterior.stochastic_evidence import StochasticEvidence as StochasticEvidence
from dipct.posterior.stochastic_tuning import tune_stochastically as tune_stochastically
from dipct.posterior.stored_jacobian import StoredJacobian as StoredJacobian
from dipct.posterior.sufficient_data import SufficientEvidence as SufficientEvidence
from dipct.posterior.sufficient_data import SufficientModel as SufficientModel
from dipct.posterior.total_variation_prior import (
    ExpectedTotalVariation as ExpectedTotalVariation,
)
from dipct.posterior.total_variation_prior import TotalVariationPrior as TotalVariationPrior
from dipct.posterior.tuning import Tuning as Tuning
from dipct.posterior.tuning import tune as tune
from dipct.posterior.weight_prior import FilterGroup as FilterGroup
from dipct.posterior.weight_prior import WeightPrior as WeightPrior
