"""All tasks of classification on drawn pictures by name."""

import inspect
from collections.abc import Sequence
from types import NoneType
from typing import Any, NamedTuple

from dipct.errors import ConfigurationError
from dipct.phantom.faces import ATTRIBUTES, FaceTask
from dipct.phantom.lesions import LesionTask
from dipct.phantom.scenes import SceneTask
from dipct.phantom.walnut_defects import WalnutTask
from dipct.settings import unknown_name


class _Kind(NamedTuple):
    """A task, and the argument of it that a name may end with."""

    task: type[SceneTask]
    variant: str | None = None
    values: Sequence[str | int] = ()


# A task keeps its arguments as attributes of the same names.
_TASKS = {
    "faces": _Kind(FaceTask, "attribute", ATTRIBUTES),
    "lesions": _Kind(LesionTask, "number_of_classes", (2, 4)),
    "walnuts": _Kind(WalnutTask),
}


def task_names() -> tuple[str, ...]:
    """The names that :func:`make_task` knows.

    A name without what follows the colon is short for the task's default.
    """
    return tuple(
        name
        for kind_name, kind in _TASKS.items()
        for name in [kind_name, *(f"{kind_name}:{value}" for value in kind.values)]
    )


def make_task(name: str, side: int | None = None, **options: Any) -> SceneTask:
    """A task by name.

    Args:
        name: one of :func:`task_names`; what makes the class, or the number of classes, follows
            a colon.
        side: rows and columns of the pictures; default: the task's own.
        **options: other arguments of the task, such as ``label_noise``, or ``difficulty`` and
            ``shortcut`` of :class:`LesionTask`.

    Raises:
        ConfigurationError: no such task, or options that it does not have or allow.
    """
    if name not in task_names():
        raise ConfigurationError(f"There is no task {name!r}. Known are {', '.join(task_names())}.")
    kind_name, _, wanted = name.partition(":")
    kind = _TASKS[kind_name]
    known = [each for each in _arguments(kind.task) if each not in ("side", kind.variant)]
    for option in options:
        if option == kind.variant:
            raise ConfigurationError(
                f"{option} of the task {kind_name} is part of its name: {kind_name}:"
                f"{options[option]}."
            )
        if option not in known:
            raise ConfigurationError(unknown_name(f"option of {kind_name}", option, known))
        value = options[option]
        if not isinstance(value, (int, float, NoneType)) or isinstance(value, bool):
            raise ConfigurationError(
                f"{option} of the task {kind_name} must be a number; got {value!r}."
            )
    if side is not None:
        options["side"] = side
    if wanted:
        options[str(kind.variant)] = {str(value): value for value in kind.values}[wanted]
    return kind.task(**options)


def describe_task(task: SceneTask) -> dict[str, Any]:
    """Arguments of :func:`make_task` that make a task again, as plain values.

    Args:
        task: one that :func:`make_task` makes; of another, the name of its class and the side
            are told.
    """
    for name, kind in _TASKS.items():
        if type(task) is kind.task:
            arguments = {each: getattr(task, each) for each in _arguments(kind.task)}
            if kind.variant is not None:
                name = f"{name}:{arguments.pop(kind.variant)}"
            return {"name": name, **arguments}
    return {"name": type(task).__name__, "side": task.side}


def _arguments(task: type[SceneTask]) -> list[str]:
    return list(inspect.signature(task).parameters)
