"""Labelled images that are drawn, and whose counterfactuals are known."""

from collections.abc import Callable

import numpy as np

from dipct.phantom import SceneTask, describe_task
from dipct.pretrain.labelled_images import LabelledImages
from dipct.pretrain.seeds import check_whole


def scene_images(
    task: SceneTask,
    number: int,
    *,
    seed: int,
    labels_seed: int | None,
    progress: Callable[[int, int], object] | None = None,
) -> LabelledImages:
    """Pictures of a task with their classes.

    Each picture depends on its number and the seed alone, and is a group of its own: pictures of
    two seeds share nothing. ``task.sample(number, seed=seed)`` draws the scenes of the pictures,
    in the same order.

    Args:
        task: what to draw.
        number: how many.
        seed: of the pictures.
        labels_seed: of the labels that are wrong, see :meth:`SceneTask.labels`; None: none is.
        progress: told, after every picture, how many of how many are drawn.

    Returns:
        The pictures; as source, what draws them again: arguments of
        :func:`dipct.phantom.make_task`, number and seeds.

    Raises:
        ConfigurationError: an impossible number or seed.
    """
    check_whole(number, "number", least=1)
    check_whole(seed, "seed")
    if labels_seed is not None:
        check_whole(labels_seed, "labels_seed")
    scenes = []
    for index in range(number):
        scenes.append(task.sample_one(index, seed=seed))
        if progress is not None:
            progress(index + 1, number)
    return LabelledImages(
        images=np.stack([scene.image for scene in scenes]),
        labels=task.labels(scenes, seed=labels_seed),
        classes=task.classes,
        groups=np.arange(number, dtype=np.int64),
        source={
            "kind": "scenes",
            "task": describe_task(task),
            "number": int(number),
            "seed": int(seed),
            "labels_seed": None if labels_seed is None else int(labels_seed),
        },
    )
