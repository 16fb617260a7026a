"""The commands of the counterfactual half: classifier, invert, counterfactual."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_classifier import TASK, queries, small_classifier
from terminals import Terminal
from test_cli import PNG, names

from dipct.inversion import read_counterfactual, read_pre_image
from dipct.pipeline import open_query
from dipct.pretrain import make_classifier, read_trained_classifier, write_trained_classifier

TRAIN = (
    *("classifier", "train", "--side", 16, "--steps", 6, "--batch", 8, "--number", 40),
    *("--out", "clf.h5"),
)
OF_FOLDER = (*TRAIN[:-4], *TRAIN[-2:])
FAST = ("--steps", 10, "--learning-rate", 0.05)


@pytest.fixture
def work(tmp_path, monkeypatch, dipct_command):
    """Work in a folder with a classifier; commands must succeed and print no escape codes."""
    monkeypatch.chdir(tmp_path)
    write_trained_classifier(small_classifier(), "faces.h5")

    def run(*arguments, code=0):
        result = dipct_command(*arguments)
        assert result.code == code, result
        assert "\x1b" not in result.out + result.err and "Traceback" not in result.err
        return result

    run.folder = tmp_path
    return run


def not_bald():
    """Number of a picture that the classifier sees as not bald."""
    for number in range(20):
        query = open_query(small_classifier(), f"faces:bald:{number}")
        with torch.no_grad():
            seen = int(small_classifier().model(torch.from_numpy(query.image)[None]).argmax())
        if seen == TASK.label(query.scene.causes) == 0:
            return number
    raise AssertionError


def save_picture(path, image):
    Image.fromarray(np.round(255 * image.transpose(1, 2, 0)).astype(np.uint8)).save(path)


# From end to end


def test_a_classifier_of_drawn_pictures(work):
    result = work(*TRAIN, "--task", "faces:bald")
    assert {"clf.h5", "clf.png"} <= names(work.folder)
    assert "clf.h5.checkpoint" not in names(work.folder)
    found = read_trained_classifier("clf.h5")
    assert found.classes == ("not bald", "bald")
    for text in (f"{found.accuracy:.4f}", "rank correlation", "AUROC", "nuisances change it"):
        assert text in result.out
    assert (work.folder / "clf.png").read_bytes().startswith(PNG)
    again = work("classifier", "info", "clf.h5")
    assert f"{found.accuracy:.4f}" in again.out


def test_the_task_of_a_classifier_has_options(work):
    options = ("--task-option", "difficulty=3", "--task-option", "shortcut=0.9")
    work(*TRAIN, "--task", "lesions", *options)
    described = read_trained_classifier("clf.h5").task["task"]
    assert (described["difficulty"], described["shortcut"]) == (3, 0.9)
    for pair, message in (
        ("difficulty", "KEY=VALUE"),
        ("colour=1", "no option of lesions 'colour'"),
        ("shortcut=much", "must be a number"),
        ("gap=None", "must be a number"),
        ("side=32", "it is --task or --side"),
    ):
        refused = work(*TRAIN, "--task", "lesions", "--task-option", pair, code=1)
        assert message in refused.err
    refused = work(*TRAIN, "--images", ".", "--task-option", "difficulty=3", code=1)
    assert "for a drawn task" in refused.err


def test_a_classifier_of_a_folder(work):
    random = np.random.default_rng(0)
    for name, level in (("dark", 0.2), ("light", 0.8)):
        (work.folder / "images" / name).mkdir(parents=True)
        for i in range(20):
            image = np.clip(level + 0.1 * random.standard_normal((3, 20, 20)), 0, 1)
            save_picture(work.folder / "images" / name / f"{i}.png", image)
    work(*OF_FOLDER, "--images", "images", "--no-loss-estimator")
    found = read_trained_classifier("clf.h5")
    assert found.classes == ("dark", "light")
    assert found.estimator is None
    assert found.gate is None
    result = work("classifier", "info", "clf.h5")
    assert "rank correlation" not in result.out


def test_a_bar_while_images_are_read_or_drawn(work):
    image = queries()[1][0]
    for name, number in (("dark", 10), ("light", 11)):
        (work.folder / "images" / name).mkdir(parents=True)
        for i in range(number):
            save_picture(work.folder / "images" / name / f"{i}.png", image)
    for command, bars in (
        ((*OF_FOLDER, "--images", "images"), ["reading images .*21/21"]),
        ((*TRAIN, "--task", "faces:bald"), ["drawing .*40/40", "drawing others .*8/8"]),
    ):
        with Terminal(*command, cwd=work.folder) as terminal:
            assert terminal.wait() == 0
        for bar in bars:
            assert re.search(bar, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.output))


def test_centroids_are_fitted_and_reported(work):
    result = work(*TRAIN, "--task", "faces:bald", "--centroids")
    assert read_trained_classifier("clf.h5").centroids is not None
    assert "certainty finds shifted" in result.out


def test_a_counterfactual_of_a_drawn_picture(work):
    image = f"faces:bald:{not_bald()}"
    result = work(
        *("counterfactual", "--classifier", "faces.h5", "--image", image, "--target", "bald"),
        *("--method", "lso-tv", "--out", "cf.h5", *FAST),
    )
    found = read_counterfactual("cf.h5")
    assert {"cf.h5", "cf.json", "cf.png"} <= names(work.folder)
    assert not any(name.endswith(".stages") for name in names(work.folder))
    assert found.truth is not None
    for text in ("seen as not bald", found.reason, "normalised mass accuracy", "Wrote cf.h5"):
        assert text in " ".join(result.out.split())
    summary = json.loads((work.folder / "cf.json").read_text())
    assert summary["valid"] == found.valid
    assert "normalised_mass_accuracy" in summary["scores"]
    assert (work.folder / "cf.png").read_bytes().startswith(PNG)


def test_less_of_its_own_class_has_no_true_counterfactual(work):
    result = work(
        *("counterfactual", "--classifier", "faces.h5", "--image", f"faces:bald:{not_bald()}"),
        *("--target", "not bald", "--class-loss", "probability", "--class-probability", 0.6),
        *("--method", "lso-tv", "--out", "cf.h5", *FAST),
    )
    found = read_counterfactual("cf.h5")
    assert found.target == found.predicted == 0
    assert found.truth is None
    assert "for the 0.6 that was asked for" in " ".join(result.out.split())


def test_a_counterfactual_of_a_file_within_a_region(work):
    image = queries()[1][0]
    save_picture("query.png", image)
    allowed = np.zeros((3, 16, 16))
    allowed[:, :8] = 1
    save_picture("region.png", allowed)
    work(
        *("counterfactual", "--classifier", "faces.h5", "--image", "query.png", "--target", 1),
        *("--method", "wachter", "--region", "region.png", "--out", "cf.h5", *FAST),
    )
    found = read_counterfactual("cf.h5")
    assert np.abs(found.query - image).max() < 1 / 255
    assert np.array_equal(found.image[:, 8:], found.query[:, 8:])
    assert found.truth is None
    assert "normalised_mass_accuracy" not in found.scores


def test_a_pre_image(work):
    result = work(
        *("invert", "--classifier", "faces.h5", "--image", "faces:bald:0", "--layer", "layer1"),
        *("--method", "pixel-tv", "--out", "pre.h5", *FAST),
    )
    assert {"pre.h5", "pre.json", "pre.png"} <= names(work.folder)
    assert read_pre_image("pre.h5").settings["layers"] == ["layer1"]
    assert "psnr to query db" in result.out
    work(
        *("invert", "--classifier", "faces.h5", "--image", "faces:bald:0"),
        *("--maximise", "logits:1", "--method", "pixel-tv", "--out", "most.h5", *FAST),
    )


def test_a_model_of_ones_own(work, monkeypatch):
    torch.save(small_classifier().model.state_dict(), "weights.pt")
    save_picture("query.png", queries()[1][0])
    (work.folder / "mine.py").write_text(
        "from dipct.classifier import small_resnet\n\n\ndef model():\n    return small_resnet(2)\n"
    )
    monkeypatch.syspath_prepend(str(work.folder))
    work(
        *("counterfactual", "--classifier", "mine:model", "--weights", "weights.pt"),
        *("--image-shape", 3, 16, 16, "--class", "hair", "--class", "none"),
        *("--image", "query.png", "--target", "none", "--method", "lso-tv-bn"),
        *("--out", "cf.h5", *FAST),
    )
    found = read_counterfactual("cf.h5")
    assert found.classifier["classes"] == ["hair", "none"]


def test_a_loss_estimator_for_a_model_of_ones_own(work, monkeypatch):
    torch.save(small_classifier().model.state_dict(), "weights.pt")
    (work.folder / "theirs.py").write_text(
        "from dipct.classifier import small_resnet\n\n\ndef model():\n    return small_resnet(2)\n"
    )
    monkeypatch.syspath_prepend(str(work.folder))
    train = ("classifier", "train", "--task", "faces:bald", "--number", 40, "--batch", 8)
    own = ("--classifier", "theirs:model", "--weights", "weights.pt", "--image-shape", 3, 16, 16)
    result = work(*train, "--steps", 4, "--post-hoc", *own, "--out", "explained.h5")
    assert "rank correlation" in result.out
    assert {"explained.h5", "explained.png"} <= names(work.folder)
    assert (
        "rank correlation"
        in work("classifier", "info", "explained.h5", "--model", "theirs:model").out
    )
    explain = ("counterfactual", "--classifier", "explained.h5", "--out", "cf.h5", *FAST)
    image = ("--image", f"faces:bald:{not_bald()}", "--method", "lso-tv-dep")
    assert "with --model" in work(*explain, *image, code=1).err
    work(*explain, *image, "--model", "theirs:model")
    found = read_counterfactual("cf.h5")
    assert "loss estimate" in found.history and found.truth is not None
    for wrong, message in (
        (("--post-hoc",), "--post-hoc and --classifier together"),
        (("--weights", "weights.pt"), "belong to a classifier that is there"),
        (("--post-hoc", *own, "--centroids"), "centroids belong to the training"),
    ):
        result = work(*train, *wrong, "--out", "no.h5", code=1)
        assert message in " ".join(result.err.split())


def test_inputs_are_never_replaced(work):
    image = queries()[1][0]
    save_picture("query.png", image)
    save_picture("cf.png", image)
    write_trained_classifier(small_classifier(), "cf2.h5")
    before = (work.folder / "cf.png").read_bytes(), (work.folder / "cf2.h5").read_bytes()
    common = ("counterfactual", "--classifier", "faces.h5", "--image", "query.png", *FAST)
    common = (*common, "--method", "lso-tv")
    for rest in (("--region", "cf.png", "--out", "cf.h5"), ("--keep", "cf2.h5", "--out", "cf2.h5")):
        assert "would replace an input" in work(*common, *rest, code=1).err
    assert before == ((work.folder / "cf.png").read_bytes(), (work.folder / "cf2.h5").read_bytes())


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "hat"), "There is no class 'hat'; there are: 0 not bald, 1 bald."),
        (("--target", "not bald"), "already; choose another target"),
        (("--target", "bald", "--layer", "layer9"), "Near names: layer"),
        (("--target", "bald", "--method", "lso"), "There is no method 'lso'"),
        (("--target", "bald", "--method", "lso-inr-duq"), "no centroids"),
        (("--target", "bald", "--image", "lesions:3"), "trained on faces:bald, not on lesions"),
        (("--target", "bald", "--image", "none.png"), "none.png"),
        (("--target", "bald", "--image", "faces:bald:-1"), "faces:bald:-1: no such file, nor"),
        (("--target", "bald", "--seed", 10**20), "seed: "),
        (("--target", "bald", "--radius", 0.5), "but on optimiser sign"),
        (("--target", "bald", "--out", "cf.txt"), "must end in .h5"),
        (("--target", "bald", "--resume"), "nothing to resume from"),
        (("--target", "bald", "--weights", "w.pt"), "holds its own"),
        (("--target", "bald", "--keep-attribute", "bald"), "belong to --attribute"),
        (("--attribute", "bald", "--also", "bald"), "to change or to stay, once"),
        (("--attribute", "bald"), "of classes that exclude each other"),
        (("--target", "bald", "--model", "no_such:model"), "there is no module no_such"),
        (("--target", "bald", "--classifier", "scan.txt"), "package.module:attribute"),
    ],
)
def test_wrong_input_is_refused_with_a_message(work, arguments, message):
    given = {
        "--classifier": "faces.h5",
        "--image": f"faces:bald:{not_bald()}",
        "--out": "cf.h5",
        "--steps": "5",
    }
    rest = list(map(str, arguments))
    for option in [each for each in given if each in rest]:
        given.pop(option)
    words = [word for pair in given.items() for word in pair]
    result = work("counterfactual", *words, *rest, code=1)
    assert message in " ".join(result.err.split())
    assert "cf.h5" not in names(work.folder)


def test_a_wrong_layer_to_invert_is_refused(work):
    common = ("invert", "--classifier", "faces.h5", "--image", "faces:bald:0", "--out", "pre.h5")
    for wrong in (("--layer", "layer9"), ("--maximise", "layer9:3")):
        assert "Near names: layer" in work(*common, *wrong, code=1).err
    assert "from 0 to 1 for layer logits" in work(*common, "--maximise", "logits:7", code=1).err
    assert "pre.h5" not in names(work.folder)


@pytest.mark.parametrize(
    ("command", "change", "image_shape", "message"),
    [
        (
            "counterfactual",
            "[:, :, None]",
            (3, 16, 16),
            "for two images it gave (2, 2, 1)",
        ),
        ("invert", "[:, :, None]", (3, 16, 16), "for two images it gave (2, 2, 1)"),
        ("counterfactual", "[:, :1]", (3, 16, 16), "has one logit"),
        ("counterfactual", "", (1, 16, 16), "does not take images"),
        ("invert", "", (1, 16, 16), "does not take images"),
    ],
)
def test_a_model_of_ones_own_that_does_not_fit_is_refused(
    work, monkeypatch, command, change, image_shape, message
):
    save_picture("query.png", queries()[1][0])
    module = work.folder.name
    (work.folder / f"{module}.py").write_text(
        "from torch import nn\n\nfrom dipct.classifier import small_resnet\n\n\n"
        "class Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.inner = small_resnet(2)\n\n"
        f"    def forward(self, x):\n        return self.inner(x){change}\n"
    )
    monkeypatch.syspath_prepend(str(work.folder))
    method = "lso-tv" if command == "counterfactual" else "pixel-tv"
    result = work(
        *(command, "--classifier", f"{module}:Model", "--image-shape", *image_shape),
        *("--method", method),
        *("--image", "query.png", "--layer", "inner.layer1", "--out", "found.h5"),
        code=1,
    )
    assert message in " ".join(result.err.split())
    assert "found.h5" not in names(work.folder)


def test_another_classifier_of_other_images_is_refused(work):
    model = make_classifier("small", classes=2, in_channels=1).eval()
    grey = replace(
        small_classifier(),
        model=model,
        architecture={"name": "small", "classes": 2, "in_channels": 1},
        image_shape=(1, 16, 16),
        estimator=None,
        report=None,
    )
    write_trained_classifier(grey, "grey.h5")
    result = work(
        *("counterfactual", "--classifier", "faces.h5", "--image", f"faces:bald:{not_bald()}"),
        *("--target", "bald", "--keep", "grey.h5", "--out", "cf.h5", *FAST, "--method", "lso-tv"),
        code=1,
    )
    assert "takes images (1, 16, 16)" in " ".join(result.err.split())
    assert "cf.h5" not in names(work.folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give --task or --images"),
        (("--task", "faces", "--images", "folder"), "Give --task or --images"),
        (("--task", "houses"), "There is no task 'houses'"),
        (("--task", "faces", "--attribute", "Smiling"), "are for folders of images"),
        (("--images", "nowhere"), "nowhere"),
        (("--task", "faces", "--preset", "s2"), "preset must be s1 or disc"),
        (("--task", "faces", "--resume"), "no checkpoint"),
        (("--images", "nowhere", "--number", 41), "pictures to draw"),
        (("--task", "faces", "--no-loss-estimator", "--ranking-weight", 3), "has no effect"),
    ],
)
def test_wrong_training_is_refused_with_a_message(work, arguments, message):
    train = OF_FOLDER if "--images" in arguments else TRAIN
    result = work(*train, *arguments, code=1)
    assert message in " ".join(result.err.split())


def quick_counterfactual(work, method, *options):
    """A file cf.h5 of a drawn picture."""
    work(
        *("counterfactual", "--classifier", "faces.h5", "--image", f"faces:bald:{not_bald()}"),
        *("--method", method, "--out", "cf.h5", *FAST, *options),
    )


@pytest.fixture(scope="module")
def kept():
    """Contents of files that several tests begin with, by name."""
    return {}


def test_the_uncertainty_of_a_counterfactual(work):
    quick_counterfactual(work, "lso-inr", "--width", 8, "--fit-steps", 60)
    result = work(
        *("uncertainty", "cf.h5", "--classifier", "faces.h5", "--samples", 8, "--iterations", 3),
        *("--out", "spread.h5"),
    )
    found = read_counterfactual("spread.h5")
    for text in ("6144 features of layer1, layer2", "samples in target", "std inside", "nat, "):
        assert text in " ".join(result.out.split())
    assert found.samples.shape == (8, 3, 16, 16)
    assert found.std.shape == (3, 16, 16) and (found.std > 0).all()
    assert np.array_equal(found.image, read_counterfactual("cf.h5").image)
    assert {"spread.h5", "spread.json", "spread.png"} <= names(work.folder)
    assert not any(name.endswith(".stages") for name in names(work.folder))
    assert (work.folder / "spread.png").read_bytes().startswith(PNG)
    summary = json.loads((work.folder / "spread.json").read_text())
    assert 0 <= summary["scores"]["samples_in_target"] <= 1
    assert summary["scores"]["std_inside"] > 0
    assert summary["uncertainty"]["features"] == 6144


def test_the_uncertainty_of_a_pre_image(work):
    work(
        *("invert", "--classifier", "faces.h5", "--image", "faces:bald:0", "--layer", "layer4"),
        *("--method", "inr", "--width", 8, "--out", "pre.h5", *FAST),
    )
    result = work(
        *("uncertainty", "pre.h5", "--classifier", "faces.h5", "--samples", 4),
        *("--layer", "layer4", "--iterations", 3, "--out", "spread.h5"),
    )
    assert "512 features of layer4" in " ".join(result.out.split())
    assert "samples in target" not in result.out
    assert read_pre_image("spread.h5").samples.shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "cf.h5 was made for a classifier, whose features are the data of its uncertainty"),
        (("--layer", "layer3"), "give --classifier"),
        (("--normalisation", "imagenet"), "give --classifier"),
        (("--classifier", "faces.h5"), "no network to linearise; use lso-dip"),
        (("--classifier", "faces.h5", "--mean", "linear"), "scans alone is mean linear"),
        (("--classifier", "faces.h5", "--score-margin", 2), "scans alone is score_margin"),
        (("--classifier", "faces.h5", "--fixed-noise"), "scans alone is a fixed noise"),
        (("--classifier", "faces.h5", "--tv-prior"), "scans alone is the total variation prior"),
        (("--classifier", "none.h5"), "none.h5"),
        (("--classifier", "faces.h5", "--out", "cf.h5"), "would replace an input"),
    ],
)
def test_uncertainty_asks_for_what_belongs_to_the_file(work, kept, arguments, message):
    found = work.folder / "cf.h5"
    if "cf.h5" not in kept:
        quick_counterfactual(work, "lso-tv")
        kept["cf.h5"] = found.read_bytes()
    found.write_bytes(kept["cf.h5"])
    out = () if "--out" in arguments else ("--out", "spread.h5")
    result = work("uncertainty", "cf.h5", *arguments, *out, code=1)
    assert message in " ".join(result.err.split())
    assert "spread.h5" not in names(work.folder)


def test_the_uncertainty_of_another_classifier_is_refused(work):
    quick_counterfactual(work, "lso-inr", "--width", 8, "--fit-steps", 5)
    other = replace(small_classifier(), model=make_classifier("small", classes=2).eval())
    write_trained_classifier(other, "other.h5")
    common = ("uncertainty", "cf.h5", "--out", "spread.h5")
    result = work(*common, "--classifier", "other.h5", code=1)
    assert "not the classifier that was inverted" in " ".join(result.err.split())
    assert "not bald, bald" in " ".join(result.err.split())
    result = work(*common, "--classifier", "faces.h5", "--layer", "layer9", code=1)
    assert "Near names: layer" in result.err
