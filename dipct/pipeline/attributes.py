"""Several attributes of one model at once, each with a logit of its own."""

from collections.abc import Sequence

from dipct.errors import ConfigurationError
from dipct.pipeline.counterfactual_problem import OtherClassifier
from dipct.pretrain import TrainedClassifier

_ABSENT = "not "


def attribute_targets(
    classifier: TrainedClassifier,
    attribute: str,
    *,
    also: Sequence[str] = (),
    keep: Sequence[str] = (),
    weight: float = 0.1,
) -> tuple[TrainedClassifier, list[OtherClassifier]]:
    """What to give :func:`dipct.pipeline.counterfactual` to change some attributes and keep others.

    Args:
        classifier: a model with a logit for each of several attributes, which are its classes.
        attribute: name of the one that is to change.
        also: further ones that shall be there, or with ``not`` before the name shall not.
        keep: those whose probability shall stay, so that a smile does not make a face younger.
        weight: of the term of each of the others.

    Returns:
        The classifier of the first attribute, with the classes ``not ...`` and ``...``; and those
        of the others, with what is wanted of them.

    Raises:
        ConfigurationError: no such attribute, or one that is named twice.
    """
    wanted = [_wanted(classifier, each) for each in also]
    names = [attribute, *(name for name, _ in wanted), *keep]
    numbers = [classifier.class_number(name) for name in names]
    if len(set(numbers)) < len(numbers):
        raise ConfigurationError(
            f"Each attribute is to change or to stay, once; got {', '.join(names)}."
        )
    others = [
        OtherClassifier(classifier.attribute(name), target, weight) for name, target in wanted
    ]
    others += [OtherClassifier(classifier.attribute(name), None, weight) for name in keep]
    return classifier.attribute(attribute), others


def _wanted(classifier: TrainedClassifier, text: str) -> tuple[str, int]:
    """Name of an attribute, and whether it shall be there."""
    if text.startswith(_ABSENT) and text not in classifier.classes:
        return text.removeprefix(_ABSENT), 0
    return text, 1
