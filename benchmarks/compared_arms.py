"""Arms that several benchmarks compare, and queries that something was done to."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from counterfactual_cases import Queries, slug
from counterfactual_plans import ARMS, DEFAULT, Arm, Plan
from job_queue import path_of

from dipct.operator import LOGITS
from dipct.pretrain import TrainedClassifier


def tuned(names: Iterable[str], *, case: str = "faces", plan: Plan = DEFAULT) -> dict[str, Arm]:
    """Arms by name, without those that settings have not been chosen for."""
    return {
        name: ARMS[name]
        for name in names
        if name in ARMS and path_of(plan, f"tuning-{case}-{slug(name)}").exists()
    }


def say_untuned(names: Iterable[str], *, case: str = "faces", plan: Plan = DEFAULT) -> None:
    """Name the arms that are left out until settings have been chosen for them."""
    names = list(names)
    left = [name for name in names if name not in tuned(names, case=case, plan=plan)]
    if left:
        print(
            f"Left out until benchmarks/counterfactuals.py --case {case} has tuned them: "
            f"{', '.join(left)}."
        )


def still_right(
    trained: TrainedClassifier, asked: Queries, altered: Callable[[np.ndarray], np.ndarray]
) -> tuple[Queries, list[int]]:
    """Queries that something was done to, where the classifier still does as it should.

    Explaining a mistake would score the classifier: it has to see the query in its own class, and
    its true counterfactual, after the same was done to it, in the target class.

    Args:
        trained: the classifier.
        asked: queries that it sees right as they are.
        altered: what is done to images [N C H W], the same to every array of as many.

    Returns:
        The queries as they are shown, and their numbers among those asked.
    """
    logits = trained.features([LOGITS])
    shown = altered(asked.images)
    with torch.no_grad():
        seen, of_others = (
            logits(torch.from_numpy(images)).argmax(-1).numpy()
            for images in (shown, altered(true_images(asked)))
        )
    own = [asked.task.label(scene.causes) for scene in asked.scenes]
    kept = np.flatnonzero((seen == own) & (of_others == asked.targets)).tolist()
    scenes = [replace(asked.scenes[i], image=shown[i]) for i in kept]
    return Queries(asked.task, scenes, [asked.targets[i] for i in kept]), kept


def true_images(asked: Queries) -> np.ndarray:
    """A true counterfactual of each query, [N C H W]."""
    pairs = zip(asked.scenes, asked.targets, strict=True)
    return np.stack([asked.task.counterfactual(scene, target).image for scene, target in pairs])
