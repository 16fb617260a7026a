"""The query of a counterfactual, from a file or a drawn task, and its explanation with scores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dipct.errors import ConfigurationError, DataError, FileFormatError, ShapeError
from dipct.inversion import Counterfactual
from dipct.inversion_settings import CounterfactualSettings
from dipct.measurement.scan import Scan
from dipct.phantom import Scene, SceneTask, describe_task
from dipct.pipeline.counterfactual import counterfactual
from dipct.pipeline.counterfactual_problem import OtherClassifier
from dipct.pipeline.counterfactual_result import known_scores
from dipct.pipeline.labelled import QUERY, task_of
from dipct.pipeline.scan_measurement import image_of_run, measurement_of
from dipct.pretrain import TrainedClassifier
from dipct.pretrain.image_files import read_square
from dipct.run import is_run_file

_DRAWS = 16


@dataclass(frozen=True, eq=False)
class Query:
    """An image to explain.

    Attributes:
        image: float32 [C H W], from zero to one.
        source: what it was read from.
        task: where it is drawn, what it is of; and
        scene: what it was drawn from, so that its true counterfactuals are known.
    """

    image: np.ndarray
    source: str
    task: SceneTask | None = None
    scene: Scene | None = None


def open_query(classifier: TrainedClassifier, image: str) -> Query:
    """An image for a classifier.

    Args:
        classifier: decides the size and number of channels.
        image: a picture file, whose largest centred square is resized; a run file, whose image is
            divided by its largest value; or the name of the drawn task that the classifier was
            trained on, and a number, as ``faces:3``.

    Raises:
        FileFormatError: no readable image.
        ConfigurationError: a task that the classifier was not trained on.
        ShapeError: a classifier of images that are no squares.
    """
    name, _, number = image.rpartition(":")
    if name and number.isdecimal() and not Path(image).exists():
        task = task_of(classifier)
        own = None if task is None else describe_task(task)["name"]
        if task is None or name not in (own, str(own).split(":")[0]):
            if own is None:
                raise ConfigurationError(
                    f"The classifier was not trained on a drawn task, so that {image} is no "
                    "picture of its; give a file."
                )
            raise ConfigurationError(
                f"The classifier was trained on {own}, not on {name}: give {own}:{number}, or a "
                "file."
            )
        scene = task.sample_one(int(number), seed=QUERY)
        return Query(scene.image, image, task, scene)
    if not Path(image).exists():
        raise FileFormatError(
            f"{image}: no such file, nor the name of a drawn task with a number, as faces:3."
        )
    channels, height, width = classifier.image_shape
    if height != width:
        raise ShapeError(
            f"Files are read as squares; the classifier takes {height} x {width} pixels. Give the "
            "image to dipct.counterfactual as an array."
        )
    if is_run_file(image):
        if channels != 1:
            raise ShapeError(f"{image}: reconstructions are grey, the classifier sees colours.")
        return Query(image_of_run(Path(image), height), image)
    return Query(read_square(Path(image), height, colour=channels == 3), image)


def explain_query(
    classifier: TrainedClassifier,
    query: Query,
    target: int | None,
    settings: CounterfactualSettings,
    *,
    region: Path | None = None,
    others: Sequence[OtherClassifier] = (),
    scan: Scan | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Counterfactual:
    """The counterfactual of one query, with scores where its true ones are known.

    Args:
        classifier: to be explained.
        query: as of :func:`open_query`.
        target: wanted class; None for the most probable of the others.
        settings: how.
        region: image file; edits are only where it is not black.
        others: see :func:`dipct.pipeline.counterfactual`.
        scan: that the query was reconstructed from; see :func:`dipct.pipeline.measurement_of`.
        checkpoint: likewise.
        resume: likewise.
        progress: likewise.

    Raises:
        FileFormatError: a region that is no readable image.
        DataError: a region that is black.
        ConfigurationError: as by :func:`dipct.pipeline.counterfactual`.
        Interrupted: likewise.
    """
    allowed = None
    if region is not None:
        allowed = read_square(region, classifier.image_shape[1], colour=False)[0] > 0
        if not allowed.any():
            raise DataError(f"{region}: the image is black, so that nothing may change.")
    (found,) = counterfactual(
        classifier,
        query.image,
        target,
        settings,
        region=allowed,
        others=others,
        measurement=None
        if scan is None
        else measurement_of(scan, query.image, device=settings.device),
        source=query.source,
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
    )
    if query.task is None or query.scene is None:
        return found
    if query.task.label(query.scene.causes) != found.predicted:
        # Where the classifier is wrong, its mistake would be scored and not the explanation.
        return found
    if found.target == found.predicted:
        # Between two classes, away from its own: no picture of another class is the answer.
        return found
    right = query.task.true_counterfactuals(query.scene, found.target, draws=_DRAWS)
    scores, nearest = known_scores(query.image, found.image, right)
    return replace(found, scores={**found.scores, **scores}, truth=nearest, region=right.may)
