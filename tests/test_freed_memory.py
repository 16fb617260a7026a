"""Memory of freed arrays is kept for the next ones, where the C library can be told to."""

import subprocess
import sys

import pytest

# A mapped array is given back at once, one from the heap that is kept stays in the process.
_SCRIPT = """
import sys
import psutil
import torch
from dipct.freed_memory import keep_freed_memory

if sys.argv[1] == "kept" and keep_freed_memory() < 2**26:
    sys.exit("cannot")
before = psutil.Process().memory_info().rss
for _ in range(3):
    torch.ones(2**24)
print((psutil.Process().memory_info().rss - before) // 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other rules")
@pytest.mark.parametrize(("how", "is_kept"), [("kept", True), ("given back", False)])
def test_memory_of_freed_arrays_stays_with_the_process_if_it_is_asked_to(how, is_kept):
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=False
    )
    if "cannot" in done.stderr:
        pytest.skip("This C library does not keep the memory of arrays that large.")
    assert (int(done.stdout) > 48) == is_kept
