"""Iterative methods: one loop, its stopping rules, classical and network reconstructions."""

from dipct.solver.adam import Adam as Adam
from dipct.solver.adam import CosineDecay as CosineDecay
from dipct.solver.adam import WarmUp as WarmUp
from dipct.solver.cgls import CGLS as CGLS
from dipct.solver.deep_image_prior import deep_image_prior as deep_image_prior
from dipct.solver.deep_image_prior import deep_image_prior_fit as deep_image_prior_fit
from dipct.solver.descent import GeneratorFit as GeneratorFit
from dipct.solver.discrepancy import DiscrepancyPrinciple as DiscrepancyPrinciple
from dipct.solver.discrepancy import WeightChoice as WeightChoice
from dipct.solver.discrepancy import attainable_discrepancy as attainable_discrepancy
from dipct.solver.discrepancy import tv_weight_by_discrepancy as tv_weight_by_discrepancy
from dipct.solver.iteration import Callback as Callback
from dipct.solver.iteration import Method as Method
from dipct.solver.iteration import StoppingRule as StoppingRule
from dipct.solver.iteration import iterate as iterate
from dipct.solver.primal_dual import PrimalDualTV as PrimalDualTV
from dipct.solver.selection import FirstAtNoiseLevel as FirstAtNoiseLevel
from dipct.solver.selection import LastIterate as LastIterate
from dipct.solver.selection import LeastMovingVariance as LeastMovingVariance
from dipct.solver.selection import LowestObjective as LowestObjective
from dipct.solver.selection import Selection as Selection
from dipct.solver.sirt import SIRT as SIRT
from dipct.solver.solution import IterationState as IterationState
from dipct.solver.solution import Solution as Solution
from dipct.solver.solution import Status as Status
