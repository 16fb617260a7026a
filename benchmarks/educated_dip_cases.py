"""What educated_dip.py compares: scans, methods and how networks are pretrained."""

from dataclasses import dataclass, replace
from pathlib import Path

import real_scans
from measuring import RESULTS
from skimage.transform import resize_local_mean

import dipct

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


ARMS = {
    "tv": {"method": "tv", "tv_weight": "discrepancy"},
    "network alone": {"method": "edip", "iterations": 0},
    "dip+tv": {"method": "dip"},
    "edip": {"method": "edip"},
    "edip, 1000 steps": {"method": "edip", "iterations": 1000},
    "subspace, L-BFGS": {
        "method": "edip",
        "parameters": "subspace",
        "optimiser": "l-bfgs",
        "iterations": 300,
    },
    "svd-dip": {"method": "edip", "parameters": "singular-values"},
    "edip, fixed encoder": {"method": "edip", "fixed_encoder": True},
    "edip, noise input": {"method": "edip", "input": "noise"},
    "subspace, natural gradient": {
        "method": "edip",
        "parameters": "subspace",
        "optimiser": "natural-gradient",
        "iterations": 100,
    },
    "dip": {"method": "dip", "tv_weight": 0.0},
}
MEASURED_ARMS = (
    "network alone",
    "dip+tv",
    "edip",
    "edip, 1000 steps",
    "subspace, L-BFGS",
    "svd-dip",
)


@dataclass(frozen=True)
class Case:
    """One scan and the seed of the networks."""

    scan: str
    seed: int
    views: int | None = None

    @property
    def name(self) -> str:
        return f"{self.scan}-{self.seed}"


SCANS = ("walnut", "ta", "tooth")
# Steps of Adam; the other optimisers make fewer and longer ones.
STEPS = {"walnut": 4000, "ta": 3000, "tooth": 3000}
FULL_STEPS = 10_000


def cases(scan: str, arm: str = "dip", *, full: bool = False) -> list[Case]:
    """The runs of an arm; seeds are those of the networks, and of the walnut and its noise.

    On a measured scan nothing about a pretrained network is random: once is enough.
    """
    if scan == "walnut":
        return [Case("walnut", seed) for seed in range(5 if full else 3)]
    return [Case(scan, seed, 30) for seed in range(2 if ARMS[arm]["method"] == "dip" else 1)]


def arms(scan: str) -> list[str]:
    """What is compared on a scan."""
    return list(ARMS) if scan == "walnut" else list(MEASURED_ARMS)


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


def network_file(scan: str) -> Path:
    return RUNS / f"network-{scan}.h5"


def settings(case: Case, arm: str, full: bool = False) -> dict:
    """Of the reconstruction."""
    chosen = {"stopping": "none", "seed": case.seed, **ARMS[arm]}
    if chosen["method"] == "tv":
        return {"method": "tv", "tv_weight": chosen["tv_weight"]}
    if chosen["method"] == "edip":
        chosen["init"] = str(network_file(case.scan))
    chosen.setdefault("iterations", FULL_STEPS if full else STEPS[case.scan])
    return chosen


def file_name(case: Case, arm: str, full: bool) -> str:
    words = arm.replace(",", "").replace("+", "-").replace(" ", "-").lower()
    return f"{case.name}-{words}{'-full' if full else ''}"
