"""Claim: one weight of total variation serves different objects, sizes and noise without tuning.

PSNR against the weight on simulated scans, and where the default and the discrepancy principle
come out against the best of the weights.

    python benchmarks/tv_weight.py            # about a minute
    python benchmarks/tv_weight.py --table
"""

import argparse
import json
from pathlib import Path

from measuring import RESULTS, machine, replace_section, table, write_result

import dipct

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
RESULT = RESULTS / "tv_weight.json"
WEIGHTS = (0.5, 1, 2, 4, 8, 16)
STOPPING = {"iterations": 500, "tolerance": 5e-3}


def scans() -> dict[str, dipct.Scan]:
    """Simulated scans by name."""
    walnuts = {
        f"walnut {n} px": dipct.example_scan("walnut", pixels=n) for n in (64, 128, 256, 501)
    }
    others = {
        "Shepp-Logan, fan, 5 %": dipct.simulate("shepp-logan", geometry="fan"),
        "ellipses, 30 views, 5 %": dipct.simulate("ellipses", geometry="parallel", views=30),
        "walnut, 120 views, 1 %": dipct.simulate("walnut", views=120, noise=0.01),
        "walnut, fan, 20 000 photons": dipct.simulate("walnut", geometry="fan", counts=2e4),
    }
    return walnuts | others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only rewrite the table")
    if not parser.parse_args().table:
        cases = {}
        for name, scan in scans().items():
            runs = {
                str(w): dipct.reconstruct(scan, method="tv", tv_weight=w, **STOPPING)
                for w in (*WEIGHTS, "discrepancy")
            }
            cases[name] = {w: run.metrics["psnr_db"] for w, run in runs.items()}
            cases[name]["chosen weight"] = runs["discrepancy"].configuration["tv_weight"]
            print(name, cases[name], flush=True)
        write_result(RESULT, {"machine": machine(), "cases": cases})
    stored = json.loads(RESULT.read_text())
    columns = [*map(str, WEIGHTS), "discrepancy"]
    rows = [
        [name, *(f"{case[c]:.1f}" for c in columns), f"{case['chosen weight']:.2g}"]
        for name, case in stored["cases"].items()
    ]
    text = table(["scan", *columns, "its weight"], rows)
    replace_section(
        PAGE, "tv-weight", f"{text}\n\nPSNR in dB, commit {stored['machine']['commit']}."
    )


if __name__ == "__main__":
    main()
