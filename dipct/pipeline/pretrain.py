"""The verb pretrain: a network trained on synthetic scans of a scan's own geometry."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipct.checkpoint import stopped
from dipct.configuration import PretrainingConfiguration
from dipct.device import find_device
from dipct.errors import ConfigurationError, GeometryError, Interrupted
from dipct.generator import (
    ParameterLayout,
    UNet,
    check_bfloat16,
    has_bfloat16,
    make_network,
)
from dipct.measurement.digest import geometry_digest
from dipct.measurement.scan import Scan
from dipct.operator.filtered_backprojection import FilteredBackProjection
from dipct.operator.ray import ray_transform
from dipct.phantom import seeded_phantom_names
from dipct.pipeline.deep_image_prior import ACTIVATIONS_PER_CHANNEL, network_name
from dipct.pipeline.memory import check_batch_memory, check_snapshot_memory
from dipct.pipeline.prepare import prepare
from dipct.pipeline.training import TrainingCheckpoint
from dipct.pretrain import FolderImages, PhantomImages, TrainingImages, TrainingPairs
from dipct.pretrain.pretrained_network import PretrainedNetwork, describe_scan
from dipct.pretrain.processes import place
from dipct.pretrain.snapshots import SnapshotKeeper, Snapshots, snapshot_steps
from dipct.pretrain.training import SupervisedTraining, TrainingSettings
from dipct.progress import ProgressDisplay
from dipct.run import installed_versions
from dipct.settings import refuse_both
from dipct.solver import Callback, Solution, Status, iterate

_LOG = logging.getLogger(__name__)
# Where the sigmoid of a pretrained network ends, in images of order one: objects differ in how far
# their largest value is above the scale, and one network has to serve them all.
_CEILING = 4.0
_LEVEL = 0.25


def pretrain(
    scan: Scan,
    configuration: PretrainingConfiguration | None = None,
    *,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> PretrainedNetwork:
    """Train a network on synthetic scans (educated DIP; Barbano et al., arXiv 2111.11926).

    Images are drawn, scanned by the ray transform of the scan with noise, reconstructed by
    filtered back-projection, and the network learns to make the image of that. The scan's
    measured values are not used. Where ``torch.distributed`` is initialised, the processes share
    the work, see :class:`dipct.pretrain.SupervisedTraining`; all return the network.

    Args:
        scan: the target; only its geometry and grid matter.
        configuration: how to train, or give its settings by name.
        checkpoint: keep the state of the training in this file, every minute and when
            interrupted, and its snapshots in a folder beside it. They stay until the caller
            removes them with :func:`remove_checkpoint`.
        resume: go on from the checkpoint.
        progress: show a progress display.
        callbacks: called with every recorded state, as by :func:`dipct.solver.iterate`.
        **settings: fields of :class:`PretrainingConfiguration`.

    Returns:
        The network with the highest validation PSNR and how it came about.

    Raises:
        ConfigurationError: impossible or contradictory settings.
        GeometryError: a scan of a volume.
        InsufficientMemoryError: a batch is estimated not to fit into memory.
        FileFormatError: a folder with unreadable images, or snapshots that are missing where the
            training goes on.
        Interrupted: stopped by the user; the checkpoint is kept.
    """
    refuse_both(configuration, settings)
    if configuration is None:
        configuration = PretrainingConfiguration.from_values(settings)
    kept_in = TrainingCheckpoint(None if checkpoint is None else Path(checkpoint), resume)
    elapsed = kept_in.elapsed
    started = time.perf_counter() - elapsed
    device = find_device(configuration.device)
    kept = snapshot_steps(configuration.steps, configuration.snapshots)
    scan = prepare(scan, configuration)
    training, network = _training(scan, configuration, device)
    problem = _problem(scan, configuration, training)
    state = kept_in.state(problem, device)
    # Of several processes the first speaks and writes for all.
    speaks = place()[0] == 0
    writer = kept_in.writer(problem, elapsed) if speaks else None
    progress = progress and speaks
    keeper = SnapshotKeeper(kept if speaks else [], kept_in.snapshots, resume=resume)
    if state is not None:
        # Ctrl-C may have come between a step and its snapshot.
        keeper(state)
        keeper.check(state.iteration)
    display = ProgressDisplay("pretraining", configuration.steps) if progress else nullcontext()
    with display as shown, closing(training):
        solution = iterate(
            training,
            max_iterations=configuration.steps,
            state=state,
            every=min(configuration.validate_every, 20),
            callbacks=[each for each in (shown, writer, *callbacks) if each is not None],
            observers=[keeper],
        )
    if solution.status is Status.INTERRUPTED:
        done = f"Stopped after {solution.iterations} steps"
        if not speaks:
            raise Interrupted(f"{done}; what is kept is up to the first process.")
        raise stopped(done, solution.state, writer)
    if int(solution.state.tensors["best_step"]) == 0 and speaks:
        _LOG.warning(
            "No step of the training was better than the random first parameters, which are "
            "kept: use a lower learning rate, or more steps."
        )
    return _pretrained(
        scan,
        configuration,
        training,
        solution,
        network,
        keeper.collect(solution.iterations),
        time.perf_counter() - started,
    )


def _training(
    scan: Scan, configuration: PretrainingConfiguration, device: torch.device
) -> tuple[SupervisedTraining, dict[str, Any]]:
    """The method and the options of the network."""
    if not scan.geometry.is_planar:
        raise GeometryError(
            "Networks are pretrained for images; this scan is of a volume. Take a slice."
        )
    if configuration.precision == "bfloat16":
        check_bfloat16(device)
    precision = configuration.precision
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    options: dict[str, Any] = {
        "name": configuration.network or network_name(scan),
        "in_channels": 2 if configuration.input == "both" else 1,
        "output": configuration.output,
        "ceiling": _CEILING,
        "upsampling": configuration.upsampling,
    }
    network = make_network(**options)
    network.input_shape(scan.grid.shape)
    # In bfloat16 about half as much, as measured.
    activations = ACTIVATIONS_PER_CHANNEL // (2 if precision == "bfloat16" else 1)
    check_batch_memory(
        scan.grid,
        max(1, configuration.batch // place()[1]),
        images_at_once=activations * network.channels[0],
        device=device,
    )
    check_snapshot_memory(configuration.snapshots, ParameterLayout(network.parameters).size)
    images = _images(scan, configuration)
    operator = ray_transform(
        scan.geometry, scan.grid, projector=configuration.projector, device=device
    )
    inverse = None
    if configuration.input != "noise":
        inverse = FilteredBackProjection(scan.geometry, scan.grid)
        inverse = inverse.to(device)
    folds = [
        TrainingPairs(
            images.of_fold(fold),
            operator,
            inverse,
            noise_level=configuration.noise_level,
            input=configuration.input,
            seed=configuration.seed,
            workers=workers,
        )
        for fold, workers in (("training", configuration.workers), ("validation", 0))
    ]
    settings = TrainingSettings(
        steps=configuration.steps,
        batch=configuration.batch,
        learning_rate=configuration.learning_rate,
        weight_decay=configuration.weight_decay,
        validation_images=configuration.validation_images,
        validate_every=configuration.validate_every,
        precision=precision,
    )
    initial = first_parameters(network, configuration.seed)
    return SupervisedTraining(network, *folds, settings, initial), options


def first_parameters(network: UNet, seed: int) -> torch.Tensor:
    """First parameters: random, but the image of a sigmoid begins at about a quarter.

    From half the ceiling the first steps all go down, and a network without normalisation ends
    where the sigmoid is flat.
    """
    values = network.initial(seed)
    if network.output == "sigmoid":
        bias = f"{network.last_block}.convolution_1.bias"
        values[bias] = values[bias] + math.log(_LEVEL / (network.ceiling - _LEVEL))
    return ParameterLayout(network.parameters).join(values)


def _images(scan: Scan, configuration: PretrainingConfiguration) -> TrainingImages:
    if configuration.images in seeded_phantom_names():
        return PhantomImages(configuration.images, scan.grid, seed=configuration.seed)
    if Path(configuration.images).is_dir():
        return FolderImages(configuration.images, scan.grid, seed=configuration.seed)
    raise ConfigurationError(
        f"images must be one of {', '.join(seeded_phantom_names())} or a folder of images; got "
        f"{configuration.images!r}."
    )


def _problem(
    scan: Scan, configuration: PretrainingConfiguration, training: SupervisedTraining
) -> str:
    """Digest of all that decides the course of the training."""
    values = configuration.to_values() | {"precision": training.settings.precision}
    for name in ("workers", "device"):
        values.pop(name)
    values["geometry"] = geometry_digest(scan.geometry, scan.grid)
    # The files of a folder too, which the name of the folder does not tell.
    values["pairs"] = [each.describe() for each in (training.training, training.validation)]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _pretrained(
    scan: Scan,
    configuration: PretrainingConfiguration,
    training: SupervisedTraining,
    solution: Solution,
    network: dict[str, Any],
    snapshots: Snapshots | None,
    seconds: float,
) -> PretrainedNetwork:
    history = {name: values.numpy() for name, values in solution.history.items()}
    return PretrainedNetwork(
        theta=solution.value.detach().cpu().numpy().astype(np.float32),
        network=network,
        scan=describe_scan(scan),
        pairs=training.training.describe(),
        settings=configuration.to_values() | {"precision": training.settings.precision},
        history=history,
        status=solution.status.name,
        steps=solution.iterations,
        best_step=int(solution.state.tensors["best_step"]),
        fbp_psnr_db=training.fbp_psnr_db,
        validation_psnr_db=float(solution.state.tensors["best_psnr_db"]),
        seed=configuration.seed,
        duration_s=seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=installed_versions(),
        snapshots=snapshots,
    )
