"""How much faster a step is in a process that keeps the memory of freed arrays.

Three fits of networks, each in processes that do and do not, in turns. Best on an idle machine.

    python benchmarks/freed_memory.py             # some minutes on one core
    python benchmarks/freed_memory.py --table     # only rewrites the table
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from dipct.freed_memory import keep_freed_memory
from dipct.generator import Generator, NetworkGenerator, make_network
from dipct.inversion_settings import CounterfactualSettings
from dipct.pipeline.query_generator import fit_to_queries, query_generator

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
ROUNDS, WARM_UP, STEPS, QUERIES = 3, 2, 8, 17
KEPT, GIVEN_BACK = "kept", "given back"


def _unet() -> Generator:
    network = make_network("128", output="sigmoid")
    z = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(0))
    return NetworkGenerator(network, z, (128, 128))


def _of_queries(name: str, side: int) -> Generator:
    settings = CounterfactualSettings(method="lso-inr", generator=name)
    return query_generator(settings, (3, side, side))


CASES = {
    "Deep Image Prior, one image of 128 x 128": (_unet, 1),
    f"U-Net, {QUERIES} queries of 32 x 32": (lambda: _of_queries("unet", 32), QUERIES),
    f"implicit network, {QUERIES} queries of 64 x 64": (lambda: _of_queries("inr", 64), QUERIES),
}


def seconds_of_a_step(case: str) -> float:
    """Median time of a step of a fit, in this process."""
    make, number = CASES[case]
    torch.set_num_threads(1)
    generator = make()
    images = torch.rand(number, *generator.range_shape, generator=torch.Generator().manual_seed(1))
    first = generator.initial(0).expand(number, -1).contiguous()
    fit = fit_to_queries(generator, images, first, learning_rate=1e-3)
    tensors, times = fit.start(), []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        tensors = fit.step(tensors)
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:])


def measure() -> dict[str, dict[str, list[float]]]:
    """Seconds of a step by case and by what is done with memory, one for each round."""
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(ROUNDS):
        for case in CASES:
            for how in (KEPT, GIVEN_BACK):
                command = [sys.executable, __file__, "--case", case, "--memory", how]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                times = found.setdefault(case, {}).setdefault(how, [])
                times.append(float(done.stdout))
    return found


def write_table(result: dict) -> None:
    """The section of the page."""
    from measuring import replace_section, table

    rows = []
    for case, times in result["seconds"].items():
        ratios = [a / b for a, b in zip(times[GIVEN_BACK], times[KEPT], strict=True)]
        cells = [f"{1000 * statistics.median(times[how]):.0f}" for how in (GIVEN_BACK, KEPT)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([case, *cells, spread])
    header = ["fit", "given back [ms]", "kept [ms]", "times as fast: median and range of the turns"]
    where = result["machine"]
    text = (
        f"{table(header, rows)}\n\nOne thread ({where['processor']}), load "
        f"{where['load_before']:.1f} before, torch {where['versions']['torch']}, commit "
        f"{where['commit']}; milliseconds are medians of {ROUNDS} processes each, which took turns."
    )
    print(text)
    replace_section(PAGE, "freed-memory", text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only the table")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=(KEPT, GIVEN_BACK), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        # A process of its own, which must not have imported what keeps memory.
        if options.memory == KEPT and not keep_freed_memory():
            raise SystemExit("This system's C library cannot be told to keep memory.")
        print(seconds_of_a_step(options.case))
        return
    from measuring import RESULTS, machine, write_result

    path = RESULTS / "freed_memory.json"
    if not options.table:
        where = machine()
        write_result(path, {"seconds": measure(), "machine": where})
    write_table(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
