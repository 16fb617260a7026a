"""Seeds of single training samples: a sample can be drawn again without those before it."""

from typing import Literal, get_args

import numpy as np

from dipct.errors import ConfigurationError

Fold = Literal["training", "validation", "test"]
"""The parts of a data set; no sample is in two of them."""

FOLDS: tuple[Fold, ...] = get_args(Fold)

Purpose = Literal["image", "projection noise", "network input", "augmentation", "order"]
_PURPOSES = get_args(Purpose)


def sample_seed(purpose: Purpose, seed: int, fold: Fold, index: int) -> int:
    """A seed of 128 bits for one random part of one sample.

    Any other argument gives an independent stream (NumPy's ``SeedSequence``).

    Args:
        purpose: what is drawn.
        seed: of the whole data set.
        fold: part of the data set.
        index: of the sample.
    """
    key = (_PURPOSES.index(purpose), FOLDS.index(fold), index)
    words = np.random.SeedSequence(seed, spawn_key=key).generate_state(4)
    return int.from_bytes(words.astype("<u4").tobytes(), "little")


def check_fold(fold: str) -> None:
    """Raise a :class:`ConfigurationError` unless there is such a fold."""
    if fold not in FOLDS:
        raise ConfigurationError(f"fold must be one of {', '.join(FOLDS)}; got {fold!r}.")


def check_whole(value: int, name: str, *, least: int = 0) -> None:
    """Raise a :class:`ConfigurationError` unless a number is whole and large enough."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ConfigurationError(
            f"{name} must be a whole number, {least} or larger; got {value!r}."
        )
