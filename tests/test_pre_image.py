"""The verb pre_image: images from their hidden features."""

import numpy as np
import pytest
import torch
from small_classifier import queries, small_classifier

from dipct.errors import ConfigurationError, ShapeError
from dipct.inversion import read_pre_image, write_inversion
from dipct.inversion_settings import PreImageSettings
from dipct.objective import batch_norm_inputs
from dipct.operator import LOGITS
from dipct.pipeline import pre_image
from dipct.pipeline.inversion_terms import manifold_terms

FAST = {"steps": 60, "learning_rate": 1e-2}


def invert(method="inr", number=1, **settings):
    fast = FAST | ({"width": 8} if method.startswith(("inr", "deep")) else {})
    return pre_image(small_classifier(), queries()[1][:number], method=method, **fast | settings)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("pixel-tv", {"learning_rate": 0.3}),
        ("pixel-alpha", {"learning_rate": 0.3}),
        ("dip", {}),
        ("dip-dep", {}),
        ("inr-bn", {}),
        ("deep-decoder", {}),
    ],
)
def test_features_come_nearer(method, settings):
    (found,) = invert(method, layers=("layer1",), **settings)
    assert found.history["features"][-1] < 0.5 * found.history["features"][0]
    psi = small_classifier().features(["layer1"])
    with torch.no_grad():
        one, other = (psi(torch.from_numpy(each)) for each in (found.image, found.query))
    distance = float((one - other).square().sum() / other.square().sum())
    assert found.scores["distance_layer1"] == pytest.approx(distance, rel=1e-3)


def test_an_early_layer_knows_more_of_the_image_than_a_late_one():
    early, late = (
        invert("pixel-tv", layers=(name,), learning_rate=0.3, steps=150)[0]
        for name in ("layer1", "layer4")
    )
    assert early.scores["psnr_to_query_db"] > late.scores["psnr_to_query_db"] + 2


def test_a_batch_is_its_queries_one_by_one():
    # Convolutions of a batch round otherwise, which Adam carries on from step to step.
    together = invert(number=2, steps=20)
    alone = [
        pre_image(small_classifier(), query, method="inr", width=8, **FAST | {"steps": 20})[0]
        for query in queries()[1][:2]
    ]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.image - other.image).max() < 5e-3
    assert np.abs(together[0].image - together[1].image).max() > 0.05


def test_what_should_have_been_seen_is_scored():
    damaged = queries()[1][0].copy()
    damaged[:, 4:8, 4:8] = 0
    (found,) = pre_image(small_classifier(), damaged, method="inr", truth=queries()[1][0], **FAST)
    assert np.array_equal(found.truth, queries()[1][0])
    error = np.mean((found.image - queries()[1][0]) ** 2)
    assert found.scores["psnr_to_truth_db"] == pytest.approx(-10 * np.log10(error), abs=1e-3)
    assert found.scores["psnr_to_truth_db"] != found.scores["psnr_to_query_db"]


def test_batch_statistics_do_not_hold_the_repair_against_a_pre_image():
    truth = torch.from_numpy(queries()[1][:1])
    damaged = truth.clone()
    damaged[..., 4:8, 4:8] = 0
    trained = small_classifier()
    operator = trained.features(list(batch_norm_inputs(trained.model)))
    settings = PreImageSettings.of_method("inr-bn")
    ((_, repaired),) = manifold_terms(trained, operator, damaged, settings)
    damaged.requires_grad_()
    here = repaired.value(damaged)
    (slope,) = torch.autograd.grad(here.sum(), damaged)
    assert here.item() == pytest.approx(1)
    assert repaired.value(truth).item() < here.item() - 0.01
    assert float((slope * (truth - damaged).detach()).sum()) < 0
    (found,) = pre_image(trained, damaged[0].detach(), method="inr-bn", width=8, **FAST)
    of_image = repaired.value(torch.from_numpy(found.image)[None])
    assert found.history["batch statistics"][-1] == pytest.approx(of_image.item(), rel=0.1)


def test_activations_are_maximised():
    model = small_classifier().features([LOGITS, "layer2"])
    (found,) = invert("pixel-tv", maximise="logits:1", learning_rate=0.3)
    (channel,) = invert("pixel-tv", maximise="layer2:3", learning_rate=0.3)

    def of(image):
        with torch.no_grad():
            return model.split(model(torch.from_numpy(image)))

    assert of(found.image)[LOGITS][1] > of(found.query)[LOGITS][1] + 1
    assert of(channel.image)["layer2"][3].mean() > of(channel.query)["layer2"][3].mean()
    assert "activation" in found.history


def test_files_hold_all_of_it(tmp_path):
    (found,) = invert()
    write_inversion(found, tmp_path / "pre.h5")
    again = read_pre_image(tmp_path / "pre.h5")
    assert np.array_equal(again.image, found.image)
    assert dict(again.scores) == pytest.approx(dict(found.scores))
    assert again.settings == found.settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ("layer9",)}, "no layer 'layer9'"),
        ({"maximise": "logits:7"}, "from 0 to 1"),
        ({"maximise": "leyer2"}, "Near names: layer"),
        ({"manifold": "centroids"}, "no target"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        invert(**settings)


def test_wrong_images_are_refused():
    with pytest.raises(ShapeError, match="16, 16"):
        pre_image(small_classifier(), np.zeros((1, 16, 16)))
