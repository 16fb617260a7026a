"""The jobs of the benchmarks."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from job_queue import Job, path_of, save, undone, work


@dataclass(frozen=True)
class Plan:
    folder: Path

    @property
    def runs(self):
        return self.folder / "runs"


# In processes of their own, which find these by name.
def number(plan, name, value):
    return {"value": value}


def sum_of(plan, name, *needs):
    return {"value": sum(value_of(plan, each) for each in needs)}


def keep(plan, name, value):
    save(path_of(plan, name), value)


def fail(plan, name):
    raise ValueError("on purpose")


def value_of(plan, name):
    return json.loads(path_of(plan, name).read_text())["value"]


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path)


def test_a_job_waits_for_what_it_needs(plan):
    jobs = [
        Job("sum", ("two", "three"), sum_of, ("two", "three")),
        Job("two", (), number, (2,)),
        Job("three", (), number, (3,)),
    ]
    assert list(work(plan, jobs, processes=2))[-1] == "sum"
    assert value_of(plan, "sum") == 5
    assert json.loads(path_of(plan, "sum").read_text())["processor_seconds"] >= 0
    assert not undone(plan, jobs)
    # Nothing is left, so nothing is done again.
    path_of(plan, "two").write_text('{"value": 7}')
    assert not list(work(plan, jobs, processes=1))
    assert value_of(plan, "sum") == 5


def test_what_is_kept_apart_is_made_only_for_a_result(plan):
    jobs = [
        Job("start-network", (), keep, (1,)),
        Job("run", ("start-network",), number, (2,)),
        Job("start-of-nothing", (), keep, (1,)),
    ]
    assert [job.name for job in undone(plan, jobs)] == ["start-network", "run"]
    path_of(plan, "run").write_text('{"value": 2}')
    assert not undone(plan, jobs)


def test_a_job_whose_needs_nothing_makes_is_left(plan):
    jobs = [Job("run", ("images-elsewhere",), number, (2,)), Job("other", (), number, (3,))]
    assert list(work(plan, jobs, processes=1)) == ["other"]
    assert [job.name for job in undone(plan, jobs)] == ["run"]


def test_none_begins_after_the_time(plan):
    jobs = [Job("run", (), number, (2,))]
    assert not list(work(plan, jobs, processes=1, seconds=0))
    assert undone(plan, jobs) == jobs


def test_a_failure_stops_the_rest_and_keeps_what_is_done(plan):
    jobs = [
        Job("before", (), number, (2,)),
        Job("broken", ("before",), fail, ()),
        Job("after", ("broken",), number, (3,)),
    ]
    with pytest.raises(ValueError, match="on purpose"):
        list(work(plan, jobs, processes=1))
    assert value_of(plan, "before") == 2
    assert not path_of(plan, "broken").exists()


def test_names_say_where_a_file_lies(plan):
    assert path_of(plan, "run-1") == plan.folder / "run-1.json"
    assert path_of(plan, "start-faces") == plan.runs / "start-faces.pt"
    assert path_of(plan, "images-run-1") == plan.runs / "run-1.npz"
    assert path_of(plan, "weights-faces-0") == plan.runs / "faces-0.h5"
