"""Drawing a share of a data set: every stratum by the same share, every group as a whole."""

import numpy as np


def draw_groups(
    strata: np.ndarray, groups: np.ndarray, share: float, *, seed: int, most: int | None = None
) -> np.ndarray:
    """Draw about the same share of every stratum, without splitting a group.

    Greedy: groups come one by one, the largest first and those of one size in random order, and
    each is drawn or not, whichever leaves the drawn part of the groups so far closer to the share.
    Closeness is the sum over strata of the squared deviation by the size of the stratum, so that
    rare strata count. Of groups of one image each the drawn number is the share, rounded.

    Args:
        strata: stratum of each image, such as its class, int64 [N].
        groups: group of each image, int64 [N].
        share: of the images to draw, from 0 to 1.
        seed: of the order of the groups.
        most: largest number of images to draw; default: no limit.

    Returns:
        Which images are drawn, bool [N].
    """
    _, groups = np.unique(groups, return_inverse=True)
    _, strata = np.unique(strata, return_inverse=True)
    sizes, totals = np.bincount(groups), np.bincount(strata)
    mixed = np.random.default_rng(seed).permutation(len(sizes))
    order = mixed[np.argsort(-sizes[mixed], kind="stable")]

    # How often each group has each stratum, group by group, where it has it at all.
    pairs, counts = np.unique(groups * len(totals) + strata, return_counts=True)
    owners, present = np.divmod(pairs, len(totals))
    first = np.searchsorted(owners, np.arange(len(sizes) + 1)).tolist()
    # Plain numbers are faster than arrays of one or two.
    entries = list(zip(present.tolist(), counts.tolist(), strict=True))
    weights, deviation = (1 / totals).tolist(), [0.0] * len(totals)
    is_drawn = np.zeros(len(sizes), dtype=bool)
    left = len(groups) if most is None else most
    for group in order.tolist():
        parts, gain = entries[first[group] : first[group + 1]], 0.0
        for stratum, count in parts:
            deviation[stratum] -= share * count
            gain += count * (2 * deviation[stratum] + count) * weights[stratum]
        if gain < 0 and sizes[group] <= left:
            is_drawn[group] = True
            left -= int(sizes[group])
            for stratum, count in parts:
                deviation[stratum] += count
    return is_drawn[groups]
