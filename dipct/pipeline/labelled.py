"""What a classifier is trained on: drawn pictures or a folder of labelled images."""

from pathlib import Path

from dipct.classifier_settings import ClassifierSettings
from dipct.errors import ConfigurationError, ShapeError
from dipct.phantom import SceneTask, make_task, task_names
from dipct.pretrain import LabelledImages, TrainedClassifier, read_labelled, scene_images
from dipct.pretrain.labelled_folders import AUTO
from dipct.progress import WorkDisplay

_SIDE = 64
# Added to the seed of a training.
_HELD_OUT, _GATE = 1_000_000_007, 2_000_000_011
QUERY = 3_000_000_019
"""Seed of the pictures that queries are taken from: no other has it."""


def open_labelled(
    settings: ClassifierSettings,
    *,
    task: str | SceneTask | None = None,
    folder: Path | None = None,
    layout: str = AUTO,
    attribute: str | None = None,
    most: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    progress: bool = False,
) -> tuple[LabelledImages, LabelledImages]:
    """Images to train on, and others that are held out.

    Args:
        settings: side, number, share and seed.
        task: a drawn task, or the name of one, see :func:`dipct.phantom.make_task`; or
        folder: where labelled images are.
        layout: of the folder, see :func:`dipct.pretrain.read_labelled`.
        attribute: that makes the class, of CelebA.
        most: images of the folder to use.
        image_shape: [C H W] of a classifier that they are for, in place of colours of the side.
        progress: show a progress display.

    Raises:
        ConfigurationError: not one of task and folder, or what does not belong to it.
        FileFormatError: a folder that cannot be read.
        ShapeError: a classifier of images that a folder or a task does not have.
    """
    if (task is None) == (folder is None):
        raise ConfigurationError("Give a task or a folder of images, one of the two.")
    if folder is not None:
        if settings.number != ClassifierSettings().number:
            raise ConfigurationError(
                "number is of pictures to draw; for a folder give most, or leave it out."
            )
        channels, side, width = image_shape or (3, settings.side or _SIDE, settings.side or _SIDE)
        if channels not in (1, 3) or side != width:
            raise ShapeError(
                "Images of a folder are read as squares, grey or in colours; the classifier takes "
                f"{image_shape}. Give the images to dipct.pipeline.train_loss_estimator as arrays."
            )
        with WorkDisplay(progress) as display:
            found = read_labelled(
                folder,
                side,
                colour=channels == 3,
                layout=layout,
                attribute=attribute,
                most=most,
                seed=settings.seed,
                held_out_share=settings.held_out_share,
                progress=display.stage("reading images"),
            )
        return found.split(settings.held_out_share, seed=settings.seed)
    if attribute is not None or most is not None or layout != AUTO:
        raise ConfigurationError("layout, attribute and most are for folders of images.")
    assert task is not None
    drawn = make_task(task, settings.side) if isinstance(task, str) else task
    if settings.side not in (None, drawn.side):
        raise ConfigurationError(
            f"The pictures of the task have {drawn.side} pixels along a side, the settings ask for "
            f"{settings.side}. Make the task with that side, or leave side out."
        )
    if image_shape is not None and tuple(image_shape) != drawn.image_shape:
        raise ShapeError(
            f"The classifier takes images {tuple(image_shape)}; those of the task are "
            f"{drawn.image_shape}."
        )
    held_out = max(2, round(settings.held_out_share * settings.number))
    first, second = settings.seed, settings.seed + _HELD_OUT
    with WorkDisplay(progress) as display:
        training, others = (
            scene_images(drawn, number, seed=each, labels_seed=each, progress=display.stage(title))
            for title, number, each in (
                ("drawing", settings.number, first),
                ("drawing others", held_out, second),
            )
        )
    return training, others


def task_of(classifier: TrainedClassifier) -> SceneTask | None:
    """The drawn task that a classifier was trained on, if it was on one that has a name."""
    if classifier.task.get("kind") != "scenes":
        return None
    described = classifier.task["task"]
    # A task of one's own has no name.
    return make_task(**described) if described["name"] in task_names() else None


def gate_seed(settings: ClassifierSettings) -> int:
    """Of the pictures that show what a classifier goes by."""
    return settings.seed + _GATE
