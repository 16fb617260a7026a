"""Claims of counterfactuals by deep inversion, on drawn tasks whose answers are known.

Faces (not smiling to smiling, 32 pixels) and lesions (64 pixels), three classifiers each: every
arm is tuned on queries of its own with the same number of settings, then explains the same
queries. A classifier that does not follow the causes, or a loss estimator that does not rank,
stops the benchmark.

    python benchmarks/counterfactuals.py                  # runs what is not done yet
    python benchmarks/counterfactuals.py --part 0/2       # every second arm
    python benchmarks/counterfactuals.py --case faces     # one task
    python benchmarks/counterfactuals.py --classifiers    # only these, before parts side by side
    python benchmarks/counterfactuals.py --quick          # small, in a folder of its own
    python benchmarks/counterfactuals.py --table          # table only, of what there is
"""

import argparse
import time
from dataclasses import asdict, replace

import counterfactual_cases as cases
import numpy as np
from counterfactual_cases import ARMS, CASES, SEEDS, TUNING_QUERIES, Arm, Queries
from counterfactual_tables import write_page
from measuring import machine, write_result

from dipct.inversion import Counterfactual
from dipct.pretrain import scene_gate


def check_classifiers(case: str, seeds: tuple[int, ...]) -> None:
    """Train what is missing, and stop unless all can be explained."""
    for seed in seeds:
        path = cases.FOLDER / f"classifier-{case}-{seed}.json"
        began = time.perf_counter()
        trained = cases.classifier(case, seed)
        report, gate = trained.report, trained.gate
        # Also one that was trained by an earlier call.
        if not gate.is_passed or not report.is_usable:
            raise SystemExit(f"{path.stem} cannot be explained: {gate}, {report}")
        if path.exists():
            continue
        write_result(
            path,
            {
                "accuracy": trained.accuracy,
                "report": asdict(report),
                "centroids": asdict(trained.centroid_report),
                "gate": asdict(gate),
                "seconds": time.perf_counter() - began,
                "machine": machine(),
            },
        )
        print(path.stem, flush=True)
    path = cases.FOLDER / f"oracle-{case}.json"
    if not path.exists():
        judge = cases.oracle(case)
        gate = scene_gate(judge.model, cases.queries(case, 0, 1).task, number=300, seed=12345)
        write_result(path, {"accuracy": judge.accuracy, "gate": asdict(gate)})
        print(path.stem, flush=True)


def tuned(case: str, name: str, arm: Arm) -> dict[str, float]:
    """The setting with the highest localisation of valid counterfactuals, on separate queries."""
    path = cases.FOLDER / f"tuning-{case}-{cases.slug(name)}.json"
    if not path.exists():
        trained = cases.classifier(case, 0)
        asked = cases.queries(case, 0, TUNING_QUERIES, first=cases.FIRST_TUNING)
        tried = []
        for values in arm.grid:
            found = cases.explain(trained, asked, cases.settings_of(arm, values))
            scores = score(case, asked, found)
            tried.append({"values": values, "merit": cases.merit(scores)})
        write_result(path, {"tried": tried, "machine": machine()})
        print(path.stem, flush=True)
    tried = cases.read(path)["tried"]
    return max(tried, key=lambda each: each["merit"])["values"]


def score(case: str, asked: Queries, found: list[Counterfactual]) -> list[dict[str, float]]:
    """Scores of every counterfactual."""
    seen = [
        {
            "valid": float(each.valid),
            "confident": float(each.confident),
            "p_target": each.p_target,
            "chosen_step": each.chosen_step,
            "loss_estimate": each.scores.get("loss_estimate", float("nan")),
        }
        for each in found
    ]
    return cases.scores_of(case, asked, np.stack([each.image for each in found]), seen)


def run_arm(case: str, seed: int, name: str, arm: Arm, number: int) -> None:
    """All queries of a classifier by one arm."""
    stem = f"run-{case}-{seed}-{cases.slug(name)}"
    path = cases.FOLDER / f"{stem}.json"
    if path.exists():
        return
    chosen = tuned(case, name, arm)
    asked, began = cases.queries(case, seed, number), time.perf_counter()
    trained = cases.classifier(case, seed)
    found = cases.explain(trained, asked, cases.settings_of(arm, chosen))
    seconds = time.perf_counter() - began
    cases.write_images(stem, np.stack([each.image for each in found]))
    write_result(
        path,
        {
            "arm": name,
            "case": case,
            "seed": seed,
            "settings": found[0].settings,
            "scores": score(case, asked, found),
            "seconds_per_query": seconds / number,
            "machine": machine(),
        },
    )
    print(stem, flush=True)


def run_controls(case: str, seed: int, number: int) -> None:
    """What every score should be for the true answer, for nothing, and for noise."""
    path = cases.FOLDER / f"run-{case}-{seed}-controls.json"
    if path.exists():
        return
    asked = cases.queries(case, seed, number)
    rng = np.random.default_rng([seed, 4])
    true, random = [], []
    for scene, target in zip(asked.scenes, asked.targets, strict=True):
        image = asked.task.counterfactual(scene, target).image
        noise = rng.standard_normal(image.shape)
        length = np.linalg.norm(image - scene.image) / np.linalg.norm(noise)
        true.append(image)
        random.append((scene.image + length * noise).clip(0, 1).astype(np.float32))
    rows = {
        "true counterfactual": np.stack(true),
        "identity": asked.images,
        "random edit of the same size": np.stack(random),
    }
    found = {}
    for name, images in rows.items():
        seen = cases.standings(cases.classifier(case, seed), images, asked.targets)
        found[name] = cases.scores_of(case, asked, images, seen)
    write_result(path, {"case": case, "seed": seed, "scores": found})
    print(path.stem, flush=True)


def run_case(case: str, part: int, parts: int, seeds: tuple[int, ...]) -> None:
    """All that is left to do for a task."""
    number = CASES[case].queries
    for seed in seeds:
        if part == 0:
            run_controls(case, seed, number)
        for name, arm in list(ARMS.items())[part::parts]:
            run_arm(case, seed, name, arm, number)


def make_quick() -> None:
    """Smaller tasks and fewer steps, in a folder of their own."""
    cases.FOLDER = cases.FOLDER / "runs" / "quick"
    cases.RUNS = cases.FOLDER
    for name, case in CASES.items():
        CASES[name] = replace(case, side=32, queries=4, training={"number": 4000, "steps": 400})
    for name, arm in ARMS.items():
        steps = {"steps": 30} if "steps" in arm.fixed else {}
        fit = {"fit_steps": 60} if "fit_steps" in arm.fixed else {}
        ARMS[name] = replace(arm, grid=arm.grid[2:3], fixed=arm.fixed | steps | fit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), help="one task")
    parser.add_argument("--classifiers", action="store_true", help="only train classifiers")
    parser.add_argument("--quick", action="store_true", help="small, for a look")
    parser.add_argument("--table", action="store_true", help="only the table")
    parser.add_argument("--part", default="0/1", help="which of how many shares of the arms")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    seeds = SEEDS
    if options.quick:
        make_quick()
        seeds = SEEDS[:1]
    if not options.table:
        chosen = [options.case] if options.case else list(CASES)
        for case in chosen[:1] if options.quick else chosen:
            check_classifiers(case, seeds)
            if not options.classifiers:
                run_case(case, part, parts, seeds)
    write_page(cases.FOLDER, quick=options.quick)


if __name__ == "__main__":
    main()
