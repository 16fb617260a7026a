"""Claim: fine-tuning takes back what a pretrained network invents.

The network pretrained on ellipses by educated_dip.py (128 px, 60 views, 5 % noise) meets simulated
scans of objects unlike any ellipse: clinical CT slices and the picture of a walnut. Compared are
its first output, the fine-tuned image and the untrained network's, by PSNR and by how far their
projections are from the data, which needs no truth.

    DIPCT_DATA=... python benchmarks/hallucination.py            # runs what is not done yet
    python benchmarks/hallucination.py --table                   # table and pictures only
"""

import argparse
import json

import numpy as np
import real_scans
from educated_dip_cases import RUNS as NETWORKS
from educated_dip_cases import cases, load, network_file
from measuring import RESULTS, machine, replace_section, table, write_result

import dipct
from dipct.figures import comparison_figure, save_figure

FOLDER = RESULTS / "hallucination"
RUNS = FOLDER / "runs"
# File, array and edge of the square around the middle that the object fills, pixels.
OBJECTS = {
    "head": ("ct_slices/ct_slices_hu.npz", "dcmqa_head_10", 512),
    "thorax": ("ct_slices/ct_slices_hu.npz", "cornerstone_thorax", 512),
    "walnut picture": ("walnut_images/walnut_slices_u8.npz", "cwi_walnut1_slice", 360),
}
# Without a rule that stops at the noise level, so that agreement with the data is a finding.
METHODS = {
    "first output": {"method": "edip", "iterations": 0},
    "fine-tuned": {"method": "edip"},
    "untrained": {"method": "dip"},
}
MARGIN = 0.2
"""Empty edge around an object, as a share of its width."""
WATER = 0.02
"""Attenuation of water near 60 keV, 1/mm."""


def attenuation(name: str) -> np.ndarray:
    """An object in 1/mm: CT numbers by that of water, a picture's white as bone."""
    file, key, size = OBJECTS[name]
    values = np.load(real_scans.data_folder() / file)[key].astype(np.float32)
    if file.startswith("ct_slices"):
        values = WATER * (1 + np.maximum(values, -1000) / 1000)
    else:
        values = 2 * WATER * values / 255
    middle = [n // 2 for n in values.shape]
    rows, columns = (slice(max(m - size // 2, 0), m + size // 2) for m in middle)
    # The detector sees three quarters of the grid's width.
    return np.pad(values[rows, columns], round(MARGIN * size))


def file_name(name: str, method: str) -> str:
    return f"{name}-{method}".replace(" ", "-")


def run_case(name: str, method: str) -> dict:
    like = load(cases("walnut")[0])
    scan = dipct.simulate(attenuation(name), geometry=like, noise=0.05)
    settings = METHODS[method]
    init = {"init": str(network_file("walnut"))} if settings["method"] == "edip" else {}
    run = dipct.reconstruct(scan, stopping="none", progress=True, **settings, **init)
    dipct.write_run(run, RUNS / f"{file_name(name, method)}.h5")
    return {
        "object": name,
        "method": method,
        "metrics": dict(run.metrics),
        "iterations": run.iterations,
        "seconds": run.duration_s,
        "configuration": dict(run.configuration) | {"init": None},
        "machine": machine(),
    }


def write_pages() -> None:
    page, rows, shown = real_scans.DOCS / "educated-dip.md", [], []
    for name in OBJECTS:
        for method in METHODS:
            path = FOLDER / f"{file_name(name, method)}.json"
            if not path.exists():
                continue
            result = json.loads(path.read_text())
            metrics = result["metrics"]
            rows.append(
                [
                    name,
                    method,
                    str(result["iterations"]),
                    f"{metrics['psnr_db']:.2f}",
                    f"{metrics['ssim']:.3f}",
                    f"{metrics['reduced_chi_squared']:.2f}",
                ]
            )
        files = [RUNS / f"{file_name(name, method)}.h5" for method in METHODS]
        if all(file.exists() for file in files):
            figure = comparison_figure([dipct.read_run(file) for file in files], list(METHODS))
            picture = f"pictures/hallucination-{name.replace(' ', '-')}.png"
            save_figure(figure, real_scans.DOCS / picture, dots_per_inch=55)
            shown.append(f"![{name}]({picture})")
    if rows:
        header = ["object", "image", "steps", "PSNR [dB]", "SSIM", "residual / noise"]
        replace_section(page, "hallucination", "\n\n".join([table(header, rows), *shown]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only table and pictures")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    if not options.table:
        if not network_file("walnut").exists():
            raise SystemExit(f"Run educated_dip.py first: no network in {NETWORKS}.")
        for name in OBJECTS:
            for method in METHODS:
                path = FOLDER / f"{file_name(name, method)}.json"
                if not path.exists():
                    result = run_case(name, method)
                    write_result(path, result)
                    print(name, method, result["metrics"], flush=True)
    write_pages()


if __name__ == "__main__":
    main()
