"""Claim: a network pretrained on synthetic scans is ahead of an untrained one.

At 128 px: (a) simulated walnuts, 60 views, 5 % noise, three seeds; (b) the HTC2022 disc `ta`, 30
views, and (c) the APS tooth, 30 views, two seeds each. One network is pretrained for each of the
three geometries, never on walnuts, discs with holes or teeth.

    DIPCT_DATA=... python benchmarks/educated_dip.py             # runs what is not done yet
    python benchmarks/educated_dip.py --only walnut              # simulated scans only
    python benchmarks/educated_dip.py --timing                   # seconds per step, if idle
    python benchmarks/educated_dip.py --table                    # tables and plots only
    python benchmarks/educated_dip.py --paper --seconds 540      # the papers' size, on a GPU

--full takes five seeds of the walnut, and 10 000 steps.
"""

import argparse
import json
import statistics
import time

import educated_dip_paper
import educated_dip_tables
from educated_dip_cases import (
    ARMS,
    COMMON,
    FOLDER,
    PRETRAINING,
    RUNS,
    SCANS,
    Case,
    arms,
    cases,
    file_name,
    load,
    network_file,
    settings,
)
from measuring import machine, write_result

import dipct
from dipct.pipeline import pretrain, remove_checkpoint
from dipct.pretrain import write_pretrained_network

REPEATS = 3


def make_network(scan: str) -> None:
    """Pretrain for a geometry, where that is not done."""
    if (path := network_file(scan)).exists():
        return
    checkpoint = path.with_suffix(".checkpoint")
    pretrained = pretrain(
        load(cases(scan)[0]),
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        progress=True,
        **PRETRAINING[scan],
        **COMMON,
    )
    # Before the network, which says that all of this is done.
    write_result(
        FOLDER / f"network-{scan}.json",
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
    write_pretrained_network(pretrained, path)
    remove_checkpoint(checkpoint)


def run_case(case: Case, arm: str, full: bool) -> dict:
    name = file_name(case, arm, full)
    checkpoint = RUNS / f"{name}.checkpoint"
    run = dipct.reconstruct(
        load(case),
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        progress=True,
        **settings(case, arm, full),
    )
    dipct.write_run(run, RUNS / f"{name}.h5")
    checkpoint.unlink(missing_ok=True)
    kept = ("iteration", "psnr_db", "discrepancy", "network_passes")
    return {
        "case": case.name,
        "arm": arm,
        "history": {k: [float(x) for x in run.history[k]] for k in kept if k in run.history},
        "metrics": dict(run.metrics),
        "iterations": run.iterations,
        "status": run.status,
        "seconds": run.duration_s,
        "configuration": dict(run.configuration) | {"init": None},
        "machine": machine(),
    }


def time_arms(scan_name: str) -> dict:
    """Seconds of a pass through the network, for what is stored: by differences of two runs."""
    case, path = cases(scan_name)[0], FOLDER / f"timing-{scan_name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    scan, seconds = load(case), known.get("seconds_per_pass", {})
    for arm in arms(scan_name):
        if arm in seconds or educated_dip_tables.curve(scan_name, arm, False) is None:
            continue
        few, many = (2, 10) if ARMS[arm].get("optimiser") else (5, 45)
        spent: dict[int, list[float]] = {few: [], many: []}
        passes: dict[int, float] = {}
        for repeat in range(REPEATS + 1):
            for iterations in (few, many):
                chosen = settings(case, arm) | {"iterations": iterations, "tv_weight": 4.0}
                began = time.perf_counter()
                run = dipct.reconstruct(scan, **chosen)
                # The first call pays for what a process does once.
                if repeat:
                    spent[iterations].append(time.perf_counter() - began)
                passes[iterations] = float(run.history.get("network_passes", [iterations])[-1])
        difference = statistics.median(spent[many]) - statistics.median(spent[few])
        seconds[arm] = difference / (passes[many] - passes[few])
        print(f"{arm}: {1000 * seconds[arm]:.0f} ms a pass", flush=True)
    return {
        "seconds_per_pass": seconds,
        "seconds_per_training_step": known.get("seconds_per_training_step")
        or time_training(scan_name, scan),
        "machine": machine(),
    }


def time_training(scan_name: str, scan: dipct.Scan) -> float:
    """Seconds of a step of the pretraining, likewise."""
    settings = PRETRAINING[scan_name] | COMMON | {"validation_images": 1, "snapshots": 0}
    spent: dict[int, list[float]] = {3: [], 13: []}
    for repeat in range(REPEATS + 1):
        for steps, seconds in spent.items():
            began = time.perf_counter()
            pretrain(scan, **settings | {"steps": steps, "validate_every": 100})
            if repeat:
                seconds.append(time.perf_counter() - began)
    return (statistics.median(spent[13]) - statistics.median(spent[3])) / 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only tables and plots")
    parser.add_argument("--timing", action="store_true", help="only seconds per step")
    parser.add_argument("--only", choices=SCANS, help="only one scan")
    parser.add_argument("--arm", choices=list(ARMS), help="only one method")
    parser.add_argument("--full", action="store_true", help="five seeds, 10 000 steps")
    parser.add_argument("--paper", action="store_true", help="501 x 501 pixels, on a GPU")
    parser.add_argument("--seconds", type=float, default=540, help="for --paper")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    if options.paper:
        done = educated_dip_paper.run(options.seconds)
        print("done" if done else "not done: run it again")
    elif options.timing:
        for scan in [options.only] if options.only else SCANS:
            write_result(FOLDER / f"timing-{scan}.json", time_arms(scan))
    elif not options.table:
        for scan in [options.only] if options.only else SCANS:
            make_network(scan)
            for arm in [a for a in arms(scan) if options.arm in (None, a)]:
                for case in cases(scan, arm, full=options.full):
                    path = FOLDER / f"{file_name(case, arm, options.full)}.json"
                    if path.exists():
                        continue
                    result = run_case(case, arm, options.full)
                    write_result(path, result)
                    print(case.name, arm, result["metrics"]["psnr_db"], flush=True)
    educated_dip_tables.write_pages(full=options.full)


if __name__ == "__main__":
    main()
