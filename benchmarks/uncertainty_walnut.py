"""Claim: the exact evidence of the walnut at 501 x 501 pixels takes minutes on one GPU.

The simulated walnut in the geometry of its scanner, the published network of 2.97 million
parameters: 60 views of 128 columns (7680 data), and 120 views, the problem twice as large. DIP with
total variation, then linearised Laplace with evidence and total variation prior: exact from Gram
matrices held on the GPU where they fit, else by stochastic estimates. Every call works for so many
seconds and goes on after the last stage that was finished: Jacobian and Gram matrices are one, and
have to fit into a call.

    python benchmarks/uncertainty_walnut.py --seconds 540              # again until it says done
    python benchmarks/uncertainty_walnut.py --only 60                  # one number of views
    python benchmarks/uncertainty_walnut.py --device cpu --pixels 48   # small, to try it out
    python benchmarks/uncertainty_walnut.py --table                    # table and pictures only
"""

import argparse
import json
from pathlib import Path

import real_scans
import torch
from educated_dip_paper import limited
from measuring import RESULTS, machine, replace_section, table, write_result

import dipct
from dipct.errors import Interrupted
from dipct.figures import save_figure, uncertainty_figure
from dipct.pipeline import remove_checkpoint
from dipct.pipeline.stages import remove_stages

FOLDER = RESULTS / "uncertainty_walnut"
VIEWS, PIXELS, MARGIN = (60, 120), 501, 0.1
# Draws of the larger problem cost conjugate gradients each.
DRAWS = {60: 4096, 120: 128}
STEPS = 2000
# Columns taken together where a small image is tried out.
SMALL_BINS = 8
STAGES = {"gram": "Gram matrices", "edges": "total variation", "tuning": "tuning", "draws": "draws"}


def reconstruction(views: int, pixels: int, device: str, runs: Path) -> dipct.Run:
    path = runs / f"walnut-{views}-dip.h5"
    if not path.exists():
        checkpoint = path.with_suffix(".checkpoint")
        scan = dipct.simulate("example:walnut", pixels=pixels, views=views, seed=0)
        run = dipct.reconstruct(
            scan if pixels == PIXELS else scan.bin_detector(SMALL_BINS),
            method="dip",
            network="walnut" if pixels == PIXELS else "small",
            iterations=STEPS,
            stopping="none",
            device=device,
            checkpoint=checkpoint,
            resume=checkpoint.exists(),
            progress=True,
        )
        dipct.write_run(run, path)
        remove_checkpoint(checkpoint)
    return dipct.read_run(path)


def quantified(views: int, pixels: int, device: str, runs: Path, pictures: Path) -> dict:
    run, stages = reconstruction(views, pixels, device, runs), runs / f"walnut-{views}.stages"
    run = dipct.quantify(
        run,
        device=device,
        draws=DRAWS[views] if pixels == PIXELS else 64,
        iterations=100,
        score_margin=round(MARGIN * pixels),
        checkpoint=stages,
        resume=stages.exists(),
        progress=True,
    )
    dipct.write_run(run, runs / f"walnut-{views}.h5")
    found = run.uncertainty
    assert found is not None
    save_figure(
        uncertainty_figure(run, found),
        pictures / f"uncertainty-walnut-501-{views}-views.png",
        dots_per_inch=70,
    )
    remove_stages(stages)
    return {
        "views": views,
        "pixels": pixels,
        "data": run.scan.projections.size,
        "weights": int(run.generator["theta"].size),
        "evidence": found.settings["evidence"],
        "kept": found.settings["kept"],
        "draws": int(found.settings["draws"]),
        "log_evidence": found.log_evidence,
        "log_evidence_error": found.log_evidence_error,
        "status": found.status,
        "advice": found.advice,
        "scores": dict(found.scores),
        "checks": dict(found.checks),
        "hyperparameters": dict(found.hyperparameters),
        "stage_seconds": dict(found.stage_seconds),
        "seconds": found.duration_s,
        "dip_seconds": run.duration_s,
        "psnr_db": run.metrics["psnr_db"],
        "passes": found.network_passes,
        "device": device_name(device),
        "machine": machine(),
    }


def device_name(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def write_pages(folder: Path) -> None:
    rows, pictures = [], []
    for views in VIEWS:
        path = folder / f"walnut-{views}.json"
        if not path.exists():
            continue
        r = json.loads(path.read_text())
        scores = r["scores"]
        error = f" ± {r['log_evidence_error']:.0f}" if r["log_evidence_error"] else ""
        rows.append(
            [
                f"{views} views, {r['device']}",
                f"{r['data']} x {r['weights']}",
                f"{r['evidence']}, {r['kept']}",
                f"{r['log_evidence']:.0f}{error}, {r['status']}",
                f"{scores['log_likelihood_pixel']:.2f}",
                f"{scores['log_likelihood_patch_2']:.2f}",
                f"{scores['log_likelihood_patch_10']:.2f}",
                *(f"{r['stage_seconds'].get(name, 0):.0f}" for name in STAGES),
                f"{r['seconds'] / 60:.1f}",
            ]
        )
        pictures.append(f"![{views} views](pictures/uncertainty-walnut-501-{views}-views.png)")
    if rows:
        header = ["scan", "data x parameters", "evidence, Jacobian", "log evidence"]
        header += ["log-likelihood, pixels", "2 x 2", "10 x 10"]
        header += [*(f"{title} [s]" for title in STAGES.values()), "all [min]"]
        text = "\n\n".join([table(header, rows), *pictures])
        replace_section(real_scans.DOCS / "uncertainty.md", "walnut-table", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1e6, help="stop after so many")
    parser.add_argument("--only", type=int, choices=VIEWS, help="only so many views")
    parser.add_argument("--device", default="cuda", help="where to compute")
    parser.add_argument("--pixels", type=int, default=PIXELS, help="along a side of the image")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--table", action="store_true", help="only table and pictures")
    options = parser.parse_args()
    runs = options.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    pictures = real_scans.DOCS / "pictures" if options.out == FOLDER else options.out
    if options.pixels != PIXELS and options.out == FOLDER:
        parser.error("results of another size need a folder of their own: --out")
    try:
        with limited(options.seconds):
            for views in [] if options.table else [options.only] if options.only else VIEWS:
                path = options.out / f"walnut-{views}.json"
                if not path.exists():
                    done = quantified(views, options.pixels, options.device, runs, pictures)
                    write_result(path, done)
    except (Interrupted, KeyboardInterrupt) as reason:
        print(reason or "Stopped while setting up.", "Run it again.")
        return
    if options.out == FOLDER:
        write_pages(options.out)
    print("done")


if __name__ == "__main__":
    main()
