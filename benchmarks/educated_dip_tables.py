"""Tables and plots of educated_dip.py, of whatever is stored."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import real_scans
from educated_dip_cases import FOLDER, RUNS, SCANS, arms, cases, file_name
from educated_dip_paper import load as load_paper
from matplotlib.figure import Figure
from measuring import replace_section, table

import dipct
from dipct.evaluation.convergence import Convergence, convergence
from dipct.figures import comparison_figure, save_figure
from dipct.figures.history import COLOURS

PAGE = real_scans.DOCS / "educated-dip.md"
PICTURED = ("network alone", "edip, 1000 steps", "dip+tv", "subspace, L-BFGS")
WITHOUT_STEPS = ("tv", "network alone")
FLAT_SHARE = 0.1
LEAST_GAIN_DB, LARGEST_RISE_DB = 3.0, 0.1

HEADER = ["method", "PSNR of each seed [dB]", "SSIM", "first", "highest", "steady"]
HEADER += ["to steady", "to steady of dip+tv", "seconds to it", "in all", "highest - last"]


@dataclass(frozen=True)
class Curve:
    """PSNRs of an arm against passes through the network, of several seeds.

    Attributes:
        passes: [N].
        psnr_db: [R N].
    """

    passes: np.ndarray
    psnr_db: np.ndarray

    def figures(self, baseline_db: float | None) -> Convergence:
        return convergence(self.passes, self.psnr_db, baseline_db=baseline_db)


def stored(scan: str, arm: str, full: bool) -> list[dict]:
    """Results of all seeds that are done."""
    paths = [FOLDER / f"{file_name(c, arm, full)}.json" for c in cases(scan, arm, full=full)]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def curve(scan: str, arm: str, full: bool) -> Curve | None:
    """What is stored of an arm; seeds that took other passes are interpolated."""
    found = [] if arm in WITHOUT_STEPS else stored(scan, arm, full)
    if not found:
        return None
    histories = [
        (np.array(h.get("network_passes", h["iteration"])), np.array(h["psnr_db"]))
        for h in (each["history"] for each in found)
    ]
    # Up to where the shortest of them ends.
    shortest = min(histories, key=lambda history: history[0][-1])[0]
    psnr_db = [np.interp(shortest, passes, values) for passes, values in histories]
    return Curve(shortest, np.array(psnr_db))


def seconds_per_pass(scan: str) -> tuple[dict[str, float], int]:
    """By arm, and the cores of the machine that was timed."""
    path = FOLDER / f"timing-{scan}.json"
    if not path.exists():
        return {}, 0
    timing = json.loads(path.read_text())
    return timing["seconds_per_pass"], timing["machine"]["cores"]


def training_minutes(scan: str, steps: int) -> str:
    """Of the training on an idle machine, where a step was timed."""
    path = FOLDER / f"timing-{scan}.json"
    if not path.exists():
        return ""
    return f"{steps * json.loads(path.read_text())['seconds_per_training_step'] / 60:.0f}"


def comparison_rows(scan: str, full: bool) -> list[list[str]]:
    seconds, _ = seconds_per_pass(scan)
    baseline = curve(scan, "dip+tv", full)
    level = None if baseline is None else baseline.figures(None).steady_db
    rows = []
    for arm in arms(scan):
        if not (results := stored(scan, arm, full)):
            continue
        values = [
            f"{r['metrics']['psnr_db']:.2f}" + " (diverged)" * (r["status"] == "DIVERGED")
            for r in results
        ]
        ssim = np.median([r["metrics"]["ssim"] for r in results])
        row = [arm, ", ".join(values), f"{ssim:.3f}"]
        if (found := curve(scan, arm, full)) is None:
            rows.append([*row, *[""] * (len(HEADER) - len(row))])
            continue
        figures = found.figures(level)
        reached = figures.baseline_step
        known = reached is not None and arm in seconds
        rows.append(
            [
                *row,
                f"{figures.initial_db:.2f}",
                f"{figures.maximum_db:.2f}",
                f"{figures.steady_db:.2f}",
                str(figures.rise_step),
                "never" if reached is None else str(reached),
                f"{reached * seconds[arm]:.0f}" if known else "",
                f"{int(found.passes[-1])}",
                f"{figures.loss_db:.2f}",
            ]
        )
    return rows


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
        counts = gain >= LEAST_GAIN_DB and abs(rise) <= LARGEST_RISE_DB
        settings = result["settings"]
        rows.append(
            [
                scan,
                settings["images"],
                f"{settings['steps']} x {settings['batch']}",
                f"{result['seconds'] / 60:.0f}",
                training_minutes(scan, settings["steps"]),
                f"{result['fbp_psnr_db']:.2f}",
                f"{result['validation_psnr_db']:.2f}",
                f"{rise:+.2f}",
                "yes" if counts else "no",
            ]
        )
    return rows


def curve_figure(scan: str, full: bool) -> Figure:
    """PSNR against passes and against time."""
    seconds, cores = seconds_per_pass(scan)
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, arm in enumerate(arms(scan)):
        if (found := curve(scan, arm, full)) is None:
            continue
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": "-" if i < len(COLOURS) else "--",
            "linewidth": 1.4,
        }
        passes, median = np.maximum(found.passes, 1), np.median(found.psnr_db, axis=0)
        left.plot(passes, median, label=arm, **style)
        if arm in seconds:
            right.plot(passes * seconds[arm], median, label=arm, **style)
    left.set_xlabel("passes through the network, forward and backward")
    right.set_xlabel(f"seconds on {cores} idle cores" if seconds else "seconds (not timed)")
    left.set_ylabel("PSNR [dB], median of the seeds")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_ylim(bottom=19)
        axes.grid(True, color="0.9")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def picture(name: str, figure: Figure | None, dots_per_inch: int) -> list[str]:
    """The line that shows a picture: made anew, or as it was where its runs are not here."""
    path = real_scans.DOCS / f"pictures/{name}.png"
    if figure is not None:
        save_figure(figure, path, dots_per_inch=dots_per_inch)
    return [f"![{name}](pictures/{name}.png)"] if path.exists() else []


def side_by_side(scan: str, full: bool) -> Figure | None:
    """The images of the first seed."""
    files = {arm: RUNS / f"{file_name(cases(scan)[0], arm, full)}.h5" for arm in PICTURED}
    there = {arm: file for arm, file in files.items() if file.exists()}
    if len(there) < 2:
        return None
    return comparison_figure([dipct.read_run(file) for file in there.values()], list(there))


def paper_rows(results: dict[str, dict]) -> list[list[str]]:
    baseline = results.get("dip-tv")
    level = None if baseline is None else _convergence(baseline, None).steady_db
    rows = []
    for name in ("without-fine-tuning", "edip", "edip-from-noise", "dip-tv"):
        if (result := results.get(name)) is None:
            continue
        figures, fitted = _convergence(result, level), result["iterations"] > 0
        reached = figures.baseline_step
        rows.append(
            [
                name.replace("-", " "),
                str(result["iterations"]),
                f"{result['configuration']['learning_rate']:g}" if fitted else "",
                f"{result['seconds']:.0f}",
                f"{figures.initial_db:.2f}",
                f"{figures.steady_db:.2f}",
                f"{result['metrics']['ssim']:.3f}",
                "never" if reached is None else str(reached),
            ]
        )
    return rows


def _convergence(result: dict, level: float | None) -> Convergence:
    steps, psnr_db = (np.array(result["history"][k]) for k in ("iteration", "psnr_db"))
    return convergence(steps, psnr_db, baseline_db=level)


def section(name: str, header: Sequence[str], rows: list[list[str]], others: list[str]) -> None:
    if rows:
        replace_section(PAGE, name, "\n\n".join([table(list(header), rows), *others]))


def write_pages(*, full: bool = False) -> None:
    header = ["geometry", "images", "steps x batch", "minutes", "if idle", "FBP [dB]"]
    header += ["network [dB]"]
    header += [f"rise in the last {FLAT_SHARE:.0%}", "counts"]
    section("pretraining-table", header, pretraining_rows(), [])
    for scan in SCANS:
        shown = []
        if curve(scan, "dip+tv", full) is not None:
            shown = picture(f"edip-curves-{scan}", curve_figure(scan, full), 75)
        shown += picture(f"edip-{scan}", side_by_side(scan, full), 55)
        section(f"{scan}-table", HEADER, comparison_rows(scan, full), shown)
    paper = load_paper()
    if "network" in paper:
        network = paper["network"]
        text = (
            f"{network['device']}, torch {network['machine']['versions']['torch']}: "
            f"{network['epochs']:.2f} epochs of 32 000 disc-distributed ellipses (the paper: 100) "
            f"in {network['seconds']:.0f} s; validation PSNR "
            f"{network['validation_psnr_db']:.2f} dB, of filtered back-projection "
            f"{network['fbp_psnr_db']:.2f} dB."
        )
        header = ["method", "steps", "rate", "seconds in all", "first [dB]", "steady [dB]"]
        header += ["SSIM", "steps to the untrained's steady PSNR"]
        section("paper-table", header, paper_rows(paper), [text])
