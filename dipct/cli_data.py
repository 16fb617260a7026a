"""The command line's part for public data sets."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dipct.terminal import OUT, say

data_app = typer.Typer(no_args_is_help=True, help="Public data sets.")


@data_app.command("list")
def data_list() -> None:
    """List the public data sets that can be fetched."""
    from dipct.measurement.datasets import list_data_sets

    table = Table("name", "title", "DOI", "licence")
    for data_set in list_data_sets():
        table.add_row(data_set.name, data_set.title, data_set.doi, data_set.licence)
    OUT.print(table)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A name from `dipct data list`.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where to; a folder of the user's cache by default.")
    ] = None,
    file: Annotated[
        list[str] | None, typer.Option(help="Only this file of the set; repeat for more.")
    ] = None,
) -> None:
    """Fetch a public data set, going on with a download that was broken off."""
    from dipct.measurement.datasets import fetch_data_set

    for path in fetch_data_set(name, folder, files=file or None):
        say(str(path))
