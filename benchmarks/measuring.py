"""What all benchmarks share: timing, the machine's description, results in files."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from dipct.freed_memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
# As the command line does; here for every process of a benchmark, which all import this.
keep_freed_memory()
_TIMES = {"seconds", "processor_seconds"}


def median_seconds(function: Callable[[], Any], repeats: int = 9, warm_up: int = 2) -> float:
    """Median wall-clock time of a call, after calls that do not count."""
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def machine() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    names = ("torch", "numpy", "scipy", "astra-toolbox", "odl")
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "commit": _commit(),
    }


def write_result(path: Path, values: dict[str, Any]) -> None:
    """Write one result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, path)


def replace_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of a section in a page."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    old = page.read_text()
    head, rest = old.split(begin)
    tail = rest.split(end)[1]
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def minutes(results: Iterable[Path]) -> str:
    """What results took: processor time, or wall time where that was not written down."""
    found = [json.loads(path.read_text()) for path in results]
    of_walls = [each["seconds"] for each in found if {"seconds"} == _TIMES & each.keys()]
    of_processors = [each["processor_seconds"] for each in found if "processor_seconds" in each]
    if not of_walls and not of_processors:
        return ""
    total = (sum(of_walls) + sum(of_processors)) / 60
    number = len(of_walls) + len(of_processors)
    said = f"{total:.0f} minutes of processor time for {number} results"
    return f"{said}; of {len(of_walls)} of them wall time was counted." if of_walls else f"{said}."


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
