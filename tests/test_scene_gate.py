"""What makes the predictions of a classifier change, on drawn pictures."""

import pytest
import torch
from small_classifier import TASK as SMALL
from small_classifier import small_classifier
from torch import nn

from dipct.errors import ConfigurationError
from dipct.phantom import FaceTask
from dipct.pretrain import SceneGate, scene_gate

TASK = FaceTask(32, attribute="bald", label_noise=0.0)


class Linear(nn.Module):
    """Two logits that are linear in the image."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        z = (x * self.weight).sum((1, 2, 3)) - (0.5 * self.weight).sum()
        return torch.stack([-z, z], 1)


def always(sign):
    model = Linear(torch.zeros(3, 32, 32))
    model.forward = lambda x: torch.tensor([[-sign, sign]]).expand(len(x), 2).float()
    return model


def test_a_classifier_that_sees_one_class_only_never_flips():
    gate = scene_gate(always(1.0), TASK, number=20, seed=3)
    assert gate.causal_flips == 0
    assert gate.nuisance_flips == 0
    assert not gate.is_passed


def test_a_classifier_that_goes_by_the_background_is_found_out():
    """It looks at a corner, where no face is."""
    weight = torch.zeros(3, 32, 32)
    weight[:, :3, :3] = 1.0
    gate = scene_gate(Linear(weight), TASK, number=40, seed=3)
    assert gate.causal_flips < 0.2
    assert gate.nuisance_flips > 0.2
    assert not gate.is_passed


def test_a_classifier_that_uses_the_cause_flips_with_it():
    trained = small_classifier()
    gate = scene_gate(trained.model, SMALL, number=60, seed=9)
    assert gate.causal_flips > 0.85
    assert gate.nuisance_flips < 0.2
    assert gate.accuracy > 0.85
    with torch.no_grad():
        seen = torch.stack([torch.from_numpy(s.image) for s in SMALL.sample(60, seed=9)])
        right = trained.model(seen).argmax(1).numpy() == SMALL.labels(SMALL.sample(60, seed=9))
    assert gate.accuracy == pytest.approx(right.mean())


def test_the_bounds_of_the_gate():
    assert SceneGate(0.99, 0.95, 0.02).is_passed
    assert not SceneGate(0.99, 0.94, 0.02).is_passed
    assert not SceneGate(0.99, 0.95, 0.03).is_passed


def test_the_gate_repeats():
    weight = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = [scene_gate(Linear(weight), TASK, number=10, seed=s) for s in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_no_pictures_no_gate():
    with pytest.raises(ConfigurationError, match="one or more"):
        scene_gate(always(1.0), TASK, number=0, seed=0)
