"""The digits of the benchmark of uncertainty: scans, settings, and where results are."""

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from measuring import RESULTS

import dipct
from dipct.evaluation import (
    calibration_curve,
    gaussian_crps,
    gaussian_log_likelihood,
    pixel_log_likelihood,
    psnr,
)
from dipct.objective.conventions import CONVENTIONS, PUBLISHED_SETTINGS

FOLDER = RESULTS / "uncertainty_digits"
CELLS = tuple((noise, views) for noise in (0.05, 0.1) for views in (5, 10, 20, 30))
STEPS, DRAWS = 1500, 4096
PIXEL = "log_likelihood_pixel"


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


def path_of(index: int, noise: float, views: int, paper: bool) -> Path:
    name = f"{'paper-' if paper else ''}{views}-views-{round(100 * noise)}-percent-{index}"
    return FOLDER / f"{name}.json"


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
