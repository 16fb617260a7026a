"""Claim: pretraining changes which directions of the parameters the projections see.

Singular values of the Jacobian of the projections with respect to the convolution weights before,
during and after pretraining on ellipses, and after pretraining on noise, which has no images to
learn from, for the geometry of educated_dip.py at 128 px; and how fast either network is fine-tuned
to a walnut.

    python benchmarks/spectra.py            # runs what is not done yet
    python benchmarks/spectra.py --table    # table and picture only
"""

import argparse
import json

import numpy as np
import real_scans
from educated_dip_cases import COMMON, PRETRAINING, cases, load, network_file
from measuring import RESULTS, machine, replace_section, table, write_result

import dipct
from dipct.figures import save_figure, spectrum_figure
from dipct.pipeline import network_spectra_of, pretrain, remove_checkpoint
from dipct.pretrain import NetworkSpectrum, SpectrumSettings, write_pretrained_network

FOLDER = RESULTS / "spectra"
RUNS = FOLDER / "runs"
NOISE = RUNS / "network-noise.h5"
NOISE_STEPS = 1200
RANK = 40
FITTED_STEPS = 400
AT = (0, 40, 100, 200, 400)


def make_noise_network() -> None:
    """Pretrain on noise in a disc, as the other network on ellipses, but for fewer steps."""
    if NOISE.exists():
        return
    checkpoint = NOISE.with_suffix(".checkpoint")
    settings = COMMON | PRETRAINING["walnut"]
    settings |= {"images": "noise-disc", "steps": NOISE_STEPS, "snapshots": 0}
    network = pretrain(
        load(cases("walnut")[0]),
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        progress=True,
        **settings,
    )
    write_pretrained_network(network, NOISE)
    remove_checkpoint(checkpoint)


def spectra() -> dict:
    scan = load(cases("walnut")[0])
    settings, found = SpectrumSettings(rank=RANK, tolerance=2e-2), []
    for path, before, during in ((network_file("walnut"), True, 2), (NOISE, True, 0)):
        found += network_spectra_of(scan, [path], settings=settings, before=before, during=during)
    # The two begin with the same random parameters.
    names = ["before", *[f"ellipses, {each.name.split(', ')[1]}" for each in found[1:3]]]
    names = [*names, "ellipses", "before", "noise"]
    return {
        "spectra": [
            {
                "name": name,
                "values": each.values.tolist(),
                "residuals": each.residuals.tolist(),
                "converged": each.converged,
                "products": each.products,
                "overlap": each.overlap.tolist(),
                "movement": dict(each.movement),
            }
            for i, (name, each) in enumerate(zip(names, found, strict=True))
            if i != 4
        ],
        "machine": machine(),
    }


def fits() -> dict:
    """PSNR on the way from either network, and from none."""
    scan, kept = load(cases("walnut")[0]), {}
    for name, init in (("ellipses", network_file("walnut")), ("noise", NOISE), ("none", None)):
        chosen = {"method": "dip"} if init is None else {"method": "edip", "init": str(init)}
        run = dipct.reconstruct(
            scan, iterations=FITTED_STEPS, stopping="none", progress=True, **chosen
        )
        kept[name] = {k: [float(x) for x in run.history[k]] for k in ("iteration", "psnr_db")}
    return {"fits": kept, "machine": machine()}


def write_pages() -> None:
    page = real_scans.DOCS / "educated-dip.md"
    if (path := FOLDER / "spectra.json").exists():
        stored = json.loads(path.read_text())["spectra"]
        found = [
            NetworkSpectrum(
                values=np.array(each["values"]),
                residuals=np.array(each["residuals"]),
                overlap=np.array(each["overlap"]),
                advice="",
                **{k: each[k] for k in ("name", "converged", "products", "movement")},
            )
            for each in stored
        ]
        picture = "pictures/edip-spectra.png"
        names = [each["name"] for each in stored]
        save_figure(spectrum_figure(found, names), real_scans.DOCS / picture, dots_per_inch=70)
        rows = [
            [
                each.name,
                f"{each.values[0]:.3g}",
                f"{each.values[0] / each.values[-1]:.1f}",
                f"{each.overlap.mean():.2f}",
                f"{max(each.movement.values()):.2f} ({max(each.movement, key=each.movement.get)})",
                str(each.products),
            ]
            for each in found
        ]
        header = ["network", "largest value", f"ratio to value {RANK}", "mean overlap"]
        header += ["largest movement", "products"]
        text = "\n\n".join([table(header, rows), f"![Spectra]({picture})"])
        replace_section(page, "spectra", text)
    if (path := FOLDER / "fits.json").exists():
        rows = []
        for name, history in json.loads(path.read_text())["fits"].items():
            steps, psnr_db = (np.array(history[k]) for k in ("iteration", "psnr_db"))
            rows.append([name, *[f"{psnr_db[np.argmin(abs(steps - at))]:.2f}" for at in AT]])
        header = ["pretrained on", *[f"PSNR at step {at} [dB]" for at in AT]]
        replace_section(page, "feature-reuse", table(header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only table and picture")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    if not options.table:
        make_noise_network()
        for name, work in (("fits", fits), ("spectra", spectra)):
            if not (path := FOLDER / f"{name}.json").exists():
                write_result(path, work())
    write_pages()


if __name__ == "__main__":
    main()
