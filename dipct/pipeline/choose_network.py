"""The verb choose: which pretrained network to fine-tune, without the object that is imaged."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipct.errors import ConfigurationError, ConvergenceError, Interrupted
from dipct.evaluation.convergence import Convergence, convergence
from dipct.measurement.digest import scan_digest
from dipct.measurement.scan import Scan
from dipct.pipeline.reconstruct import reconstruct
from dipct.pipeline.simulate import simulate
from dipct.pipeline.stages import Stages
from dipct.pretrain.pretrained_network import (
    PretrainedNetwork,
    read_pretrained_network,
    write_pretrained_network,
)
from dipct.pretrain.snapshots import Snapshots, spread_snapshots

_LOG = logging.getLogger(__name__)
PHANTOM = "shepp-logan"
"""What the candidates are tried on; no network learns from it."""


@dataclass(frozen=True, eq=False)
class Trial:
    """How one candidate, or the untrained network, did on the phantom.

    Attributes:
        name: of the candidate: its file, with the step of a snapshot.
        network: the candidate, without snapshots; None for the untrained network.
        steps: recorded steps, [N].
        psnr_db: in every repeat, [R N].
        figures: of the median of the repeats.
        diverged: whether a repeat did.
    """

    name: str
    network: PretrainedNetwork | None
    steps: np.ndarray
    psnr_db: np.ndarray
    figures: Convergence
    diverged: bool


@dataclass(frozen=True, eq=False)
class NetworkChoice:
    """Which candidate was chosen, and why.

    Attributes:
        network: the chosen one, with the snapshots of its training until then.
        chosen: index of its trial.
        trials: of the candidates.
        baseline: of the untrained network.
    """

    network: PretrainedNetwork
    chosen: int
    trials: tuple[Trial, ...]
    baseline: Trial


def choose_network(
    scan: Scan,
    networks: Sequence[str | Path],
    *,
    snapshots: int = 0,
    repeats: int = 2,
    iterations: int = 500,
    baseline_iterations: int = 2000,
    tolerance_db: float = 0.25,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> NetworkChoice:
    """Choose a pretrained network on the Shepp-Logan phantom (Barbano et al., arXiv 2111.11926).

    The phantom is scanned with the scan's own operator and the noise of the pretraining, and every
    candidate is fine-tuned to it with default settings. Of those whose steady PSNR comes close to
    the best, the one is chosen that is fastest at the steady PSNR of an untrained network. The
    paper takes 5 repeats of 15 000 steps, and as many for the untrained network.

    Args:
        scan: the scan to reconstruct later, after selection and binning; its values do not matter.
        networks: files of pretrained networks, for this scan.
        snapshots: of every file also so many of its snapshots are candidates.
        repeats: scans of the phantom, each with noise of its own.
        iterations: steps of every fine-tuning.
        baseline_iterations: steps of the untrained network.
        tolerance_db: how far below the best steady PSNR a candidate may be, in dB.
        device: where to compute.
        checkpoint: keep what finished fits found in this folder. It stays until the caller removes
            it, who knows when the result is safe.
        resume: go on with what the folder holds.
        progress: show a progress display.

    Returns:
        The choice with all trials.

    Raises:
        ConfigurationError: no network, one for another scan, one without enough snapshots, or
            impossible numbers.
        FileFormatError: not a pretrained network.
        ConvergenceError: every fine-tuning diverged.
        Interrupted: stopped by the user; finished fits are kept.
    """
    if min(repeats, iterations, baseline_iterations) < 1 or snapshots < 0 or not tolerance_db >= 0:
        raise ConfigurationError(
            "repeats and iterations must be at least 1, snapshots and tolerance_db at least 0; got "
            f"{repeats}, {iterations}, {baseline_iterations}, {snapshots} and {tolerance_db}."
        )
    candidates = _candidates(scan, networks, snapshots)
    _, first = next(iter(candidates.values()))
    for name, (_, network) in candidates.items():
        if _kind(network) != _kind(first):
            raise ConfigurationError(
                "The networks can be compared only if they are of one architecture and were "
                f"trained with one input and level of noise; got {_kind(first)}, and of {name} "
                f"{_kind(network)}."
            )
    # Without noise there is no fit; a thousandth is nearly none.
    noise = max(float(first.pairs["noise_level"]), 1e-3)
    scans = [simulate(PHANTOM, geometry=scan, noise=noise, seed=seed) for seed in range(repeats)]
    numbers = (repeats, iterations, baseline_iterations)
    folder = None if checkpoint is None else Path(checkpoint)
    stages = Stages(folder, _problem(scan, candidates, numbers), resume=resume)
    common = {"stopping": "none", "device": device, "progress": progress}
    untrained = {name: first.network[name] for name in ("output", "upsampling")} | {
        "network": first.network["name"],
        "input": first.pairs["input"],
        "iterations": baseline_iterations,
    }

    def fit(name: str, seed: int, **settings: Any) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            run = reconstruct(scans[seed], seed=seed, **settings, **common)
            return {
                "iteration": torch.from_numpy(run.history["iteration"]),
                "psnr_db": torch.from_numpy(run.history["psnr_db"]),
                "diverged": run.status == "DIVERGED",
                "tv_weight": run.configuration["tv_weight"],
            }

        return stages(f"{name}-{seed}", compute, torch.device("cpu"))

    try:
        _LOG.info("The untrained network ...")
        fits = [fit("untrained", seed, method="dip", **untrained) for seed in range(repeats)]
        baseline = _trial("untrained", None, fits, None)
        trials: list[Trial] = []
        # The same for all, since it depends on the scan alone.
        weights = [each["tv_weight"] for each in fits]
        with tempfile.TemporaryDirectory() as beside:
            for i, (name, (_, network)) in enumerate(candidates.items()):
                _LOG.info("%s ...", name)
                init = str(Path(beside) / "candidate.h5")
                write_pretrained_network(network, init)
                settings = {"method": "edip", "init": init, "iterations": iterations}
                fits = [
                    fit(f"candidate-{i}", seed, tv_weight=weights[seed], **settings)
                    for seed in range(repeats)
                ]
                trials.append(_trial(name, network, fits, baseline.figures.steady_db))
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(stages.interrupted()) from None
    chosen = _best(trials, tolerance_db)
    path, network = candidates[trials[chosen].name]
    return NetworkChoice(_with_snapshots(network, path), chosen, tuple(trials), baseline)


def _kind(network: PretrainedNetwork) -> dict[str, Any]:
    """What has to be the same for a comparison."""
    return {**network.network, **{k: network.pairs[k] for k in ("input", "noise_level")}}


def _with_snapshots(network: PretrainedNetwork, path: str) -> PretrainedNetwork:
    """With those of its training that its file holds."""
    snapshots = read_pretrained_network(path, snapshots=True).snapshots
    if snapshots is None:
        return network
    until = snapshots.steps <= network.best_step
    kept = Snapshots(snapshots.steps[until], snapshots.thetas[until])
    return replace(network, snapshots=kept if until.any() else None)


def _candidates(
    scan: Scan, networks: Sequence[str | Path], snapshots: int
) -> dict[str, tuple[str, PretrainedNetwork]]:
    """By name the file and the network, without snapshots."""
    if not networks:
        raise ConfigurationError("Name at least one pretrained network.")
    found: dict[str, tuple[str, PretrainedNetwork]] = {}
    for path in map(str, networks):
        read = read_pretrained_network(path, snapshots=snapshots > 0)
        read.check_fits(scan)
        network = replace(read, snapshots=None)
        found[path] = path, network
        for step, theta in spread_snapshots(read.snapshots, snapshots, path).items():
            validated = np.searchsorted(network.history["iteration"], step, side="right") - 1
            found[f"{path}, step {step}"] = (
                path,
                replace(
                    network,
                    theta=theta,
                    best_step=step,
                    validation_psnr_db=float(network.history["validation_psnr_db"][validated]),
                ),
            )
    return found


def _trial(
    name: str,
    network: PretrainedNetwork | None,
    fits: Sequence[dict[str, Any]],
    baseline_db: float | None,
) -> Trial:
    diverged = any(fit["diverged"] for fit in fits)
    if diverged:
        _LOG.warning("%s diverged on the phantom and is left out.", name)
    shortest = min(len(fit["iteration"]) for fit in fits)
    steps = fits[0]["iteration"][:shortest].numpy()
    psnr_db = np.stack([fit["psnr_db"][:shortest].numpy() for fit in fits])
    figures = convergence(steps, psnr_db, baseline_db=baseline_db)
    return Trial(name, network, steps, psnr_db, figures, diverged)


def _problem(
    scan: Scan,
    candidates: dict[str, tuple[str, PretrainedNetwork]],
    numbers: tuple[int, int, int],
) -> str:
    """Digest of all that decides the fits."""
    digest = hashlib.sha256(json.dumps([scan_digest(scan), numbers]).encode())
    for _, network in candidates.values():
        digest.update(np.ascontiguousarray(network.theta).tobytes())
    return digest.hexdigest()


def _best(trials: Sequence[Trial], tolerance_db: float) -> int:
    """The fastest of the good ones; where none reaches the baseline, at its own steady PSNR."""
    settled = [i for i, trial in enumerate(trials) if not trial.diverged]
    if not settled:
        raise ConvergenceError(
            "The fine-tuning of every network diverged on the phantom: none can be chosen. "
            "Pretrain again, with a lower learning rate."
        )
    highest = max(trials[i].figures.steady_db for i in settled)
    good = [i for i in settled if trials[i].figures.steady_db >= highest - tolerance_db]

    def speed(i: int) -> tuple[float, int, float]:
        figures = trials[i].figures
        reached = np.inf if figures.baseline_step is None else figures.baseline_step
        return float(reached), figures.rise_step, -figures.steady_db

    return min(good, key=speed)
