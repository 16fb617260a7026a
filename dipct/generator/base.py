"""The interface of image priors: a generator maps a flat parameter vector to an image."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from dipct.generator.parameters import Parameter, ParameterLayout
from dipct.operator.base import Operator


class Generator(Operator):
    """An operator from flat parameters ``theta`` [... P] to images [... *range_shape].

    Leading axes of ``theta`` are batch axes: every element has a network of its own.

    Attributes:
        layout: names and places of the parameters.
    """

    layout: ParameterLayout

    def _set_spaces(self, parameters: Sequence[Parameter], range_shape: tuple[int, ...]) -> None:
        self.layout = ParameterLayout(parameters)
        self.domain_shape, self.range_shape = (self.layout.size,), range_shape

    @property
    def n_parameters(self) -> int:
        """Number of parameters P."""
        return self.layout.size

    @abstractmethod
    def initial(self, seed: int) -> Tensor:
        """Parameters to begin with, from a seed.

        Returns:
            float32 [P] on the CPU, the same on every machine.
        """
