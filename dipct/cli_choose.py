"""The subcommand `dipct choose`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dipct.cli_options import AngularRange, Bin, Device, Pixels, Reader, Resume, Views
from dipct.terminal import OUT, check_output, reader_options, say


def choose(
    networks: Annotated[list[Path], typer.Argument(help="Files of pretrained networks.")],
    scan: Annotated[str, typer.Option(help="The scan that they were pretrained for.")],
    out: Annotated[Path, typer.Option(help="File of the chosen network to write, .h5.")],
    snapshots: Annotated[
        int, typer.Option(min=0, help="Also so many snapshots of each, from pretrain --snapshots.")
    ] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Scans of the phantom with noise of their own.")
    ] = 2,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of a fine-tuning.")] = 500,
    baseline_iterations: Annotated[
        int, typer.Option(min=1, help="Steps of the untrained network.")
    ] = 2000,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Steady PSNR that may be missing, dB.")
    ] = 0.25,
    views: Views = None,
    angular_range: AngularRange = None,
    bin: Bin = None,
    pixels: Pixels = None,
    device: Device = None,
    reader: Reader = None,
    resume: Resume = False,
) -> None:
    """Choose the network to fine-tune, by trying each on the Shepp-Logan phantom."""
    from dipct.configuration import Settings
    from dipct.figures import psnr_figure, save_figure
    from dipct.measurement.hdf5 import write_bytes_whole
    from dipct.pipeline import choose_network, open_scan
    from dipct.pipeline.prepare import prepare
    from dipct.pipeline.stages import remove_stages
    from dipct.pretrain import write_pretrained_network

    figure, record = out.with_suffix(".png"), out.with_suffix(".json")
    stages = out.with_name(f"{out.name}.stages")
    for path, suffix in ((out, ".h5"), (figure, ".png"), (record, ".json")):
        check_output(path, suffix, scan, *networks)
    selection = {"views": views, "angular_range": angular_range, "bin": bin, "pixels": pixels}
    chosen = Settings.from_values({k: v for k, v in selection.items() if v is not None})
    choice = choose_network(
        prepare(open_scan(scan, chosen, reader_options(reader)), chosen),
        networks,
        snapshots=snapshots,
        repeats=repeats,
        iterations=iterations,
        baseline_iterations=baseline_iterations,
        tolerance_db=tolerance,
        checkpoint=stages,
        resume=resume,
        progress=True,
        device=device or "cpu",
    )
    trials = (choice.baseline, *choice.trials)
    write_pretrained_network(choice.network, out)
    save_figure(
        psnr_figure(
            {trial.name: (trial.steps, trial.psnr_db) for trial in trials},
            level_db=choice.baseline.figures.steady_db,
            level="untrained, steady",
        ),
        figure,
    )
    rows = [
        {
            "name": trial.name,
            "initial_db": trial.figures.initial_db,
            "diverged": trial.diverged,
            "steady_db": trial.figures.steady_db,
            "rise_step": trial.figures.rise_step,
            "baseline_step": trial.figures.baseline_step,
            "chosen": trial is choice.trials[choice.chosen],
            "steps": trial.steps.tolist(),
            "psnr_db": trial.psnr_db.tolist(),
        }
        for trial in trials
    ]
    settings = {
        "repeats": repeats,
        "iterations": iterations,
        "baseline_iterations": baseline_iterations,
        "tolerance_db": tolerance,
    }
    text = json.dumps({"settings": settings, "trials": rows}, indent=2)
    write_bytes_whole(record, f"{text}\n".encode())
    table = Table(
        *("network", "first [dB]", "steady [dB]", "steps to steady", "to the untrained's"),
        box=None,
        padding=(0, 2, 0, 0),
    )
    for row in rows:
        reached = row["baseline_step"]
        table.add_row(
            escape(row["name"]) + (" (chosen)" if row["chosen"] else ""),
            f"{row['initial_db']:.2f}",
            f"{row['steady_db']:.2f}",
            str(row["rise_step"]),
            "" if reached is None else str(reached),
        )
    remove_stages(stages)
    OUT.print(table)
    say(f"Wrote {out}, {figure} and {record}.")
