"""Educated DIP at the papers' size, on a GPU: 501 x 501 pixels, 2.97 million parameters.

One network is trained on disc-distributed ellipses scanned like the walnut (60 views, 128 columns)
and then fine-tuned to a simulated walnut, beside an untrained one. Every call works for so many
seconds and goes on where the last one stopped.

    python benchmarks/educated_dip.py --paper --seconds 540      # again until it says done
"""

import json
import signal
from contextlib import contextmanager
from pathlib import Path

import torch
from measuring import RESULTS, machine, write_result

import dipct
from dipct.errors import Interrupted
from dipct.pipeline import pretrain, remove_checkpoint
from dipct.pretrain import write_pretrained_network

FOLDER = RESULTS / "educated_dip_paper"
RUNS = FOLDER / "runs"
EPOCH = 32_000
BATCH = 32
STEPS = 741
# The first also finds the weight of total variation for all.
FITS = {
    "without fine-tuning": {"method": "edip", "iterations": 0},
    "edip": {"method": "edip", "iterations": 1000},
    "dip+tv": {"method": "dip", "iterations": 2000},
    "edip from noise": {"method": "edip", "iterations": 1000, "input": "noise"},
}


@contextmanager
def limited(seconds: float):
    """Interrupt what is inside after some seconds, as Ctrl-C does."""

    def stop(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run(seconds: float, steps: int = STEPS, results: Path = FOLDER) -> bool:
    """Do what is not done yet, on a CUDA device; whether all is."""
    RUNS.mkdir(parents=True, exist_ok=True)
    scan, path = dipct.example_scan("walnut"), RUNS / "network.h5"
    try:
        with limited(seconds):
            if not path.exists():
                make_network(scan, path, steps, results)
            fit_all(scan, path, results)
    except (Interrupted, KeyboardInterrupt) as reason:
        print(reason or "Stopped while setting up.")
        return False
    return True


def make_network(scan: dipct.Scan, path: Path, steps: int, results: Path) -> None:
    checkpoint = path.with_suffix(".checkpoint")
    pretrained = pretrain(
        scan,
        images="ellipses-in-disc",
        network="walnut",
        steps=steps,
        batch=BATCH,
        validation_images=16,
        validate_every=100,
        workers=14,
        device="cuda",
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        progress=True,
    )
    values = {
        "history": {k: [float(x) for x in v] for k, v in pretrained.history.items()},
        "validation_psnr_db": pretrained.validation_psnr_db,
        "fbp_psnr_db": pretrained.fbp_psnr_db,
        "best_step": pretrained.best_step,
        "epochs": steps * BATCH / EPOCH,
        "seconds": pretrained.duration_s,
        "settings": dict(pretrained.settings),
    }
    # Before the network, which says that all of this is done.
    write_result(results / "network.json", values | described())
    write_pretrained_network(pretrained, path)
    remove_checkpoint(checkpoint)
    print(f"pretraining {pretrained.duration_s:.0f} s, {pretrained.validation_psnr_db:.2f} dB")


def fit_all(scan: dipct.Scan, path: Path, results: Path) -> None:
    weight: float | str = "auto"
    for name, settings in FITS.items():
        target = results / f"{name.replace(' ', '-').replace('+', '-')}.json"
        if target.exists():
            weight = json.loads(target.read_text())["configuration"]["tv_weight"]
            continue
        init = {"init": str(path)} if settings["method"] == "edip" else {}
        checkpoint = RUNS / f"{target.stem}.checkpoint"
        fit = dipct.reconstruct(
            scan,
            device="cuda",
            tv_weight=weight,
            stopping="none",
            checkpoint=checkpoint,
            resume=checkpoint.exists(),
            progress=True,
            **settings,
            **init,
        )
        dipct.write_run(fit, RUNS / f"{target.stem}.h5")
        checkpoint.unlink(missing_ok=True)
        weight = fit.configuration["tv_weight"]
        history = {
            k: [float(x) for x in fit.history[k]] for k in ("iteration", "psnr_db", "discrepancy")
        }
        values = {
            "history": history,
            "metrics": dict(fit.metrics),
            "seconds": fit.duration_s,
            "iterations": fit.iterations,
            "configuration": dict(fit.configuration) | {"init": None},
        }
        write_result(target, values | described())
        print(f"{name}: {fit.duration_s:.1f} s, {fit.metrics['psnr_db']:.2f} dB", flush=True)


def described() -> dict:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "machine": machine()}


def load() -> dict[str, dict]:
    """The stored results by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
