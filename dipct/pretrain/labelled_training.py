"""What all trainings of a module on labelled images share, as a method of the one solver loop."""

import copy
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dipct.pretrain.labelled_batches import LabelledBatches
from dipct.solver import Adam, Method, Status

# Figures are averages over about so many steps.
_AVERAGED_STEPS = 20


class LabelledTraining(Method):
    """Minimise a loss of a module over batches of labelled images, by Adam.

    The batch of a step is a function of the step's number and the seed, so that training resumes
    exactly, unless the module itself draws, as dropout does from torch's own stream.

    Figures: those of the batches by name (running means).

    Args:
        module: architecture and first parameters; its mode changes, its tensors do not.
        batches: to train on.
        adam: of the vector of all trained parameters.
        figures: names of what :meth:`losses` gives beside the loss.
        trained: names of parameters and buffers that change; default: all.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: LabelledBatches,
        adam: Adam,
        *,
        figures: Collection[str],
        trained: Collection[str] | None = None,
    ) -> None:
        self.batches, self.settings = batches, batches.settings
        self._module, self._adam, self._figures = module, adam, tuple(figures)
        self._parameters = {
            name: value
            for name, value in module.named_parameters()
            if trained is None or name in trained
        }
        self._buffers = {
            name: value
            for name, value in module.named_buffers()
            if trained is None or name in trained
        }

    @abstractmethod
    def losses(
        self, theta: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its figures, all scalars.

        Args:
            theta: trained parameters, [P].
            buffers: may be written into.
            images: [B C H W].
            labels: [B].
            step: completed steps.
        """

    def after_step(
        self, theta: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> None:
        """Bring buffers up to date with the parameters after a step; by default they are.

        Args:
            theta: as they are now, [P].
            buffers: to be written into.
            images: of the batch of the step, [B C H W].
            labels: [B].
        """

    def start(self) -> dict[str, Tensor]:
        """See :meth:`Method.start`."""
        theta = nn.utils.parameters_to_vector(self._parameters.values()).detach().clone()
        zero = torch.tensor(0.0, dtype=torch.float64)
        return {
            "theta": theta,
            "step": torch.tensor(0),
            **dict.fromkeys(self._figures, zero),
            **{f"buffer {name}": b.detach().clone() for name, b in self._buffers.items()},
            **self._adam.start(theta),
        }

    def step(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.step`."""
        step = int(tensors["step"])
        images, labels = self.batches.batch(step)
        buffers = {name: tensors[f"buffer {name}"].clone() for name in self._buffers}
        theta = tensors["theta"].detach().requires_grad_()
        with torch.enable_grad():
            loss, figures = self.losses(theta, buffers, images, labels, step)
        (gradient,) = torch.autograd.grad(loss, theta)
        theta, averages = self._adam.update(theta.detach(), tensors, gradient, step)
        with torch.no_grad():
            self.after_step(theta, buffers, images, labels)
        weight = 1 / min(step + 1, _AVERAGED_STEPS)
        return {
            "theta": theta,
            "step": torch.tensor(step + 1),
            **{
                # On the host also after a checkpoint, which is read to the device.
                name: torch.lerp(tensors[name].cpu(), value.detach().double().cpu(), weight)
                for name, value in figures.items()
            },
            **{f"buffer {name}": value for name, value in buffers.items()},
            **averages,
        }

    def estimate(self, tensors: dict[str, Tensor]) -> Tensor:
        """The trained parameters, [P]."""
        return tensors["theta"]

    def figures(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Method.figures`."""
        return {name: tensors[name] for name in self._figures}

    def outcome(self, figures: dict[str, Tensor]) -> Status | None:
        """Training goes on to its last step."""
        return None

    def _call(
        self,
        theta: Tensor,
        buffers: Mapping[str, Tensor],
        images: Tensor,
        options: dict[str, Any] | None = None,
    ) -> Any:
        """The module with other parameters and buffers."""
        parts = (self._split(theta), dict(buffers))
        return torch.func.functional_call(self._module, parts, (images,), options)

    def _split(self, theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([value.numel() for value in self._parameters.values()])
        return {
            name: part.reshape(value.shape)
            for part, (name, value) in zip(parts, self._parameters.items(), strict=True)
        }

    def _trained(self, tensors: dict[str, Tensor]) -> Any:
        """The module as trained, in evaluation mode."""
        state = {
            name: value.detach().clone() for name, value in self._split(tensors["theta"]).items()
        }
        state |= {name: tensors[f"buffer {name}"].clone() for name in self._buffers}
        trained = copy.deepcopy(self._module)
        trained.load_state_dict(state, strict=False)
        return trained.eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)
