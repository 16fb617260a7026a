"""Side questions to the benchmark of uncertainty: steps, forms of the evidence, seconds."""

import json
from pathlib import Path

import numpy as np
import torch
from measuring import machine, table, write_result
from uncertainty_digits_cases import (
    CELLS,
    DRAWS,
    FOLDER,
    PIXEL,
    of_draws,
    reconstruct,
    scan_of,
    score,
    settings,
)

import dipct
from dipct.pipeline.uncertainty import linearised_model_of
from dipct.posterior import (
    EvidenceAtWeights,
    ExactEvidence,
    MaternPrior,
    PathwisePosterior,
    StoredJacobian,
    gram_matrices,
    linear_weights,
    noise_correction,
)

AROUND = "evidence and TV"
FORMS = {
    "evidence": {"tv_prior": False, "evidence": "exact"},
    "its published form": {"tv_prior": False, "evidence": "at-weights"},
    "evidence and TV": {"evidence": "exact"},
    "evidence and TV as published": {"evidence": "exact", "tv_prior_convention": "bayes-dip"},
    "both as published": {"evidence": "at-weights", "tv_prior_convention": "bayes-dip"},
}


def step_counts() -> None:
    """What fewer steps lose: two digits with ours and with the published numbers of them."""
    path = FOLDER / "steps.json"
    if path.exists():
        return
    rows = []
    for index, (noise, views) in ((0, (0.05, 10)), (1, (0.1, 20))):
        scan = scan_of(index, noise, views)
        for name, paper in (("ours", False), ("published", True)):
            run = reconstruct(scan, 0, settings(scan, noise, views, paper))
            scores = dipct.quantify(run, evidence="exact").uncertainty.scores
            rows.append(
                {
                    "digit": index,
                    "noise": noise,
                    "views": views,
                    "steps": name,
                    "iterations": run.iterations,
                    "seconds": run.duration_s,
                    "psnr_db": run.metrics["psnr_db"],
                    "log_likelihood": scores["log_likelihood"],
                }
            )
            print(rows[-1], flush=True)
    write_result(path, {"rows": rows, "machine": machine()})


def steps_table() -> str:
    """Of :func:`step_counts`; empty if it has not run."""
    if not (path := FOLDER / "steps.json").exists():
        return ""
    rows = [
        [
            f"digit {r['digit']}, {r['views']} views, {round(100 * r['noise'])} %",
            str(r["iterations"]),
            f"{r['psnr_db']:.2f}",
            f"{r['log_likelihood']:.2f}",
        ]
        for r in json.loads(path.read_text())["rows"]
    ]
    header = ["scan", "steps", "PSNR [dB]", "log-likelihood [nat per pixel]"]
    return table(header, rows)


def forms_path(index: int, noise: float, views: int) -> Path:
    return FOLDER / f"forms-{views}-views-{round(100 * noise)}-percent-{index}.json"


def forms(work: list[tuple[int, float, int]]) -> None:
    """The published forms of evidence and hyperprior beside ours: digits, noises and views."""
    for index, noise, views in work:
        if (path := forms_path(index, noise, views)).exists():
            continue
        scan = scan_of(index, noise, views)
        run = reconstruct(scan, 0, settings(scan, noise, views, False))
        model, scale, operator = linearised_model_of(run, torch.device("cpu"))
        prior = MaternPrior(model.parameters)
        stored = StoredJacobian.of_data(model, prior.groups)
        gram = gram_matrices(stored, prior.groups, dtype=torch.float64)
        exactly = ExactEvidence(prior, gram, model.residual, model.noise_variance)
        weights = linear_weights(model, tv_weight=run.configuration["tv_weight"]).weights
        published = EvidenceAtWeights(prior, gram, model, weights)
        rows = {}
        for name, how in FORMS.items():
            found = dipct.quantify(run, **how).uncertainty
            phi = torch.tensor(list(found.hyperparameters.values())).double().log()
            rows[name] = {
                "evidence": exactly(phi).value,
                "at_weights": published(phi).value,
                "log_likelihood": found.scores["log_likelihood"],
                "log_likelihood_pixel": found.scores[PIXEL],
                "hyperparameters": dict(found.hyperparameters),
                "status": found.status,
            }
        phi = torch.tensor(list(rows[AROUND]["hyperparameters"].values())).double().log()
        posterior = PathwisePosterior(
            prior, phi, model, exactly.factorise(phi).solve, products=stored
        )
        correction = scale**2 * noise_correction(operator, model.noise_variance)
        truth, draws = scan.truth.astype(np.float64), {}
        for name, sample in (
            ("of the linear model", posterior.sample),
            ("through the network", posterior.sample_nonlinear),
        ):
            images = scale * sample(DRAWS // 2, seed=0)[:, 0].double().numpy()
            mean, covariance = of_draws(images)
            draws[name] = score(truth, mean, covariance, correction)
            draws[name]["std"] = float(np.sqrt(np.mean(np.diag(covariance))))
        write_result(path, {"rows": rows, "draws": draws, "machine": machine()})
        print(path.stem, flush=True)


def draws_table(done: list[dict]) -> str:
    """Draws of the linear model and of the network with the same weights."""
    header = ["draws", "standard deviation", "PSNR of the mean [dB]"]
    header += ["log-likelihood", "of single pixels"]
    rows = []
    for name in done[0]["draws"]:
        std, quality, together, single = (
            float(np.mean([each["draws"][name][key] for each in done]))
            for key in ("std", "psnr_db", "log_likelihood", PIXEL)
        )
        rows.append([name, f"{std:.3f}", f"{quality:.1f}", f"{together:.2f}", f"{single:.2f}"])
    return table(header, rows)


def forms_table() -> str:
    """Means over the cells that are done; empty if none is."""
    done = [
        json.loads(path.read_text())
        for index in range(50)
        for noise, views in CELLS
        if (path := forms_path(index, noise, views)).exists()
    ]
    if not done:
        return ""
    header = ["hyper-parameters by", "evidence", "its published form", "gap"]
    header += ["log-likelihood", "of single pixels"]
    rows = []
    for name in FORMS:
        mean = {
            key: float(np.mean([each["rows"][name][key] for each in done]))
            for key in ("evidence", "at_weights", "log_likelihood", PIXEL)
        }
        gap = mean["evidence"] - mean["at_weights"]
        nats = [f"{v:.0f}" for v in (mean["evidence"], mean["at_weights"], gap)]
        rows.append([name, *nats, f"{mean['log_likelihood']:.2f}", f"{mean[PIXEL]:.2f}"])
    return (
        f"{table(header, rows)}\n\nMeans over {len(done)} scans of the columns above. "
        f"Posterior draws of the same weights, {AROUND}:\n\n{draws_table(done)}"
    )


def timing() -> None:
    """What the uncertainty of one digit takes after its reconstruction, with 4096 samples."""
    rows = []
    for noise, views in ((0.05, 10), (0.05, 30)):
        scan = scan_of(0, noise, views)
        run = reconstruct(scan, 0, settings(scan, noise, views, False))
        found = dipct.quantify(run, evidence="exact", samples=DRAWS).uncertainty
        seconds = {"all": found.duration_s, **found.stage_seconds}
        rows.append({"views": views, "samples": len(found.samples), "seconds": seconds})
        print(rows[-1], flush=True)
    write_result(FOLDER / "timing.json", {"rows": rows, "machine": machine()})


def timing_text() -> str:
    """Seconds by stage; empty if it has not run."""
    if not (path := FOLDER / "timing.json").exists():
        return ""
    done = json.loads(path.read_text())
    lines = [
        f"{row['views']} views: {row['seconds']['all']:.0f} s ({row['seconds']['gram']:.0f} s "
        f"Jacobian and Gram matrices, {row['seconds']['tuning']:.0f} s tuning)"
        for row in done["rows"]
    ]
    return (
        f"One digit, exact evidence with total variation, map and {DRAWS} samples after its "
        f"reconstruction, {done['machine']['threads']} threads, load "
        f"{done['machine']['load_before']:.1f} before: {'; '.join(lines)}."
    )
