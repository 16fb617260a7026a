"""The work that all inversions share: a fit that can be stopped and resumed, and its digest."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dipct.errors import Interrupted
from dipct.generator import Generator, NetworkGenerator
from dipct.inversion_settings import InversionSettings
from dipct.objective import Term
from dipct.pipeline.stages import Stages
from dipct.pretrain import TrainedClassifier
from dipct.progress import ProgressDisplay
from dipct.run import installed_versions
from dipct.solver import Callback, IterationState, Method, Solution, Status, iterate

_EVERY = 10
# Between two times that the state is kept [s].
_SECONDS_BETWEEN = 60.0


def solve_in_stage(
    name: str,
    method: Method,
    steps: int,
    stages: Stages,
    device: torch.device,
    *,
    title: str,
    progress: bool,
) -> Solution:
    """Iterate a method, keeping its state now and then, or go on from what was kept.

    Args:
        name: of the stage.
        method: what is iterated.
        steps: how many.
        stages: where to keep it.
        device: where the tensors shall be.
        title: of the progress display.
        progress: show one.

    Raises:
        Interrupted: stopped by the user; the state is kept.
    """

    def compute(
        part: dict[str, Any] | None, keep: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        state = None if part is None else _state(part)
        with ProgressDisplay(title, steps) if progress else nullcontext() as shown:
            callbacks: list[Callback] = [] if shown is None else [shown]
            solution = iterate(
                method,
                max_iterations=steps,
                state=state,
                every=_EVERY,
                callbacks=[*callbacks, _Keeper(keep)],
            )
        if solution.status is Status.INTERRUPTED:
            keep(_parts(solution.state))
            raise Interrupted(stages.interrupted())
        return {
            "value": solution.value,
            "status": solution.status.name,
            "history": solution.history,
            "state": _parts(solution.state),
        }

    kept = stages.resumable(name, compute, device)
    state, history = _state(kept["state"]), _on_host(kept["history"])
    return Solution(kept["value"], Status[kept["status"]], state.iteration, history, state)


def digest_of(
    models: Iterable[nn.Module],
    arrays: Iterable[np.ndarray | Tensor | None],
    settings: InversionSettings,
    **others: Any,
) -> str:
    """Digest of all that decides the result of an inversion.

    Args:
        models: classifiers and heads.
        arrays: queries, targets and regions.
        settings: whole.
        **others: plain values.
    """
    digest = hashlib.sha256(digest_of_models(models).encode())
    for array in arrays:
        plain = array.cpu().numpy() if isinstance(array, Tensor) else array
        digest.update(b"none" if plain is None else np.ascontiguousarray(plain).tobytes())
    values = settings.to_values() | others
    values.pop("device")
    digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()


def digest_of_models(models: Iterable[nn.Module]) -> str:
    """Digest of the parameters of modules."""
    digest = hashlib.sha256()
    for model in models:
        for tensor in model.state_dict().values():
            digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def heads_and_model(classifier: TrainedClassifier) -> list[nn.Module]:
    """All modules of a classifier that terms may be made of."""
    parts = (classifier.model, classifier.estimator, classifier.centroids)
    return [part for part in parts if part is not None]


def _described(classifier: TrainedClassifier) -> dict[str, Any]:
    """What a classifier is, in plain values."""
    return {
        "architecture": dict(classifier.architecture),
        "classes": list(classifier.classes),
        "image_shape": list(classifier.image_shape),
        "task": dict(classifier.task),
        "created": classifier.created,
        "parameters_sha256": digest_of_models([classifier.model]),
    }


def _history_of(solution: Solution, number: int) -> dict[str, np.ndarray]:
    """What was recorded of one element of a batch.

    Args:
        solution: of a batch [B].
        number: of the element.
    """
    return {
        name: (values if name == "iteration" else values[:, number]).numpy()
        for name, values in solution.history.items()
    }


def _generator_parts(generator: Generator, theta: Tensor) -> dict[str, np.ndarray]:
    """What makes an image again: parameters and, for a network, its input."""
    parts = {"theta": theta.detach().cpu().numpy()}
    if isinstance(generator, NetworkGenerator):
        parts["input"] = generator.z.cpu().numpy()
    return parts


def record_of(
    number: int,
    classifier: TrainedClassifier,
    generator: Generator,
    solution: Solution,
    terms: Iterable[tuple[float, Term]],
    settings: InversionSettings,
    *,
    source: str,
    seconds: float,
) -> dict[str, Any]:
    """How an image of a batch came about: what all :class:`dipct.inversion.Inversion` say.

    Args:
        number: of the image in the batch.
        classifier: that was inverted.
        generator: of the images.
        solution: of the batch [B].
        terms: of the objective, with their weights.
        settings: whole.
        source: what the queries were read from.
        seconds: that the batch took.
    """
    tensors = solution.state.tensors
    return {
        "status": solution.status.name,
        "steps": solution.iterations,
        "chosen_step": max(int(tensors["chosen_step"][number]), 0),
        "history": _history_of(solution, number),
        "settings": settings.to_values(),
        "weights": {term.name: weight for weight, term in terms},
        "classifier": _described(classifier),
        "generator": _generator_parts(generator, tensors["chosen"][number]),
        "source": source,
        "duration_s": seconds / len(solution.value),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": installed_versions(),
    }


class _Keeper:
    """Keeps the state of a fit now and then; a callback."""

    def __init__(self, keep: Callable[[dict[str, Any]], None]) -> None:
        self._keep, self._last = keep, time.monotonic()

    def __call__(self, state: IterationState) -> None:
        if time.monotonic() - self._last >= _SECONDS_BETWEEN:
            self._keep(_parts(state))
            self._last = time.monotonic()


def _state(parts: dict[str, Any]) -> IterationState:
    """From what was kept; histories are on the host, wherever the rest is."""
    return IterationState(parts["iteration"], parts["tensors"], _on_host(parts["history"]))


def _on_host(history: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.cpu() for name, values in history.items()}


def _parts(state: IterationState) -> dict[str, Any]:
    return {"iteration": state.iteration, "tensors": state.tensors, "history": state.history}
