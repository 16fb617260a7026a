"""Intervals of means from resampling."""

import numpy as np

from dipct.errors import ConfigurationError, ShapeError
from dipct.evaluation.arrays import real_array


def bootstrap_interval(
    values: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    probability: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a mean (Efron, Ann. Stat. 7, 1979).

    Where values belong together, as those of one classifier do, whole clusters are drawn (Davison
    & Hinkley, "Bootstrap methods and their application", 1997, section 3.8). That is far wider than
    drawing single values, and with a handful of clusters still too narrow.

    Args:
        values: [N].
        clusters: number of the cluster of each value, [N]; default: each is its own.
        probability: of the interval.
        resamples: how many.
        seed: of the draws.

    Returns:
        Lower and upper end.

    Raises:
        ShapeError: not one cluster for each value.
        ConfigurationError: a probability outside (0, 1), or no resamples.
        DataError: values that are not finite, or none.
    """
    values = real_array(values, "values").ravel()
    if not 0 < probability < 1 or resamples < 1:
        raise ConfigurationError(
            "probability must lie between 0 and 1 and resamples be positive; got "
            f"{probability} and {resamples}."
        )
    rng = np.random.default_rng(seed)
    if clusters is None:
        draws = rng.integers(len(values), size=(resamples, len(values)))
        means = values[draws].mean(1)
    else:
        clusters = np.asarray(clusters).ravel()
        if clusters.shape != values.shape:
            raise ShapeError(f"Every value needs a cluster; got {len(values)} and {len(clusters)}.")
        groups = [values[clusters == name] for name in np.unique(clusters)]
        means = np.empty(resamples)
        for i, chosen in enumerate(rng.integers(len(groups), size=(resamples, len(groups)))):
            means[i] = np.concatenate([groups[k] for k in chosen]).mean()
    low, high = np.quantile(means, [(1 - probability) / 2, (1 + probability) / 2])
    return float(low), float(high)
