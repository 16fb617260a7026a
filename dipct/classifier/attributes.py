"""One attribute of a model that has a logit for each of several."""

import torch
from torch import Tensor, nn


class AttributeLogits(nn.Module):
    """Logits of the absence and presence of one attribute, whose softmax is its sigmoid.

    Args:
        model: maps images [N C H W] to logits [N K], one for each attribute.
        number: of the attribute.
    """

    def __init__(self, model: nn.Module, number: int) -> None:
        super().__init__()
        self.model, self.number = model, number
        # Among the parameters too, which tell one model from another.
        self.register_buffer("attribute", torch.tensor(number))

    def forward(self, x: Tensor) -> Tensor:
        """[N C H W] to logits [N 2]."""
        half = self.model(x)[:, self.number] / 2
        return torch.stack([-half, half], dim=1)
