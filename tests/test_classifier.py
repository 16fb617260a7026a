"""Residual networks, the loss estimator and the head of centroids."""

import math

import pytest
import torch

from dipct.classifier import (
    STAGES,
    CentroidHead,
    LossEstimator,
    gradient_penalty,
    halved_resnet,
    kernel_loss,
    ranking_loss,
    resnet18,
    small_resnet,
)
from dipct.classifier.resnet import ResNet
from dipct.errors import ConfigurationError, ShapeError
from dipct.operator import LOGITS, FeatureOperator

F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


def test_resnet18_is_the_usual_one():
    model = resnet18(1000)
    # As counted for torchvision's, whose weights are to fit.
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    names = set(model.state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.running_var",
        "layer4.1.bn2.bias",
        "fc.weight",
    } <= names
    assert not any(name.startswith("layer1.0.downsample") for name in names)
    psi = FeatureOperator(model, [*STAGES, LOGITS], (3, 96, 96))
    assert [psi.shapes[name] for name in STAGES] == [
        (64, 24, 24),
        (128, 12, 12),
        (256, 6, 6),
        (512, 3, 3),
    ]


def test_the_halved_one_is_the_small_one_at_half_the_resolution():
    halved, small = halved_resnet(2), small_resnet(2)
    psi = FeatureOperator(halved, STAGES, (3, 64, 64))
    assert psi.shapes == FeatureOperator(small, STAGES, (3, 32, 32)).shapes
    halved.load_state_dict(small.state_dict())
    x = torch.rand(1, 3, 64, 64)
    whole = FeatureOperator(small, ["conv1"], (3, 64, 64))(x).reshape(16, 64, 64)
    every_second = FeatureOperator(halved, ["conv1"], (3, 64, 64))(x).reshape(16, 32, 32)
    torch.testing.assert_close(every_second, whole[:, ::2, ::2])
    with pytest.raises(ConfigurationError, match="stride two anyway"):
        ResNet((64, 128, 256, 512), 2, halved=True)


@pytest.mark.parametrize(("side", "channels"), [(32, 1), (64, 3)])
def test_the_small_one_keeps_the_resolution_of_small_images(side, channels):
    model = small_resnet(3, in_channels=channels)
    assert sum(p.numel() for p in model.parameters()) < 710_000
    psi = FeatureOperator(model, [*STAGES, LOGITS], (channels, side, side))
    assert psi.shapes["layer1"] == (16, side, side)
    assert psi.shapes["layer4"] == (128, side // 8, side // 8)
    assert psi.shapes[LOGITS] == (3,)


def test_a_block_passes_its_input_by():
    model = small_resnet(2).eval()
    block = model.layer1[0]
    with torch.no_grad():
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()
    x = torch.randn(1, 16, 5, 5)
    assert torch.equal(block(x), torch.relu(x))


def test_wrong_networks_are_refused():
    with pytest.raises(ConfigurationError, match="four stages"):
        ResNet((16, 32), 2)
    with pytest.raises(ConfigurationError, match="at least one"):
        resnet18(0)


def test_the_loss_estimator_of_resnet18_has_the_published_size():
    head = LossEstimator((64, 128, 256, 512))
    assert sum(p.numel() for p in head.parameters()) == 123_905


def test_the_loss_estimator_sees_means_over_pixels():
    head = LossEstimator((2, 3), width=4)
    features = [torch.randn(5, 2, 4, 4), torch.randn(5, 3, 2, 2)]
    means = [each.mean((2, 3), keepdim=True) for each in features]
    assert torch.allclose(head(features), head(means), atol=1e-6)
    assert not torch.allclose(head(features), head([2 * each for each in features]))
    with pytest.raises(ShapeError, match="made for another classifier"):
        head(features[::-1])
    with pytest.raises(ConfigurationError, match="at least one channel"):
        LossEstimator(())


def test_calibration_keeps_quantiles():
    head = LossEstimator((2,))
    assert math.isnan(head.low)
    head.calibrate(torch.arange(101.0))
    assert [float(v) for v in (head.low, head.median, head.high)] == pytest.approx([5, 50, 95])
    other = LossEstimator((2,))
    other.load_state_dict(head.state_dict())
    assert float(other.low) == pytest.approx(5)
    with pytest.raises(ShapeError):
        head.calibrate(torch.zeros(0))
    with pytest.raises(ConfigurationError, match="not finite"):
        head.calibrate(torch.tensor([1.0, math.nan]))


def over_ordered_pairs(predicted, loss, otherwise):
    """The papers' sums, term by term."""
    total, pairs = 0.0, 0
    for i in range(len(loss)):
        for j in range(len(loss)):
            if i != j and abs(loss[i] - loss[j]) >= 1e-8:
                sign = 1.0 if loss[i] > loss[j] else otherwise
                total += torch.relu(1.0 - sign * (predicted[i] - predicted[j]))
                pairs += 1
    return total / pairs


@pytest.mark.parametrize(("variant", "otherwise"), [("disc", -1.0), ("s1", 0.0)])
def test_ranking_losses_are_those_of_the_papers(variant, otherwise):
    predicted, loss = torch.randn(7, dtype=F64), torch.rand(7, dtype=F64)
    loss[3] = loss[5]
    found = ranking_loss(predicted, loss, variant=variant)
    assert torch.allclose(found, over_ordered_pairs(predicted, loss, otherwise))


def test_the_two_ranking_losses_differ_by_a_factor_and_a_constant():
    predicted, loss = torch.randn(9, dtype=F64, requires_grad=True), torch.rand(9, dtype=F64)
    values = {v: ranking_loss(predicted, loss, variant=v) for v in ("disc", "s1")}
    gradients = {v: torch.autograd.grad(value, predicted)[0] for v, value in values.items()}
    assert torch.allclose(gradients["disc"], 2 * gradients["s1"])
    assert torch.allclose(values["s1"], (values["disc"] + 1) / 2)


def test_ties_have_no_order():
    predicted = torch.randn(4, requires_grad=True)
    tied = ranking_loss(predicted, torch.ones(4))
    assert float(tied.detach()) == 0
    assert torch.equal(torch.autograd.grad(tied, predicted)[0], torch.zeros(4))
    # A constant predicts any of them as well.
    loss = torch.rand(4)
    assert torch.allclose(ranking_loss(predicted, loss), ranking_loss(predicted + 3, loss))


def test_no_gradient_goes_to_the_losses():
    loss = torch.rand(4, requires_grad=True)
    found = ranking_loss(torch.randn(4, requires_grad=True), loss)
    assert torch.autograd.grad(found, loss, allow_unused=True)[0] is None
    with pytest.raises(ShapeError, match="one length"):
        ranking_loss(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ConfigurationError, match="disc or s1"):
        ranking_loss(torch.zeros(3), torch.zeros(3), variant="s2")


@torch.no_grad()
def test_the_kernel_is_one_at_a_centroid_and_falls_with_distance():
    head = CentroidHead(4, 3, centroid_size=4, length_scale=0.5).double()
    head.weight.copy_(torch.eye(4, dtype=F64)[:, None].expand(4, 3, 4))
    features = head.centroids[:, 1][None].clone()
    assert float(head(features)[0, 1]) == pytest.approx(1.0)
    shifted = features + torch.tensor([0.6, 0, 0, 0], dtype=F64)
    assert float(head(shifted)[0, 1]) == pytest.approx(math.exp(-0.36 / 4 / (2 * 0.25)))
    far = features + 1e3
    assert float(head(far)[0, 1]) == 0.0
    assert float(head.log_kernels(far)[0, 1]) < -1e4


def test_centroids_are_moving_averages():
    head = CentroidHead(3, 2, centroid_size=2, decay=0.9, batch=8).double()
    counts, sums = head.counts.clone(), head.sums.clone()
    assert counts.tolist() == [4, 4]
    for step in range(3):
        random = torch.Generator().manual_seed(step)
        features = torch.randn(5, 3, generator=random, dtype=F64)
        labels = torch.randint(2, (5,), generator=random)
        head.update(features, labels)
        new_counts, new_sums = torch.zeros(2, dtype=F64), torch.zeros(2, 2, dtype=F64)
        for f, c in zip(features, labels, strict=True):
            new_counts[c] += 1
            new_sums[:, c] += head.weight[:, c] @ f
        counts, sums = 0.9 * counts + 0.1 * new_counts, 0.9 * sums + 0.1 * new_sums
    assert torch.allclose(head.counts, counts)
    assert torch.allclose(head.centroids, sums / counts)
    assert not head.counts.requires_grad


def test_the_gradient_penalty_is_two_sided():
    for slope, wanted in ((1.0, 0.0), (3.0, 4.0), (0.0, 1.0)):
        images = torch.randn(4, 1, 2, 2, dtype=F64, requires_grad=True)
        direction = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=F64)
        kernels = (slope * images.flatten(1) @ direction)[:, None]
        penalty = gradient_penalty(images, kernels)
        assert float(penalty.detach()) == pytest.approx(wanted, abs=1e-10)


def test_the_loss_of_kernels_is_lowest_where_they_are_right():
    labels = torch.tensor([0, 2])
    right = torch.nn.functional.one_hot(labels, 3).double()
    assert float(kernel_loss(right, labels)) == 0
    half = kernel_loss(torch.full((2, 3), 0.5, dtype=F64), labels)
    assert float(half) == pytest.approx(math.log(2))


def test_wrong_heads_are_refused():
    head = CentroidHead(4, 2)
    with pytest.raises(ShapeError, match="made for another classifier"):
        head(torch.zeros(2, 5))
    with pytest.raises(ConfigurationError, match="decay"):
        CentroidHead(4, 2, decay=1.0)
    with pytest.raises(ConfigurationError, match="length_scale"):
        CentroidHead(4, 2, length_scale=0.0)
