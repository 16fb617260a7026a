"""Claim: a network pretrained on synthetic scans is ahead of an untrained one.

At 128 px: (a) simulated walnuts, 60 views, 5 % noise, three seeds; (b) the HTC2022 disc `ta`, 30
views, and (c) the APS tooth, 30 views, two seeds each. One network is pretrained for each of the
three geometries, never on walnuts, discs with holes or teeth.

    DIPCT_DATA=... python benchmarks/educated_dip.py             # runs what is not done yet
    python benchmarks/educated_dip.py --only walnut              # simulated scans only
    python benchmarks/educated_dip.py --table                    # tables and plots only
"""

import argparse
import json
from dataclasses import dataclass, replace

import real_scans
from measuring import RESULTS, machine, write_result
from skimage.transform import resize_local_mean

import dipct
from dipct.pipeline import pretrain
from dipct.pipeline.pretrain import remove_checkpoint
from dipct.pretrain import write_pretrained_network

FOLDER = RESULTS / "educated_dip"
RUNS = FOLDER / "runs"
PIXELS = 128
# The images are those of the papers for such objects; the noise is about that of the scans.
PRETRAINING = {
    "walnut": {"images": "ellipses-in-disc", "noise_level": 0.05, "steps": 3600},
    "ta": {"images": "ellipses-in-disc", "noise_level": 0.02, "steps": 2400},
    "tooth": {"images": "ellipses", "noise_level": 0.02, "steps": 2400},
}
COMMON = {"batch": 8, "validate_every": 100, "snapshots": 256}


@dataclass(frozen=True)
class Case:
    """One scan and the seed of the networks."""

    scan: str
    seed: int
    views: int | None = None

    @property
    def name(self) -> str:
        return f"{self.scan}-{self.seed}"


CASES = [Case("walnut", seed) for seed in range(3)]
CASES += [Case(scan, seed, 30) for scan in ("ta", "tooth") for seed in range(2)]


def load(case: Case) -> dipct.Scan:
    """The scan with a truth, at 128 px."""
    if case.scan == "walnut":
        return dipct.example_scan("walnut", pixels=PIXELS, seed=case.seed)
    scan, _, _ = real_scans.load(case.scan)
    image = dipct.reconstruct(scan, method="fbp", filter="hann").image
    truth = resize_local_mean(image, (PIXELS, PIXELS))
    scan = scan.bin_detector(4 if case.scan == "ta" else 2)
    scan = scan.with_grid(scan.grid.resized(PIXELS)).equispaced_views(case.views)
    return replace(scan, truth=truth, truth_source="full-view FBP, averaged to the grid")


def network_file(scan: str) -> str:
    return RUNS / f"network-{scan}.h5"


def make_network(case: Case) -> None:
    """Pretrain for the geometry of a case, where that is not done."""
    if (path := network_file(case.scan)).exists():
        return
    checkpoint = path.with_suffix(".checkpoint")
    pretrained = pretrain(
        load(case),
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        progress=True,
        **PRETRAINING[case.scan],
        **COMMON,
    )
    write_pretrained_network(pretrained, path)
    remove_checkpoint(checkpoint)
    write_result(
        FOLDER / f"network-{case.scan}.json",
        {
            "history": {k: [float(x) for x in v] for k, v in pretrained.history.items()},
            "validation_psnr_db": pretrained.validation_psnr_db,
            "fbp_psnr_db": pretrained.fbp_psnr_db,
            "best_step": pretrained.best_step,
            "seconds": pretrained.duration_s,
            "settings": dict(pretrained.settings),
            "machine": machine(),
        },
    )


if __name__ == "__main__":
    RUNS.mkdir(parents=True, exist_ok=True)
    import sys

    make_network(CASES[int(sys.argv[1])])
