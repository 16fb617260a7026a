"""How strongly a classifier responds to an image."""

import torch
from torch import Tensor

from dipct.errors import ConfigurationError
from dipct.objective.objective import OperatorTerm
from dipct.operator import LOGITS, FeatureOperator


class FeatureActivation(OperatorTerm):
    """Minus the mean activation of a layer, of one of its channels, or one logit.

    Minimised, it makes images of what a part of a classifier responds to: activation maximisation
    (Erhan et al., Visualizing higher-layer features of a deep network, 2009; Simonyan et al.,
    arXiv 1312.6034, eq. 1, for logits) and, from a query on, Deep Dream. It has no lower bound:
    use it with a prior, or for so many steps.

    Args:
        operator: features with the layer among its layers.
        layer: whose activation it is.
        channel: number along the first axis of the layer's features, or one for each element of a
            batch, [...]; for the logits it is the class. Default: all of them.

    Raises:
        ConfigurationError: a layer that the operator does not have, or a channel that the layer
            does not have.
    """

    name = "activation"

    def __init__(
        self, operator: FeatureOperator, layer: str = LOGITS, *, channel: int | Tensor | None = None
    ) -> None:
        super().__init__(operator)
        if layer not in operator.layers:
            raise ConfigurationError(
                f"The features are of the layers {', '.join(operator.layers)}; got {layer!r}."
            )
        self.layer, self.channel = layer, None
        self._split, self._ndim = operator.split, len(operator.shapes[layer])
        if channel is not None:
            count = operator.shapes[layer][0]
            chosen = torch.as_tensor(channel)
            is_whole = not chosen.is_floating_point() and chosen.dtype != torch.bool
            if not is_whole or not bool(((chosen >= 0) & (chosen < count)).all()):
                raise ConfigurationError(
                    f"channel must be a whole number from 0 to {count - 1} for layer {layer}; got "
                    f"{channel}."
                )
            self.channel = chosen.long()

    def value_of(self, eta: Tensor) -> Tensor:
        """See :meth:`OperatorTerm.value_of`."""
        found = self._split(eta)[self.layer]
        channels = found.unsqueeze(-1).flatten(-self._ndim).mean(-1)
        if self.channel is None:
            return -channels.mean(-1)
        channel = self.channel.to(eta.device).expand(eta.shape[:-1])
        return -channels.gather(-1, channel[..., None])[..., 0]
