"""Evaluation: metrics on arrays."""

from dipct.evaluation.calibration import CalibrationCurve as CalibrationCurve
from dipct.evaluation.calibration import calibration_curve as calibration_curve
from dipct.evaluation.calibration import coverage as coverage
from dipct.evaluation.calibration import coverage_of_samples as coverage_of_samples
from dipct.evaluation.convergence import Convergence as Convergence
from dipct.evaluation.convergence import convergence as convergence
from dipct.evaluation.likelihood import gaussian_log_likelihood as gaussian_log_likelihood
from dipct.evaluation.likelihood import patch_log_likelihood as patch_log_likelihood
from dipct.evaluation.likelihood import pixel_log_likelihood as pixel_log_likelihood
from dipct.evaluation.proper_scores import energy_score as energy_score
from dipct.evaluation.proper_scores import gaussian_crps as gaussian_crps
from dipct.evaluation.proper_scores import sample_crps as sample_crps
from dipct.evaluation.quality import psnr as psnr
from dipct.evaluation.quality import relative_error as relative_error
from dipct.evaluation.quality import ssim as ssim
from dipct.evaluation.ranks import probability_integral_transform as probability_integral_transform
from dipct.evaluation.ranks import rank_of_truth as rank_of_truth
from dipct.evaluation.ranks import rank_uniformity as rank_uniformity
from dipct.evaluation.segmentation import matthews_correlation as matthews_correlation
from dipct.evaluation.segmentation import otsu_segmentation as otsu_segmentation
from dipct.evaluation.sparsification import ErrorCorrelation as ErrorCorrelation
from dipct.evaluation.sparsification import Sparsification as Sparsification
from dipct.evaluation.sparsification import error_correlation as error_correlation
from dipct.evaluation.sparsification import sparsification as sparsification
from dipct.evaluation.whitening import quantile_quantile as quantile_quantile
from dipct.evaluation.whitening import whitened_errors as whitened_errors
