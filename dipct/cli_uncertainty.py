"""The subcommand `dipct uncertainty`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipct.cli_inversion import InversionFiles
from dipct.cli_options import ClassNames, ImageShape, ModelOfFile, Normalisation, Resume, Weights
from dipct.errors import ConfigurationError
from dipct.terminal import print_rows, say

if TYPE_CHECKING:
    from dipct.inversion import Inversion
    from dipct.uncertainty import UncertaintySettings


class EvidenceChoice(StrEnum):
    """How hyper-parameters are tuned."""

    auto = "auto"
    exact = "exact"
    stochastic = "stochastic"
    em = "em"
    at_weights = "at-weights"


class PriorChoice(StrEnum):
    """Priors of the weights."""

    matern = "matern"
    g = "g"


class TvConventionChoice(StrEnum):
    """Densities of the total variation prior."""

    length_scale = "length-scale"
    bayes_dip = "bayes-dip"


class MeanChoice(StrEnum):
    """What the posterior is centred on."""

    reconstruction = "reconstruction"
    linear = "linear"


class PrecisionChoice(StrEnum):
    """Types of the products of stochastic estimates."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class StorageChoice(StrEnum):
    """Where the Jacobian of the data is kept."""

    auto = "auto"
    memory = "memory"
    host = "host"
    disk = "disk"
    recompute = "recompute"


def uncertainty(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run file of a reconstruction by dip or edip, or file of a counterfactual."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write, with the uncertainty, .h5.")],
    classifier: Annotated[
        str | None,
        typer.Option(help="Of a counterfactual or pre-image: the classifier that was inverted."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Of these: layer whose features are the data, by default as fitted."),
    ] = None,
    weights: Weights = None,
    normalisation: Normalisation = "none",
    image_shape: ImageShape = None,
    class_names: ClassNames = None,
    model: ModelOfFile = None,
    evidence: Annotated[
        EvidenceChoice, typer.Option(help="How hyper-parameters are tuned.")
    ] = EvidenceChoice.auto,
    prior: Annotated[
        PriorChoice, typer.Option(help="Of the weights: Matern on filters, or the g-prior.")
    ] = PriorChoice.matern,
    smoothness: Annotated[str, typer.Option(help="Of the Matern prior: 1/2, 3/2 or 5/2.")] = "1/2",
    lowest_variance: Annotated[
        float | None, typer.Option(help="Least variance of a block's weights; default: 0.001.")
    ] = None,
    tv_prior: Annotated[
        bool | None,
        typer.Option(help="Prefer length scales of small total variation; by default as dip did."),
    ] = None,
    tv_prior_weight: Annotated[
        float | None, typer.Option(help="Its weight; by default that of the reconstruction.")
    ] = None,
    tv_prior_convention: Annotated[
        TvConventionChoice,
        typer.Option(help="Density of the length scale, or that of published code."),
    ] = TvConventionChoice.length_scale,
    tv_probes: Annotated[int, typer.Option(help="Random sign vectors for each block.")] = 20,
    mean: Annotated[
        MeanChoice, typer.Option(help="What the uncertainty is around.")
    ] = MeanChoice.reconstruction,
    fixed_noise: Annotated[
        bool, typer.Option("--fixed-noise", help="Do not tune the noise level.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(help="Images to draw and keep; by default none, of a counterfactual 256."),
    ] = None,
    draws: Annotated[
        int, typer.Option(help="Images that the standard deviation is made of, if not exact.")
    ] = 1024,
    score_margin: Annotated[
        int, typer.Option(help="Pixels at each border that scores leave out.")
    ] = 0,
    iterations: Annotated[int, typer.Option(help="Most iterations of the tuning.")] = 200,
    storage: Annotated[
        StorageChoice, typer.Option(help="Where the Jacobian of the data is kept.")
    ] = StorageChoice.auto,
    product_precision: Annotated[
        PrecisionChoice, typer.Option(help="Of the products of the stochastic evidence.")
    ] = PrecisionChoice.float32,
    seed: Annotated[int, typer.Option(help="Of probes and draws.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    resume: Resume = False,
) -> None:
    """Quantify how far a reconstruction can be trusted; writes a run file, JSON and a figure.

    Of a counterfactual or a pre-image, how far the features of its query determine it.
    """
    from dipct.inversion import is_inversion
    from dipct.uncertainty import UncertaintySettings

    files = InversionFiles(out)
    files.check(run, classifier, weights)
    of_classifiers = (
        *(layer, weights, image_shape, class_names, model),
        normalisation != "none",
    )
    if classifier is None and any(of_classifiers):
        raise ConfigurationError(
            "layer, weights, normalisation, image-shape, class and model belong to counterfactuals "
            "and pre-images: give --classifier with them."
        )
    if classifier is None and is_inversion(run):
        raise ConfigurationError(
            f"{run} was made for a classifier, whose features are the data of its uncertainty: "
            "give --classifier."
        )
    given = {
        "evidence": evidence.value,
        "prior": prior.value,
        "smoothness": smoothness,
        "lowest_variance": lowest_variance,
        "tv_prior": tv_prior,
        "tv_prior_weight": tv_prior_weight,
        "tv_prior_convention": tv_prior_convention.value,
        "tv_probes": tv_probes,
        "mean": mean.value,
        "fixed_noise": fixed_noise,
        "samples": samples,
        "draws": draws,
        "score_margin": score_margin,
        "iterations": iterations,
        "storage": storage.value,
        "product_precision": product_precision.value,
        "seed": seed,
        "device": device,
    }
    settings = UncertaintySettings.from_values({k: v for k, v in given.items() if v is not None})
    if classifier is None:
        _of_reconstruction(run, files, settings, resume)
        return
    from dipct.figures import inversion_uncertainty_figure, save_figure
    from dipct.inversion import read_inversion
    from dipct.pipeline import open_classifier, quantify_inversion

    inverted = open_classifier(
        classifier,
        weights=weights,
        normalisation=normalisation,
        image_shape=image_shape,
        classes=class_names,
        model=model,
    )
    found = quantify_inversion(
        inverted,
        read_inversion(run),
        settings,
        layers=tuple(layer or ()),
        checkpoint=files.stages,
        resume=resume,
        progress=True,
    )
    files.write(found)
    save_figure(inversion_uncertainty_figure(found), files.figure)
    _report(found, files)


def _report(found: "Inversion", files: InversionFiles) -> None:
    """Print what is known of an image of a classifier."""
    how = found.uncertainty
    names = (
        "feature_residual",
        "std_inside",
        "std_outside",
        "samples_in_target",
    )
    scores = {n.replace("_", " "): f"{found.scores[n]:.4g}" for n in names if n in found.scores}
    rows = {
        "data": f"{how['features']} features of {', '.join(how['layers'])}",
        "log evidence": _evidence(how["log_evidence"], how["log_evidence_error"], how["status"]),
        **{name: f"{value:.4g}" for name, value in how["hyperparameters"].items()},
        **scores,
        "time": f"{how['duration_s']:.1f} s",
    }
    print_rows(rows)
    say(f"Wrote {files.out}, {files.summary} and {files.figure}.")


def _evidence(value: float, error: float, status: str) -> str:
    return " ".join([f"{value:.1f}", *([f"± {error:.1f}"] if error else []), f"nat, {status}"])


def _of_reconstruction(
    run: Path, files: InversionFiles, settings: "UncertaintySettings", resume: bool
) -> None:
    from dipct.figures import save_figure, uncertainty_figure
    from dipct.pipeline import quantify
    from dipct.pipeline.stages import remove_stages
    from dipct.run import read_run, write_run

    found = quantify(read_run(run), settings, checkpoint=files.stages, resume=resume, progress=True)
    write_run(found, files.out)
    remove_stages(files.stages)
    result = found.uncertainty
    assert result is not None
    save_figure(uncertainty_figure(found, result), files.figure)
    rows = {
        "log evidence": _evidence(result.log_evidence, result.log_evidence_error, result.status),
        **{name: f"{value:.4g}" for name, value in result.hyperparameters.items()},
        **{name.replace("_", " "): f"{value:.4g}" for name, value in result.scores.items()},
        **{f"check: {n.replace('_', ' ')}": f"{v:.3g}" for n, v in result.checks.items()},
        "passes through the network": str(result.network_passes),
        "time": f"{result.duration_s:.1f} s",
    }
    print_rows(rows)
    say(f"Wrote {files.out}, {files.summary} and {files.figure}.")
