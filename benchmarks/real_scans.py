"""Claim: classical methods on measured scans, from many views to few, scored without tuning.

HTC2022 discs at 256 px with 720, 60 and 20 views and 90 degrees, and the APS tooth with 181, 45
and 20 views, by FBP, CGLS, SIRT and TV with default settings (noise level estimated from the
data). Scores: PSNR and SSIM against a full-view reconstruction at twice the resolution, averaged
to the grid, and for HTC2022 the challenge's score, the Matthews correlation of an Otsu
segmentation with the organisers' reference segmentation.

    DIPCT_DATA=... python benchmarks/real_scans.py            # runs what is not done yet
    python benchmarks/real_scans.py --table                   # table and pictures only
"""

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from measuring import RESULTS, machine, replace_section, table, write_result
from skimage.transform import resize, resize_local_mean

import dipct
from dipct.evaluation import matthews_correlation, otsu_segmentation
from dipct.figures import comparison_figure, save_figure
from dipct.measurement.readers import read_data_exchange, read_htc2022, read_htc2022_reference

FOLDER = RESULTS / "real_scans"
RUNS = FOLDER / "runs"
DOCS = Path(__file__).parents[1] / "docs"
METHODS = ("fbp", "cgls", "sirt", "tv", "tv-discrepancy")
PICTURED = ("ta-60", "ta-20", "ta-90deg", "01a-20", "01a-90deg", "tooth-45", "tooth-20")
DISCS = ("ta", "tc", "01a")
SETTINGS = {
    "fbp": {"filter": "hann"},
    "cgls": {"stopping": "discrepancy"},
    "sirt": {"stopping": "discrepancy"},
    "tv": {},
    "tv-discrepancy": {"tv_weight": "discrepancy"},
}


@dataclass(frozen=True)
class Case:
    """One scan and the part of it that is used."""

    scan: str
    views: int | None = None
    angular_range: float | None = None

    @property
    def name(self) -> str:
        part = f"{self.views}" if self.views else f"{self.angular_range:g}deg"
        return f"{self.scan}-{part}"


CASES = [Case(disc, views=n) for disc in DISCS for n in (720, 60, 20)]
CASES += [Case(disc, angular_range=90.0) for disc in DISCS]
CASES += [Case("tooth", views=n) for n in (181, 45, 20)]


def data_folder() -> Path:
    try:
        return Path(os.environ["DIPCT_DATA"])
    except KeyError:
        raise SystemExit(
            "Set DIPCT_DATA to the folder of the real data, see data/README.md."
        ) from None


def load(name: str) -> tuple[dipct.Scan, np.ndarray | None, np.ndarray | None]:
    """Scan binned to the working resolution, the file's reference FBP and segmentation."""
    if name == "tooth":
        scan = read_data_exchange(data_folder() / "tooth_aps" / "tooth.h5", axis_column=296.0)
        # The tooth spans columns 120 to 420; the axis stays in the middle.
        scan = scan.crop_detector(296 - 176, 296 + 177)
        return scan.with_grid(dipct.Grid((352, 352), 1.0)), None, None
    path = data_folder() / "htc2022" / f"htc2022_{name}_full.mat"
    return read_htc2022(path), *read_htc2022_reference(path)


def reference(name: str) -> np.ndarray:
    """Full-view FBP at full resolution, averaged over 2 x 2 pixels."""
    scan, _, _ = load(name)
    image = dipct.reconstruct(scan, method="fbp", filter="hann").image
    return image.reshape(image.shape[0] // 2, 2, -1, 2).mean((1, 3))


def run_case(case: Case, method: str, truth: np.ndarray) -> dict:
    scan, _, segmentation = load(case.scan)
    scan = scan.bin_detector(2).with_grid(scan.grid.resized(scan.grid.shape[0] // 2))
    scan = replace(scan, truth=truth, truth_source="full-view FBP, averaged over 2 x 2 pixels")
    settings = {"views": case.views, "angular_range": case.angular_range, **SETTINGS[method]}
    run = dipct.reconstruct(scan, method=method.split("-")[0], **settings)
    dipct.write_run(run, RUNS / f"{case.name}-{method}.h5")
    return record(case.name, method, run, segmentation)


def record(case: str, method: str, run: dipct.Run, segmentation: np.ndarray | None) -> dict:
    """What is kept of a run, with its scores."""
    scores = {name: run.metrics[name] for name in ("psnr_db", "ssim")}
    if segmentation is not None:
        fine = resize(run.image, segmentation.shape, order=1, preserve_range=True)
        scores["matthews_correlation"] = matthews_correlation(otsu_segmentation(fine), segmentation)
    return {
        "case": case,
        "method": method,
        "scores": scores,
        "metrics": dict(run.metrics),
        "status": run.status,
        "iterations": run.iterations,
        "seconds": run.duration_s,
        "configuration": dict(run.configuration),
        "machine": machine(),
    }


def check_against_reference() -> dict:
    """CGLS on `ta` at 128 px against the file's own FBP, and with the angles' sign wrong."""
    scan, fbp, _ = load("ta")
    scan = scan.equispaced_views(181).bin_detector(5)
    mirrored = replace(scan, geometry=replace(scan.geometry, angles=-scan.geometry.angles))
    runs = [
        dipct.reconstruct(each, method="cgls", pixels=128, iterations=24)
        for each in (scan, mirrored)
    ]
    coarse = resize_local_mean(fbp, runs[0].image.shape)
    return {
        "relative_residual": runs[0].metrics["relative_residual"],
        "relative_residual_mirrored": runs[1].metrics["relative_residual"],
        "correlation": float(np.corrcoef(runs[0].image.ravel(), coarse.ravel())[0, 1]),
        "machine": machine(),
    }


def write_pages() -> None:
    stored = {
        (case.name, method): json.loads(path.read_text())
        for case in CASES
        for method in METHODS
        if (path := FOLDER / f"{case.name}-{method}.json").exists()
    }
    rows = []
    for case in CASES:
        for method in METHODS:
            result = stored.get((case.name, method))
            if result is None:
                continue
            scores = result["scores"]
            correlation = scores.get("matthews_correlation")
            rows.append(
                [
                    case.name,
                    method,
                    f"{scores['psnr_db']:.2f}",
                    f"{scores['ssim']:.3f}",
                    "" if correlation is None else f"{correlation:.4f}",
                    f"{result['metrics']['relative_residual']:.4f}",
                    str(result["iterations"]),
                    result["status"].lower().replace("_", " "),
                ]
            )
    header = ["case", "method", "PSNR [dB]", "SSIM", "Matthews correlation"]
    header += ["relative residual", "iterations", "outcome"]
    page = DOCS / "real-scans.md"
    replace_section(page, "table", table(header, rows))
    check = FOLDER / "check.json"
    if check.exists():
        values = json.loads(check.read_text())
        text = (
            "CGLS on `ta` at 128 px, 181 views of 112 columns, 24 iterations: relative residual "
            f"{values['relative_residual']:.4f} (with the sign of the angles reversed "
            f"{values['relative_residual_mirrored']:.4f}), correlation with the file's reference "
            f"FBP {values['correlation']:.4f}."
        )
        replace_section(page, "check", text)
    shown = []
    for case in (case for case in CASES if case.name in PICTURED):
        files = [RUNS / f"{case.name}-{method}.h5" for method in METHODS]
        if all(file.exists() for file in files):
            runs = [dipct.read_run(file) for file in files]
            figure = comparison_figure(runs, list(METHODS))
            picture = f"pictures/real-{case.name}.png"
            save_figure(figure, DOCS / picture, dots_per_inch=55)
            shown.append(f"![{case.name}]({picture})")
    replace_section(page, "pictures", "\n\n".join(shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only table and pictures")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    if not options.table:
        if not (path := FOLDER / "check.json").exists():
            write_result(path, check_against_reference())
        for case in CASES:
            missing = [m for m in METHODS if not (FOLDER / f"{case.name}-{m}.json").exists()]
            if options.only not in case.name or not missing:
                continue
            truth = reference(case.scan)
            for method in missing:
                result = run_case(case, method, truth)
                write_result(FOLDER / f"{case.name}-{method}.json", result)
                print(case.name, method, result["scores"], f"{result['seconds']:.1f} s", flush=True)
    write_pages()


if __name__ == "__main__":
    main()
