"""Fixtures of all tests."""

import logging
import os
import signal
import sys
from dataclasses import dataclass

import pytest

# Problems this small gain nothing from threads, and lose much on a busy machine, where threads
# wait for each other. Set before torch is loaded, and handed on to programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test run in the background of a shell ignores Ctrl-C, and so would the programs it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def matrix_cache(tmp_path_factory, monkeypatch):
    """Keep system matrices out of the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "matrices"
    monkeypatch.setenv("DIPCT_CACHE", str(folder))
    return folder


@pytest.fixture
def dipct_command(monkeypatch, capsys):
    """Run a command line inside this process."""
    from dipct.cli import main

    logger = logging.getLogger("dipct")
    before = logger.level, list(logger.handlers)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dipct", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    yield run
    logger.level, logger.handlers = before
