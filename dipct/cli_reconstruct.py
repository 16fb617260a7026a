"""The subcommand `dipct reconstruct`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dipct.cli_options import (
    AngularRange,
    Bin,
    Device,
    InputChoice,
    NetworkChoice,
    OptimiserChoice,
    ParametersChoice,
    Pixels,
    PrecisionChoice,
    Projector,
    Reader,
    Resume,
    Views,
    value_of,
)
from dipct.errors import ConfigurationError, ConvergenceError
from dipct.terminal import check_output, number_or_word, print_run, reader_options, say

DIP = "The Deep Image Prior (methods dip and edip)"


class MethodChoice(StrEnum):
    """Methods of `dipct reconstruct`."""

    fbp = "fbp"
    fdk = "fdk"
    cgls = "cgls"
    sirt = "sirt"
    tv = "tv"
    dip = "dip"
    edip = "edip"


class StoppingChoice(StrEnum):
    """When `dipct reconstruct` stops before the last iteration."""

    none = "none"
    discrepancy = "discrepancy"
    variance = "variance"


def reconstruct(
    scan: Annotated[str, typer.Argument(help="A scan file or folder, or example:walnut.")],
    out: Annotated[Path, typer.Option(help="Run file to write, .h5.")],
    method: Annotated[MethodChoice | None, typer.Option(help="tv by default.")] = None,
    views: Views = None,
    angular_range: AngularRange = None,
    bin: Bin = None,
    pixels: Pixels = None,
    tv_weight: Annotated[
        str | None,
        typer.Option(help="Weight of total variation: a number, auto or discrepancy."),
    ] = None,
    isotropic: Annotated[
        bool | None, typer.Option(help="Isotropic or anisotropic total variation.")
    ] = None,
    nonnegative: Annotated[
        bool | None, typer.Option(help="Constrain the image to be nonnegative.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Most iterations.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Stop at this relative gap or normal residual.")
    ] = None,
    stopping: Annotated[
        StoppingChoice | None,
        typer.Option(help="none, discrepancy (cgls, sirt, dip: at the noise level) or variance."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Images in the moving variance.",
            rich_help_panel=DIP,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Iterations beyond the least variance.",
            rich_help_panel=DIP,
        ),
    ] = None,
    network: Annotated[
        NetworkChoice | None,
        typer.Option(
            help="By default by the size of the image.",
            rich_help_panel=DIP,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Pretrained network of edip, from dipct pretrain.",
            rich_help_panel=DIP,
        ),
    ] = None,
    fixed_encoder: Annotated[
        bool | None,
        typer.Option(
            "--fixed-encoder",
            help="Keep the way from fine to coarse as pretrained (edip).",
            rich_help_panel=DIP,
        ),
    ] = None,
    encoder_learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Another rate for that way (edip).",
            rich_help_panel=DIP,
        ),
    ] = None,
    parameters: Annotated[
        ParametersChoice | None,
        typer.Option(
            help="What of the pretrained network is free, all by default (edip).",
            rich_help_panel=DIP,
        ),
    ] = None,
    dimension: Annotated[
        int | None,
        typer.Option(help="Directions of the subspace, 200 by default.", rich_help_panel=DIP),
    ] = None,
    kept_share: Annotated[
        float | None,
        typer.Option(help="Share of the parameters in the subspace, 1.", rich_help_panel=DIP),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Most singular values of a convolution.", rich_help_panel=DIP),
    ] = None,
    optimiser: Annotated[
        OptimiserChoice | None,
        typer.Option(help="adam by default (edip).", rich_help_panel=DIP),
    ] = None,
    input: Annotated[
        InputChoice | None,
        typer.Option(
            help="What the network is fed with, fbp by default.",
            rich_help_panel=DIP,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="End of the network: identity or sigmoid.",
            rich_help_panel=DIP,
        ),
    ] = None,
    upsampling: Annotated[
        str | None,
        typer.Option(
            help="In the network: bilinear or nearest.",
            rich_help_panel=DIP,
        ),
    ] = None,
    precision: Annotated[
        PrecisionChoice | None,
        typer.Option(
            help="Arithmetic of the network, auto by default.",
            rich_help_panel=DIP,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of Adam, 0.001 by default; 0.01 in a subspace.",
            rich_help_panel=DIP,
        ),
    ] = None,
    warm_up: Annotated[
        int | None,
        typer.Option(help="Steps over which it rises, 100 by default.", rich_help_panel=DIP),
    ] = None,
    decay: Annotated[
        bool | None,
        typer.Option(
            help="Let the learning rate fall to zero.",
            rich_help_panel=DIP,
        ),
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(help="ram-lak, shepp-logan, cosine, hamming or hann (fbp, fdk)."),
    ] = None,
    frequency_scaling: Annotated[
        float | None, typer.Option(help="Cut-off of the filter, share of Nyquist.")
    ] = None,
    projector: Projector = None,
    backend: Annotated[str | None, typer.Option(help="matrix, traced or astra.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of an example's object, noise; of dip.")
    ] = None,
    device: Device = None,
    truth: Annotated[Path | None, typer.Option(help="Reference image to compare with.")] = None,
    reader: Reader = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; options here come first.")
    ] = None,
    resume: Resume = False,
) -> None:
    """Reconstruct a scan; writes a run file, its metrics as JSON and a figure."""
    from dipct.configuration import (
        NETWORK_METHODS,
        ReconstructionConfiguration,
        read_configuration_file,
    )
    from dipct.figures import run_figure, save_figure
    from dipct.pipeline import open_scan
    from dipct.pipeline import reconstruct as reconstruct_scan
    from dipct.run import write_run

    given = {
        "method": value_of(method),
        "views": views,
        "angular_range": angular_range,
        "bin": bin,
        "pixels": pixels,
        "tv_weight": number_or_word(tv_weight),
        "isotropic": isotropic,
        "nonnegative": nonnegative,
        "iterations": iterations,
        "tolerance": tolerance,
        "stopping": value_of(stopping),
        "window": window,
        "patience": patience,
        "network": value_of(network),
        "init": init,
        "fixed_encoder": fixed_encoder,
        "encoder_learning_rate": encoder_learning_rate,
        "parameters": value_of(parameters),
        "dimension": dimension,
        "kept_share": kept_share,
        "rank": rank,
        "optimiser": value_of(optimiser),
        "input": value_of(input),
        "output": output,
        "upsampling": upsampling,
        "precision": value_of(precision),
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "decay": decay,
        "filter": filter,
        "frequency_scaling": frequency_scaling,
        "projector": projector,
        "backend": backend,
        "seed": seed,
        "device": device,
    }
    settings = read_configuration_file(config) if config else {}
    settings |= {name: value for name, value in given.items() if value is not None}
    configuration = ReconstructionConfiguration.from_values({"method": "tv", **settings})
    draws = configuration.method in NETWORK_METHODS
    if "seed" in settings and not draws and not scan.startswith("example:"):
        raise ConfigurationError(
            f"The seed is that of an example's object and noise; nothing about {scan} is random "
            "for this method. Leave it out."
        )
    figure, checkpoint = out.with_suffix(".png"), out.with_name(f"{out.name}.checkpoint")
    for path, suffix in ((out, ".h5"), (out.with_suffix(".json"), ".json"), (figure, ".png")):
        check_output(path, suffix, scan, truth, config, configuration.init)
    if resume and not checkpoint.exists():
        raise ConfigurationError(
            f"There is no checkpoint {checkpoint} to resume from; start without --resume."
        )
    measured = open_scan(scan, configuration, reader_options(reader))
    run = reconstruct_scan(
        measured,
        configuration,
        truth=truth,
        source=" ".join([scan, *(reader or [])]),
        checkpoint=checkpoint,
        resume=resume,
        cache=True,
        progress=True,
    )
    write_run(run, out)
    checkpoint.unlink(missing_ok=True)
    save_figure(run_figure(run), figure)
    print_run(run)
    say(f"Wrote {out}, {out.with_suffix('.json')} and {figure}.")
    if run.status == "DIVERGED":
        raise ConvergenceError(f"The reconstruction diverged. {run.advice}")
