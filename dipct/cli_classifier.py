"""The subcommands `dipct classifier train` and `dipct classifier info`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipct.cli_options import (
    ClassNames,
    ImageShape,
    ModelOfFile,
    Normalisation,
    Resume,
    Weights,
)
from dipct.errors import ConfigurationError
from dipct.terminal import check_output, key_values, print_rows, say

if TYPE_CHECKING:
    from dipct.pretrain import TrainedClassifier

POST_HOC = "For a classifier that is there"
classifier_app = typer.Typer(no_args_is_help=True, help="Train classifiers to be explained.")


@classifier_app.command("train")
def train(
    out: Annotated[Path, typer.Option(help="File of the classifier to write, .h5.")],
    task: Annotated[
        str | None,
        typer.Option(help="A drawn task: faces, faces:glasses, lesions, lesions:4, walnuts ..."),
    ] = None,
    task_option: Annotated[
        list[str] | None,
        typer.Option(help="Of the task, as difficulty=3 or shortcut=0.95; repeat for more."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Or a folder of labelled images.")] = None,
    layout: Annotated[
        str, typer.Option(help="Of the folder: class-folders, celeba, ham10000 or auto.")
    ] = "auto",
    attribute: Annotated[
        str | None, typer.Option(help="Of CelebA that makes the class, as Smiling.")
    ] = None,
    most: Annotated[
        int | None, typer.Option(help="Use at most so many images of the folder.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="s1 or disc: ResNet-18 at 96 pixels.")] = None,
    architecture: Annotated[str | None, typer.Option(help="small, small-halved, resnet18.")] = None,
    side: Annotated[int | None, typer.Option(help="Pixels along the sides.")] = None,
    number: Annotated[int | None, typer.Option(help="Pictures to draw, 5000 by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps, 1500 by default.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images in a step, 64 by default.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest, of Adam.")] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Up to so much in the images; makes counterfactuals visible, try 0.3."),
    ] = None,
    loss_estimator: Annotated[
        bool | None, typer.Option(help="Train a loss estimator with it; yes by default.")
    ] = None,
    ranking_weight: Annotated[float | None, typer.Option(help="Of its loss.")] = None,
    detach_after: Annotated[
        float | None,
        typer.Option(help="Share of the steps after which it no longer shapes the classifier."),
    ] = None,
    centroids: Annotated[
        bool | None, typer.Option(help="Fit centroids of the classes too (DUQ).")
    ] = None,
    held_out_share: Annotated[
        float | None, typer.Option(help="Of the images, for the report; 0.2 by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of images, parameters and batches.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    post_hoc: Annotated[
        bool,
        typer.Option("--post-hoc", help="Train a loss estimator alone, for --classifier."),
    ] = False,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="Of --post-hoc: package.module:attribute, a program, .pt2, or a file.",
            rich_help_panel=POST_HOC,
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose features the estimator takes; repeat for more. layer1 to layer4.",
            rich_help_panel=POST_HOC,
        ),
    ] = None,
    weights: Weights = None,
    normalisation: Normalisation = "none",
    image_shape: ImageShape = None,
    class_names: ClassNames = None,
    model: ModelOfFile = None,
    resume: Resume = False,
) -> None:
    """Train a classifier and its loss estimator; reports what both are worth."""
    from dipct.classifier_settings import ClassifierSettings
    from dipct.figures import classifier_figure, save_figure
    from dipct.phantom import make_task
    from dipct.pipeline import (
        open_classifier,
        open_labelled,
        post_hoc_settings,
        remove_checkpoint,
        train_classifier,
        train_loss_estimator,
    )
    from dipct.pretrain import write_trained_classifier

    if (task is None) == (images is None):
        raise ConfigurationError("Give --task or --images, one of the two.")
    options = key_values(task_option, "--task-option", "difficulty=3")
    if options and task is None:
        raise ConfigurationError("--task-option is for a drawn task; give --task, or leave it out.")
    if taken := {"name", "side"} & options.keys():
        raise ConfigurationError(f"{taken.pop()} is no --task-option; it is --task or --side.")
    if post_hoc != (classifier is not None):
        raise ConfigurationError("Give --post-hoc and --classifier together, or neither.")
    of_model = (*(layer, weights, image_shape, class_names, model), normalisation != "none")
    if classifier is None and any(of_model):
        raise ConfigurationError(
            "layer, weights, normalisation, image-shape, class and model belong to a classifier "
            "that is there: give --post-hoc and --classifier with them."
        )
    figure, checkpoint = out.with_suffix(".png"), out.with_name(f"{out.name}.checkpoint")
    for path, suffix in ((out, ".h5"), (figure, ".png")):
        check_output(path, suffix, classifier, weights)
    if resume and not checkpoint.exists():
        raise ConfigurationError(
            f"There is no checkpoint {checkpoint} to resume from; start without --resume."
        )
    given = {
        "architecture": architecture,
        "side": side,
        "number": number,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "noise": noise,
        "loss_estimator": loss_estimator,
        "ranking_weight": ranking_weight,
        "detach_after": detach_after,
        "centroids": centroids,
        "held_out_share": held_out_share,
        "seed": seed,
        "device": device,
    }
    settings = ClassifierSettings.of_preset(
        preset, {name: value for name, value in given.items() if value is not None}
    )
    explained = None
    if classifier is not None:
        explained = open_classifier(
            classifier,
            weights=weights,
            normalisation=normalisation,
            image_shape=image_shape,
            classes=class_names,
            model=model,
        )
        # Refused before images are read.
        settings = post_hoc_settings(explained, settings, layer or ())
    training, held_out = open_labelled(
        settings,
        task=None if task is None else make_task(task, settings.side, **options),
        folder=images,
        layout=layout,
        attribute=attribute,
        most=most,
        image_shape=None if explained is None else explained.image_shape,
        progress=True,
    )
    going_on = {"checkpoint": checkpoint, "resume": resume, "progress": True}
    if explained is None:
        trained = train_classifier(training, held_out, settings, **going_on)
    else:
        trained = train_loss_estimator(
            explained, training, held_out, settings, layers=layer or (), **going_on
        )
    write_trained_classifier(trained, out)
    remove_checkpoint(checkpoint)
    save_figure(classifier_figure(trained), figure)
    _print(trained)
    say(f"Wrote {out} and {figure}.")


@classifier_app.command("info")
def info(
    classifier: Annotated[Path, typer.Argument(help="File of a classifier.")],
    model: ModelOfFile = None,
) -> None:
    """Print what a classifier is and what its heads are worth."""
    from dipct.classifier import load_model
    from dipct.pretrain import read_trained_classifier

    _print(read_trained_classifier(classifier, None if model is None else load_model(model)))


def _print(trained: "TrainedClassifier") -> None:
    rows = {
        "classes": " / ".join(trained.classes),
        "architecture": str(trained.architecture["name"]),
        "images": " x ".join(map(str, trained.image_shape)),
        "training": f"{trained.settings['steps']} steps, {trained.duration_s:.1f} s",
        "accuracy": f"{trained.accuracy:.4f} on held-out images",
    }
    if trained.report is not None:
        rows |= {
            "loss estimator": f"rank correlation with the true loss {trained.report.spearman:.3f}",
            "finds misclassified": f"AUROC {trained.report.auroc_misclassified:.3f}",
            "finds shifted": f"AUROC {trained.report.auroc_shifted:.3f}",
        }
        if not trained.report.is_usable:
            rows["advice"] = (
                "The loss estimator ranks too badly to be trusted; train longer, or on more images."
            )
    if trained.centroid_report is not None:
        rows |= {
            "centroids": f"accuracy {trained.centroid_report.accuracy:.4f}",
            "certainty finds misclassified": f"AUROC "
            f"{trained.centroid_report.auroc_misclassified:.3f}",
            "certainty finds shifted": f"AUROC {trained.centroid_report.auroc_shifted:.3f}",
        }
        if not trained.centroid_report.is_usable:
            rows["advice on centroids"] = (
                "Their certainty tells too little to be trusted; train longer, or on more images."
            )
    if trained.gate is not None:
        rows |= {
            "causes change the class": f"{trained.gate.causal_flips:.3f} of pictures",
            "nuisances change it": f"{trained.gate.nuisance_flips:.3f} of pictures",
        }
    print_rows(rows)
