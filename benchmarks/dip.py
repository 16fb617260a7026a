"""Claim: the Deep Image Prior with total variation against the best total variation alone.

Simulated walnuts (128 px, three seeds; 256 px, one; 60 views, 5 % noise), HTC2022 discs at 128 px
and the APS tooth at 176 px with few views, by DIP and DIP+TV with default settings, and by TV
with the weight that gives the best PSNR against the truth, which no user knows. The walnut of seed
0 and two measured scans are also fitted in the other arithmetic.

DIP stops at the noise level by default, which total variation may keep it from reaching; the
column with the highest PSNR on the way says what a perfect rule would have given until there.
Speed is measured by dip_speed.py, not here, where two processes share the machine.

    DIPCT_DATA=... python benchmarks/dip.py            # runs what is not done yet
    python benchmarks/dip.py --only walnut             # simulated scans only
    python benchmarks/dip.py --table                   # table and pictures only
"""

import argparse
import json
from dataclasses import dataclass, replace

import numpy as np
import real_scans
import torch
from measuring import RESULTS, replace_section, table, write_result

import dipct
from dipct.figures import comparison_figure, save_figure
from dipct.generator import has_bfloat16

FOLDER = RESULTS / "dip"
RUNS = FOLDER / "runs"
METHODS = ("tv-tuned", "dip", "dip+tv")
OTHER_PRECISION = ("walnut-128-0", "ta-60", "01a-20")
PICTURED = ("walnut-128-0", "walnut-256-0", "ta-20", "ta-90deg", "01a-90deg", "tooth-20")
WEIGHTS = 2.0 ** np.arange(-2, 7.5, 0.5)
# Enough to rank weights; the best is solved to the default tolerance.
SEARCH = {"iterations": 600, "tolerance": 5e-3}
DISC_PIXELS = 128


@dataclass(frozen=True)
class Case:
    """One scan."""

    scan: str
    pixels: int | None = None
    seed: int = 0
    views: int | None = None
    angular_range: float | None = None

    @property
    def name(self) -> str:
        if self.scan == "walnut":
            return f"walnut-{self.pixels}-{self.seed}"
        part = f"{self.views}" if self.views else f"{self.angular_range:g}deg"
        return f"{self.scan}-{part}"


CASES = [Case("walnut", 128, seed) for seed in range(3)] + [Case("walnut", 256)]
CASES += [Case(disc, views=n) for disc in ("ta", "01a") for n in (60, 20)]
CASES += [Case(disc, angular_range=90.0) for disc in ("ta", "01a")]
CASES += [Case("tooth", views=n) for n in (45, 20)]


def load(case: Case) -> tuple[dipct.Scan, np.ndarray | None]:
    """The scan with a truth, and the reference segmentation where there is one."""
    if case.scan == "walnut":
        return dipct.example_scan("walnut", pixels=case.pixels, seed=case.seed), None
    scan, _, segmentation = real_scans.load(case.scan)
    truth = real_scans.reference(case.scan)
    source = "full-view FBP, averaged over 2 x 2 pixels"
    side = scan.grid.shape[0] // 2
    if segmentation is not None:
        truth = truth.reshape(DISC_PIXELS, 2, DISC_PIXELS, 2).mean((1, 3))
        source, side = "full-view FBP, averaged over 4 x 4 pixels", DISC_PIXELS
    scan = scan.bin_detector(scan.grid.shape[0] // side).with_grid(scan.grid.resized(side))
    return replace(scan, truth=truth, truth_source=source), segmentation


def settings(method: str) -> dict:
    if method == "dip":
        return {"method": "dip", "tv_weight": 0.0}
    if method == "dip+tv":
        return {"method": "dip"}
    return {"method": "dip", "precision": method.removeprefix("dip+tv-")}


def reconstruct(case: Case, method: str, scan: dipct.Scan) -> dipct.Run:
    part = {"views": case.views, "angular_range": case.angular_range}
    if method != "tv-tuned":
        checkpoint = RUNS / f"{case.name}-{method}.checkpoint"
        run = dipct.reconstruct(
            scan,
            dipct.ReconstructionConfiguration(**settings(method), **part),
            checkpoint=checkpoint,
            resume=checkpoint.exists(),
            progress=True,
        )
        checkpoint.unlink(missing_ok=True)
        return run
    trials = [
        dipct.reconstruct(scan, method="tv", tv_weight=float(w), **SEARCH, **part) for w in WEIGHTS
    ]
    best = int(np.argmax([trial.metrics["psnr_db"] for trial in trials]))
    return dipct.reconstruct(scan, method="tv", tv_weight=float(WEIGHTS[best]), **part)


def run_case(case: Case, method: str) -> dict:
    scan, segmentation = load(case)
    run = reconstruct(case, method, scan)
    dipct.write_run(run, RUNS / f"{case.name}-{method}.h5")
    result = real_scans.record(case.name, method, run, segmentation)
    if "psnr_db" in run.history:
        result["scores"]["peak_psnr_db"] = float(np.max(run.history["psnr_db"]))
    return result


def planned() -> list[tuple[Case, str]]:
    """All runs, the most telling first."""
    runs = [(case, method) for case in CASES for method in METHODS]
    other = "float32" if has_bfloat16(torch.device("cpu")) else "bfloat16"
    return runs + [(c, f"dip+tv-{other}") for c in CASES if c.name in OTHER_PRECISION]


def write_pages() -> None:
    stored = {
        (case.name, method): json.loads(path.read_text())
        for case, method in planned()
        if (path := FOLDER / f"{case.name}-{method}.json").exists()
    }
    page = real_scans.DOCS / "deep-image-prior.md"
    rows = []
    for case in CASES:
        for method in METHODS:
            if (result := stored.get((case.name, method))) is None:
                continue
            scores = result["scores"]
            correlation = scores.get("matthews_correlation")
            rows.append(
                [
                    case.name,
                    method,
                    f"{result['configuration']['tv_weight']:.3g}",
                    f"{scores['psnr_db']:.2f}",
                    f"{scores['peak_psnr_db']:.2f}" if "peak_psnr_db" in scores else "",
                    f"{scores['ssim']:.3f}",
                    "" if correlation is None else f"{correlation:.4f}",
                    f"{result['metrics']['reduced_chi_squared']:.2f}",
                    str(result["iterations"]),
                ]
            )
    header = ["case", "method", "TV weight", "PSNR [dB]", "highest on the way", "SSIM"]
    header += ["Matthews correlation", "residual / noise", "steps"]
    replace_section(page, "dip-table", table(header, rows))
    rows = []
    for (name, method), result in stored.items():
        if not method.startswith("dip+tv-"):
            continue
        for each in (stored.get((name, "dip+tv")), result):
            if each is not None:
                scores = each["scores"]
                rows.append(
                    [
                        name,
                        each["configuration"]["precision"],
                        f"{scores['psnr_db']:.2f}",
                        f"{scores['ssim']:.3f}",
                        f"{each['metrics']['reduced_chi_squared']:.3f}",
                    ]
                )
    header = ["case", "arithmetic", "PSNR [dB]", "SSIM", "residual / noise"]
    replace_section(page, "precision-table", table(header, rows))
    shown = []
    for name in PICTURED:
        files = [RUNS / f"{name}-{method}.h5" for method in METHODS]
        if all(file.exists() for file in files):
            figure = comparison_figure([dipct.read_run(file) for file in files], list(METHODS))
            picture = f"pictures/dip-{name}.png"
            save_figure(figure, real_scans.DOCS / picture, dots_per_inch=55)
            shown.append(f"![{name}]({picture})")
    replace_section(page, "dip-pictures", "\n\n".join(shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only table and pictures")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--part", default="0/1", help="K/N: every N-th run, from the K-th")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    if not options.table:
        part, parts = map(int, options.part.split("/"))
        for case, method in planned()[part::parts]:
            path = FOLDER / f"{case.name}-{method}.json"
            if options.only not in case.name or path.exists():
                continue
            result = run_case(case, method)
            write_result(path, result)
            print(case.name, method, result["scores"], f"{result['seconds']:.1f} s", flush=True)
    write_pages()


if __name__ == "__main__":
    main()
