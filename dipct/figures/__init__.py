"""Pictures of scans and reconstructions; the only place that imports matplotlib.

Figures are made with matplotlib's object interface and drawn by Agg: no window, no global state.
"""

from dipct.figures.choice import psnr_figure as psnr_figure
from dipct.figures.classifier import classifier_figure as classifier_figure
from dipct.figures.compare import comparison_figure as comparison_figure
from dipct.figures.counterfactual import counterfactual_figure as counterfactual_figure
from dipct.figures.counterfactual import counterfactual_grid as counterfactual_grid
from dipct.figures.counterfactual import pre_image_figure as pre_image_figure
from dipct.figures.inversion_uncertainty import (
    inversion_uncertainty_figure as inversion_uncertainty_figure,
)
from dipct.figures.run import run_figure as run_figure
from dipct.figures.save import save_figure as save_figure
from dipct.figures.scan import scan_figure as scan_figure
from dipct.figures.spectrum import spectrum_figure as spectrum_figure
from dipct.figures.training import training_figure as training_figure
from dipct.figures.uncertainty import uncertainty_figure as uncertainty_figure
