"""Claims of counterfactuals by deep inversion, on drawn tasks whose answers are known.

Faces (not smiling to smiling, 32 pixels) and lesions (melanoma to nevus, 64 pixels), three
classifiers each: every arm is tuned on queries of its own with the same number of settings, then
explains the same queries. A classifier that does not follow the causes, or a loss estimator that
does not rank, stops the benchmark. Stopped, it goes on with what is not done.

    python benchmarks/counterfactuals.py                  # two jobs at a time
    python benchmarks/counterfactuals.py --case faces     # one task
    python benchmarks/counterfactuals.py --arm PGD        # one arm, or some
    python benchmarks/counterfactuals.py --quick          # small, in a folder of its own
    python benchmarks/counterfactuals.py --full           # 64 and 96 pixels, for a GPU
    python benchmarks/counterfactuals.py --table          # table only, of what there is
"""

from dataclasses import replace

from counterfactual_jobs import jobs
from counterfactual_pictures import write_pictures
from counterfactual_plans import ARMS, DEFAULT, FULL, QUICK
from counterfactual_tables import write_page
from job_options import on_device, options_parser, run_jobs


def main() -> None:
    parser = options_parser(__doc__, quick=True)
    parser.add_argument("--case", choices=list(DEFAULT.cases), help="one task")
    parser.add_argument("--full", action="store_true", help="large, for a GPU")
    parser.add_argument(
        "--arm", action="append", choices=list(ARMS), help="only this one; repeat for more"
    )
    options = parser.parse_args()
    plan = on_device(QUICK if options.quick else FULL if options.full else DEFAULT, options)
    chosen = [options.case] if options.case else list(plan.cases)
    arms = {name: arm for name, arm in plan.arms.items() if name in (options.arm or ARMS)}
    wanted = replace(plan, arms=arms)
    run_jobs(wanted, [job for case in chosen for job in jobs(wanted, case)], options)
    write_page(plan, options)
    if plan.folder == DEFAULT.folder:
        for path in write_pictures(plan):
            print(path.name)


if __name__ == "__main__":
    main()
