"""Options that several subcommands have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class NetworkChoice(StrEnum):
    """Networks of the Deep Image Prior."""

    small = "small"
    px128 = "128"
    walnut = "walnut"


class InputChoice(StrEnum):
    """What the network is fed with."""

    noise = "noise"
    fbp = "fbp"
    both = "both"


class ParametersChoice(StrEnum):
    """What of a pretrained network is free."""

    all = "all"
    subspace = "subspace"
    singular_values = "singular-values"


class OptimiserChoice(StrEnum):
    """How the free parameters are found."""

    adam = "adam"
    l_bfgs = "l-bfgs"
    natural_gradient = "natural-gradient"


class PrecisionChoice(StrEnum):
    """Arithmetic of the network."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


Views = Annotated[int | None, typer.Option(help="Use so many equispaced views.")]
AngularRange = Annotated[
    float | None, typer.Option(help="Use the views within so many degrees of the first.")
]
Bin = Annotated[int | None, typer.Option(help="Average so many detector cells.")]
Pixels = Annotated[int | None, typer.Option(help="Pixels along the longer side.")]
Projector = Annotated[str | None, typer.Option(help="siddon or joseph.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")]
OwnClassifier = Annotated[
    str,
    typer.Option(
        help="File of `dipct classifier train`, package.module:attribute, or a program, .pt2."
    ),
]
Weights = Annotated[Path | None, typer.Option(help="Weights of package.module:attribute.")]
Normalisation = Annotated[
    str, typer.Option(help="That your own model expects of images: imagenet or none.")
]
ImageShape = Annotated[
    tuple[int, int, int] | None,
    typer.Option(help="Of your own model's images: channels, rows, columns."),
]
ClassNames = Annotated[
    list[str] | None, typer.Option("--class", help="Name of a class of your own model, in order.")
]
ModelOfFile = Annotated[
    str | None,
    typer.Option(
        "--model", help="Of a file with a loss estimator for your own model: what makes the model."
    ),
]
Reader = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE for the scan's reader, e.g. axis_column=296; repeatable."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint of a stopped run.")
]


def value_of(choice: StrEnum | None) -> str | None:
    """The text of a choice, where one was made."""
    return None if choice is None else choice.value
