"""The loss estimator: a head that ranks images by the loss a classifier would have on them."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dipct.errors import ConfigurationError, ShapeError

RankingVariant = Literal["disc", "s1"]

_WIDTH = 128
# Losses this close have no order.
_TIE = 1e-8


class LossEstimator(nn.Module):
    """Predicts, up to a rising function, the loss of a classifier from its features.

    Every stage is averaged over the pixels and goes through a layer of its own with ReLU; a
    linear layer makes one number of all of them (Yoo & Kweon, CVPR 2019, figure 2; as "direct
    error prediction" in Thiagarajan et al., NeurIPS 2021, section 3.3, arXiv 2109.14274). The
    number only ranks: adding a constant changes nothing in how it is trained, so that a target
    for it has to be read off from images, see :meth:`calibrate`.

    Args:
        channels: of the features of each stage.
        width: of the layer of each stage.

    Attributes:
        low: what 5 per cent of the correctly classified images stay below; NaN before
            :meth:`calibrate`.
        median: likewise, half of them.
        high: likewise, 95 per cent.

    Raises:
        ConfigurationError: no stage, or a number below one.
    """

    low: Tensor
    median: Tensor
    high: Tensor

    def __init__(self, channels: Sequence[int], *, width: int = _WIDTH) -> None:
        super().__init__()
        if not channels or min(*channels, width) < 1:
            raise ConfigurationError(
                f"A loss estimator needs stages with at least one channel and a width of at least "
                f"one; got {list(channels)} and {width}."
            )
        self.stages = nn.ModuleList(nn.Linear(n, width) for n in channels)
        self.last = nn.Linear(len(channels) * width, 1)
        for name in QUANTILES:
            self.register_buffer(name, torch.tensor(torch.nan))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predicted ranks.

        Args:
            features: of each stage, [N C H W].

        Returns:
            [N].

        Raises:
            ShapeError: other stages than those it was made for.
        """
        found = [tuple(each.shape[1:2]) for each in features]
        wanted = [(layer.in_features,) for layer in self.stages]
        if found != wanted:
            raise ShapeError(
                f"This loss estimator takes features of {[n for (n,) in wanted]} channels; got "
                f"{[tuple(each.shape) for each in features]}. It was made for another classifier."
            )
        hidden = [
            torch.relu(layer(each.flatten(2).mean(2)))
            for layer, each in zip(self.stages, features, strict=True)
        ]
        return self.last(torch.cat(hidden, dim=1))[:, 0]

    @torch.no_grad()
    def calibrate(self, predicted: Tensor) -> None:
        """Keep the quantiles of predictions, of which ``low`` serves as a target.

        Args:
            predicted: of correctly classified images that it was not trained with, [N].

        Raises:
            ShapeError: none, or not a vector.
            ConfigurationError: predictions that are not finite.
        """
        if predicted.ndim != 1 or len(predicted) == 0:
            raise ShapeError(f"Predictions must be a vector; got {tuple(predicted.shape)}.")
        if not bool(torch.isfinite(predicted).all()):
            raise ConfigurationError("Predictions of the loss estimator are not finite.")
        for name, share in QUANTILES.items():
            getattr(self, name).copy_(torch.quantile(predicted, share))


QUANTILES: Mapping[str, float] = {"low": 0.05, "median": 0.5, "high": 0.95}


def ranking_loss(
    predicted: Tensor, loss: Tensor, *, margin: float = 1.0, variant: RankingVariant = "disc"
) -> Tensor:
    """Mean hinge over pairs of images whose predictions are not in the order of their losses.

    For every two images with different losses ``max(0, margin - s (p_i - p_j))``, s the sign of
    the difference of the losses (Thiagarajan et al., arXiv 2109.14274, eq. 6). The variant of
    arXiv 2010.12046, eq. 3, has zero in place of minus one and so counts, over ordered pairs, every
    pair once as it is and once as the constant margin: half the gradient, the same minimum.

    Args:
        predicted: [N].
        loss: of the classifier on the same images, [N]; no gradient goes through it.
        margin: by which predictions have to differ.
        variant: ``disc`` or ``s1``, see above.

    Returns:
        A scalar; zero if all losses are the same.

    Raises:
        ShapeError: vectors of other lengths.
        ConfigurationError: another variant.
    """
    if predicted.ndim != 1 or predicted.shape != loss.shape:
        raise ShapeError(
            "Predictions and losses must be vectors of one length; got "
            f"{tuple(predicted.shape)} and {tuple(loss.shape)}."
        )
    if variant not in ("disc", "s1"):
        raise ConfigurationError(f"variant must be disc or s1; got {variant!r}.")
    first, second = torch.triu_indices(len(loss), len(loss), 1, device=loss.device)
    difference = (loss[first] - loss[second]).detach()
    is_ordered = difference.abs() >= _TIE
    first, second, sign = first[is_ordered], second[is_ordered], difference[is_ordered].sign()
    if len(sign) == 0:
        return predicted.sum() * 0.0
    hinge = torch.relu(margin - sign * (predicted[first] - predicted[second]))
    if variant == "s1":
        # Of the two orders of a pair the other one is the constant.
        hinge = (hinge + margin) / 2
    return hinge.mean()
