"""Evaluation: metrics on arrays."""

from dipct.evaluation.convergence import Convergence as Convergence
from dipct.evaluation.convergence import convergence as convergence
from dipct.evaluation.quality import psnr as psnr
from dipct.evaluation.quality import relative_error as relative_error
from dipct.evaluation.quality import ssim as ssim
from dipct.evaluation.segmentation import matthews_correlation as matthews_correlation
from dipct.evaluation.segmentation import otsu_segmentation as otsu_segmentation
