"""Jobs of a benchmark: what each needs and writes, and the processes that do them."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from measuring import machine, write_result

_WORKING = 5.0
# Read by the libraries when a process begins.
_ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "VECLIB_MAXIMUM")
}
# What is not a result: it lies among the runs, and is made only where a result needs it.
_APART = {"start-": ".pt", "truth-": ".pt", "images-": ".npz", "weights-": ".h5"}
_WITHOUT_PREFIX = ("images-", "weights-")


class Folders(Protocol):
    """What is known of every plan of a benchmark.

    Attributes:
        folder: of its results.
        runs: folder of all else.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def runs(self) -> Path: ...


class Job(NamedTuple):
    """Something to compute.

    Attributes:
        name: of the file that it writes.
        needs: names of what has to be there before.
        action: called with the plan, the name and the arguments; what it returns is the result,
            unless it wrote a file of another kind itself.
        arguments: see there.
        plan: that it belongs to, where this is another than that of the call.
    """

    name: str
    needs: tuple[str, ...]
    action: Callable[..., Mapping[str, Any] | None]
    arguments: tuple[Any, ...]
    plan: Folders | None = None

    def path(self, plan: Folders) -> Path:
        """What it writes."""
        return path_of(self.plan or plan, self.name)


def path_of(plan: Folders, name: str) -> Path:
    """The file of a job: results are JSON, all else lies among the runs."""
    for prefix, suffix in _APART.items():
        if name.startswith(prefix):
            stem = name.removeprefix(prefix) if prefix in _WITHOUT_PREFIX else name
            return plan.runs / f"{stem}{suffix}"
    tuning = getattr(plan, "tuning", None)
    folder = tuning if tuning and name.startswith("tuning-") else plan.folder
    return folder / f"{name}.json"


def undone(plan: Folders, todo: Iterable[Job]) -> list[Job]:
    """Results that there are not yet, and what else they need that is not there."""
    by_name = {job.name: job for job in todo}
    missing = {name for name, job in by_name.items() if not job.path(plan).exists()}
    left = [name for name in missing if by_name[name].path(plan).suffix == ".json"]
    wanted = set(left)
    while left:
        needed = missing.intersection(by_name[left.pop()].needs) - wanted
        wanted |= needed
        left += needed
    return [job for name, job in by_name.items() if name in wanted]


def work(
    plan: Folders, todo: Iterable[Job], *, processes: int, seconds: float | None = None
) -> Iterator[str]:
    """Do what is not done yet, as many jobs at once as there are processes.

    Args:
        plan: what is computed.
        todo: jobs, the most urgent first.
        processes: each of one thread; they end with the one that calls this.
        seconds: after which none begins any more.

    Yields:
        The name of each job that is done.
    """
    began = time.perf_counter()
    todo = list(todo)
    waiting = undone(plan, todo)
    paths = {job.name: job.path(plan) for job in todo}
    running: dict[Future[None], Job] = {}
    os.environ.update(_ONE_THREAD)
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_begin
    ) as pool:
        try:
            while True:
                is_time = seconds is None or time.perf_counter() - began < seconds
                for job in list(waiting) if is_time else ():
                    if job.path(plan).exists():
                        # Another job made it on its way.
                        waiting.remove(job)
                        continue
                    is_ready = all(
                        paths.get(name, path_of(plan, name)).exists() for name in job.needs
                    )
                    if is_ready and len(running) < processes:
                        waiting.remove(job)
                        running[pool.submit(do, plan, job)] = job
                if not running:
                    return
                done, _ = wait(running, timeout=_WORKING, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future).name
                    future.result()
                    yield name
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def do(plan: Folders, job: Job) -> None:
    """One job, and its result with what it took."""
    where = machine()
    began, worked = time.perf_counter(), time.process_time()
    plan = job.plan or plan
    values = job.action(plan, job.name, *job.arguments)
    taken = {
        "seconds": time.perf_counter() - began,
        # What else the machine does has no part in it.
        "processor_seconds": time.process_time() - worked,
    }
    # What lies apart from the results took its time as well.
    path = job.path(plan) if values is not None else plan.folder / f"{job.name}.json"
    write_result(path, {**(values or {}), **taken, "machine": where})


def save(path: Path, values: Any) -> None:
    """What only this benchmark reads, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(values, temporary)
    temporary.replace(path)


def load(path: Path) -> Any:
    """What :func:`save` wrote."""
    # Written by this benchmark itself.
    return torch.load(path, weights_only=False)


def _begin() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that is killed has no chance to end its processes, which would compute for nobody.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
