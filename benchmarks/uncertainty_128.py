"""Claim: the exact evidence of a 128 x 128 image takes minutes on two cores, and stays calibrated.

A simulated walnut with 20 parallel views, and the HTC2022 disc `ta` with 30 views: linearised
Laplace around the network of 64 channels (448 704 weights), evidence exact from Gram matrices; at
the hyper-parameters found the stochastic estimates of value and gradient are held against it.

    DIPCT_DATA=... python benchmarks/uncertainty_128.py                # runs what is not done yet
    python benchmarks/uncertainty_128.py --only walnut                 # one scan
    python benchmarks/uncertainty_128.py --table                       # table and pictures only
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import real_scans
import torch
from measuring import RESULTS, machine, replace_section, table, write_result
from skimage.transform import resize_local_mean

import dipct
from dipct.figures import save_figure, uncertainty_figure
from dipct.pipeline.uncertainty import linearised_model_of
from dipct.posterior import (
    ExactEvidence,
    LinearisedModel,
    MaternPrior,
    StochasticEvidence,
)

FOLDER = RESULTS / "uncertainty_128"
RUNS = FOLDER / "runs"
PIXELS, STEPS, DRAWS, PROBES = 128, 3000, 512, 10
# Share of the peak above which a pixel belongs to the object.
OBJECT = 0.05
SCANS = ("walnut", "ta")
# The reference of the disc is not zero in the empty corners: scores are of the square inside it.
MARGIN = {"walnut": 0, "ta": 22}
# Titles, settings.
ARMS = {
    "evidence-and-tv": ("evidence and TV", {}),
    "evidence": ("evidence", {}),
    "evidence-no-floor": ("evidence, variances down to 1e-9", {"lowest_variance": 1e-9}),
}
# One step of the published tuning without total variation: probes and one more right-hand side, ten
# iterations of conjugate gradients, forwards and backwards; of the preconditioner, rank and
# oversampling, every hundredth step. Of its total variation prior: draws of each block.
PUBLISHED = {"steps": 3000, "probes": 10, "iterations": 11, "rank": 210, "draws": 20}


def load(name: str) -> dipct.Scan:
    if name == "walnut":
        return dipct.simulate("walnut", geometry="parallel", pixels=PIXELS, views=20, seed=0)
    scan, _, _ = real_scans.load(name)
    image = dipct.reconstruct(scan, method="fbp", filter="hann").image
    truth = resize_local_mean(image, (PIXELS, PIXELS))
    scan = scan.bin_detector(4)
    scan = scan.with_grid(scan.grid.resized(PIXELS)).equispaced_views(30)
    return replace(scan, truth=truth, truth_source="full-view FBP, averaged to the grid")


def reconstruction(name: str) -> dipct.Run:
    path = RUNS / f"{name}-dip.h5"
    if not path.exists():
        checkpoint = path.with_suffix(".checkpoint")
        run = dipct.reconstruct(
            load(name),
            method="dip",
            iterations=STEPS,
            stopping="none",
            checkpoint=checkpoint,
            resume=checkpoint.exists(),
            progress=True,
        )
        dipct.write_run(run, path)
        checkpoint.unlink(missing_ok=True)
    return dipct.read_run(path)


def exact(name: str, words: str) -> dict:
    """Tuned hyper-parameters, draws and scores."""
    run, path, tv_prior = reconstruction(name), RUNS / f"{name}-{words}.h5", "tv" in words
    # Both ways of tuning share the Gram matrices in it.
    stages = RUNS / f"{name}.stages"
    run = dipct.quantify(
        run,
        evidence="exact",
        tv_prior=tv_prior,
        draws=DRAWS,
        score_margin=MARGIN[name],
        **ARMS[words][1],
        checkpoint=stages,
        resume=stages.exists(),
        progress=True,
    )
    dipct.write_run(run, path)
    found = run.uncertainty
    assert found is not None
    save_figure(
        uncertainty_figure(run, found),
        real_scans.DOCS / "pictures" / f"uncertainty-{name}-{words}.png",
        dots_per_inch=70,
    )
    model, _, _ = linearised_model_of(run, torch.device("cpu"))
    return {
        "scores": dict(found.scores),
        "std_over_error": std_over_error(run, found),
        "hyperparameters": dict(found.hyperparameters),
        "log_evidence": found.log_evidence,
        "status": found.status,
        "advice": found.advice,
        "iterations": len(found.trace["noise"]) - 1,
        "passes": found.network_passes,
        "passes_without_draws": passes_without_draws(model, found, tv_prior),
        "published_passes": published_passes(
            len(MaternPrior(model.parameters).length_scales), tv_prior
        ),
        "seconds": found.duration_s,
        "stage_seconds": dict(found.stage_seconds),
        "storage": found.settings["kept"],
        "data": model.n_data,
        "weights": model.n_weights,
        "psnr_db": run.metrics["psnr_db"],
        "discrepancy": run.metrics["reduced_chi_squared"],
        "machine": machine(),
    }


def std_over_error(run: dipct.Run, found: dipct.Uncertainty) -> float:
    """Root mean squares inside the object."""
    truth = run.scan.truth
    inside = truth > OBJECT * truth.max()
    margin = int(found.settings["score_margin"])
    inside[:margin], inside[-margin or len(inside) :] = False, False
    inside[:, :margin], inside[:, -margin or len(inside) :] = False, False
    error = found.mean[inside] - truth[inside]
    return float(np.sqrt(np.mean(found.std[inside] ** 2) / np.mean(error**2)))


def passes_without_draws(model: LinearisedModel, found: dipct.Uncertainty, tv_prior: bool) -> int:
    """One for every datum, one for the residual, and those of the total variation prior."""
    positions = sum(group.positions for group in MaternPrior(model.parameters).groups)
    variation = int(found.settings["tv_probes"]) * positions if tv_prior else 0
    return model.n_data + 1 + variation


def published_passes(blocks: int, tv_prior: bool) -> int:
    """Passes of the published configuration, without its samples."""
    p = PUBLISHED
    solves = p["steps"] * (p["probes"] + 1) * p["iterations"] * 2
    preconditioner = p["steps"] // 100 * p["rank"] * 2
    variation = p["steps"] * blocks * p["draws"] * 2 if tv_prior else 0
    return solves + preconditioner + variation


def recomputed_passes(result: dict) -> int:
    """Ours without draws where the Jacobian is computed anew for every block."""
    blocks = sum(name.endswith("variance") for name in result["hyperparameters"])
    return result["passes_without_draws"] + (blocks - 1) * result["data"]


def gram_file(name: str) -> Path:
    """Where the Gram matrices were kept."""
    (path,) = (RUNS / f"{name}.stages").glob("gram-*.pt")
    return path


def stochastic(name: str) -> dict:
    """Estimates by passes through the network at the hyper-parameters that were found."""
    run = dipct.read_run(RUNS / f"{name}-evidence-and-tv.h5")
    model, _, _ = linearised_model_of(run, torch.device("cpu"))
    prior = MaternPrior(model.parameters)
    gram = torch.load(gram_file(name), weights_only=True)["result"]["gram"]
    evidence = ExactEvidence(prior, gram, model.residual, model.noise_variance)
    phi = torch.tensor(list(run.uncertainty.hyperparameters.values())).double().log()
    exactly = evidence(phi)
    estimates = StochasticEvidence(
        prior, model, model.residual, model.noise_variance, probes=PROBES
    )
    before, began = model.jacobian.passes.total, time.perf_counter()
    near = estimates.preconditioner(phi, seed=0)
    gradient = estimates.gradient(phi, seed=0, preconditioner=near)
    value = estimates.log_density(phi, seed=1, preconditioner=near)
    return {
        "names": list(evidence.names),
        "exact_gradient": exactly.gradient.tolist(),
        "gradient": gradient.gradient.tolist(),
        "gradient_error": gradient.standard_error.tolist(),
        "exact_value": exactly.value,
        "value": value.value,
        "value_error": value.standard_error,
        "residuals": gradient.solution.residuals.tolist(),
        "solved": gradient.solution.converged,
        "lanczos_converged": value.log_det.converged,
        "passes": model.jacobian.passes.total - before,
        "seconds": time.perf_counter() - began,
        "machine": machine(),
    }


def write_pages() -> None:
    page, rows, pictures, checks = real_scans.DOCS / "uncertainty.md", [], [], []
    for name in SCANS:
        for words, (title, _) in ARMS.items():
            path = FOLDER / f"{name}-{words}.json"
            if not path.exists():
                continue
            r = json.loads(path.read_text())
            scores = r["scores"]
            rows.append(
                [
                    name,
                    title,
                    f"{r['data']} x {r['weights']}",
                    f"{r['log_evidence']:.0f}",
                    f"{r['std_over_error']:.2f}",
                    f"{scores['log_likelihood_pixel']:.2f}",
                    f"{scores['log_likelihood_patch_2']:.2f}",
                    f"{scores['log_likelihood_patch_10']:.2f}",
                    f"{scores['signed_calibration_error']:+.2f}",
                    f"{scores['error_correlation_spearman']:.2f}",
                    str(r["passes"]),
                    f"{r['published_passes'] / r['passes_without_draws']:.0f} "
                    f"({r['published_passes'] / recomputed_passes(r):.0f})",
                    f"{r['seconds'] / 60:.0f} ({r['machine']['threads']})",
                ]
            )
            pictures.append(f"![{name}, {title}](pictures/uncertainty-{name}-{words}.png)")
        if (path := FOLDER / f"{name}-stochastic.json").exists():
            checks.append(check_text(name, json.loads(path.read_text())))
    if rows:
        header = ["scan", "tuned by", "data x weights", "log evidence", "std / error"]
        header += [
            "log-likelihood, pixels",
            "2 x 2",
            "10 x 10",
            "calibration",
            "std with error",
            "passes",
        ]
        header += ["published passes / ours", "minutes (threads)"]
        replace_section(page, "128-table", "\n\n".join([table(header, rows), *checks, *pictures]))


def check_text(name: str, r: dict) -> str:
    exactly, found, error = (
        np.array(r[k]) for k in ("exact_gradient", "gradient", "gradient_error")
    )
    inside = int(np.sum(np.abs(found - exactly) < 2 * error))
    value = f"value {r['value']:.1f} ± {r['value_error']:.1f} nat, exactly {r['exact_value']:.1f}; "
    failed = ""
    if not r["solved"]:
        value = f"no value (exactly {r['exact_value']:.1f} nat); "
        failed = " The linear systems were not solved, and the estimates say so."
    return (
        f"`{name}`, stochastic estimates at the hyper-parameters of evidence and TV, {PROBES} "
        f"probes: {value}{inside} of {len(found)} components of the gradient within two standard "
        f"errors; largest residual of a linear system {max(r['residuals']):.1e}; {r['passes']} "
        f"passes, {r['seconds'] / 60:.0f} minutes.{failed}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only table and pictures")
    parser.add_argument("--only", choices=SCANS, help="only one scan")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for name in [options.only] if options.only else SCANS:
            for words in (*ARMS, "stochastic"):
                path = FOLDER / f"{name}-{words}.json"
                if not path.exists():
                    done = stochastic(name) if words == "stochastic" else exact(name, words)
                    write_result(path, done)
    write_pages()


if __name__ == "__main__":
    main()
