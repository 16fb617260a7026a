"""Uncertainty of pre-images and counterfactuals: the posterior of tomography, on features."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dipct.classifier import AttributeLogits
from dipct.device import find_device
from dipct.errors import ConfigurationError, Interrupted
from dipct.generator import Generator, NetworkGenerator, RegionGenerator
from dipct.inversion import Counterfactual, Inversion
from dipct.inversion_settings import (
    CounterfactualSettings,
    InversionSettings,
    PreImageSettings,
)
from dipct.operator import LOGITS, FeatureOperator
from dipct.pipeline.inference import Inference, Regularisation
from dipct.pipeline.inversion import digest_of, digest_of_models
from dipct.pipeline.inversion_terms import fidelity_layers
from dipct.pipeline.posterior_memory import SHARE, free_memory, n_components
from dipct.pipeline.posterior_of_model import infer
from dipct.pipeline.query_generator import query_generator
from dipct.pipeline.stages import Stages
from dipct.posterior import LinearisedModel, SufficientModel
from dipct.pretrain import TrainedClassifier
from dipct.progress import WorkDisplay
from dipct.uncertainty import UncertaintySettings

_AT_ONCE = 64
_SAMPLES = 256
# Matrices in double precision of the size of the image that are in memory at once, beside those
# of the components of the prior.
_MATRICES = 6
# Of an image that a GPU made with products in TF32, up to 0.0014 for networks of three kinds on
# faces; one of another network is off by tenths.
_ROUNDING = 0.02
_Found = TypeVar("_Found", bound=Inversion)


def quantify_inversion(
    classifier: TrainedClassifier,
    found: _Found,
    settings: UncertaintySettings | None = None,
    *,
    layers: tuple[str, ...] = (),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> _Found:
    """How far the features of the query determine a pre-image or a counterfactual.

    The features of the query are the data, their misfit is the noise, whose level the evidence
    chooses, and the linear model is that of the generator and the features around what was found:
    what a scan's posterior is made of, with another operator. More features than the image has
    pixels are replaced by as many that say the same, see
    :class:`dipct.posterior.SufficientModel`.

    Args:
        classifier: that was inverted.
        found: the image, made by a network.
        settings: of the posterior; default: 256 samples.
        layers: whose features are the data; default: those that it was fitted with.
        checkpoint: folder to keep finished stages in.
        resume: go on with what the folder holds.
        progress: show a progress display.

    Returns:
        The same with ``std``, ``samples`` and ``uncertainty``, and as scores the ``noise`` of the
        features, the ``feature_residual`` of the samples (root mean square, over that noise),
        ``std_inside`` and ``std_outside`` of the region where edits belong, if it is known, and
        for a counterfactual ``samples_in_target``, the share that the classifier sees in its class.

    Raises:
        ConfigurationError: an image without network or of another classifier, or settings that
            are for tomography alone.
        InsufficientMemoryError: what was asked for does not fit into memory.
        Interrupted: stopped by the user; finished stages are kept.
    """
    began = time.perf_counter()
    settings = _resolved(settings)
    device = find_device(settings.device)
    generator, theta = generator_of_inversion(found)
    attribute = found.classifier["architecture"].get("attribute")
    is_whole = not isinstance(classifier.model, AttributeLogits)
    if attribute is not None and is_whole and attribute < len(classifier.classes):
        classifier = classifier.attribute(classifier.classes[attribute])
    if digest_of_models([classifier.model]) != found.classifier["parameters_sha256"]:
        raise ConfigurationError(
            "This is not the classifier that was inverted: its parameters are others. Give that of "
            f"{found.classifier['created']}, with the classes "
            f"{', '.join(map(str, found.classifier['classes']))}."
        )
    values = _settings_of(found)
    names = layers or _fitted_layers(classifier, values)
    operator = classifier.features(list(names)).to(device)
    query = torch.from_numpy(found.query).to(device)
    with torch.no_grad():
        data = operator(query)
        image = generator(theta)
    if not np.allclose(image.clamp(0, 1).numpy(), found.image, rtol=0, atol=_ROUNDING):
        raise ConfigurationError(
            "The network of this file does not make its image; the file has been changed."
        )
    model = LinearisedModel(operator, generator.to(device), theta.to(device), data, 1.0)
    if _is_smaller(model, settings):
        model = SufficientModel(model)
        # No other evidence knows of what that leaves out.
        settings = settings.model_copy(update={"evidence": "exact"})
    stages = Stages(
        None if checkpoint is None else Path(checkpoint),
        digest_of(
            [classifier.model],
            [found.query, theta],
            values,
            data=list(names),
        ),
        resume=resume,
    )
    try:
        with WorkDisplay(progress) as display:
            posterior = infer(model, settings, Regularisation(0.0, False), stages, display)
    except KeyboardInterrupt:
        raise Interrupted(stages.interrupted()) from None
    assert posterior.samples is not None
    samples = posterior.samples[: settings.samples]
    noise = float(posterior.tuning.values["noise"]) ** 0.5
    scores = {
        "noise": noise,
        "feature_residual": _residual(operator, samples, data) / noise,
        **_inside(posterior.std.cpu().numpy(), found.region),
    }
    if isinstance(found, Counterfactual):
        scores["samples_in_target"] = _share(classifier, samples.cpu(), found.target)
    return replace(
        found,
        std=posterior.std.cpu().numpy().astype(np.float32),
        samples=samples.cpu().numpy().astype(np.float32),
        scores={**found.scores, **scores},
        uncertainty=_record(posterior, settings)
        | {
            "layers": list(names),
            "features": data.numel(),
            "duration_s": time.perf_counter() - began + stages.saved_seconds,
        },
    )


def generator_of_inversion(found: Inversion) -> tuple[Generator, Tensor]:
    """The generator of an image that a network made, and its parameters [P].

    Raises:
        ConfigurationError: an image without network.
    """
    if "input" not in found.generator:
        raise ConfigurationError(
            f"The method {found.settings['method']} has no network to linearise; use lso-dip, "
            "lso-inr or another with one."
        )
    made = query_generator(_settings_of(found), found.image.shape)
    assert isinstance(made, NetworkGenerator)
    z = torch.from_numpy(np.array(found.generator["input"]))
    generator: Generator = NetworkGenerator(made.network, z, made.range_shape[1:])
    if found.allowed is not None:
        query, allowed = (torch.from_numpy(a) for a in (found.query, found.allowed))
        generator = RegionGenerator(generator, query, allowed)
    return generator, torch.from_numpy(np.array(found.generator["theta"]))


def _resolved(settings: UncertaintySettings | None) -> UncertaintySettings:
    """Settings with what is otherwise without samples.

    Raises:
        ConfigurationError: something that belongs to reconstructions from scans.
    """
    settings = settings or UncertaintySettings()
    for name, is_given in (
        ("the total variation prior", settings.tv_prior),
        ("a weight of the total variation prior", settings.tv_prior_weight is not None),
        ("tv_prior_convention", settings.tv_prior_convention != "length-scale"),
        ("mean linear", settings.mean == "linear"),
        ("a fixed noise, which features do not have,", settings.fixed_noise),
        ("score_margin", settings.score_margin),
    ):
        if is_given:
            raise ConfigurationError(
                f"Of reconstructions from scans alone is {name}; leave it out for counterfactuals "
                "and pre-images."
            )
    return settings.model_copy(update={"tv_prior": False, "samples": settings.samples or _SAMPLES})


def _is_smaller(model: LinearisedModel, settings: UncertaintySettings) -> bool:
    """Whether data that suffice are fewer than all of them, and can be found."""
    n = model.image.numel()
    if model.n_data <= n or settings.evidence not in ("auto", "exact") or settings.prior == "g":
        return False
    matrices = 8 * n**2 * (n_components(model, settings) + _MATRICES)
    operator = model.residual.element_size() * n * model.n_data
    return matrices + operator <= SHARE * free_memory(model.residual.device)


def _record(posterior: Inference, settings: UncertaintySettings) -> dict[str, Any]:
    """How a posterior came about, in plain values."""
    tuning = posterior.tuning
    chosen = settings.to_values() | {"evidence": posterior.evidence} | posterior.choices
    return {
        "settings": chosen,
        "hyperparameters": dict(tuning.values),
        "log_evidence": tuning.log_evidence,
        "log_evidence_error": tuning.log_evidence_error,
        "status": tuning.status,
        "advice": " ".join(filter(None, (posterior.advice, tuning.advice))),
    }


def _settings_of(found: Inversion) -> InversionSettings:
    kind = CounterfactualSettings if isinstance(found, Counterfactual) else PreImageSettings
    return kind.from_values(dict(found.settings))


def _fitted_layers(classifier: TrainedClassifier, settings: InversionSettings) -> tuple[str, ...]:
    """Layers whose features the image was fitted with."""
    without = (isinstance(settings, CounterfactualSettings) and settings.space == "image") or (
        isinstance(settings, PreImageSettings) and settings.maximise is not None
    )
    if without:
        raise ConfigurationError(
            "This image was not fitted with features: give the layers whose features are the data."
        )
    return fidelity_layers(classifier, settings)


def _residual(operator: FeatureOperator, samples: Tensor, data: Tensor) -> float:
    """Root mean square of what samples leave of the features."""
    with torch.no_grad():
        parts = [(operator(part) - data).square().mean(1) for part in samples.split(_AT_ONCE)]
    return float(torch.cat(parts).mean().sqrt())


def _inside(std: np.ndarray, region: np.ndarray | None) -> dict[str, float]:
    if region is None:
        return {}
    of_pixels = std.mean(0)
    return {
        "std_inside": float(of_pixels[region].mean()),
        "std_outside": float(of_pixels[~region].mean()),
    }


def _share(classifier: TrainedClassifier, samples: Tensor, target: int) -> float:
    logits = classifier.features([LOGITS])
    with torch.no_grad():
        seen = [logits(part.clamp(0, 1)).argmax(-1) for part in samples.split(_AT_ONCE)]
    return float((torch.cat(seen) == target).double().mean())
