"""What all inversions of a classifier have in common, and their files.

Layout (HDF5), version 1:

=========================  ====================================================================
``/`` attributes           ``format`` ("dipct-counterfactual" or "dipct-pre-image"),
                           ``version``, ``duration_s``, ``created`` (ISO 8601, UTC), ``source``
                           (what was read); as JSON ``settings`` (whole and resolved),
                           ``weights`` of the terms, ``classifier`` and ``versions``
``counterfactual``         attributes ``valid``, ``confident``, ``reason``, ``target`` and
                           ``predicted`` (numbers of classes), ``p_target``,
                           ``p_target_query``, ``status``, ``steps``, ``chosen_step``, and one
                           attribute ``score: <name>`` for each
``pre-image``              in its place: ``status``, ``steps``, ``chosen_step`` and scores alone
``*/image``                float32 (C, H, W) from zero to one; ``*/query`` and the signed
                           ``*/difference`` likewise
``*/truth``                float32 (C, H, W): the image that it should be, where it is known;
                           ``*/region``, where edits belong, bool (H, W)
``*/std``                  float32 (C, H, W): posterior standard deviation, and ``*/samples``
                           (N, C, H, W), where the uncertainty was quantified; how, says the
                           attribute ``uncertainty`` of ``/`` as JSON
``*/allowed``              bool (H, W): where the image was free to change
``generator/*``            float32 ``theta`` (P,) and, for a network, its ``input`` (C, H, W)
``history/*``              float64 (records,): every term and figure, with ``iteration`` (int64);
                           a slash in a name is written as ``%2F``, a percent sign as ``%25``
=========================  ====================================================================
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import h5py
import numpy as np

from dipct.errors import FileFormatError
from dipct.measurement.hdf5 import (
    check_format,
    format_of,
    get_attribute,
    get_dataset,
    get_group,
    link_name,
    name_of_link,
    open_hdf5,
    write_bytes_whole,
    write_whole,
)

VERSION = 1
_SCORE = "score: "
_JSON = ("settings", "weights", "classifier", "versions")
_ARRAYS = ("query", "image")
_OPTIONAL = ("truth", "region", "std", "samples", "allowed")
_Kind = TypeVar("_Kind", bound="Inversion")


@dataclass(frozen=True, eq=False, kw_only=True)
class Inversion:
    """An image that was made for what a classifier makes of it.

    Attributes:
        query: float32 [C H W], from zero to one.
        image: what was found, likewise.
        status: name of the outcome of the iteration.
        steps: steps that were made.
        chosen_step: step whose image this is.
        history: every term and figure on the way, by name, with ``iteration``.
        settings: of :class:`dipct.inversion_settings.InversionSettings`, resolved.
        weights: of the terms in the history, by name; those that a progressive fit relaxes begin
            with them, and the history holds how they went on, as ``weight of <name>``.
        classifier: what was inverted: architecture, classes and task.
        generator: ``theta`` and, for a network, its ``input``.
        source: what was read.
        duration_s: seconds; of a batch, the share of one query.
        created: when, ISO 8601 in UTC.
        versions: of Python and the packages.
        scores: figures of merit by name.
        truth: the image that it should be, where that is known.
        region: where edits belong, bool [H W], where that is known.
        std: posterior standard deviation of every pixel, [C H W], where it was quantified.
        samples: images of the posterior, [N C H W], likewise.
        uncertainty: how these two came about: the ``settings``, the ``layers`` whose ``features``
            (so many) were the data, ``hyperparameters``, ``log_evidence`` and its error,
            ``status``, ``advice`` and ``duration_s``.
        allowed: where the image was free to change, bool [H W]; None: everywhere.
    """

    kind: ClassVar[str]
    attributes: ClassVar[Mapping[str, type]] = {"status": str, "steps": int, "chosen_step": int}

    query: np.ndarray
    image: np.ndarray
    status: str
    steps: int
    chosen_step: int
    history: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    weights: Mapping[str, float]
    classifier: Mapping[str, Any]
    generator: Mapping[str, np.ndarray]
    source: str
    duration_s: float
    created: str
    versions: Mapping[str, str]
    scores: Mapping[str, float] = field(default_factory=dict)
    truth: np.ndarray | None = None
    region: np.ndarray | None = None
    std: np.ndarray | None = None
    samples: np.ndarray | None = None
    uncertainty: Mapping[str, Any] = field(default_factory=dict)
    allowed: np.ndarray | None = None

    @property
    def difference(self) -> np.ndarray:
        """Image minus query, [C H W]."""
        return self.image - self.query

    @property
    def weighted_terms(self) -> dict[str, np.ndarray]:
        """Terms of the objective as recorded, by name, times the weights that they then had."""
        return {
            name: self.history.get(f"weight of {name}", self.weights[name]) * values
            for name, values in self.history.items()
            if name in self.weights
        }

    def class_name(self, number: int) -> str:
        """Name of a class of the classifier."""
        return str(self.classifier["classes"][number])


@dataclass(frozen=True, eq=False, kw_only=True)
class PreImage(Inversion):
    """An image with the features of a query: what a layer of a classifier knows of it."""

    kind: ClassVar[str] = "pre-image"


@dataclass(frozen=True, eq=False, kw_only=True)
class Counterfactual(Inversion):
    """An image like a query that a classifier sees in another class; the best there is.

    Attributes:
        target: wanted class.
        predicted: class that the classifier sees in the query.
        valid: whether it sees the target class in the image; where what lies between two classes
            was asked for, whether the target has the probability that was asked for, within 0.05.
        confident: whether it does so with the probability that makes an image confident; between
            two classes the same as ``valid``.
        p_target: probability of the target in the image, and
        p_target_query: in the query.
        reason: what the outcome is and, where it is not what was wanted, what to do.
    """

    kind: ClassVar[str] = "counterfactual"
    attributes: ClassVar[Mapping[str, type]] = {
        **Inversion.attributes,
        "target": int,
        "predicted": int,
        "valid": bool,
        "confident": bool,
        "p_target": float,
        "p_target_query": float,
        "reason": str,
    }

    target: int
    predicted: int
    valid: bool
    confident: bool
    p_target: float
    p_target_query: float
    reason: str


def write_inversion(found: Inversion, path: str | Path) -> None:
    """Write the file of an inversion, and its figures as JSON beside it (same name, ``.json``).

    Raises:
        OSError: a file cannot be written; nothing is left half-written.
    """
    path = Path(path)
    write_whole(path, lambda file: _fill(found, file))
    summary = {
        **{name: getattr(found, name) for name in found.attributes},
        "scores": {k: v if math.isfinite(v) else None for k, v in found.scores.items()},
        "settings": dict(found.settings),
        "uncertainty": dict(found.uncertainty),
        "source": found.source,
        "duration_s": found.duration_s,
        "versions": dict(found.versions),
    }
    text = json.dumps(summary, indent=2, sort_keys=True)
    write_bytes_whole(path.with_suffix(".json"), f"{text}\n".encode())


def read_counterfactual(path: str | Path) -> Counterfactual:
    """Read a counterfactual.

    Raises:
        FileFormatError: missing, truncated, foreign, or of a newer version.
    """
    return _read(Counterfactual, path)


def read_pre_image(path: str | Path) -> PreImage:
    """Read a pre-image.

    Raises:
        FileFormatError: missing, truncated, foreign, or of a newer version.
    """
    return _read(PreImage, path)


def read_inversion(path: str | Path) -> Inversion:
    """Read a counterfactual or a pre-image, whichever it is.

    Raises:
        FileFormatError: missing, truncated, foreign, or of a newer version.
    """
    return _read(PreImage if format_of(path) == _format(PreImage) else Counterfactual, path)


def is_inversion(path: str | Path) -> bool:
    """Whether a file holds a counterfactual or a pre-image.

    Raises:
        FileFormatError: missing, or no HDF5 file.
    """
    return format_of(path) in (_format(PreImage), _format(Counterfactual))


def _format(kind: type[Inversion]) -> str:
    return f"dipct-{kind.kind}"


def _read(kind: type[_Kind], path: str | Path) -> _Kind:
    expected = f"a {kind.kind}, as written by dipct"
    with open_hdf5(path, expected) as file:
        check_format(file, _format(kind), VERSION, expected)
        group, history = get_group(file, kind.kind), get_group(file, "history")
        generator = get_group(file, "generator")
        arrays = {name: get_dataset(group, name)[()] for name in _ARRAYS}
        arrays |= {name: group[name][()] for name in _OPTIONAL if name in group}
        query, image = arrays["query"], arrays["image"]
        if query.ndim != 3 or query.shape != image.shape:
            raise FileFormatError(
                "query and image must be images [C H W] of one shape; the file holds "
                f"{query.shape} and {image.shape}."
            )
        return kind(
            **arrays,
            **{name: type_(get_attribute(group, name)) for name, type_ in kind.attributes.items()},
            history={name_of_link(name): get_dataset(history, name)[()] for name in history},
            generator={name: get_dataset(generator, name)[()] for name in generator},
            source=str(get_attribute(file, "source")),
            duration_s=float(get_attribute(file, "duration_s")),
            created=str(get_attribute(file, "created")),
            scores={
                name.removeprefix(_SCORE): float(value)
                for name, value in group.attrs.items()
                if name.startswith(_SCORE)
            },
            **{name: json.loads(get_attribute(file, name)) for name in _JSON},
            uncertainty=json.loads(file.attrs.get("uncertainty", "{}")),
        )


def _fill(found: Inversion, file: h5py.File) -> None:
    file.attrs.update(format=_format(type(found)), version=VERSION, source=found.source)
    file.attrs.update(duration_s=found.duration_s, created=found.created)
    for name in _JSON:
        file.attrs[name] = json.dumps(dict(getattr(found, name)), sort_keys=True)
    if found.uncertainty:
        file.attrs["uncertainty"] = json.dumps(dict(found.uncertainty), sort_keys=True)
    group = file.create_group(found.kind)
    group.attrs.update({name: getattr(found, name) for name in found.attributes})
    group.attrs.update({f"{_SCORE}{name}": float(value) for name, value in found.scores.items()})
    for name in (*_ARRAYS, "difference"):
        group.create_dataset(name, data=np.float32(getattr(found, name)), compression="gzip")
    for name in _OPTIONAL:
        if (values := getattr(found, name)) is not None:
            group.create_dataset(name, data=values, compression="gzip")
    for title in ("generator", "history"):
        part = file.create_group(title)
        for name, values in getattr(found, title).items():
            part.create_dataset(link_name(name), data=np.asarray(values))
