"""A classifier of tiny faces, trained for a few seconds."""

from functools import cache

import numpy as np
import torch

from dipct.phantom import FaceTask
from dipct.pipeline import train_classifier
from dipct.pretrain import scene_images

TASK = FaceTask(16, attribute="bald", label_noise=0.0)
SETTINGS = {"steps": 60, "batch": 32, "side": 16, "shift": 0, "learning_rate": 5e-3}


@cache
def small_classifier():
    """Sees nearly all held-out faces right; do not change it."""
    training = scene_images(TASK, 400, seed=0, labels_seed=None)
    held_out = scene_images(TASK, 100, seed=1, labels_seed=None)
    return train_classifier(training, held_out, **SETTINGS)


@cache
def queries(number=3, source=0):
    """Scenes of a class that the classifier sees right, and their images [N C H W]."""
    model, found, index = small_classifier().model, [], 0
    while len(found) < number:
        scene = TASK.sample_one(index, seed=77)
        index += 1
        with torch.no_grad():
            seen = int(model(torch.from_numpy(scene.image)[None]).argmax())
        if seen == TASK.label(scene.causes) == source:
            found.append(scene)
    return found, np.stack([scene.image for scene in found])
