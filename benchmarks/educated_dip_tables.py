"""Tables and plots of educated_dip.py, of whatever is stored."""

import json
from collections.abc import Sequence

import numpy as np
import real_scans
from educated_dip_cases import ARMS, FOLDER, RUNS, SCANS, Case, arms, cases, file_name
from educated_dip_paper import load as load_paper
from matplotlib.figure import Figure
from measuring import replace_section, table

import dipct
from dipct.evaluation.convergence import Convergence, convergence
from dipct.figures import comparison_figure, save_figure
from dipct.figures.history import COLOURS

PAGE = real_scans.DOCS / "educated-dip.md"
PICTURED = ("network alone", "edip", "dip+tv", "subspace, L-BFGS")
FLAT_SHARE = 0.1
LEAST_GAIN_DB = 3.0


def stored(case: Case, arm: str, full: bool = False) -> dict | None:
    path = FOLDER / f"{file_name(case, arm, full)}.json"
    return json.loads(path.read_text()) if path.exists() else None


def passes(result: dict) -> np.ndarray:
    """Forward and backward passes through the network at the records."""
    history = result["history"]
    return np.array(history.get("network_passes", history["iteration"]))


def curves(scan: str, arm: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Steps [N], passes of the first seed [N] and PSNRs [R N] of what is stored of an arm."""
    found = [r for case in cases(scan, full=False) if (r := stored(case, arm)) is not None]
    if not found or "psnr_db" not in found[0]["history"]:
        return None
    n = min(len(r["history"]["iteration"]) for r in found)
    steps = np.array(found[0]["history"]["iteration"][:n])
    return steps, passes(found[0])[:n], np.array([r["history"]["psnr_db"][:n] for r in found])


def figures(scan: str, arm: str, baseline_db: float | None) -> tuple[Convergence, int] | None:
    """Of the median of the seeds, with their number."""
    found = curves(scan, arm)
    if found is None:
        return None
    steps, _, psnr_db = found
    if len(steps) == 1:
        steps, psnr_db = np.array([0, 1]), np.repeat(psnr_db, 2, axis=1)
    return convergence(steps, psnr_db, baseline_db=baseline_db), len(psnr_db)


def comparison_rows(scan: str) -> list[list[str]]:
    timing = FOLDER / "timing.json"
    seconds = json.loads(timing.read_text())["seconds_per_iteration"] if timing.exists() else {}
    baseline = figures(scan, "dip+tv", None)
    level = None if baseline is None else baseline[0].steady_db
    rows = []
    for arm in arms(scan):
        results = [r for case in cases(scan, full=False) if (r := stored(case, arm)) is not None]
        if not results:
            continue
        final = [f"{r['metrics']['psnr_db']:.2f}" for r in results]
        ssim = np.median([r["metrics"]["ssim"] for r in results])
        row = [arm, ", ".join(final), f"{ssim:.3f}"]
        found = None if arm in ("tv", "network alone") else figures(scan, arm, level)
        if found is None:
            rows.append([*row, *[""] * 8])
            continue
        figure, _ = found
        steps, spent, _ = curves(scan, arm)
        reached = figure.baseline_step
        cost = {int(s): int(p) for s, p in zip(steps, spent, strict=True)}
        rows.append(
            [
                *row,
                f"{figure.initial_db:.2f}",
                f"{figure.maximum_db:.2f}",
                f"{figure.steady_db:.2f}",
                str(cost[figure.rise_step]),
                "never" if reached is None else str(cost[reached]),
                "" if reached is None or arm not in seconds else f"{reached * seconds[arm]:.0f}",
                f"{int(spent[-1])}",
                f"{figure.loss_db:.2f}",
            ]
        )
    return rows


HEADER = [
    "method",
    "PSNR of each seed [dB]",
    "SSIM",
    "first",
    "highest",
    "steady",
    "passes to steady",
    "passes to steady of dip+tv",
    "seconds to it",
    "passes in all",
    "highest - last",
]


def pretraining_rows() -> list[list[str]]:
    rows = []
    for scan in SCANS:
        path = FOLDER / f"network-{scan}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        history = result["history"]
        steps, quality = (np.array(history[k]) for k in ("iteration", "validation_psnr_db"))
        last = quality[steps >= (1 - FLAT_SHARE) * steps[-1]]
        gain = result["validation_psnr_db"] - result["fbp_psnr_db"]
        rise = float(last[-1] - last[0])
        counts = gain >= LEAST_GAIN_DB and abs(rise) < 0.1
        settings = result["settings"]
        rows.append(
            [
                scan,
                settings["images"],
                f"{settings['steps']} x {settings['batch']}",
                f"{result['seconds'] / 60:.0f}",
                f"{result['fbp_psnr_db']:.2f}",
                f"{result['validation_psnr_db']:.2f}",
                f"{rise:+.2f}",
                "yes" if counts else "no",
            ]
        )
    return rows


def curve_figure(scan: str) -> Figure:
    """PSNR against passes and against time."""
    timing = FOLDER / "timing.json"
    seconds = json.loads(timing.read_text())["seconds_per_iteration"] if timing.exists() else {}
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, arm in enumerate(arms(scan)):
        found = curves(scan, arm)
        if found is None or arm in ("tv", "network alone"):
            continue
        steps, spent, psnr_db = found
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": "-" if i < len(COLOURS) else "--",
            "linewidth": 1.4,
        }
        median = np.median(psnr_db, axis=0)
        left.plot(np.maximum(spent, 1), median, label=arm, **style)
        if arm in seconds:
            right.plot(np.maximum(steps, 1) * seconds[arm], median, label=arm, **style)
    left.set_xlabel("passes through the network, forward and backward")
    right.set_xlabel("seconds on 2 idle cores")
    left.set_ylabel("PSNR [dB], median of the seeds")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_ylim(bottom=19)
        axes.grid(True, color="0.9")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def pictures(scan: str) -> list[str]:
    case = cases(scan, full=False)[0]
    files = [RUNS / f"{file_name(case, arm, False)}.h5" for arm in PICTURED]
    there = [(f, a) for f, a in zip(files, PICTURED, strict=True) if f.exists()]
    if len(there) < 2:
        return []
    figure = comparison_figure([dipct.read_run(f) for f, _ in there], [a for _, a in there])
    save_figure(figure, real_scans.DOCS / f"pictures/edip-{scan}.png", dots_per_inch=55)
    return [f"![{scan}](pictures/edip-{scan}.png)"]


def paper_rows(results: dict[str, dict]) -> list[list[str]]:
    names = {"without-fine-tuning": 1, "edip": 0, "edip-from-noise": 0, "dip-tv": 0}
    baseline = results.get("dip-tv")
    level = None
    if baseline is not None:
        level = _convergence(baseline, None).steady_db
    rows = []
    for name in names:
        if (result := results.get(name)) is None:
            continue
        figure = _convergence(result, level)
        per_step = result["seconds"] / max(result["iterations"], 1)
        reached = figure.baseline_step
        rows.append(
            [
                name.replace("-", " "),
                str(result["iterations"]),
                f"{result['configuration']['learning_rate']:g}" if result["iterations"] else "",
                f"{result['seconds']:.0f}",
                f"{figure.initial_db:.2f}",
                f"{figure.steady_db:.2f}",
                f"{result['metrics']['ssim']:.3f}",
                "never"
                if reached is None
                else f"{reached} ({reached * per_step:.0f} s)"
                if result["iterations"]
                else "",
            ]
        )
    return rows


def _convergence(result: dict, level: float | None) -> Convergence:
    steps, psnr_db = (np.array(result["history"][k]) for k in ("iteration", "psnr_db"))
    return convergence(steps, psnr_db, baseline_db=level)


def section(name: str, header: Sequence[str], rows: list[list[str]], pictures: list[str]) -> None:
    if rows:
        replace_section(PAGE, name, "\n\n".join([table(list(header), rows), *pictures]))


def write_pages() -> None:
    header = ["geometry", "images", "steps x batch", "minutes", "FBP [dB]", "network [dB]"]
    section("pretraining-table", [*header, "in the last 10 %", "counts"], pretraining_rows(), [])
    for scan in SCANS:
        rows = comparison_rows(scan)
        shown = pictures(scan)
        if any(curves(scan, arm) is not None for arm in ARMS if arm not in ("tv", "network alone")):
            name = f"pictures/edip-curves-{scan}.png"
            save_figure(curve_figure(scan), real_scans.DOCS / name, dots_per_inch=75)
            shown = [f"![PSNR against passes and time, {scan}]({name})", *shown]
        section(f"{scan}-table", HEADER, rows, shown)
    paper = load_paper()
    if "network" in paper:
        header = ["method", "steps", "rate", "seconds", "first [dB]", "steady [dB]", "SSIM"]
        network = paper["network"]
        text = (
            f"{network['device']}, torch {network['machine']['versions']['torch']}: "
            f"{network['epochs']:.2f} epochs of 32 000 disc-distributed ellipses (the paper: 100) "
            f"in {network['seconds']:.0f} s; validation PSNR "
            f"{network['validation_psnr_db']:.2f} dB, of filtered back-projection "
            f"{network['fbp_psnr_db']:.2f} dB."
        )
        rows = paper_rows(paper)
        section("paper-table", [*header, "steps to the untrained's steady PSNR"], rows, [text])
