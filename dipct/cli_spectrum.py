"""The subcommand `dipct spectrum`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from dipct.cli_options import AngularRange, Bin, Pixels, Reader, Views
from dipct.terminal import check_output, distinct_names, reader_options, say


def spectrum(
    networks: Annotated[list[Path], typer.Argument(help="Files of pretrained networks.")],
    scan: Annotated[str, typer.Option(help="The scan that they were pretrained for.")],
    out: Annotated[Path, typer.Option(help="Figure to write, .png, .pdf or .svg.")],
    rank: Annotated[int, typer.Option(min=1, help="Number of singular values.")] = 50,
    tolerance: Annotated[
        float, typer.Option(help="Largest residual, relative to the largest singular value.")
    ] = 1e-2,
    before: Annotated[
        bool, typer.Option(help="Begin with the first network's random parameters.")
    ] = True,
    during: Annotated[
        int, typer.Option(min=0, help="Also so many snapshots of each, from pretrain --snapshots.")
    ] = 0,
    views: Views = None,
    angular_range: AngularRange = None,
    bin: Bin = None,
    pixels: Pixels = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    reader: Reader = None,
) -> None:
    """Compare pretrained networks by the singular values of their Jacobians on a scan."""
    from dipct.configuration import Settings
    from dipct.figures import save_figure, spectrum_figure
    from dipct.measurement.hdf5 import write_bytes_whole
    from dipct.pipeline import network_spectra_of, open_scan
    from dipct.pipeline.prepare import prepare
    from dipct.pretrain import SpectrumSettings

    check_output(out, ".png", scan, *networks)
    check_output(out.with_suffix(".json"), ".json", scan, *networks)
    selection = {"views": views, "angular_range": angular_range, "bin": bin, "pixels": pixels}
    chosen = Settings.from_values({k: v for k, v in selection.items() if v is not None})
    spectra = network_spectra_of(
        prepare(open_scan(scan, chosen, reader_options(reader)), chosen),
        networks,
        settings=SpectrumSettings(rank=rank, tolerance=tolerance),
        before=before,
        during=during,
        device=device,
    )
    short = dict(zip(map(str, networks), distinct_names(networks), strict=True))
    names = [_short_name(each.name, short) for each in spectra]
    for each, name in zip(spectra, names, strict=True):
        say(f"{name}: {each.products} products, {each.advice or 'converged.'}")
    save_figure(spectrum_figure(spectra, names), out)
    record = [
        {
            "name": name,
            "singular_values": each.values.tolist(),
            "residuals": each.residuals.tolist(),
            "converged": each.converged,
            "products": each.products,
            "overlap": each.overlap.tolist(),
            "movement": dict(each.movement),
        }
        for each, name in zip(spectra, names, strict=True)
    ]
    table = out.with_suffix(".json")
    write_bytes_whole(table, f"{json.dumps(record, indent=2)}\n".encode())
    say(f"Wrote {out} and {table}.")


def _short_name(name: str, short: Mapping[str, str]) -> str:
    """Of a spectrum, with the short name of its file."""
    for path, replacement in short.items():
        if name == path or name.startswith(f"{path}, step "):
            return replacement + name.removeprefix(path)
    return name
