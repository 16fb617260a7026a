"""Claims of counterfactuals by deep inversion, on drawn tasks whose answers are known.

Faces (not smiling to smiling, 32 pixels) and lesions (melanoma to nevus, 64 pixels), three
classifiers each: every arm is tuned on queries of its own with the same number of settings, then
explains the same queries. A classifier that does not follow the causes, or a loss estimator that
does not rank, stops the benchmark. Stopped, it goes on with what is not done.

    python benchmarks/counterfactuals.py                  # two jobs at a time
    python benchmarks/counterfactuals.py --case faces     # one task
    python benchmarks/counterfactuals.py --quick          # small, in a folder of its own
    python benchmarks/counterfactuals.py --full           # 64 and 96 pixels, for a GPU
    python benchmarks/counterfactuals.py --table          # table only, of what there is
"""

import argparse
import time
from dataclasses import replace

from counterfactual_cases import DEFAULT, FULL, QUICK
from counterfactual_jobs import jobs, work
from counterfactual_pictures import write_pictures
from counterfactual_tables import write_page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=list(DEFAULT.cases), help="one task")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small, for a look")
    size.add_argument("--full", action="store_true", help="large, for a GPU")
    parser.add_argument("--device", help="where to compute, other than planned")
    parser.add_argument("--processes", type=int, default=2, help="jobs at a time")
    parser.add_argument("--seconds", type=float, help="after which no job begins any more")
    parser.add_argument("--table", action="store_true", help="only the table")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL if options.full else DEFAULT
    if options.device:
        plan = replace(plan, device=options.device)
    if not options.table:
        chosen = [options.case] if options.case else list(plan.cases)
        todo = [job for case in chosen for job in jobs(plan, case)]
        left = sum(not job.path(plan).exists() for job in todo)
        print(f"{left} of {len(todo)} jobs to do", flush=True)
        began = time.perf_counter()
        for number, name in enumerate(
            work(plan, todo, processes=options.processes, seconds=options.seconds), 1
        ):
            elapsed = time.perf_counter() - began
            print(f"{elapsed:6.0f} s  {number}/{left}  {name}", flush=True)
    write_page(plan, is_published=not options.quick)
    if plan.folder == DEFAULT.folder:
        for path in write_pictures(plan):
            print(path.name)


if __name__ == "__main__":
    main()
