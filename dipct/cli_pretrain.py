"""The subcommand `dipct pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

from dipct.cli_options import (
    AngularRange,
    Bin,
    Device,
    InputChoice,
    NetworkChoice,
    Pixels,
    PrecisionChoice,
    Projector,
    Reader,
    Resume,
    Views,
    value_of,
)
from dipct.errors import ConfigurationError, ConvergenceError
from dipct.terminal import check_output, print_rows, reader_options, say


def pretrain(
    scan: Annotated[str, typer.Argument(help="The scan to pretrain for, or example:walnut.")],
    out: Annotated[Path, typer.Option(help="File of the pretrained network to write, .h5.")],
    images: Annotated[
        str | None,
        typer.Option(help="A phantom drawn at random, ellipses by default, or a folder."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps, 4000 by default.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images in a step, 32 by default.")] = None,
    noise_level: Annotated[
        float | None, typer.Option(help="White noise, share of mean |Ax|; 0.05 by default.")
    ] = None,
    network: Annotated[
        NetworkChoice | None, typer.Option(help="By default by the size of the image.")
    ] = None,
    input: Annotated[
        InputChoice | None, typer.Option(help="What the network is fed with, fbp by default.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="End of the network: sigmoid (default) or identity.")
    ] = None,
    upsampling: Annotated[str | None, typer.Option(help="bilinear or nearest.")] = None,
    precision: Annotated[
        PrecisionChoice | None, typer.Option(help="Arithmetic of the network, auto by default.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest rate, 0.0005 by default.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of Adam.")] = None,
    validation_images: Annotated[
        int | None, typer.Option(help="Images to validate on, 32 by default.")
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Steps between two validations, 100 by default.")
    ] = None,
    snapshots: Annotated[
        int | None,
        typer.Option(help="Parameters to keep on the way, for edip in a subspace; 0 by default."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that draw images ahead of time.")
    ] = None,
    views: Views = None,
    angular_range: AngularRange = None,
    bin: Bin = None,
    pixels: Pixels = None,
    projector: Projector = None,
    seed: Annotated[int | None, typer.Option(help="Of parameters, images and noise.")] = None,
    device: Device = None,
    reader: Reader = None,
    resume: Resume = False,
) -> None:
    """Pretrain a network for a scan on synthetic images; writes it and its training curves."""
    from dipct.configuration import PretrainingConfiguration
    from dipct.figures import save_figure, training_figure
    from dipct.pipeline import open_scan, remove_checkpoint
    from dipct.pipeline import pretrain as pretrain_network
    from dipct.pretrain.pretrained_network import write_pretrained_network
    from dipct.pretrain.processes import joined_processes, place

    given = {
        "images": images,
        "steps": steps,
        "batch": batch,
        "noise_level": noise_level,
        "network": value_of(network),
        "input": value_of(input),
        "output": output,
        "upsampling": upsampling,
        "precision": value_of(precision),
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "validation_images": validation_images,
        "validate_every": validate_every,
        "snapshots": snapshots,
        "workers": workers,
        "views": views,
        "angular_range": angular_range,
        "bin": bin,
        "pixels": pixels,
        "projector": projector,
        "seed": seed,
        "device": device,
    }
    configuration = PretrainingConfiguration.from_values(
        {name: value for name, value in given.items() if value is not None}
    )
    figure, checkpoint = out.with_suffix(".png"), out.with_name(f"{out.name}.checkpoint")
    for path, suffix in ((out, ".h5"), (figure, ".png")):
        check_output(path, suffix, scan)
    if resume and not checkpoint.exists():
        raise ConfigurationError(
            f"There is no checkpoint {checkpoint} to resume from; start without --resume."
        )
    measured = open_scan(scan, configuration, reader_options(reader))
    with joined_processes(configuration.device) as own_device:
        pretrained = pretrain_network(
            measured,
            configuration.model_copy(update={"device": own_device}),
            checkpoint=checkpoint,
            resume=resume,
            progress=True,
        )
        speaks = place()[0] == 0
    if not speaks:
        return
    write_pretrained_network(pretrained, out)
    remove_checkpoint(checkpoint)
    save_figure(training_figure(pretrained), figure)
    print_rows(
        {
            "network": str(pretrained.network["name"]),
            "steps": f"{pretrained.steps}, kept that of step {pretrained.best_step}",
            "time": f"{pretrained.duration_s:.1f} s",
            "validation PSNR": f"{pretrained.validation_psnr_db:.2f} dB",
            "filtered back-projection": f"{pretrained.fbp_psnr_db:.2f} dB",
        }
    )
    say(f"Wrote {out} and {figure}.")
    if pretrained.status == "DIVERGED":
        raise ConvergenceError(
            "The training diverged; the network kept is the best until then. Use a lower "
            "--learning-rate."
        )
