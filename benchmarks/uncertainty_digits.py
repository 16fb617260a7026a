"""Claim: the linearised Deep Image Prior knows its error better than dropout or an ensemble.

Handwritten digits of 28 x 28 pixels, 5 to 30 views, 5 and 10 % noise, as in Antoran et al. (arXiv
2203.00479) with digits of MNIST for those of KMNIST: test log-likelihood of the true image. The
fits take fewer steps than published, at ten times the rate and falling; --steps asks what it loses.

    DIPCT_DATA=... python benchmarks/uncertainty_digits.py               # runs what is not done yet
    python benchmarks/uncertainty_digits.py --images 5                   # of the 20 of each cell
    python benchmarks/uncertainty_digits.py --part 0/2                   # every second run
    python benchmarks/uncertainty_digits.py --steps                      # more steps, two images
    python benchmarks/uncertainty_digits.py --forms                      # those published too
    python benchmarks/uncertainty_digits.py --timing                     # one map, if idle
    python benchmarks/uncertainty_digits.py --table                      # table and pictures only

--paper takes 50 images and the published numbers of steps and rates.
"""

import argparse
import json
import time

import numpy as np
import torch
from measuring import machine, write_result
from uncertainty_digits_cases import (
    CELLS,
    DRAWS,
    FOLDER,
    STEPS,
    of_draws,
    path_of,
    reconstruct,
    scan_of,
    score,
    settings,
)
from uncertainty_digits_questions import forms, step_counts, timing
from uncertainty_digits_tables import write_pages

import dipct
from dipct.generator import channel_dropout
from dipct.objective import GaussianFidelity
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

IMAGES, ENSEMBLE = 20, 3
RATES, TUNING_IMAGES, TUNING_CELL = (0.01, 0.05, 0.1, 0.2), (9000, 9001), (0.05, 10)
AT_ONCE, CLIP, BETAS = 512, 0.1, (0.9, 0.99)
TUNING_DRAWS = 1024


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only tables")
    parser.add_argument("--steps", action="store_true", help="only the numbers of steps")
    parser.add_argument("--forms", action="store_true", help="only the published forms")
    parser.add_argument("--timing", action="store_true", help="only the time of one map")
    parser.add_argument("--paper", action="store_true", help="published numbers of steps")
    parser.add_argument("--images", type=int, default=None, help="digits of each cell")
    parser.add_argument("--part", default="0/1", help="which of how many shares of the work")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    if options.steps:
        step_counts()
    elif options.forms:
        work = [(i, *cell) for i in range(options.images or 1) for cell in CELLS]
        forms(work[part::parts])
    elif options.timing:
        timing()
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
