"""All tasks of classification on drawn pictures by name."""

import inspect
from collections.abc import Sequence
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
    apart = ("side", kind.variant)
    known = {name: value for name, value in _arguments(kind.task).items() if name not in apart}
    for option in options:
        if option == kind.variant:
            raise ConfigurationError(
                f"{option} of the task {kind_name} is part of its name: {kind_name}:"
                f"{options[option]}."
            )
        if option not in known:
            raise ConfigurationError(unknown_name(f"option of {kind_name}", option, list(known)))
        value, default = options[option], known[option]
        is_left_out = value is None and default is None
        if not is_left_out and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigurationError(
                f"{option} of the task {kind_name} must be a number; got {value!r}."
            )
    given = dict(options)
    if side is not None:
        given["side"] = side
    if wanted:
        given[str(kind.variant)] = {str(value): value for value in kind.values}[wanted]
    return kind.task(**given)


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


def _arguments(task: type[SceneTask]) -> dict[str, Any]:
    """Names of arguments, with their defaults."""
    return {each.name: each.default for each in inspect.signature(task).parameters.values()}
