"""The subcommand `dipct counterfactual`."""

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
from dipct.errors import ConfigurationError

_METHODS = "s1, disc, l1-inr, lso-tv, lso-dip, lso-inr, lso-inr-dep, iso-dip, pgd ..."


def counterfactual(
    classifier: OwnClassifier,
    image: Annotated[
        str, typer.Option(help="An image or run file, or TASK:NUMBER of a drawn task, as faces:3.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, .h5.")],
    target: Annotated[
        str | None,
        typer.Option(help="Name or number of the wanted class; the most probable other one."),
    ] = None,
    method: Annotated[str, typer.Option(help=f"{_METHODS}")] = "disc",
    steps: Annotated[int | None, typer.Option(help="Steps of the fit.")] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Layer whose features stay near the query's; repeat for more."),
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help="pixels, unet, inr or deep-decoder.")
    ] = None,
    manifold: Annotated[
        str | None, typer.Option(help="none, loss-estimator, centroids or batch-statistics.")
    ] = None,
    progressive: Annotated[
        bool | None, typer.Option(help="Free one block of the network after another.")
    ] = None,
    fidelity_weight: Annotated[float | None, typer.Option(help="Of the query.")] = None,
    class_weight: Annotated[float | None, typer.Option(help="Of the target class.")] = None,
    manifold_weight: Annotated[float | None, typer.Option(help="Of consistency.")] = None,
    tv_weight: Annotated[float | None, typer.Option(help="Of total variation per pixel.")] = None,
    class_loss: Annotated[
        str | None, typer.Option(help="cross-entropy, margin, probability or logit.")
    ] = None,
    class_probability: Annotated[
        float | None, typer.Option(help="Wanted, for the loss probability.")
    ] = None,
    probability: Annotated[
        float | None, typer.Option(help="From which on it is confident, 0.9 by default.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Confident steps in a row after which to stop.")
    ] = None,
    radius: Annotated[float | None, typer.Option(help="Of the ball of pgd.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the optimiser.")] = None,
    start: Annotated[
        str | None, typer.Option(help="From a network fitted to the query (fit), or random.")
    ] = None,
    fit_steps: Annotated[int | None, typer.Option(help="Of that fit.")] = None,
    width: Annotated[
        int | None, typer.Option(help="Channels of an implicit network or deep decoder.")
    ] = None,
    frequency_std: Annotated[
        float | None, typer.Option(help="Of an implicit network, in cycles per image.")
    ] = None,
    relaxation: Annotated[
        float | None, typer.Option(help="Of the fidelity from stage to stage.")
    ] = None,
    norm_weight: Annotated[float | None, typer.Option(help="Of the norm of pixels.")] = None,
    region: Annotated[
        Path | None, typer.Option(help="Image file: edits only where it is not black.")
    ] = None,
    keep: Annotated[
        list[Path] | None,
        typer.Option(help="Another classifier of dipct, whose class shall stay; repeat for more."),
    ] = None,
    attribute: Annotated[
        str | None,
        typer.Option(help="Of a model with a logit for each of several: the one to change."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help='Another that shall be there, or "not NAME"; repeat for more.'),
    ] = None,
    keep_attribute: Annotated[
        list[str] | None, typer.Option(help="One whose probability shall stay; repeat for more.")
    ] = None,
    scan: Annotated[
        str | None,
        typer.Option(help="Scan that the image was reconstructed from, to agree with."),
    ] = None,
    measurement_weight: Annotated[
        float | None, typer.Option(help="Of the misfit to the scan.")
    ] = None,
    weights: Weights = None,
    normalisation: Normalisation = "none",
    image_shape: ImageShape = None,
    class_names: ClassNames = None,
    model: ModelOfFile = None,
    seed: Annotated[int | None, typer.Option(help="Of networks and jitter.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    resume: Resume = False,
) -> None:
    """Find an image like a given one that a classifier sees in another class."""
    from dipct.figures import counterfactual_figure, save_figure
    from dipct.inversion_settings import CounterfactualSettings
    from dipct.pipeline import (
        OtherClassifier,
        attribute_targets,
        explain_query,
        open_classifier,
        open_query,
        open_scan,
    )
    from dipct.pretrain import read_trained_classifier

    if attribute is None and (also or keep_attribute):
        raise ConfigurationError("--also and --keep-attribute belong to --attribute; give it.")
    files = InversionFiles(out)
    files.check(classifier, image, region, weights, scan, *(keep or []))
    given = {
        "steps": steps,
        "layers": tuple(layer) if layer else None,
        "generator": generator,
        "manifold": manifold,
        "progressive": progressive,
        "fidelity_weight": fidelity_weight,
        "class_weight": class_weight,
        "manifold_weight": manifold_weight,
        "tv_weight": tv_weight,
        "class_loss": class_loss,
        "class_probability": class_probability,
        "probability": probability,
        "patience": patience,
        "radius": radius,
        "learning_rate": learning_rate,
        "start": start,
        "fit_steps": fit_steps,
        "width": width,
        "frequency_std": frequency_std,
        "relaxation": relaxation,
        "norm_weight": norm_weight,
        "measurement_weight": measurement_weight,
        "seed": seed,
        "device": device,
    }
    settings = CounterfactualSettings.of_method(
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
    others = [OtherClassifier(read_trained_classifier(path)) for path in keep or []]
    if attribute is not None:
        trained, of_model = attribute_targets(
            trained, attribute, also=also or (), keep=keep_attribute or ()
        )
        others += of_model
    query = open_query(trained, image)
    found = explain_query(
        trained,
        query,
        None if target is None else trained.class_number(target),
        settings,
        region=region,
        others=others,
        scan=None if scan is None else open_scan(scan),
        checkpoint=files.stages,
        resume=resume,
        progress=True,
    )
    files.write(found)
    save_figure(counterfactual_figure(found), files.figure)
    files.report(
        found,
        {
            "query": f"seen as {found.class_name(found.predicted)}",
            "target": f"{found.class_name(found.target)}, probability "
            f"{found.p_target_query:.3f} in the query",
            "outcome": found.reason,
        },
    )
