"""What all benchmarks that are made of jobs share: their options, their runs, their pages."""

import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from job_queue import Folders, Job, path_of, undone, work
from measuring import minutes, replace_section

PAGE = Path(__file__).parents[1] / "docs" / "counterfactuals.md"
_Plan = TypeVar("_Plan", bound=Folders)


def options_parser(
    description: str | None, *, quick: bool = False, device: bool = True
) -> ArgumentParser:
    """The options that all have.

    Args:
        description: of the benchmark.
        quick: whether there is a small one of it.
        device: whether it can compute elsewhere than planned.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    if quick:
        parser.add_argument("--quick", action="store_true", help="small, and no page is written")
    else:
        parser.set_defaults(quick=False)
    if device:
        parser.add_argument("--device", help="where to compute, other than planned")
    parser.add_argument("--processes", type=int, default=2, help="jobs at a time")
    parser.add_argument("--seconds", type=float, help="after which no job begins any more")
    parser.add_argument("--table", action="store_true", help="only tables and pictures")
    return parser


def on_device(plan: _Plan, options: Namespace) -> _Plan:
    """The plan, where the options say."""
    return replace(plan, device=options.device) if options.device else plan


def run_jobs(plan: Folders, todo: Iterable[Job], options: Namespace) -> None:
    """Do what is not done, and say what is; nothing if only tables are asked for."""
    if options.table:
        return
    todo = list(todo)
    left = undone(plan, todo)
    print(f"{len(left)} jobs to do", flush=True)
    began = time.perf_counter()
    done = work(plan, todo, processes=options.processes, seconds=options.seconds)
    for number, name in enumerate(done, 1):
        elapsed = time.perf_counter() - began
        print(f"{elapsed:6.0f} s  {number}/{len(left)}  {name}", flush=True)
    paths = {job.name: job.path(plan) for job in todo}
    for job in undone(plan, todo):
        absent = [name for name in job.needs if not paths.get(name, path_of(plan, name)).exists()]
        never = [name for name in absent if name not in paths and not name.startswith("images-")]
        if never:
            print(f"{job.name} needs {', '.join(never)}, which this benchmark does not make.")
        stems = [each.removeprefix("images-") for each in job.needs if each.startswith("images-")]
        gone = [
            stem
            for stem in stems
            if path_of(plan, stem).exists() and not path_of(plan, f"images-{stem}").exists()
        ]
        if gone:
            print(
                f"{job.name} needs the images of {', '.join(gone)}, which are not kept with the "
                "results: take these away to make them again."
            )


def publish(section: str, text: str, results: Iterable[Path], options: Namespace) -> None:
    """Print a section of the page with what it took, and put it there unless it is a quick one."""
    text = "\n\n".join(part for part in (text, minutes(results)) if part)
    print(f"\n{section}\n{text}")
    if not options.quick:
        replace_section(PAGE, section, text)
