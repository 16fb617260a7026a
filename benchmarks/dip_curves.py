"""Claim: total variation relaxes the need to stop a Deep Image Prior early, and rules find when.

PSNR against the step over 20 000 steps at a constant learning rate on the simulated walnut (128 px,
60 views, 5 % noise), with and without total variation, from noise and from the filtered
back-projection; and where each stopping rule, none of which sees the truth, lands on the curve.

    python benchmarks/dip_curves.py            # runs what is not done yet, goes on where it stopped
    python benchmarks/dip_curves.py --table
"""

import argparse
import json

import matplotlib.pyplot as plt
import numpy as np
import torch
from measuring import RESULTS, machine, replace_section, table, write_result
from real_scans import DOCS

import dipct
from dipct.checkpoint import CheckpointWriter, read_checkpoint
from dipct.evaluation import psnr
from dipct.figures import save_figure
from dipct.generator import make_network
from dipct.pipeline.deep_image_prior import network_input, sigmoid_ceiling
from dipct.pipeline.total_variation import fidelity_of, image_scale
from dipct.progress import ProgressDisplay
from dipct.solver import (
    FirstAtNoiseLevel,
    LastIterate,
    LeastMovingVariance,
    LowestObjective,
    Selection,
    deep_image_prior_fit,
    iterate,
)

FOLDER = RESULTS / "dip_curves"
RUNS = FOLDER / "runs"
STEPS = 20_000
EVERY = 20
TV_WEIGHT = 4.0
CASES = {
    f"{kind}-{'tv' if weight else 'plain'}": (kind, weight)
    for kind in ("noise", "fbp")
    for weight in (0.0, TV_WEIGHT)
}
RULES = {
    "lowest objective": LowestObjective(),
    "discrepancy": FirstAtNoiseLevel(),
    "moving variance": LeastMovingVariance(window=100, patience=1000, warm_up=100),
}


class SeveralRules(Selection):
    """Watches what several rules would choose in one run that goes on to the end."""

    def __init__(self, rules: dict[str, Selection]) -> None:
        self.rules = rules

    def start(self, first):
        tensors = LastIterate().start(first)
        for name, rule in self.rules.items():
            tensors |= {f"{name}/{key}": value for key, value in rule.start(first).items()}
        return tensors

    def update(self, tensors, iterate):
        following = LastIterate().update(tensors, iterate)
        for name, rule in self.rules.items():
            own = self.of(name, tensors)
            if rule.outcome(rule.figures(own, iterate.step)) is None:
                own = rule.update(own, iterate)
            following |= {f"{name}/{key}": value for key, value in own.items()}
        return following

    def of(self, name, tensors):
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def run_case(name: str) -> dict:
    kind, weight = CASES[name]
    scan = dipct.example_scan("walnut", pixels=128)
    operator = dipct.ray_transform(scan.geometry, scan.grid)
    data = torch.from_numpy(scan.projections)
    scale = image_scale(operator, data)

    def quality(image):
        return psnr(scale * image[0].numpy(), scan.truth)

    rules = SeveralRules(RULES)
    fit = deep_image_prior_fit(
        scale * operator,
        fidelity_of(scan, data),
        network=make_network(
            "128", output="sigmoid", ceiling=sigmoid_ceiling(operator, data) / scale
        ),
        z=network_input(scan, kind, 0, scale, data),
        tv_weight=weight,
        learning_rate=1e-3,
        decay=False,
        stopping=rules,
        measure=lambda image: {"psnr_db": torch.tensor(quality(image))},
    )
    checkpoint = RUNS / f"{name}.checkpoint"
    problem = f"dip_curves {name} {STEPS} {weight}"
    state = None
    if checkpoint.exists():
        state, _ = read_checkpoint(checkpoint, problem, torch.device("cpu"))
    with ProgressDisplay(name, STEPS) as display:
        solution = iterate(
            fit,
            max_iterations=STEPS,
            state=state,
            every=EVERY,
            callbacks=[display, CheckpointWriter(checkpoint, problem, {})],
        )
    chosen = {}
    for rule in RULES:
        own = rules.of(rule, solution.state.tensors)
        with torch.no_grad():
            value = quality(fit.generator(own["chosen"]))
        chosen[rule] = {"step": int(own["chosen_step"]), "psnr_db": value}
    checkpoint.unlink(missing_ok=True)
    history = {key: values.tolist() for key, values in solution.history.items()}
    return {
        "case": name,
        "tv_weight": weight,
        "precision": fit.generator.precision,
        "status": solution.status.name,
        "history": {key: history[key] for key in ("iteration", "psnr_db", "discrepancy")},
        "chosen": chosen,
        "machine": machine(),
    }


def write_pages() -> None:
    stored = {
        name: json.loads(path.read_text())
        for name in CASES
        if (path := FOLDER / f"{name}.json").exists()
    }
    page = DOCS / "deep-image-prior.md"
    rows = []
    for name, result in stored.items():
        values = np.array(result["history"]["psnr_db"])
        steps = np.array(result["history"]["iteration"])
        candidates = [*zip(values, steps, strict=True)]
        candidates += [(c["psnr_db"], c["step"]) for c in result["chosen"].values()]
        highest, step = max(candidates)
        row = [name, f"{highest:.2f} at {step}"]
        for rule in RULES:
            chosen = result["chosen"][rule]
            below = highest - chosen["psnr_db"]
            row.append(f"{chosen['psnr_db']:.2f} at {chosen['step']} ({below:.2f} below)")
        rows.append([*row, f"{values[-1]:.2f}"])
    header = ["run", "highest", *RULES, "last"]
    if not stored:
        return
    save_figure(draw(stored), DOCS / "pictures" / "dip-curves.png", dots_per_inch=80)
    text = f"{table(header, rows)}\n\nPSNR in dB at a step.\n\n![PSNR](pictures/dip-curves.png)"
    replace_section(page, "curves-table", text)


def draw(stored: dict) -> plt.Figure:
    kinds = [kind for kind in ("noise", "fbp") if any(name.startswith(kind) for name in stored)]
    figure, axes = plt.subplots(1, len(kinds), figsize=(5.5 * len(kinds), 4), sharey=True)
    markers = dict(zip(RULES, "osD", strict=True))
    for panel, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        for suffix, colour, label in (("plain", "#D55E00", "DIP"), ("tv", "#0072B2", "DIP + TV")):
            if (result := stored.get(f"{kind}-{suffix}")) is None:
                continue
            history = result["history"]
            steps = np.maximum(history["iteration"], 1)
            panel.plot(steps, history["psnr_db"], color=colour, label=label, linewidth=1)
            for rule, marker in markers.items():
                chosen = result["chosen"][rule]
                panel.plot(
                    max(chosen["step"], 1),
                    chosen["psnr_db"],
                    marker,
                    color=colour,
                    markeredgecolor="black",
                    markersize=8,
                )
        for rule, marker in markers.items():
            panel.plot([], [], marker, color="white", markeredgecolor="black", label=rule)
        panel.set_xscale("log")
        panel.set_xlim(20, STEPS * 1.1)
        panel.set_ylim(bottom=12)
        panel.set_xlabel("step")
        panel.set_title(f"input: {'filtered back-projection' if kind == 'fbp' else kind}")
        panel.grid(True, color="0.9")
    np.atleast_1d(axes)[0].set_ylabel("PSNR [dB]")
    np.atleast_1d(axes)[0].legend(loc="lower right", frameon=False)
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only table and picture")
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        path = FOLDER / f"{name}.json"
        if options.table or options.only not in name or path.exists():
            continue
        write_result(path, run_case(name))
    write_pages()


if __name__ == "__main__":
    main()
