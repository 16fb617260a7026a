"""A user's own classifier: made by a function of theirs with a file of weights, or exported."""

import importlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from dipct.errors import ConfigurationError, DataError, FileFormatError, ShapeError
from dipct.operator.features import copying_programs

_EXPORTED = ".pt2"
# Under these names training scripts keep the weights beside other things.
_KEYS = ("state_dict", "model_state_dict", "model")
# What torch.nn.DataParallel puts before every name.
_PREFIX = "module."
_SHOWN = 5
_SAVE_AGAIN = (
    "Save the weights alone, where the model is: torch.save(model.state_dict(), 'weights.pt')."
)
_EXPORT_AGAIN = (
    "Export it as torch.export.export(model.eval(), (images,), dynamic_shapes=({0: "
    "torch.export.Dim('batch')},)) with images of two or more."
)


def load_model(
    reference: str,
    weights: str | Path | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A classifier of one's own, in evaluation mode.

    Of a file of weights nothing is executed. The code of a module is, and torch may execute what
    an exported program holds: load those that you trust. Layers of an exported program have the
    names that they had in the model. For a model that expects normalised images see
    :func:`dipct.operator.with_normalisation`.

    Args:
        reference: ``package.module:attribute``, a class or function that makes the model; or the
            path of an exported program, ``model.pt2``.
        weights: file of a state dict, also under ``state_dict``, ``model_state_dict`` or
            ``model`` beside other things, and with ``module.`` before the names; default: those
            that the model is made with.
        arguments: keyword arguments of the class or function.

    Raises:
        ConfigurationError: nothing importable under the reference, something that makes no
            module, weights that do not fit, or a program that was exported for training or for
            one number of images.
        FileFormatError: a file that is missing or holds something else.
        DataError: weights that are not finite.
    """
    if reference.endswith(_EXPORTED):
        if weights is not None or arguments:
            raise ConfigurationError(
                f"{reference} is an exported program, which has its weights and no arguments; "
                "leave them out."
            )
        return _exported(Path(reference))
    model = _made(reference, dict(arguments or {}))
    if weights is not None:
        _load(model, _weights(Path(weights)), Path(weights))
    return model.eval()


def _made(reference: str, arguments: dict[str, Any]) -> nn.Module:
    make = _imported(reference)
    if isinstance(make, nn.Module) or not callable(make):
        raise ConfigurationError(
            f"{reference} is a {type(make).__name__}; name a class or function that makes the "
            "model when it is called."
        )
    try:
        # Torch initialises modules from its global stream.
        with torch.random.fork_rng(devices=[]):
            model = make(**arguments)
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ConfigurationError(
            f"{reference}({given}) raised {type(error).__name__}: {error}. Give it the keyword "
            "arguments that it needs, or name a function that needs none."
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"{reference} must make a torch.nn.Module; it gave a {type(model).__name__}."
        )
    return model


def _imported(reference: str) -> Any:
    module_name, colon, path = reference.partition(":")
    if not colon or not all(part.isidentifier() for part in f"{module_name}.{path}".split(".")):
        raise ConfigurationError(
            "A model is named as package.module:attribute or by the path of an exported program "
            f"(.pt2); got {reference!r}."
        )
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{reference}: there is no module {error.name}. Install it, or put the folder that it "
            "lies in on PYTHONPATH."
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"{reference}: importing {module_name} raised {type(error).__name__}: {error}."
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            known = [each for each in dir(found) if not each.startswith("_")]
            near = get_close_matches(name, known, n=_SHOWN, cutoff=0.4)
            hint = f"Near names: {', '.join(near)}." if near else f"It has {_listed(known)}."
            raise ConfigurationError(f"{module_name} has no {path!r}. {hint}")
        found = getattr(found, name)
    return found


def _weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from a file that nothing is executed of."""
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file; expected weights of a model.")
    if path.suffix == ".safetensors":
        raise FileFormatError(f"{path}: safetensors files are not read. {_SAVE_AGAIN}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{path}: holds more than weights, which would have to be executed. {_SAVE_AGAIN}"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise FileFormatError(
            f"{path}: expected weights as torch.save writes them; it cannot be read as such "
            f"({error})."
        ) from error
    for key in _KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not _are_named_tensors(found):
        what = _listed(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise FileFormatError(f"{path}: expected tensors by name; it holds {what}. {_SAVE_AGAIN}")
    if all(name.startswith(_PREFIX) for name in found):
        found = {name.removeprefix(_PREFIX): value for name, value in found.items()}
    return dict(found)


def _are_named_tensors(found: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    # Old files lack the counters of batch normalisation, which nothing depends on.
    missing = [n for n in wanted if n not in weights and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in wanted]
    if missing or unexpected:
        raise ConfigurationError(
            f"{path} does not fit the model. Missing: {_listed(missing)}. Unexpected: "
            f"{_listed(unexpected)}. Give the model the arguments that it was trained with."
        )
    others = [
        f"{name} {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in weights.items()
        if value.shape != wanted[name].shape
    ]
    if others:
        raise ConfigurationError(
            f"{path} does not fit the model. Other shapes: {_listed(others)}. Give the model the "
            "arguments that it was trained with."
        )
    bad = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise DataError(f"{path} holds values that are not finite, in {_listed(bad)}.")
    model.load_state_dict(weights, strict=False)


def _exported(path: Path) -> nn.Module:
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file; expected an exported program.")
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise FileFormatError(
            f"{path}: expected a program as torch.export.save writes it; it cannot be read as "
            f"such ({error})."
        ) from error
    training = sorted({str(node.target) for node in program.graph.nodes if _trains(node)})
    if training:
        raise ConfigurationError(
            f"{path} was exported in training mode ({_listed(training)}), so that its logits "
            f"depend on the other images or on chance. {_EXPORT_AGAIN}"
        )
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4:
        raise ConfigurationError(f"{path} must take images [N C H W] and nothing else.")
    if isinstance(inputs[0].shape[0], int):
        raise ConfigurationError(
            f"{path} takes {inputs[0].shape[0]} images at a time and no other number. "
            f"{_EXPORT_AGAIN}"
        )
    # Unlike the program's own module it goes through its layers, so that they can be seen.
    with copying_programs():
        model = torch.export.unflatten(program)
    graphs = (getattr(module, "graph", None) for module in model.modules())
    for graph in graphs:
        if isinstance(graph, fx.Graph):
            for node in graph.nodes:
                # Values of the export, which stand in the way of copies of the model.
                node.meta.clear()
    model.register_forward_pre_hook(_checked_size(inputs[0].shape[1:]))
    return model.eval()


def _checked_size(shape: torch.Size) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """What refuses images that are not [N C H W] as exported; a size that was left open is free."""
    sizes = [size if isinstance(size, int) else None for size in shape]

    def check(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found = inputs[0].shape[1:]
        if len(found) != len(sizes) or any(
            size not in (None, each) for size, each in zip(sizes, found, strict=True)
        ):
            raise ShapeError(
                f"The exported program takes images [N {' '.join(str(s or '*') for s in sizes)}]; "
                f"got {tuple(inputs[0].shape)}."
            )

    return check


def _trains(node: fx.Node) -> bool:
    """Whether an operation of a graph is told to behave as in training."""
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name in ("train", "training"):
            given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            return given is True
    return False


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
