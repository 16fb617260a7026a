"""The command line: one subcommand per verb, no logic of its own."""

import sys
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from dipct.cli_choose import choose
from dipct.cli_classifier import classifier_app
from dipct.cli_counterfactual import counterfactual
from dipct.cli_data import data_app
from dipct.cli_invert import invert
from dipct.cli_pretrain import pretrain
from dipct.cli_reconstruct import reconstruct
from dipct.cli_spectrum import spectrum
from dipct.cli_uncertainty import uncertainty
from dipct.errors import ConfigurationError, DipctError, Interrupted
from dipct.freed_memory import keep_freed_memory
from dipct.terminal import (
    OUT,
    check_output,
    distinct_names,
    log_to_terminal,
    print_rows,
    print_run,
    reader_options,
    say,
    say_error,
    shape_text,
)


class _Commands(TyperGroup):
    """The subcommands; stopping any of them with Ctrl-C is an error with a message."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("Stopped before anything was to be kept; start anew.") from None


app = typer.Typer(
    name="dipct",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reconstruct measured and simulated scans.",
)
scan_app = typer.Typer(no_args_is_help=True, help="Look at scans.")
app.add_typer(scan_app, name="scan")
app.add_typer(data_app, name="data")
app.add_typer(classifier_app, name="classifier")


class GeometryChoice(StrEnum):
    """Nominal geometries of `dipct simulate`."""

    parallel = "parallel"
    fan = "fan"
    cone = "cone"
    cwi_walnut = "cwi-walnut"


class ExportChoice(StrEnum):
    """Formats of `dipct export`."""

    tiff = "tiff"
    nifti = "nifti"


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            say(f"dipct {metadata.version('dipct')}")
        except metadata.PackageNotFoundError:
            say("dipct not installed")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Options that stand before any subcommand; `main` reads --debug itself."""


@app.command()
def simulate(
    source: Annotated[
        str, typer.Argument(help="A phantom's name, an image file, or example:walnut.")
    ],
    out: Annotated[Path, typer.Option(help="Scan file to write.")],
    geometry: Annotated[
        GeometryChoice | None, typer.Option(help="parallel by default; cwi-walnut for the example.")
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="Take geometry and grid from this scan instead.")
    ] = None,
    pixels: Annotated[int | None, typer.Option(help="Pixels along a side.")] = None,
    views: Annotated[int | None, typer.Option(help="Number of views.")] = None,
    noise: Annotated[
        float | None, typer.Option(help="White noise, share of mean |Ax|; 0.05 by default.")
    ] = None,
    counts: Annotated[
        float | None, typer.Option(help="Poisson noise with so many photons instead.")
    ] = None,
    oversampling: Annotated[
        int, typer.Option(help="Object pixels per image pixel along each axis.")
    ] = 2,
    seed: Annotated[int, typer.Option(help="Seed of phantom and noise.")] = 0,
) -> None:
    """Simulate a scan of a phantom or picture."""
    from dipct.measurement.scan_file import write_scan
    from dipct.pipeline import open_scan
    from dipct.pipeline import simulate as simulate_scan

    if like is not None and geometry is not None:
        raise ConfigurationError("Choose --geometry or --like, not both.")
    check_output(out, ".h5", source, like)
    nominal = None if geometry is None else geometry.value
    scan = simulate_scan(
        source,
        geometry=nominal if like is None else open_scan(like),
        pixels=pixels,
        views=views,
        noise=noise,
        counts=counts,
        oversampling=oversampling,
        seed=seed,
    )
    write_scan(scan, out)
    say(f"Wrote {out}: {shape_text(scan.projections.shape)} projections.")


app.command()(reconstruct)
app.command()(pretrain)
app.command()(choose)
app.command()(spectrum)
app.command()(uncertainty)
app.command()(invert)
app.command()(counterfactual)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A run file.")],
    out: Annotated[Path | None, typer.Option(help="Figure to write; RUN.png by default.")] = None,
) -> None:
    """Print what a run file holds, and draw it."""
    from dipct.figures import run_figure, save_figure
    from dipct.run import read_run

    found = read_run(run)
    figure = out or run.with_suffix(".png")
    check_output(figure, ".png", run)
    save_figure(run_figure(found), figure)
    print_run(found)
    say(f"Wrote {figure}.")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run files, two or more.")],
    out: Annotated[Path, typer.Option(help="Figure to write.")] = Path("compare.png"),
) -> None:
    """Compare runs: a table, and the images side by side with their errors."""
    from dipct.figures import comparison_figure, save_figure
    from dipct.run import read_run

    check_output(out, ".png", *runs)
    found = [read_run(path) for path in runs]
    names = distinct_names(runs)
    save_figure(comparison_figure(found, names), out)
    metrics = list(dict.fromkeys(name for run in found for name in run.metrics))
    table = Table("run", *map(escape, names), box=None, padding=(0, 2, 0, 0))
    table.add_row("method", *[run.method for run in found])
    table.add_row("views", *[str(run.scan.geometry.n_views) for run in found])
    table.add_row("iterations", *[str(run.iterations) for run in found])
    table.add_row("seconds", *[f"{run.duration_s:.1f}" for run in found])
    for name in metrics:
        values = [f"{run.metrics[name]:.4g}" if name in run.metrics else "-" for run in found]
        table.add_row(name, *values)
    OUT.print(table)
    say(f"Wrote {out}.")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run file.")],
    to: Annotated[ExportChoice, typer.Option(help="Format.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; named after RUN by default.")
    ] = None,
) -> None:
    """Write the image of a run in the format of other programs."""
    from dipct.export import FORMATS, export_run
    from dipct.run import read_run

    path = out or run.with_suffix(FORMATS[to.value])
    check_output(path, FORMATS[to.value], run)
    export_run(read_run(run), path, to=to.value)
    say(f"Wrote {path}.")


@scan_app.command("info")
def scan_info(
    scan: Annotated[str, typer.Argument(help="A scan file or folder, or example:walnut.")],
    out: Annotated[
        Path | None, typer.Option(help="Figure to write; SCAN-scan.png by default.")
    ] = None,
    reader: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the scan's reader, e.g. row=1; repeat for more."),
    ] = None,
) -> None:
    """Print what a scan is, and draw its sinogram and geometry."""
    from dipct.figures import save_figure, scan_figure
    from dipct.pipeline import open_scan
    from dipct.pipeline.prepare import describe_noise

    stem = scan.replace(":", "-") if scan.startswith("example:") else Path(scan).resolve().stem
    path = out or Path(f"{stem}-scan.png")
    check_output(path, ".png", scan)
    found = open_scan(scan, options=reader_options(reader))
    save_figure(scan_figure(found), path)
    low, high = found.projections.min(), found.projections.max()
    unit = found.length_unit
    rows = {
        **found.geometry.summary(),
        "lengths in": unit,
        "projections": f"{shape_text(found.projections.shape)}, {low:.3g} to {high:.3g}",
        "grid": f"{shape_text(found.grid.shape)} pixels of {found.grid.pixel_size:.6g} {unit}",
        "noise": describe_noise(found),
        "truth": found.truth_source or "none",
    }
    print_rows(dict(found.metadata) | rows)
    say(f"Wrote {path}.")


def main() -> None:
    """Run the command line; errors become messages and exit codes, not tracebacks."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    log_to_terminal()
    keep_freed_memory()
    try:
        app(args=[word for word in arguments if word != "--debug"], prog_name="dipct")
    except (DipctError, OSError, MemoryError) as error:
        if debug:
            raise
        message = (isinstance(error, OSError) and error.strerror) or str(error)
        if isinstance(error, OSError) and error.filename and error.strerror == message:
            message = f"{error.filename}: {message}"
        message = message or f"{type(error).__name__}; run again with --debug for the details"
        say_error(message)
        sys.exit(130 if isinstance(error, Interrupted) else 1)


if __name__ == "__main__":
    main()
