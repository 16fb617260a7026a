"""Spectra of pretrained networks, against dense Jacobians."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_scans import small_scan

from dipct.errors import ConfigurationError, FileFormatError
from dipct.figures import save_figure, spectrum_figure
from dipct.generator import Kind, NetworkGenerator
from dipct.measurement.scan_file import write_scan
from dipct.operator import RayTransform
from dipct.pipeline import network_spectra_of, pretrain
from dipct.pipeline.deep_image_prior import network_input
from dipct.pipeline.pretrain import first_parameters
from dipct.pretrain import (
    SpectrumSettings,
    read_pretrained_network,
    write_pretrained_network,
)
from dipct.solver.image_scale import image_scale

TRAINING = {"network": "small", "precision": "float32", "batch": 2, "validation_images": 2}
RANK = 6


@pytest.fixture(scope="module")
def scan():
    return small_scan("parallel", pixels=16, views=6, noise=0.05)


@pytest.fixture(scope="module")
def files(scan, tmp_path_factory):
    """Two networks, the second trained for longer."""
    folder, paths = tmp_path_factory.mktemp("networks"), []
    for steps in (3, 12):
        paths.append(folder / f"after-{steps}.h5")
        write_pretrained_network(pretrain(scan, steps=steps, **TRAINING), paths[-1])
    return paths


@pytest.fixture(scope="module")
def spectra(scan, files):
    return network_spectra_of(scan, files, settings=SpectrumSettings(rank=RANK, tolerance=1e-4))


def dense(scan, pretrained, theta):
    """Singular values and right vectors of the whole Jacobian by autograd, in float64."""
    operator = RayTransform(scan.geometry, scan.grid)
    data = torch.from_numpy(scan.projections)
    scale = float(image_scale(operator, data))
    z = network_input(scan, "fbp", 0, scale, data).double()
    generator = NetworkGenerator(pretrained.make_network(), z, scan.grid.shape)
    matrix = operator.to_matrix()

    def project(theta):
        return scale * (matrix.double() @ generator(theta).flatten())

    jacobian = torch.autograd.functional.jacobian(project, theta.double(), vectorize=True)
    weights = generator.layout.mask(kinds=[Kind.CONVOLUTION])
    _, values, right = torch.linalg.svd(jacobian[:, weights], full_matrices=False)
    return values[:RANK].numpy(), right[:RANK].T.numpy()


def test_singular_values_are_those_of_the_dense_jacobian(scan, files, spectra):
    first = read_pretrained_network(files[0])
    thetas = [first_parameters(first.make_network(), first.seed)]
    thetas += [torch.from_numpy(read_pretrained_network(path).theta) for path in files]
    expected = [dense(scan, first, theta) for theta in thetas]
    for found, (values, right) in zip(spectra, expected, strict=True):
        assert found.converged and found.advice == ""
        np.testing.assert_allclose(found.values, values, rtol=2e-3)
        cosines = np.linalg.svd(expected[0][1].T @ right, compute_uv=False)
        np.testing.assert_allclose(found.overlap, cosines, atol=2e-2)
    assert not np.allclose(spectra[1].values, expected[0][0], rtol=1e-2)


def test_the_first_network_is_the_reference(spectra):
    assert spectra[0].name == "before training"
    np.testing.assert_allclose(spectra[0].overlap, 1, atol=1e-5)
    assert set(spectra[0].movement.values()) == {0.0}
    assert all(value > 0 for value in spectra[1].movement.values())


def test_more_training_moves_the_weights_further(spectra):
    little, more = (sum(each.movement.values()) for each in spectra[1:])
    assert more > 2 * little


def test_weights_move_as_their_files_say(files, spectra):
    first = read_pretrained_network(files[0])
    network = first.make_network()
    generator = NetworkGenerator(network, torch.zeros(1, 16, 16), (16, 16))
    start, end = first_parameters(network, first.seed), torch.from_numpy(first.theta)
    mask = generator.layout.mask(blocks=["up_1"], kinds=[Kind.CONVOLUTION])
    expected = float((end - start)[mask].norm() / start[mask].norm())
    assert spectra[1].movement["up_1"] == pytest.approx(expected, rel=1e-5)
    assert list(spectra[1].movement) == list(generator.layout.blocks)


def test_without_the_random_network_the_first_file_is_the_reference(scan, files):
    found = network_spectra_of(scan, files[:1], settings=SpectrumSettings(rank=2), before=False)
    assert len(found) == 1 and set(found[0].movement.values()) == {0.0}


def test_too_few_passes_are_told(scan, files):
    settings = SpectrumSettings(rank=RANK, tolerance=1e-6, max_passes=3)
    (found,) = network_spectra_of(scan, files[:1], settings=settings, before=False)
    assert not found.converged and "Allow more passes" in found.advice


# During training


@pytest.fixture(scope="module")
def course(scan, tmp_path_factory):
    """A network with snapshots of its training."""
    path = tmp_path_factory.mktemp("course") / "course.h5"
    network = pretrain(scan, steps=12, snapshots=4, **TRAINING)
    assert network.snapshots.steps.tolist() == [1, 5, 8, 12] and network.best_step == 12
    write_pretrained_network(network, path)
    return path


@pytest.fixture(scope="module")
def during(scan, course):
    return network_spectra_of(scan, [course], settings=SpectrumSettings(rank=3), during=2)


def test_snapshots_come_before_their_network(course, during):
    expected = ["before training", f"{course}, step 1", f"{course}, step 8", str(course)]
    assert [each.name for each in during] == expected


def test_parameters_move_further_with_every_snapshot(during):
    moved = [sum(each.movement.values()) for each in during]
    assert 0 == moved[0] < moved[1] < 0.1 * moved[2] < 0.1 * moved[3]
    blocks = [each.movement["up_1"] for each in during]
    assert blocks == sorted(blocks) and len(set(blocks)) == 4


def test_the_spectrum_of_a_snapshot_is_that_of_its_parameters(scan, course, during, tmp_path):
    network = read_pretrained_network(course, snapshots=True)
    for snapshot, same in ((0, 1), (2, 2)):
        path = tmp_path / f"{snapshot}.h5"
        write_pretrained_network(replace(network, theta=network.snapshots.thetas[snapshot]), path)
        _, found = network_spectra_of(scan, [path], settings=SpectrumSettings(rank=3))
        for k, each in enumerate(during):
            alike = np.array_equal(found.values, each.values)
            assert alike == (k == same)
        assert found.movement == during[same].movement
        np.testing.assert_array_equal(found.overlap, during[same].overlap)


def test_every_network_brings_its_snapshots(scan, course, tmp_path):
    other = tmp_path / "other.h5"
    write_pretrained_network(pretrain(scan, steps=3, snapshots=2, **TRAINING), other)
    found = network_spectra_of(
        scan, [other, course], settings=SpectrumSettings(rank=1), before=False, during=1
    )
    expected = [f"{other}, step 1", str(other), f"{course}, step 1", str(course)]
    assert [each.name for each in found] == expected
    # The first snapshot is the reference now.
    assert set(found[0].movement.values()) == {0.0}
    with pytest.raises(ConfigurationError, match=r"other\.h5 has 2 snapshots; 2 and a later one"):
        network_spectra_of(scan, [course, other], during=2)


def test_more_snapshots_than_there_are_are_refused(scan, files, course):
    for path, count, kept in ((course, 4, 4), (course, 5, 4), (files[0], 1, 0)):
        says = rf"{path.name} has {kept} snapshots; {count} and a later one are asked for\. Pretr"
        with pytest.raises(ConfigurationError, match=says):
            network_spectra_of(scan, [path], during=count)


def test_the_command_shows_snapshots(scan, course, tmp_path, dipct_command):
    path, out = tmp_path / "scan.h5", tmp_path / "spectrum.png"
    write_scan(scan, path)
    command = ("spectrum", course, "--scan", path, "--out", out, "--rank", 1, "--during")
    result = dipct_command(*command, 2)
    assert result.code == 0, result
    record = json.loads(out.with_suffix(".json").read_text())
    expected = ["before training", "course, step 1", "course, step 8", "course"]
    assert [each["name"] for each in record] == expected
    assert all(f"{name}: " in result.out for name in expected)
    moved = [sum(each["movement"].values()) for each in record]
    assert moved == sorted(moved) and moved[-1] > 0
    too_many = dipct_command(*command, 4)
    assert too_many.code == 1 and "has 4 snapshots; 4 and a later one" in too_many.err
    assert dipct_command(*command, -1).code == 2


# What is refused


def test_a_network_for_another_scan_is_refused(scan, files):
    other = small_scan("parallel", pixels=16, views=5, noise=0.05)
    with pytest.raises(ConfigurationError, match="views: 6 there, 5 here"):
        network_spectra_of(other, files)
    with pytest.raises(ConfigurationError, match="at least one"):
        network_spectra_of(scan, [])


def test_another_architecture_is_refused(scan, files, tmp_path):
    path = tmp_path / "other.h5"
    write_pretrained_network(pretrain(scan, steps=1, upsampling="nearest", **TRAINING), path)
    with pytest.raises(ConfigurationError, match=r"other\.h5 is of another architecture"):
        network_spectra_of(scan, [files[0], path])


def test_a_file_that_is_no_network_is_refused(scan, files, tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(scan, path)
    with pytest.raises(FileFormatError, match=r"scan\.h5.*pretrained network"):
        network_spectra_of(scan, [files[0], path])


def test_the_figure_shows_all_networks(spectra, tmp_path):
    figure = spectrum_figure(spectra, ["random", "short", "long"])
    values, overlap, movement = figure.axes
    assert len(values.lines) == 3 and len(overlap.lines) == 2
    assert len(movement.patches) == 2 * len(spectra[0].movement)
    np.testing.assert_array_equal(values.lines[2].get_ydata(), spectra[2].values)
    save_figure(figure, tmp_path / "spectrum.png")
    save_figure(spectrum_figure(spectra[:1], ["random"]), tmp_path / "one.png")


def test_the_command_writes_a_figure_and_its_numbers(scan, files, tmp_path, dipct_command):
    path, out = tmp_path / "scan.h5", tmp_path / "spectrum.png"
    write_scan(scan, path)
    result = dipct_command("spectrum", *files, "--scan", path, "--out", out, "--rank", 3)
    assert result.code == 0, result
    record = json.loads(out.with_suffix(".json").read_text())
    assert [each["name"] for each in record] == ["before training", "after-3", "after-12"]
    assert all(len(each["singular_values"]) == 3 and each["converged"] for each in record)
    assert out.stat().st_size > 10_000
    wrong = dipct_command("spectrum", files[0], "--scan", path, "--out", out, "--views", 3)
    assert wrong.code == 1
    assert "views: 6 there, 3 here" in wrong.err
