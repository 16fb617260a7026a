"""Claim: the linearised Deep Image Prior knows its error better than dropout or an ensemble.

Handwritten digits of 28 x 28 pixels, 5 to 30 views, 5 and 10 % noise, as in Antoran et al. (arXiv
2203.00479) with digits of MNIST for those of KMNIST: test log-likelihood of the true image. The
fits take fewer steps than published, at ten times the rate and falling; --steps asks what it loses.

    DIPCT_DATA=... python benchmarks/uncertainty_digits.py               # runs what is not done yet
    python benchmarks/uncertainty_digits.py --images 5                   # of the 20 of each cell
    python benchmarks/uncertainty_digits.py --part 0/2                   # every second run
    python benchmarks/uncertainty_digits.py --steps                      # more steps, two images
    python benchmarks/uncertainty_digits.py --table                      # table and pictures only

--paper takes 50 images and the published numbers of steps and rates.
"""

import argparse
import gzip
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import real_scans
import torch
from measuring import RESULTS, machine, replace_section, table, write_result

import dipct
from dipct.evaluation import (
    calibration_curve,
    gaussian_crps,
    gaussian_log_likelihood,
    pixel_log_likelihood,
    psnr,
)
from dipct.generator import channel_dropout
from dipct.objective import GaussianFidelity
from dipct.objective.conventions import CONVENTIONS, PUBLISHED_SETTINGS
from dipct.pipeline.deep_image_prior import generator_of
from dipct.pipeline.uncertainty import linearised_model_of
from dipct.posterior import (
    DensePosterior,
    ExactEvidence,
    MaternPrior,
    PixelProcess,
    StoredJacobian,
    TotalVariationPrior,
    edge_variances_of_gram,
    gram_matrices,
    noise_correction,
    tune,
)
from dipct.solver import Adam, CosineDecay, DropoutOptimiser, LastIterate, iterate
from dipct.solver.deep_image_prior import deep_image_prior_fit

FOLDER = RESULTS / "uncertainty_digits"
CELLS = tuple((noise, views) for noise in (0.05, 0.1) for views in (5, 10, 20, 30))
IMAGES, STEPS, ENSEMBLE = 20, 1500, 3
RATES, TUNING_IMAGES, TUNING_CELL = (0.01, 0.05, 0.1, 0.2), (9000, 9001), (0.05, 10)
DRAWS, AT_ONCE, CLIP, BETAS = 4096, 512, 0.1, (0.9, 0.99)
TUNING_DRAWS = 1024
PIXEL = "log_likelihood_pixel"
METHODS = (
    "DIP, noise as measured",
    "DIP, noise tuned",
    "pixel process",
    "ensemble of three",
    "dropout, no TV",
    "dropout, TV",
    "linearised, evidence",
    "linearised, evidence and TV",
    "linearised, linear mean",
)


def digit(index: int) -> np.ndarray:
    """A handwritten digit with values from 0 to 1."""
    path = Path(os.environ["DIPCT_DATA"]) / "mnist" / "t10k-images-idx3-ubyte.gz"
    values = np.frombuffer(gzip.open(path).read(), np.uint8, offset=16)
    return (values.reshape(-1, 28, 28)[index] / 255).astype(np.float32)


def scan_of(index: int, noise: float, views: int) -> dipct.Scan:
    """A scan of a digit by the very matrix that reconstructs it, as in the paper."""
    truth = digit(index)
    geometry = dipct.ParallelGeometry(np.arange(views) * np.pi / views, 41)
    grid = dipct.Grid((28, 28))
    clean = dipct.ray_transform(geometry, grid)(torch.from_numpy(truth)[None]).numpy()
    std = float(noise * np.abs(clean).mean())
    rng = np.random.default_rng(1 + index)
    return dipct.Scan(
        (clean + std * rng.standard_normal(clean.shape)).astype(np.float32),
        geometry,
        grid,
        noise=dipct.GaussianNoise(std),
        truth=truth,
        truth_source=f"MNIST test digit {index}",
    )


def settings(scan: dipct.Scan, noise: float, views: int, paper: bool) -> dict:
    published = PUBLISHED_SETTINGS[f"kmnist-{views}-views-{round(100 * noise)}-percent"]
    steps = published.iterations
    weight = CONVENTIONS[published.convention].tv_weight(
        published.gamma,
        n_measurements=scan.projections.size,
        image_shape=published.image_shape,
        std=scan.noise.std,
    )
    chosen = {"tv_weight": float(weight), "iterations": steps if paper else STEPS}
    if paper:
        chosen |= {"learning_rate": 1e-4, "decay": False, "warm_up": 0}
    return chosen


def reconstruct(scan: dipct.Scan, seed: int, chosen: dict) -> dipct.Run:
    return dipct.reconstruct(
        scan, method="dip", stopping="none", precision="float32", seed=seed, **chosen
    )


def score(
    truth: np.ndarray, mean: np.ndarray, covariance: np.ndarray, correction: float
) -> dict[str, float]:
    """Of a Gaussian; the same correction for noise for all methods."""
    total = covariance + correction * np.eye(truth.size)
    total = (total + total.T) / 2
    std = np.sqrt(np.diag(total)).reshape(truth.shape)
    return {
        "log_likelihood": gaussian_log_likelihood(truth, mean, total),
        "log_likelihood_pixel": pixel_log_likelihood(truth, mean, std),
        "calibration": calibration_curve(truth, mean, std).signed_error,
        "crps": gaussian_crps(truth, mean, std),
        "psnr_db": psnr(mean, truth),
    }


def of_draws(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean image and covariance of images (N, H, W)."""
    mean = draws.mean(0)
    flat = (draws - mean).reshape(len(draws), -1)
    return mean, flat.T @ flat / (len(draws) - 1)


def dropout_draws(
    scan: dipct.Scan, run: dipct.Run, rate: float, tv: bool, number: int = DRAWS
) -> np.ndarray:
    """Images of a network fitted under dropout, by the scan's own settings."""
    generator, _, scale = generator_of(run)
    operator = scale * dipct.ray_transform(scan.geometry, scan.grid)
    data, steps = torch.from_numpy(scan.projections), run.iterations
    schedule = CosineDecay(steps, run.configuration["warm_up"])
    schedule = schedule if run.configuration["decay"] else None
    rate_of_adam = run.configuration["learning_rate"]
    adam = Adam(rate_of_adam, schedule=schedule, clip=CLIP, betas=BETAS)
    fit = deep_image_prior_fit(
        operator,
        GaussianFidelity(data, scan.noise.std),
        network=generator.network,
        z=generator.z,
        tv_weight=run.configuration["tv_weight"] if tv else 0.0,
        iterations=steps,
        optimiser=DropoutOptimiser(adam, generator.layout, rate, seed=0),
        stopping=LastIterate(),
        precision="float32",
        seed=0,
    )
    theta = iterate(fit, max_iterations=steps, every=steps).state.tensors["chosen"]
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        images = [
            scale * generator(theta * channel_dropout(generator.layout, rate, AT_ONCE, random))
            for _ in range(number // AT_ONCE)
        ]
        return torch.cat(images).numpy()[:, 0].astype(np.float64)


def tune_rates() -> dict[str, float]:
    """Rates of dropout with the highest likelihood on digits of their own."""
    path = FOLDER / "rates.json"
    if not path.exists():
        found = {}
        for name, tv in (("dropout, no TV", False), ("dropout, TV", True)):
            values = dict.fromkeys(map(str, RATES), 0.0)
            for index in TUNING_IMAGES:
                scan = scan_of(index, *TUNING_CELL)
                run = reconstruct(scan, 0, settings(scan, *TUNING_CELL, False) | {"iterations": 1})
                run = dipct.Run(**vars(run) | {"iterations": STEPS})
                correction = noise_correction(
                    dipct.ray_transform(scan.geometry, scan.grid),
                    torch.full((scan.projections.size,), scan.noise.std**2),
                )
                for rate in RATES:
                    mean, covariance = of_draws(dropout_draws(scan, run, rate, tv, TUNING_DRAWS))
                    done = score(scan.truth.astype(float), mean, covariance, correction)
                    values[str(rate)] += done["log_likelihood"] / len(TUNING_IMAGES)
            found[name] = values
        write_result(path, {"log_likelihood": found, "machine": machine()})
    stored = json.loads(path.read_text())["log_likelihood"]
    return {name: float(max(values, key=values.get)) for name, values in stored.items()}


def run_image(index: int, noise: float, views: int, rates: dict, paper: bool) -> dict:
    """All methods on one scan."""
    scan = scan_of(index, noise, views)
    truth, chosen = scan.truth.astype(np.float64), settings(scan, noise, views, paper)
    began, found, seconds = time.perf_counter(), {}, {}

    def clock(name: str) -> None:
        nonlocal began
        seconds[name], began = time.perf_counter() - began, time.perf_counter()

    runs = [reconstruct(scan, seed, chosen) for seed in range(ENSEMBLE)]
    clock("ensemble")
    image = runs[0].image.astype(np.float64)
    model, scale, operator = linearised_model_of(runs[0], torch.device("cpu"))
    prior = MaternPrior(model.parameters)
    stored = StoredJacobian.of_image(model, prior.groups)
    gram = gram_matrices(stored, prior.groups, dtype=torch.float64)
    matrix = model.operator.to_matrix().double()
    evidence = ExactEvidence(
        prior,
        torch.stack([matrix @ each @ matrix.T for each in gram]),
        model.residual,
        model.noise_variance,
    )
    correction = scale**2 * noise_correction(operator, model.noise_variance)
    edges = edge_variances_of_gram(gram, model.image, prior.groups)
    hyperprior = TotalVariationPrior(prior, edges, chosen["tv_weight"])
    tunings = {"evidence": tune(evidence), "evidence and TV": tune(evidence, hyperprior)}
    for name, tuning in tunings.items():
        for mean in ("reconstruction", "linear"):
            posterior = DensePosterior(prior, tuning.phi, gram, model, mean=mean)
            centre = scale * posterior.mean[0].double().numpy()
            covariance = scale**2 * posterior.covariance.numpy()
            if mean == "linear" and name == "evidence":
                continue
            key = f"linearised, {name}" if mean == "reconstruction" else "linearised, linear mean"
            found[key] = score(truth, centre, covariance, correction)
    clock("linearised")
    nothing = np.zeros((truth.size, truth.size))
    found["DIP, noise as measured"] = score(truth, image, nothing, correction)
    factor = tunings["evidence"].values["noise"]
    found["DIP, noise tuned"] = score(truth, image, nothing, factor * correction)
    draws = np.stack([run.image.astype(np.float64) for run in runs])
    found["ensemble of three"] = score(truth, *of_draws(draws), correction)
    process = PixelProcess(
        dipct.ray_transform(scan.geometry, scan.grid),
        torch.from_numpy(scan.projections),
        scan.noise.std**2,
    )
    found["pixel process"] = score(
        truth, process.mean[0].double().numpy(), process.covariance.numpy(), correction
    )
    clock("pixel process")
    for name, tv in (("dropout, no TV", False), ("dropout, TV", True)):
        draws = dropout_draws(scan, runs[0], rates[name], tv)
        found[name] = score(truth, *of_draws(draws), correction)
    clock("dropout")
    return {
        "scores": found,
        "hyperparameters": {name: each.values for name, each in tunings.items()},
        "log_evidence": {name: each.log_evidence for name, each in tunings.items()},
        "converged": {name: each.converged for name, each in tunings.items()},
        "discrepancy": runs[0].metrics["reduced_chi_squared"],
        "seconds": seconds,
        "settings": chosen,
        "machine": machine(),
    }


def path_of(index: int, noise: float, views: int, paper: bool) -> Path:
    name = f"{'paper-' if paper else ''}{views}-views-{round(100 * noise)}-percent-{index}"
    return FOLDER / f"{name}.json"


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
            scores = dipct.quantify(run).uncertainty.scores
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


def stored(paper: bool) -> dict[tuple[float, int], list[dict]]:
    """Results that exist, by cell."""
    found = {}
    for noise, views in CELLS:
        paths = [path_of(index, noise, views, paper) for index in range(50)]
        found[noise, views] = [json.loads(p.read_text()) for p in paths if p.exists()]
    return found


def write_pages(paper: bool) -> None:
    page, results = real_scans.DOCS / "uncertainty.md", stored(paper)
    cells = [cell for cell in CELLS if results[cell]]
    if cells:
        header = ["method", *[f"{v} views, {round(100 * n)} %" for n, v in cells]]
        text = []
        for key, title, digits in (
            ("log_likelihood", "Log-likelihood of the true image [nat per pixel]", 2),
            ("log_likelihood_pixel", "Of single pixels [nat]", 2),
            ("psnr_db", "PSNR of the mean [dB]", 1),
        ):
            rows = []
            for name in METHODS:
                row = [name]
                for cell in cells:
                    values = [r["scores"][name][key] for r in results[cell]]
                    error = np.std(values) / math.sqrt(max(len(values) - 1, 1))
                    spread = f" ± {error:.{digits}f}" if len(values) > 1 else ""
                    row.append(f"{np.mean(values):.{digits}f}{spread}")
                rows.append(row)
            text.append(f"{title}, mean and standard error:\n\n{table(header, rows)}")
        counts = ", ".join(str(len(results[cell])) for cell in cells)
        text.append(f"Digits in each column: {counts}.")
        for key, what in (("log_likelihood", "all pixels together"), (PIXEL, "single pixels")):
            behind = [
                f"{views} views, {round(100 * noise)} %"
                for noise, views in cells
                if not is_ahead(results[noise, views], key)
            ]
            text.append(
                f"By the likelihood of {what} the better of the two linearised priors is ahead of "
                "the better of the two dropouts "
                + (f"but for {'; '.join(behind)}." if behind else "in every column.")
            )
        replace_section(page, "digits-table", "\n\n".join(text))
    if (path := FOLDER / "steps.json").exists():
        rows = [
            [
                f"digit {r['digit']}, {r['views']} views, {round(100 * r['noise'])} %",
                str(r["iterations"]),
                f"{r['seconds']:.0f}",
                f"{r['psnr_db']:.2f}",
                f"{r['log_likelihood']:.2f}",
            ]
            for r in json.loads(path.read_text())["rows"]
        ]
        header = ["scan", "steps", "seconds", "PSNR [dB]", "log-likelihood [nat per pixel]"]
        replace_section(page, "digits-steps", table(header, rows))


def is_ahead(results: list[dict], key: str) -> bool:
    """Whether the linearised prior has the higher mean likelihood."""
    mean = {name: np.mean([r["scores"][name][key] for r in results]) for name in METHODS}
    best = max(mean["linearised, evidence"], mean["linearised, evidence and TV"])
    return bool(best > max(mean["dropout, no TV"], mean["dropout, TV"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only tables")
    parser.add_argument("--steps", action="store_true", help="only the numbers of steps")
    parser.add_argument("--paper", action="store_true", help="published numbers of steps")
    parser.add_argument("--images", type=int, default=None, help="digits of each cell")
    parser.add_argument("--part", default="0/1", help="which of how many shares of the work")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    if options.steps:
        step_counts()
    elif not options.table:
        rates = tune_rates()
        images = options.images or (50 if options.paper else IMAGES)
        work = [(i, *cell) for i in range(images) for cell in CELLS]
        for job in work[part::parts]:
            path = path_of(*job, options.paper)
            if path.exists():
                continue
            write_result(path, run_image(*job, rates, options.paper))
            print(path.stem, flush=True)
    write_pages(options.paper)


if __name__ == "__main__":
    main()
