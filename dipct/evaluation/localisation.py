"""Whether an edit is where it should be, and what it should be: against a known counterfactual."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from dipct.errors import ShapeError
from dipct.evaluation.arrays import real_array
from dipct.evaluation.edits import THRESHOLD, changes

# Of the smoothing before the pixel of the largest change is looked for [pixels].
_POINTING_STD = 1.5


@dataclass(frozen=True)
class Localisation:
    """Where the changes are, against a region; all are NaN where nothing changes.

    Attributes:
        mass_accuracy: share of the squared change that lies in the region.
        normalised_mass_accuracy: zero for what is spread evenly, one for all of it inside.
        rank_accuracy: of so many pixels as the region has, those that change most, the share that
            lies in it.
        auroc: area under the curve of true over false positives of the change as a detector.
        average_precision: area under its curve of precision over recall.
        overlap: intersection over union of changes beyond the threshold and the region.
        matched_overlap: likewise of so many pixels as the region has.
        pointing: whether the pixel of the largest change, smoothed, lies in the region.
    """

    mass_accuracy: float
    normalised_mass_accuracy: float
    rank_accuracy: float
    auroc: float
    average_precision: float
    overlap: float
    matched_overlap: float
    pointing: float


@dataclass(frozen=True)
class Agreement:
    """How near a counterfactual comes to a known one.

    Attributes:
        direction: cosine of the angle between its change and the wanted one; NaN for no change.
        psnr_gain_db: by how much it is nearer to the known one than the query was [dB].
        background: root mean squared change outside the region.
    """

    direction: float
    psnr_gain_db: float
    background: float


def localisation(
    query: np.ndarray, other: np.ndarray, region: np.ndarray, *, threshold: float = THRESHOLD
) -> Localisation:
    """Score where a counterfactual differs from its query.

    Args:
        query: [C H W], from zero to one.
        other: the counterfactual, likewise.
        region: where edits belong, bool [H W].
        threshold: of a change that counts for ``overlap``.

    Raises:
        ShapeError: images or a region that do not fit together, or a region that is empty or
            everything.
        DataError: values that are not finite.
    """
    change, energy = changes(query, other)
    region = _checked_region(region, change.shape)
    total = float(energy.sum())
    if total == 0:
        return Localisation(*[math.nan] * 8)
    mass, chance = float(energy[region].sum()) / total, float(region.mean())
    number = int(region.sum())
    hits = _hits_of_largest(change, region, number)
    smooth = ndimage.gaussian_filter(change, _POINTING_STD)
    return Localisation(
        mass_accuracy=mass,
        normalised_mass_accuracy=(mass - chance) / (1 - chance),
        rank_accuracy=hits / number,
        auroc=auroc(change[region], change[~region]),
        average_precision=_average_precision(change, region),
        overlap=_overlap(change > threshold, region),
        matched_overlap=hits / (2 * number - hits),
        pointing=float(region.flat[int(smooth.argmax())]),
    )


def agreement(
    query: np.ndarray, other: np.ndarray, known: np.ndarray, region: np.ndarray
) -> Agreement:
    """Compare a counterfactual with one that is known.

    Args:
        query: [C H W], from zero to one.
        other: the counterfactual, likewise.
        known: the true one, likewise.
        region: where edits belong, bool [H W].

    Raises:
        ShapeError: images or a region that do not fit together.
        DataError: values that are not finite.
    """
    change, _ = changes(query, other)
    changes(query, known)
    region = _checked_region(region, change.shape)
    query, other, known = (np.asarray(a, dtype=np.float64) for a in (query, other, known))
    made, wanted = (other - query).ravel(), (known - query).ravel()
    lengths = float(np.linalg.norm(made) * np.linalg.norm(wanted))
    left, before = float(np.sum((other - known) ** 2)), float(np.sum(wanted**2))
    gain = math.nan if before == 0 else math.inf if left == 0 else 10 * math.log10(before / left)
    outside = (other - query)[:, ~region]
    return Agreement(
        direction=float(made @ wanted) / lengths if lengths > 0 else math.nan,
        psnr_gain_db=gain,
        background=float(np.sqrt(np.mean(outside**2))),
    )


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive has the larger value than a negative, ties counted by half.

    Args:
        positive: values, any number above zero.
        negative: likewise.

    Raises:
        DataError: none of either, or values that are not finite.
    """
    # Everything loads this module for its other scores, and scipy.stats is slow to load.
    from scipy.stats import rankdata

    positive, negative = (
        real_array(v, name).ravel()
        for v, name in ((positive, "positives"), (negative, "negatives"))
    )
    ranks = rankdata(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _hits_of_largest(score: np.ndarray, region: np.ndarray, number: int) -> float:
    """Of so many pixels with the largest scores, how many lie in the region.

    Pixels of equal score at the end of the choice count by their share: which of them come first
    must not decide, least of all among those that do not change.
    """
    last = np.partition(score.ravel(), -number)[-number]
    sure, tied = score > last, score == last
    left = number - np.count_nonzero(sure)
    share = np.count_nonzero(tied & region) / np.count_nonzero(tied)
    return float(np.count_nonzero(sure & region) + left * share)


def _average_precision(score: np.ndarray, region: np.ndarray) -> float:
    """Mean precision at every threshold that finds another part of the region."""
    order = np.argsort(-score.ravel(), kind="stable")
    hits, sorted_score = region.ravel()[order], score.ravel()[order]
    found, seen = hits.cumsum(), np.arange(1, hits.size + 1)
    # Pixels of one value are found together.
    last = np.append(np.flatnonzero(np.diff(sorted_score)), hits.size - 1)
    recall = found[last] / region.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * found[last] / seen[last]))


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def _checked_region(region: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    region = np.asarray(region)
    if region.dtype != bool or region.shape != shape or region.all() or not region.any():
        raise ShapeError(
            f"The region must be true somewhere and false elsewhere in an image of {shape}; got "
            f"{region.shape} of {region.dtype}, {np.count_nonzero(region)} true."
        )
    return region
