"""Keep the memory of freed arrays for the next ones, instead of giving it back to the system."""

import ctypes
import sys

# Names and numbers of <malloc.h> of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 2**31 - 1
# From what is wanted to what every release takes; larger arrays are given back as before.
_LARGEST_MAPPED = (2**30, 2**25)


def keep_freed_memory() -> int:
    """Let this process reuse the memory of large arrays that were freed.

    The GNU C library gives the memory of every large array back to the system at once, which then
    clears each page anew for the next array of the same size: the Deep Image Prior of one large
    image spends about a third of its time there, while for batches of small ones no difference
    could be told (``benchmarks/freed_memory.py``). It is a decision of a program, for its whole
    process, and so the command line and the benchmarks make it, not the library. The process keeps
    the most that it once held.

    Returns:
        Size of the largest arrays whose memory is kept [bytes]; 0 where nothing could be done, as
        elsewhere than with the GNU C library.
    """
    if not sys.platform.startswith("linux"):
        return 0
    setting = getattr(ctypes.CDLL(None), "mallopt", None)
    if setting is None or not setting(_TRIM_THRESHOLD, _LARGEST_THRESHOLD):
        return 0
    return next((size for size in _LARGEST_MAPPED if setting(_MMAP_THRESHOLD, size)), 0)
