"""A user's own model as a classifier to be explained."""

import logging
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dipct.errors import ConfigurationError
from dipct.operator import LOGITS
from dipct.pipeline import open_classifier, pre_image

SHAPE = (3, 8, 8)
SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))

def double(): return Net().double()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "their_precision.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("their_precision", None)


def image():
    return np.random.default_rng(0).random(SHAPE, dtype=np.float32)


def test_a_model_in_double_precision_is_explained_in_single(package, caplog):
    with caplog.at_level(logging.WARNING, logger="dipct"):
        plain = open_classifier("their_precision:Net", image_shape=SHAPE)
        assert "float" not in caplog.text
        double = open_classifier(
            "their_precision:double", image_shape=SHAPE, normalisation="imagenet"
        )
    assert "has parameters in float64; what is explained is a copy in float32" in caplog.text
    assert next(double.model.parameters()).dtype == torch.float64
    logits = double.features([LOGITS])(torch.from_numpy(image()))
    exact = double.model(torch.from_numpy(image()).double()[None])[0]
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.double(), exact, atol=1e-5)
    for classifier, layer in ((plain, "stem"), (double, "model.stem")):
        (found,) = pre_image(classifier, image(), method="pixel-tv", layers=(layer,), steps=2)
        assert np.isfinite(found.image).all()


def test_a_program_that_computes_in_double_precision_alone_says_what_to_do(package):
    double = open_classifier("their_precision:double", image_shape=SHAPE).model
    (batch,) = torch.export.dims("batch")
    example = (torch.zeros(2, *SHAPE, dtype=torch.float64),)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = double

        def forward(self, x):
            return self.inner(x) + torch.ones(3, dtype=torch.float64)

    program = torch.export.export(Whole().eval(), example, dynamic_shapes=({0: batch},))
    torch.export.save(program, package / "fixed.pt2")
    with pytest.raises(ConfigurationError, match=r"in float64, also .* with model\.float\(\)"):
        open_classifier(str(package / "fixed.pt2"), image_shape=SHAPE)


def test_names_of_classes_must_differ(package):
    with pytest.raises(ConfigurationError, match="as many different names; got cat, dog, cat"):
        open_classifier("their_precision:Net", image_shape=SHAPE, classes=["cat", "dog", "cat"])
