"""Hidden features of a classifier as a forward operator: nonlinear, with the usual interface."""

import copy
import difflib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dipct.device import find_device
from dipct.errors import ConfigurationError, ShapeError
from dipct.operator.base import Operator
from dipct.operator.normalisation import Numbers, channel_numbers, check_not_normalised
from dipct.shapes import check_shape

LOGITS = "logits"
"""Name of the output of a classifier among its layers."""

INPUT = ":input"
"""After the name of a module: not its output, but what goes into it."""

_NEAR_NAMES = 5
_NEVER = (
    "Name one that it uses. The module of an exported program goes through none of its layers: "
    "take torch.export.unflatten(program)."
)
_TORCH_OWN = "`isinstance\\(treespec"


class FeatureOperator(Operator):
    """Features of an image in some layers of a classifier, from one pass.

    ``Psi(x)``: outputs of the layers at the image ``(x - mean) / std``, one after the other as one
    vector; :meth:`split` takes it apart (Mahendran & Vedaldi, CVPR 2015). The pass ends at the
    last layer that is asked for.

    The operator has a copy of the model, in evaluation mode and without in-place activations: it
    does not depend on what is done to the model later, nor changes it.

    Args:
        model: maps images [N C H W] to logits [N K].
        layers: names of modules as in ``model.named_modules()``, whose outputs are taken, or with
            ``:input`` after the name what goes into them; and ``logits`` for the output of all.
        image_shape: [C H W] of one image.
        mean: what is subtracted from each channel before the model; default: nothing, as is right
            for a :class:`dipct.operator.Normalised` one.
        std: what it is then divided by; default: one.

    Attributes:
        layers: as given.
        shapes: shape of the features of one image in each layer, by name.

    Raises:
        ConfigurationError: no layer, one that the model does not have or does not pass through
            exactly once, or a normalisation that is impossible or the model's own as well.
        ShapeError: the model does not take such images, or does not give one row of numbers for
            each.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        image_shape: tuple[int, int, int],
        *,
        mean: Numbers | None = None,
        std: Numbers | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.domain_shape = tuple(image_shape)
        self._model = _frozen(model)
        like = next(_floating_tensors(self._model), torch.zeros(()))
        if len(self.domain_shape) != 3 or min(self.domain_shape) < 1:
            raise ShapeError(
                f"image_shape must be (channels, rows, columns); got {self.domain_shape}."
            )
        if mean is not None or std is not None:
            check_not_normalised(self._model)
        self._mean, self._std = channel_numbers(mean, std, self.domain_shape[0], like)
        _check_layers(self._model, self.layers)
        found = self._check_pass(like)
        self.shapes = {name: tuple(values.shape[1:]) for name, values in found.items()}
        self._sizes = [int(torch.Size(self.shapes[name]).numel()) for name in self.layers]
        self.range_shape = (sum(self._sizes),)

    def split(self, features: Tensor) -> dict[str, Tensor]:
        """Features by layer.

        Args:
            features: [... *range_shape].

        Returns:
            [... *shapes[name]] by name.
        """
        check_shape(features, "... N", name="The features", N=self.range_shape[0])
        parts = features.split(self._sizes, dim=-1)
        return {
            name: part.reshape(*part.shape[:-1], *self.shapes[name])
            for name, part in zip(self.layers, parts, strict=True)
        }

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """See :meth:`dipct.operator.Operator.to`."""
        moved = super().to(device, dtype)
        place = None if device is None else find_device(device)
        moved._model = _copied(self._model).to(device=place, dtype=dtype)
        return moved

    def _apply(self, x: Tensor) -> Tensor:
        batch = tuple(x.shape[: x.ndim - 3])
        images = x.reshape(-1, *self.domain_shape)
        if len(images) == 0:
            return x.new_zeros((*batch, *self.range_shape))
        found = self._features(images)
        joined = torch.cat([found[name].flatten(1) for name in self.layers], dim=1)
        return joined.reshape(*batch, *self.range_shape)

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """Features [N ...] by layer; the hooks are there for this call only."""
        found: dict[str, Tensor] = {}
        hidden = [name for name in self.layers if name != LOGITS]
        modules = dict(self._model.named_modules())
        stops = LOGITS not in self.layers

        def keep(name: str, values: Tensor) -> None:
            # A copy: what follows may write into it.
            found[name] = values.clone()
            if stops and len(found) == len(hidden):
                raise _Done

        handles = [tap(modules, name, keep) for name in hidden]
        try:
            output = self._model((images - self._mean) / self._std)
        except _Done:
            return found
        finally:
            for handle in handles:
                handle.remove()
        if not stops:
            found[LOGITS] = output
        return found

    def _check_pass(self, like: Tensor) -> dict[str, Tensor]:
        """Features of two black images, after checking what the model does with them."""
        images = torch.zeros(2, *self.domain_shape, dtype=like.dtype, device=like.device)
        counts = dict.fromkeys((name for name in self.layers if name != LOGITS), 0)
        kinds: dict[str, str] = {}
        modules = dict(self._model.named_modules())

        def count(name: str, values: Any) -> None:
            counts[name] += 1
            if not (isinstance(values, Tensor) and values.shape[:1] == (2,)):
                kinds[name] = type(values).__name__

        handles = [tap(modules, name, count) for name in counts]
        try:
            with torch.no_grad():
                output = self._model((images - self._mean) / self._std)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ShapeError(
                f"The model does not take images of shape {self.domain_shape}: {error}. Give the "
                "image_shape (channels, rows, columns) that it was trained with."
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ShapeError(
                "The model must map images [N C H W] to logits [N K]; for two images it gave "
                f"{what}. Wrap it in a module that returns the logits."
            )
        for name, number in counts.items():
            if number != 1:
                why = _NEVER if number == 0 else "Name the module around it."
                raise ConfigurationError(
                    f"The model goes through layer {name} {number} times in one pass; features "
                    f"are taken of layers that it goes through once. {why}"
                )
            if name in kinds:
                raise ConfigurationError(
                    f"Layer {name} gives a {kinds[name]}, not one tensor with a row for each "
                    "image. Name a layer inside it."
                )
        with torch.no_grad():
            return self._features(images)


class _Done(Exception):
    """All features are there."""


def _module(layer: str) -> str:
    return layer.removesuffix(INPUT)


def tap(
    modules: Mapping[str, nn.Module], layer: str, see: Callable[[str, Any], None]
) -> RemovableHandle:
    """Show what a layer gives, or what it is given before it can write into it.

    Args:
        modules: of the model, by name.
        layer: name of one, perhaps with ``:input`` after it.
        see: is called with that name and the values; has to copy them to keep them.

    Returns:
        What ends it: its ``remove`` is to be called.
    """
    module = modules[_module(layer)]
    if not layer.endswith(INPUT):
        return module.register_forward_hook(lambda _, inputs, output: see(layer, output))

    def before(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        see(layer, next(iter((*inputs, *named.values())), None))

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _frozen(model: nn.Module) -> nn.Module:
    """A copy that only maps."""
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"The classifier must be a torch.nn.Module; got {type(model).__name__}."
        )
    frozen = _copied(model).eval().requires_grad_(False)
    for module in frozen.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return frozen


@contextmanager
def copying_programs() -> Iterator[None]:
    """Without the warning that torch gives of its own code where exported programs are copied."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _TORCH_OWN, FutureWarning)
        yield


def _copied(model: nn.Module) -> nn.Module:
    with copying_programs():
        return copy.deepcopy(model)


def _floating_tensors(model: nn.Module) -> Any:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            yield tensor


def _check_layers(model: nn.Module, layers: tuple[str, ...]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    if not layers or len(set(layers)) != len(layers):
        raise ConfigurationError(
            f"Give one or more layers, each once; got {list(layers)}. The model has: "
            f"{', '.join([*names, LOGITS])}."
        )
    for layer in layers:
        if layer != LOGITS and _module(layer) not in names:
            near = difflib.get_close_matches(layer, [*names, LOGITS], n=_NEAR_NAMES, cutoff=0.4)
            hint = f"Near names: {', '.join(near)}." if near else f"It has: {', '.join(names)}."
            raise ConfigurationError(f"The model has no layer {layer!r}. {hint}")
    if LOGITS in layers and LOGITS in names:
        raise ConfigurationError(
            f"The model has a module named {LOGITS}, which is the name of its output here. Rename "
            "the module."
        )
