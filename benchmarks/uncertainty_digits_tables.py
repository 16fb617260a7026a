"""Tables of the benchmark of uncertainty on digits, from whatever results there are."""

import json
import math

import numpy as np
import real_scans
from measuring import replace_section, table
from uncertainty_digits_cases import CELLS, PIXEL, path_of
from uncertainty_digits_questions import forms_table, steps_table, timing_text

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
    for name, text in (
        ("digits-steps", steps_table()),
        ("digits-timing", timing_text()),
        ("digits-forms", forms_table()),
    ):
        if text:
            replace_section(page, name, text)


def is_ahead(results: list[dict], key: str) -> bool:
    """Whether the linearised prior has the higher mean likelihood."""
    mean = {name: np.mean([r["scores"][name][key] for r in results]) for name in METHODS}
    best = max(mean["linearised, evidence"], mean["linearised, evidence and TV"])
    return bool(best > max(mean["dropout, no TV"], mean["dropout, TV"]))
