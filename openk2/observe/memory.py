"""How much memory and time this process has taken, and giving back what it no longer needs.

Left out: memory per tensor, and anything that samples in the background.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import time
from pathlib import Path

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere


def peak_rss_bytes() -> int:
    """Largest resident size, in bytes: this process's, or that of its largest finished child if larger.

    The two peaks need not have coincided, so they are compared and not added.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, child) * _RSS_UNIT


def keep_freed_memory() -> None:
    """Use memory again that was freed, large buffers too, instead of handing it back to the system each time.

    A training step and the reading of a prompt allocate the same large buffers over and over, and every fresh page is
    first cleared by the kernel. To be called before large buffers are allocated; what stages no longer need,
    `give_back_memory` returns, and what a server without work still keeps, `give_back_freed_memory`.
    """
    _glibc("mallopt", _M_MMAP_THRESHOLD, 2**30)
    _glibc("mallopt", _M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Free what nothing can reach any more, and hand free pages back to the system where the C library can.

    Between stages: freed buffers of one stage lie scattered among what is kept, and the next one's do not fit in.
    """
    gc.collect()
    give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Hand free pages back to the system where the C library can; other threads go on meanwhile."""
    _glibc("malloc_trim", 0)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # numbers in glibc's malloc.h


def _glibc(name: str, *arguments: int) -> None:
    """A function of the C library, where there is one of that name."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)


def wall_since_process_start() -> float:
    """Seconds since the kernel started this process: the interpreter's start and all imports included.

    Where there is no /proc (not Linux), seconds since this module was imported.
    """
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.monotonic() - _IMPORTED_AT
    # The command name, in parentheses, may hold spaces: fields are counted from the last ")". Start time is field 22.
    start_ticks = int(stat.read_text().rpartition(")")[2].split()[22 - 3])
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return now - start_ticks / os.sysconf("SC_CLK_TCK")


_IMPORTED_AT = time.monotonic()
