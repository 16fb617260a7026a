"""The subcommand `dipct invert`."""

from pathlib import Path
from typing import Annotated

import typer

from dipct.cli_inversion import InversionFiles
from dipct.cli_options import (
    ClassNames,
    ImageShape,
    ModelOfFile,
    Normalisation,
    OwnClassifier,
    Resume,
    Weights,
)


def invert(
    classifier: OwnClassifier,
    image: Annotated[
        str, typer.Option(help="An image file, or TASK:NUMBER of a drawn task, as faces:3.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, .h5.")],
    method: Annotated[
        str, typer.Option(help="dip, dip-dep, inr, deep-decoder, pixel-tv, pixel-alpha ...")
    ] = "dip",
    layer: Annotated[
        list[str] | None, typer.Option(help="Layer to invert; repeat for several at once.")
    ] = None,
    maximise: Annotated[
        str | None,
        typer.Option(help="Instead: what shall be active, as layer3, layer3:17 or logits:1."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the fit.")] = None,
    manifold_weight: Annotated[float | None, typer.Option(help="Of consistency.")] = None,
    tv_weight: Annotated[float | None, typer.Option(help="Of total variation per pixel.")] = None,
    norm_weight: Annotated[float | None, typer.Option(help="Of the norm of pixels.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam.")] = None,
    weights: Weights = None,
    normalisation: Normalisation = "none",
    image_shape: ImageShape = None,
    class_names: ClassNames = None,
    model: ModelOfFile = None,
    width: Annotated[
        int | None, typer.Option(help="Channels of an implicit network or deep decoder.")
    ] = None,
    frequency_std: Annotated[
        float | None, typer.Option(help="Of an implicit network, in cycles per image.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of networks and their inputs.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    resume: Resume = False,
) -> None:
    """Recover an image from its hidden features: what a layer of a classifier knows of it."""
    from dipct.figures import pre_image_figure, save_figure
    from dipct.inversion_settings import PreImageSettings
    from dipct.pipeline import open_classifier, open_query, pre_image

    files = InversionFiles(out)
    files.check(classifier, image, weights)
    given = {
        "layers": tuple(layer) if layer else None,
        "maximise": maximise,
        "steps": steps,
        "manifold_weight": manifold_weight,
        "tv_weight": tv_weight,
        "norm_weight": norm_weight,
        "learning_rate": learning_rate,
        "width": width,
        "frequency_std": frequency_std,
        "seed": seed,
        "device": device,
    }
    settings = PreImageSettings.of_method(
        method, {name: value for name, value in given.items() if value is not None}
    )
    trained = open_classifier(
        classifier,
        weights=weights,
        normalisation=normalisation,
        image_shape=image_shape,
        classes=class_names,
        model=model,
    )
    (found,) = pre_image(
        trained,
        open_query(trained, image).image,
        settings,
        source=image,
        checkpoint=files.stages,
        resume=resume,
        progress=True,
    )
    files.write(found)
    save_figure(pre_image_figure(found), files.figure)
    files.report(found, {})
