"""The verb choose: which pretrained network to fine-tune, without the object that is imaged."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dipct.errors import ConfigurationError
from dipct.evaluation.convergence import Convergence, convergence
from dipct.measurement.scan import Scan
from dipct.pipeline.reconstruct import reconstruct
from dipct.pipeline.simulate import simulate
from dipct.pretrain.pretrained_network import (
    PretrainedNetwork,
    read_pretrained_network,
    write_pretrained_network,
)
from dipct.run import Run

_LOG = logging.getLogger(__name__)
PHANTOM = "shepp-logan"
"""What the candidates are tried on; no network learns from it."""


@dataclass(frozen=True, eq=False)
class Trial:
    """How one candidate, or the untrained network, did on the phantom.

    Attributes:
        name: of the candidate.
        network: the candidate; None for the untrained network.
        steps: recorded steps, [N].
        psnr_db: in every repeat, [R N].
        figures: of the median of the repeats.
    """

    name: str
    network: PretrainedNetwork | None
    steps: np.ndarray
    psnr_db: np.ndarray
    figures: Convergence


@dataclass(frozen=True, eq=False)
class NetworkChoice:
    """Which candidate was chosen, and why.

    Attributes:
        chosen: index of the best of the trials.
        trials: of the candidates.
        baseline: of the untrained network.
        tolerance_db: how far below the best steady PSNR a candidate may be.
    """

    chosen: int
    trials: tuple[Trial, ...]
    baseline: Trial
    tolerance_db: float

    @property
    def network(self) -> PretrainedNetwork:
        """The chosen network."""
        network = self.trials[self.chosen].network
        assert network is not None
        return network


def choose_network(
    scan: Scan,
    networks: Sequence[str | Path],
    *,
    snapshots: int = 0,
    repeats: int = 2,
    iterations: int = 500,
    baseline_iterations: int = 2000,
    tolerance_db: float = 0.25,
    progress: bool = False,
    **settings: Any,
) -> NetworkChoice:
    """Choose a pretrained network on the Shepp-Logan phantom (Barbano et al., arXiv 2111.11926).

    The phantom is scanned with the scan's own operator and the noise of the pretraining, and every
    candidate is fine-tuned to it. Of those whose steady PSNR comes close to the best, the one is
    chosen that is fastest at the steady PSNR of an untrained network. The paper takes 5 repeats
    of 15 000 steps, and as many for the untrained network.

    Args:
        scan: the scan to reconstruct later, after selection and binning; its values do not matter.
        networks: files of pretrained networks, for this scan.
        snapshots: of every file also so many of its snapshots are candidates.
        repeats: scans of the phantom, each with noise of its own.
        iterations: steps of every fine-tuning.
        baseline_iterations: steps of the untrained network.
        tolerance_db: how far below the best steady PSNR a candidate may be, in dB.
        progress: show a progress display.
        **settings: of the fine-tuning, fields of :class:`dipct.ReconstructionConfiguration`.

    Returns:
        The choice with all trials.

    Raises:
        ConfigurationError: no network, one for another scan, one without enough snapshots, or
            impossible numbers.
        FileFormatError: not a pretrained network.
    """
    if min(repeats, iterations, baseline_iterations) < 1 or snapshots < 0 or not tolerance_db >= 0:
        raise ConfigurationError(
            "repeats and iterations must be at least 1, snapshots and tolerance_db at least 0; got "
            f"{repeats}, {iterations}, {baseline_iterations}, {snapshots} and {tolerance_db}."
        )
    candidates = _candidates(scan, networks, snapshots)
    levels = {network.pairs["noise_level"] for network in candidates.values()}
    names = {network.network["name"] for network in candidates.values()}
    if len(levels) > 1 or len(names) > 1:
        raise ConfigurationError(
            "The networks can be compared only if they are of one architecture and were trained "
            f"with one level of noise; got {', '.join(sorted(names))} and {sorted(levels)}."
        )
    (level,), (architecture,) = levels, names
    scans = [
        # Without noise there is no fit; a thousandth is nearly none.
        simulate(PHANTOM, geometry=scan, noise=max(level, 1e-3), seed=seed)
        for seed in range(repeats)
    ]
    common = {"stopping": "none", "progress": progress}
    device = {"device": settings["device"]} if "device" in settings else {}
    _LOG.info("The untrained network ...")
    baseline = _trial(
        "untrained",
        None,
        [
            reconstruct(
                each,
                method="dip",
                network=architecture,
                iterations=baseline_iterations,
                seed=seed,
                **common,
                **device,
            )
            for seed, each in enumerate(scans)
        ],
        None,
    )
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        for name, network in candidates.items():
            _LOG.info("%s ...", name)
            init = str(Path(folder) / "candidate.h5")
            write_pretrained_network(network, init)
            runs = [
                reconstruct(
                    each,
                    method="edip",
                    init=init,
                    iterations=iterations,
                    seed=seed,
                    **common,
                    **settings,
                )
                for seed, each in enumerate(scans)
            ]
            trials.append(_trial(name, network, runs, baseline.figures.steady_db))
    return NetworkChoice(_best(trials, tolerance_db), tuple(trials), baseline, tolerance_db)


def _candidates(
    scan: Scan, networks: Sequence[str | Path], snapshots: int
) -> dict[str, PretrainedNetwork]:
    if not networks:
        raise ConfigurationError("Name at least one pretrained network.")
    found: dict[str, PretrainedNetwork] = {}
    for path in map(str, networks):
        network = read_pretrained_network(path, snapshots=snapshots > 0)
        network.check_fits(scan)
        found[path] = replace(network, snapshots=None)
        if not snapshots:
            continue
        kept = 0 if network.snapshots is None else len(network.snapshots.steps)
        if network.snapshots is None or snapshots >= kept:
            raise ConfigurationError(
                f"{path} has {kept} snapshots; {snapshots} and a later one are asked for. Pretrain "
                "with more --snapshots, or ask for fewer."
            )
        # The last one is nearly the network itself.
        for index in np.linspace(0, kept - 1, snapshots + 1).round().astype(int)[:-1]:
            step = int(network.snapshots.steps[index])
            validated = np.searchsorted(network.history["iteration"], step, side="right") - 1
            found[f"{path}, step {step}"] = replace(
                network,
                theta=network.snapshots.thetas[index],
                best_step=step,
                validation_psnr_db=float(network.history["validation_psnr_db"][validated]),
                snapshots=None,
            )
    return found


def _trial(
    name: str, network: PretrainedNetwork | None, runs: Sequence[Run], baseline_db: float | None
) -> Trial:
    for run in runs:
        if run.status == "DIVERGED":
            _LOG.warning("%s diverged: %s", name, run.advice)
    shortest = min(len(run.history["iteration"]) for run in runs)
    steps = runs[0].history["iteration"][:shortest]
    psnr_db = np.stack([run.history["psnr_db"][:shortest] for run in runs])
    return Trial(
        name, network, steps, psnr_db, convergence(steps, psnr_db, baseline_db=baseline_db)
    )


def _best(trials: Sequence[Trial], tolerance_db: float) -> int:
    """The fastest of the good ones; where none reaches the baseline, at its own steady PSNR."""
    highest = max(trial.figures.steady_db for trial in trials)
    good = [
        i for i, trial in enumerate(trials) if trial.figures.steady_db >= highest - tolerance_db
    ]

    def speed(i: int) -> tuple[float, int, float]:
        figures = trials[i].figures
        reached = np.inf if figures.baseline_step is None else figures.baseline_step
        return float(reached), figures.rise_step, -figures.steady_db

    return min(good, key=speed)
