"""The classifier to be explained: one that was trained here, or a user's own."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from dipct.classifier import load_model
from dipct.errors import ConfigurationError
from dipct.operator import LOGITS, FeatureOperator, with_normalisation
from dipct.pretrain import TrainedClassifier, read_trained_classifier
from dipct.run import installed_versions

_LOG = logging.getLogger(__name__)
_FILES = (".h5", ".hdf5")


def open_classifier(
    reference: str,
    *,
    weights: Path | None = None,
    normalisation: str = "none",
    image_shape: tuple[int, int, int] | None = None,
    classes: Sequence[str] | None = None,
    model: str | None = None,
) -> TrainedClassifier:
    """A classifier by the name of its file, or a user's own model.

    A model of one's own has no loss estimator, unless one was trained for it, and no centroids:
    manifold consistency is then by batch statistics.

    Args:
        reference: a file of `dipct classifier train`; or ``package.module:attribute``, or an
            exported program ``model.pt2``, see :func:`dipct.classifier.load_model`.
        weights: of ``package.module:attribute``.
        normalisation: that the model expects of its images, see
            :func:`dipct.operator.with_normalisation`.
        image_shape: [C H W] of its images.
        classes: their names; default: their numbers.
        model: where the file has the loss estimator of a model of one's own, the reference of that
            model; its weights are in the file.

    Raises:
        FileFormatError: a file that is missing or holds something else.
        ConfigurationError: a model that cannot be made, what belongs to a model and is given with
            a file, or another number of classes.
        ShapeError: a model that does not take such images.
    """
    if reference.endswith(_FILES):
        own = (weights, image_shape, classes)
        if any(each is not None for each in own) or normalisation != "none":
            raise ConfigurationError(
                "weights, normalisation, image_shape and classes are for models of your own; "
                f"{reference} holds its own."
            )
        return read_trained_classifier(reference, None if model is None else load_model(model))
    if model is not None:
        raise ConfigurationError(
            f"model belongs to the file of a classifier, and {reference} is a model; leave it out."
        )
    made = with_normalisation(load_model(reference, weights), normalisation)
    if image_shape is None:
        raise ConfigurationError(
            "Give the image_shape of your model's images: channels, rows and columns."
        )
    number = FeatureOperator(made, [LOGITS], image_shape).shapes[LOGITS][0]
    names = tuple(map(str, range(number))) if classes is None else tuple(classes)
    if len(names) != number or len(set(names)) != number:
        raise ConfigurationError(
            f"The model has {number} classes, which need as many different names; got "
            f"{', '.join(names)}."
        )
    opened = TrainedClassifier(
        model=made,
        architecture={"name": reference, "normalisation": normalisation},
        image_shape=image_shape,
        classes=names,
        estimator=None,
        report=None,
        task={"kind": "own"},
        settings={},
        history={},
        duration_s=0.0,
        created="",
        versions=installed_versions(),
    )
    _note_precision(opened, reference)
    return opened


def _note_precision(classifier: TrainedClassifier, reference: str) -> None:
    """Say that another precision is left, or that it cannot be.

    Raises:
        ConfigurationError: a program that computes in another precision whatever it is given.
    """
    tensors = (*classifier.model.parameters(), *classifier.model.buffers())
    kinds = {each.dtype for each in tensors if each.is_floating_point()}
    if kinds <= {torch.float32}:
        return
    named = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    advice = "Convert the model with model.float(), and export or save it again."
    operator = classifier.features([LOGITS])
    try:
        with torch.no_grad():
            logits = operator(torch.zeros(1, *classifier.image_shape))
    except RuntimeError as error:
        raise ConfigurationError(
            f"{reference} computes in {named}, and images are float32: {error}. {advice}"
        ) from error
    if logits.dtype != torch.float32:
        raise ConfigurationError(
            f"{reference} computes in {named}, also in a copy of float32. {advice}"
        )
    _LOG.warning(
        "%s has parameters in %s; what is explained is a copy in float32, whose logits may differ "
        "in their last digits.",
        reference,
        named,
    )
