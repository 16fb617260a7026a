"""Slices of walnuts with and without a crack, and their scans."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates, uniform_filter1d

from dipct.errors import ConfigurationError, DataError, ShapeError
from dipct.phantom import FaceTask, WalnutTask, edit_region
from dipct.phantom.walnut import Walnut
from dipct.pretrain import scan_scenes

SIDE = 48
PARTS = {"shallow": 1.0, "deep": -1.0}


@pytest.fixture(scope="module")
def task():
    return WalnutTask(SIDE)


@pytest.fixture(scope="module")
def scenes(task):
    return task.sample(40, seed=3)


@pytest.fixture(scope="module")
def pairs(task, scenes):
    """Intact and cracked, as they differ in nothing else."""
    others = [task.counterfactual(s, 1 - task.label(s.causes)) for s in scenes]
    return [
        (s, o) if task.label(s.causes) == 0 else (o, s) for s, o in zip(scenes, others, strict=True)
    ]


def images_of(scenes):
    return np.stack([scene.image for scene in scenes])


def test_pictures_repeat_and_depend_on_their_number_alone(task, scenes):
    again = task.sample(3, seed=3)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(again, scenes, strict=False))
    assert not np.array_equal(task.sample(1, seed=4)[0].image, scenes[0].image)
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_pictures_are_grey_and_between_zero_and_one(task, scenes):
    for scene in scenes:
        assert scene.image.shape == task.image_shape == (1, SIDE, SIDE)
        assert scene.image.dtype == np.float32
        assert scene.image.min() >= 0
        assert scene.image.max() <= 1
        assert scene.image.std() > 0.15
        # All of the nut is in the picture: at its border is noise alone.
        border = np.concatenate([scene.image[0, [0, -1]], scene.image[0][:, [0, -1]].T])
        assert border.max() < 0.15


def test_the_classes_are_equally_frequent_and_nothing_is_between_them(task):
    rng = np.random.default_rng(0)
    causes = [task.draw_causes(rng) for _ in range(2000)]
    values = np.array([list(each.values()) for each in causes])
    assert list(causes[0]) == list(task.causes)
    assert np.abs(values).max() <= 1
    assert np.abs(values[:, 0]).min() >= 0.3
    labels = np.array([task.label(each) for each in causes])
    assert 0.47 < labels.mean() < 0.53
    assert 0.47 < (values[:, 1] > 0).mean() < 0.53
    # What does not show where there is no crack tells nothing about whether there is one.
    assert np.abs(np.corrcoef(labels, values[:, 1:].T)[0, 1:]).max() < 0.07


def test_the_counterfactual_differs_in_the_crack_only(task, scenes):
    for scene in scenes:
        source = task.label(scene.causes)
        other = task.counterfactual(scene, 1 - source)
        assert task.label(other.causes) == 1 - source
        assert other.nuisances is scene.nuisances
        assert not np.array_equal(other.image, scene.image)
        again = task.counterfactual(scene, 1 - source, seed=1)
        if source == 1:
            assert {**other.causes, "crack": 0} == {**scene.causes, "crack": 0}
            assert np.array_equal(again.image, other.image)
        else:
            assert again.causes["place"] != other.causes["place"]


def test_where_there_is_no_crack_its_course_does_not_show(task, scenes):
    scene = next(s for s in scenes if task.label(s.causes) == 0)
    other = {**scene.causes, "part": -scene.causes["part"], "place": 0.3, "crack": -0.4}
    assert np.array_equal(task.render(other, scene.nuisances), scene.image)
    assert not np.array_equal(task.render({**other, "crack": 0.4}, scene.nuisances), scene.image)


def test_a_crack_is_dark_small_and_seen(pairs):
    for intact, cracked in pairs:
        change = cracked.image - intact.image
        assert change.max() <= 0
        assert change.min() < -0.25
        region = edit_region(intact.image, cracked.image)
        assert np.abs(change[0][~region]).max() <= 0.02
        assert 0.01 < region.mean() < 0.1


def darkest_place_of_the_shell(scene):
    """Mean over ten degrees of the brightest value across the shell, the median being one."""
    n, nut = scene.nuisances, Walnut(int(scene.nuisances["nut"]))
    angles = np.linspace(-np.pi, np.pi, 252, endpoint=False)
    a, b, c = nut.semi_axes
    outline = np.sqrt(1 - (n["height"] / c) ** 2) / np.hypot(np.cos(angles) / a, np.sin(angles) / b)
    # A nut of scale one is drawn 1.2 times as large as its own coordinates say.
    radii = 1.2 * n["scale"] * (outline + np.linspace(-0.08, 0.16, 20)[:, None])
    x = radii * np.cos(angles + n["turn"]) + n["shift"][0]
    y = radii * np.sin(angles + n["turn"]) + n["shift"][1]
    at = np.stack([(1 - y) * SIDE / 2 - 0.5, (x + 1) * SIDE / 2 - 0.5])
    shell = map_coordinates(scene.image[0], at, order=1).max(0)
    return (uniform_filter1d(shell, 7, mode="wrap") / np.median(shell)).min()


def test_nothing_natural_is_as_dark_as_a_crack(pairs):
    intact, cracked = (
        [darkest_place_of_the_shell(scene) for scene in side] for side in zip(*pairs, strict=True)
    )
    assert min(intact) > 0.4
    assert max(cracked) < 0.15


def in_the_nut(scene, region):
    """Polar coordinates of the middle of a region about the nut's centre, in half pictures."""
    n = scene.nuisances
    at = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    x = (at[None] * region).sum() / region.sum() - n["shift"][0]
    y = (-at[:, None] * region).sum() / region.sum() - n["shift"][1]
    return np.hypot(x, y) / n["scale"], np.arctan2(y, x) - n["turn"]


def test_a_crack_of_the_shell_alone_is_at_its_place(pairs):
    here = 0
    for intact, cracked in pairs:
        if cracked.causes["part"] < 0:
            continue
        radius, angle = in_the_nut(cracked, edit_region(intact.image, cracked.image))
        apart = np.angle(np.exp(1j * (angle - np.pi * cracked.causes["place"])))
        here += 1
        assert 0.5 < radius < 0.95
        assert abs(apart) < 0.25
    assert here > 10


def test_every_crack_opens_the_shell_and_deep_ones_run_on_into_the_kernel(task, pairs):
    ratios = []
    for intact, cracked in pairs:
        crack = {**cracked.causes, "crack": abs(cracked.causes["crack"])}
        shallow, deep = (
            intact.image - task.render({**crack, "part": part}, cracked.nuisances)
            for part in PARTS.values()
        )
        # The brightest is the shell, and what a shallow crack takes a deep one takes too.
        assert intact.image[shallow > 0.2].max() > 0.55
        assert (deep >= shallow - 1e-6).all()
        ratios.append(deep.sum() / shallow.sum())
    # Some only graze it.
    assert np.median(ratios) > 1.3


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_the_cause_is_the_width(task, scenes, part):
    causes = {"part": part, "place": 0.3, "slant": 0.0, "bend": 0.0}
    for scene in scenes[:8]:
        intact = task.render({**causes, "crack": -1.0}, scene.nuisances)
        darkness = [
            (intact - task.render({**causes, "crack": size}, scene.nuisances)).sum()
            for size in (0.3, 0.5, 0.75, 1.0)
        ]
        assert (np.diff(darkness) > 0).all()
        # From 6 to 8 pixels of 64, up to natural hollows.
        assert darkness[-1] / darkness[0] == pytest.approx(8 / 6, rel=0.2)


def test_a_crack_is_as_wide_in_any_number_of_pixels(task, scenes):
    fine = WalnutTask(2 * SIDE)
    causes = {"crack": 0.6, "part": 1.0, "place": 0.3, "slant": 0.2, "bend": 0.5}
    for scene in scenes[:5]:
        coarse, double = (
            (
                each.render({**causes, "crack": -0.6}, scene.nuisances)
                - each.render(causes, scene.nuisances)
            ).mean()
            for each in (task, fine)
        )
        # Were it as wide in pixels, it would take half as much.
        assert double == pytest.approx(coarse, rel=0.2)


def test_other_nuisances_leave_the_class(task, scenes):
    other = task.with_other_nuisances(scenes[0], seed=5)
    assert other.causes is scenes[0].causes
    assert np.abs(other.image - scenes[0].image).mean() > 0.05


def test_a_nut_is_turned_where_asked_for():
    z, at = np.zeros(1), np.linspace(-0.9, 0.9, 60)
    own = Walnut(4)
    assert np.array_equal(Walnut(4, turn=own.turn)(z, at, at), own(z, at, at))
    turned = Walnut(4, turn=np.pi / 2)
    assert turned.semi_axes.tolist() == own.semi_axes.tolist()
    upright = Walnut(4, turn=0.0)(z, at, at)[0] > 0.05
    lying = turned(z, at, at)[0] > 0.05
    # Wider across the seams, along x before and along y then.
    for image, wide in ((upright, 0), (lying, 1)):
        extents = [np.ptp(np.flatnonzero(image.any(axis))) for axis in (0, 1)]
        assert extents[wide] > extents[1 - wide]


@pytest.mark.parametrize("geometry", ["parallel", "fan"])
def test_scans_repeat_and_depend_on_their_number_alone(scenes, geometry):
    scans = scan_scenes(scenes[:6], geometry, views=20, noise=0.05, seed=2)
    first = scan_scenes(images_of(scenes[:2]), geometry, views=20, noise=0.05, seed=2)
    assert scans.projections.shape == (6, *scans.geometry.projection_shape)
    assert scans.reconstructions.shape == (6, 1, SIDE, SIDE)
    assert scans.operator.domain_shape == scans.grid.image_shape == (1, SIDE, SIDE)
    for name in ("projections", "reconstructions", "std"):
        assert torch.allclose(getattr(first, name), getattr(scans, name)[:2], rtol=1e-4, atol=1e-4)
    other = scan_scenes(scenes[:6], geometry, views=20, noise=0.05, seed=3)
    assert not torch.allclose(other.projections, scans.projections, atol=0.1)


def mean_square_misfit(scans, images):
    residual = scans.operator(torch.from_numpy(images)) - scans.projections
    return residual.square().mean((1, 2)) / scans.std**2


def test_the_noise_is_as_said_and_tells_the_picture_from_its_counterfactual(pairs):
    intact, cracked = (images_of(side) for side in zip(*pairs[:8], strict=True))
    scans = scan_scenes(cracked, views=60, noise=0.005)
    values = scans.projections[0].numel()
    clean = scans.operator(torch.from_numpy(cracked))
    assert torch.allclose(scans.std, 0.005 * clean.mean((1, 2)), rtol=1e-5)
    # Within four standard deviations of a mean of squares of normal numbers.
    within = 4 * np.sqrt(2 / values)
    assert (mean_square_misfit(scans, cracked) - 1).abs().max() < within
    assert (mean_square_misfit(scans, intact) - 1).min() > within


def test_reconstructions_approach_the_pictures(scenes):
    images = images_of(scenes[:8])

    def error(**scan):
        scans = scan_scenes(images, **scan)
        return float((scans.reconstructions - torch.from_numpy(images)).square().mean().sqrt())

    many = error(views=180, noise=0.0)
    assert many < 0.06
    assert error(views=12, noise=0.0) > 1.5 * many
    assert error(views=180, noise=0.5) > 1.5 * many


def test_an_empty_picture_has_no_noise():
    scans = scan_scenes(np.zeros((1, 1, 16, 16)), views=4, noise=0.1)
    assert not scans.std.any()
    assert not scans.projections.any()


def test_wrong_settings_are_refused(task, scenes):
    with pytest.raises(ConfigurationError, match="32 pixels or more"):
        WalnutTask(31)
    with pytest.raises(ConfigurationError, match="label_noise"):
        WalnutTask(label_noise=0.5)
    with pytest.raises(ConfigurationError, match="target must be another class"):
        task.counterfactual(scenes[0], task.label(scenes[0].causes))


def test_what_cannot_be_scanned_is_refused(scenes):
    with pytest.raises(ConfigurationError, match="at least one"):
        scan_scenes([])
    with pytest.raises(ShapeError, match="N 1 H H"):
        scan_scenes(FaceTask(16).sample(2, seed=0))
    with pytest.raises(ShapeError, match="N 1 H H"):
        scan_scenes(np.zeros((2, 1, 16, 12)))
    with pytest.raises(ShapeError, match="one shape"):
        scan_scenes([scenes[0], *WalnutTask(32).sample(1, seed=0)])
    with pytest.raises(DataError, match="NaN or infinite"):
        scan_scenes(np.full((1, 1, 16, 16), np.nan))
    for wrong, match in (
        ({"geometry": "cone"}, "parallel or fan"),
        ({"noise": -0.1}, "noise must be"),
        ({"noise": float("nan")}, "noise must be"),
        ({"views": 0}, "views"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            scan_scenes(scenes[:1], **wrong)
