"""The evidence as published for tomography: at given weights instead of without weights."""

import torch
from torch import Tensor

from dipct.posterior.evidence import Factorisation, GramEvidence
from dipct.posterior.linearised_model import LinearisedModel
from dipct.posterior.weight_prior import WeightPrior
from dipct.shapes import check_shape


class EvidenceAtWeights(GramEvidence):
    """``- (|y - A f|^2 / (f V) + w^T Sigma^-1 w + log det K + m log 2 pi) / 2`` at weights w.

    Laplace's approximation with the misfit of the network's image and the norm of the linear
    model's weights (Antoran et al., arXiv 2203.00479, eq. 11). It is a lower bound of the
    evidence where the misfit is that of w itself, and equal to it only where w is the mode for
    these hyper-parameters; weights that stay the same while hyper-parameters change are not. To
    compare with published numbers; :class:`dipct.posterior.ExactEvidence` needs no weights.

    Args:
        prior: of the weights.
        gram: its Gram matrices, [K m m].
        model: the linear model, whose misfit is taken.
        weights: w, [W], see :func:`dipct.posterior.linear_weights`.

    Raises:
        ShapeError: shapes that do not fit.
    """

    def __init__(
        self, prior: WeightPrior, gram: Tensor, model: LinearisedModel, weights: Tensor
    ) -> None:
        super().__init__(prior, gram, model.residual, model.noise_variance)
        check_shape(weights, "W", name="The weights", W=prior.size)
        self._misfit_of_image = float(
            (model.misfit.double().square() / model.noise_variance.double()).sum()
        )
        # Sums over the filters of a group: all that its norm needs of them.
        self._moments = []
        for group in prior.groups:
            part = weights[group.weights].double().cpu()
            if group.scale is not None:
                part = part / group.scale.double().cpu()
            filters = part.reshape(group.filters, group.positions)
            self._moments.append(filters.mT @ filters)

    def _misfit(self, phi: Tensor, found: Factorisation) -> tuple[float, Tensor, Tensor | None]:
        variable = phi.detach().double().cpu().requires_grad_()
        total = self._misfit_of_image * (-variable[-1]).exp()
        for moment, covariance in zip(
            self._moments, self.prior.filter_covariances(variable[:-1]), strict=True
        ):
            total = total + (torch.linalg.inv(covariance) * moment).sum()
        (gradient,) = torch.autograd.grad(total, variable)
        return float(total.detach()), gradient, None
