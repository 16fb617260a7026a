"""The subcommand `dipct uncertainty`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dipct.cli_options import Resume
from dipct.terminal import check_output, print_rows, say


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
    run: Annotated[Path, typer.Argument(help="Run file of a reconstruction by dip or edip.")],
    out: Annotated[Path, typer.Option(help="Run file to write, with the uncertainty, .h5.")],
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
        int | None, typer.Option(help="Images to draw and keep; by default none are kept.")
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
    """Quantify how far a reconstruction can be trusted; writes a run file, JSON and a figure."""
    from dipct.figures import save_figure, uncertainty_figure
    from dipct.pipeline import quantify
    from dipct.pipeline.stages import remove_stages
    from dipct.run import read_run, write_run
    from dipct.uncertainty import UncertaintySettings

    figure, stages = out.with_suffix(".png"), out.with_name(f"{out.name}.stages")
    for path, suffix in ((out, ".h5"), (out.with_suffix(".json"), ".json"), (figure, ".png")):
        check_output(path, suffix, run)
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
    found = quantify(read_run(run), settings, checkpoint=stages, resume=resume, progress=True)
    write_run(found, out)
    remove_stages(stages)
    result = found.uncertainty
    assert result is not None
    save_figure(uncertainty_figure(found, result), figure)
    rows = {
        "log evidence": " ".join(
            [
                f"{result.log_evidence:.1f}",
                *([f"± {error:.1f}"] if (error := result.log_evidence_error) else []),
                f"nat, {result.status}",
            ]
        ),
        **{name: f"{value:.4g}" for name, value in result.hyperparameters.items()},
        **{name.replace("_", " "): f"{value:.4g}" for name, value in result.scores.items()},
        **{f"check: {n.replace('_', ' ')}": f"{v:.3g}" for n, v in result.checks.items()},
        "passes through the network": str(result.network_passes),
        "time": f"{result.duration_s:.1f} s",
    }
    print_rows(rows)
    say(f"Wrote {out}, {out.with_suffix('.json')} and {figure}.")
