"""The CPU's laws of inversions on a CUDA device: classifiers, pre-images, counterfactuals."""

import numpy as np
import pytest
import torch
from small_classifier import SETTINGS, TASK, queries, small_classifier

from dipct.generator import NetworkGenerator
from dipct.inversion_settings import CounterfactualSettings
from dipct.pipeline import counterfactual, pre_image, quantify_inversion, train_classifier
from dipct.pipeline.query_generator import query_generator
from dipct.pretrain import scene_images
from dipct.uncertainty import UncertaintySettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_convolutions():
    """A rounded product is as good an optimisation, but not the same one."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


SHORT = {"steps": 12, "class_weight": 0.3}
METHODS = {
    "lso-tv": SHORT,
    "lso-inr-dep": SHORT | {"fit_steps": 20, "width": 8},
    "iso-dip": SHORT | {"fit_steps": 20},
    "lso-deep-decoder": SHORT | {"fit_steps": 20, "width": 8},
    "disc": SHORT | {"fit_steps": 20, "width": 8},
    "wachter": SHORT,
    "pgd": {"steps": 12},
    "deep-dream": {"steps": 6},
}


@pytest.mark.parametrize("method", METHODS)
def test_counterfactuals_are_those_of_the_cpu(method):
    images, settings = queries()[1], METHODS[method]
    on_cpu = counterfactual(small_classifier(), images, 1, method=method, **settings)
    on_gpu = counterfactual(small_classifier(), images, 1, method=method, device="cuda", **settings)
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert np.abs(one.image - other.image).mean() < 2e-3
        assert other.p_target == pytest.approx(one.p_target, abs=0.05)
        first = [each.history["objective"][0] for each in (one, other)]
        assert first[1] == pytest.approx(first[0], rel=1e-3)


@pytest.mark.parametrize("method", ["dip", "inr-dep", "pixel-tv"])
def test_pre_images_are_those_of_the_cpu(method):
    images = queries()[1]
    on_cpu = pre_image(small_classifier(), images, method=method, steps=12)
    on_gpu = pre_image(small_classifier(), images, method=method, steps=12, device="cuda")
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert np.abs(one.image - other.image).mean() < 5e-3


@pytest.mark.parametrize("generator", ["inr", "unet", "deep-decoder"])
def test_networks_all_at_once_are_those_one_after_another(generator):
    settings = CounterfactualSettings(method="disc", generator=generator, device="cuda")
    together = query_generator(settings, (3, 32, 32)).to("cuda")
    assert together.batching == "vmap"
    apart = NetworkGenerator(together.network, together.z, (32, 32))
    theta = torch.stack([together.initial(seed) for seed in range(4)]).cuda()
    found = []
    for each in (together, apart):
        at = theta.clone().requires_grad_()
        image = each(at)
        found.append((image.detach(), *torch.autograd.grad(image.square().sum(), at)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_a_classifier_is_trained_as_on_the_cpu():
    training = scene_images(TASK, 400, seed=0, labels_seed=None)
    held_out = scene_images(TASK, 100, seed=1, labels_seed=None)
    settings = SETTINGS | {"centroids": True}
    found = train_classifier(training, held_out, device="cuda", **settings)
    assert found.accuracy == pytest.approx(small_classifier().accuracy, abs=0.1)
    assert next(found.model.parameters()).device.type == "cpu"
    assert next(found.centroids.parameters()).device.type == "cpu"


def test_uncertainty_of_a_counterfactual_is_that_of_the_cpu():
    fast = {"steps": 30, "fit_steps": 60, "width": 8}
    made = counterfactual(small_classifier(), queries()[1][0], 1, method="lso-inr", **fast)[0]
    stds = []
    for device in ("cpu", "cuda"):
        settings = UncertaintySettings(samples=64, tv_prior=False, device=device)
        found = quantify_inversion(small_classifier(), made, settings, layers=("layer3",))
        stds.append(found.std.mean())
    assert stds[1] == pytest.approx(stds[0], rel=0.1)
