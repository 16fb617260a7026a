"""Run a program under a pseudo-terminal and read what it shows."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import dipct

DIPCT = (sys.executable, "-m", "dipct.cli")
"""The command line as a program of its own."""


def environment():
    """Environment for a program that shall import the dipct of these tests."""
    found = {**os.environ, "PYTHONPATH": str(Path(dipct.__file__).parents[1])}
    found.pop("NO_COLOR", None)
    return found


class Terminal:
    """A program under a pseudo-terminal; use as a context."""

    def __init__(self, *arguments, cwd):
        self.output = ""
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*DIPCT, *map(str, arguments)],
            cwd=cwd,
            env=environment() | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._own)

    def read_until(self, pattern, *, seconds=60):
        """Read until the output matches; fail if it does not in time."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.output):
            if not self._read(end):
                raise AssertionError(f"{pattern!r} never came; there was {self.output!r}")

    def interrupt(self):
        """Send what Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)

    def wait(self, *, seconds=60):
        """Read to the end; the exit code."""
        end = time.monotonic() + seconds
        while self._read(end):
            pass
        return self.process.wait(timeout=seconds)

    def _read(self, end):
        if not select.select([self._own], [], [], max(0, end - time.monotonic()))[0]:
            return False
        try:
            text = os.read(self._own, 65536)
        except OSError:
            # Linux reports the closed other side as an error.
            return False
        self.output += text.decode(errors="replace")
        return bool(text)
