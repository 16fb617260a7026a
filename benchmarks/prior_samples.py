"""Claim: a prior on filters is a prior on what the network sees, not on any image.

Draws of priors of a 28 x 28 image, side by side: independent weights, Matern filters, Matern
filters with the total variation prior, a Matern process of pixels, and total variation itself by
Markov chain Monte Carlo. Hyper-parameters are those tuned to one scan of a handwritten digit.

    DIPCT_DATA=... python benchmarks/prior_samples.py            # runs what is not done yet
    python benchmarks/prior_samples.py --table                   # table and picture only
"""

import argparse
import json

import numpy as np
import real_scans
import torch
from matplotlib.figure import Figure
from measuring import RESULTS, machine, replace_section, table, write_result
from uncertainty_digits_cases import reconstruct, scan_of, settings

import dipct
from dipct.figures import save_figure
from dipct.objective import total_variation
from dipct.pipeline.uncertainty import linearised_model_of
from dipct.posterior import (
    ExactEvidence,
    MaternPrior,
    PixelProcess,
    StoredJacobian,
    TotalVariationPrior,
    edge_variances_of_gram,
    gram_matrices,
    tune,
)

FOLDER = RESULTS / "prior_samples"
CELL, DRAWS, SHOWN = (0.05, 10), 200, 4
PRIORS = (
    "independent weights",
    "Matern",
    "Matern and total variation",
    "pixel process",
    "total variation",
)
SWEEPS, THINNING, PROPOSAL = 20_000, 100, 0.15


def draws_of_weights(model, prior, phi, centre) -> np.ndarray:
    """Images of the linear model with weights drawn from a prior, [N H W]."""
    random = torch.Generator().manual_seed(0)
    weights = prior.sample(phi[:-1], DRAWS, random, dtype=torch.float32)
    return (centre + model.jacobian(weights))[:, 0].double().numpy()


def draws_of_total_variation(weight: float, shape: tuple[int, int]) -> np.ndarray:
    """Images with density exp(-weight TV) on [0, 1], by Metropolis steps on a chessboard."""
    rng = np.random.default_rng(0)
    image, kept = rng.random(shape), []
    rows, columns = np.indices(shape)
    for sweep in range(SWEEPS):
        for colour in (0, 1):
            padded = np.pad(image, 1, mode="edge")
            near = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
            proposed = image + PROPOSAL * rng.standard_normal(shape)
            # Pixels of one colour are no neighbours; an edge's own copy makes no difference.
            inside = [
                columns > 0,
                columns < shape[1] - 1,
                rows > 0,
                rows < shape[0] - 1,
            ]
            change = sum(
                (np.abs(proposed - n) - np.abs(image - n)) * there
                for n, there in zip(near, inside, strict=True)
            )
            accepted = np.log(rng.random(shape)) < -weight * change
            accepted &= (proposed >= 0) & (proposed <= 1) & ((rows + columns) % 2 == colour)
            image = np.where(accepted, proposed, image)
        if sweep >= SWEEPS // 4 and sweep % THINNING == 0:
            kept.append(image)
    return np.stack(kept)


def run() -> dict:
    scan = scan_of(0, *CELL)
    chosen = settings(scan, *CELL, False)
    reconstruction = reconstruct(scan, 0, chosen)
    model, scale, _ = linearised_model_of(reconstruction, torch.device("cpu"))
    prior = MaternPrior(model.parameters)
    gram = gram_matrices(
        StoredJacobian.of_image(model, prior.groups), prior.groups, dtype=torch.float64
    )
    matrix = model.operator.to_matrix().double()
    of_data = torch.stack([matrix @ each @ matrix.T for each in gram])
    evidence = ExactEvidence(prior, of_data, model.residual, model.noise_variance)
    edges = edge_variances_of_gram(gram, model.image, prior.groups)
    hyperprior = TotalVariationPrior(prior, edges, chosen["tv_weight"])
    lengths = [f"{block} length scale" for block in prior.length_scales]
    shortest = evidence.initial()
    for place in prior.length_scales.values():
        shortest[place] = prior.bounds()[place][0]
    # Before the scan the linear model's image is f - J w_hat.
    centre = model.image - model.jacobian(model.jacobian.weights)
    tunings = {
        "independent weights": tune(evidence, initial=shortest, fixed=lengths),
        "Matern": tune(evidence),
        "Matern and total variation": tune(evidence, hyperprior),
    }
    found = {
        name: scale * draws_of_weights(model, prior, tuning.phi, centre)
        for name, tuning in tunings.items()
    }
    process = PixelProcess(
        dipct.ray_transform(scan.geometry, scan.grid),
        torch.from_numpy(scan.projections),
        scan.noise.std**2,
    )
    values, vectors = torch.linalg.eigh(process.prior_covariance)
    white = torch.randn(
        DRAWS, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    pixels = (white * values.clamp(min=0).sqrt()) @ vectors.T
    found["pixel process"] = pixels.reshape(DRAWS, 28, 28).numpy()
    found["total variation"] = draws_of_total_variation(chosen["tv_weight"] / scale, (28, 28))
    draw_figure(found)
    variation = {
        name: total_variation(torch.from_numpy(images)[:, None]).tolist()
        for name, images in found.items()
    }
    spread = {name: float(images.std(0).mean()) for name, images in found.items()}
    of_digit = float(total_variation(torch.from_numpy(scan.truth)[None]))
    return {"variation": variation, "std": spread, "digit": of_digit, "machine": machine()}


def draw_figure(found: dict[str, np.ndarray]) -> None:
    figure = Figure(figsize=(2 * len(found), 2 * SHOWN + 0.6), layout="constrained")
    axes = figure.subplots(SHOWN, len(found))
    for column, (name, images) in enumerate(found.items()):
        low, high = np.percentile(images, (1, 99))
        for row in range(SHOWN):
            panel = axes[row, column]
            shown = images[(row * len(images)) // SHOWN]
            panel.imshow(shown, cmap="gray", vmin=low, vmax=high)
            panel.set_axis_off()
        axes[0, column].set_title(name, fontsize=9)
    path = real_scans.DOCS / "pictures" / "prior-samples.png"
    save_figure(figure, path, dots_per_inch=80)


def write_pages() -> None:
    if not (path := FOLDER / "samples.json").exists():
        return
    stored = json.loads(path.read_text())
    rows = [
        [
            name,
            f"{np.mean(values):.0f} ± {np.std(values):.0f}",
            f"{stored['std'][name]:.3f}",
            f"{np.mean(values) / stored['std'][name]:.0f}",
        ]
        for name, values in ((name, stored["variation"][name]) for name in PRIORS)
    ]
    header = ["prior", "total variation of a draw", "standard deviation of a pixel", "their ratio"]
    text = f"{table(header, rows)}\n\nThe digit itself has a total variation of "
    text += f"{stored['digit']:.0f}.\n\n![Draws of priors](pictures/prior-samples.png)"
    replace_section(real_scans.DOCS / "uncertainty.md", "prior-samples", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only table and picture")
    options = parser.parse_args()
    if not options.table and not (path := FOLDER / "samples.json").exists():
        write_result(path, run())
    write_pages()


if __name__ == "__main__":
    main()
