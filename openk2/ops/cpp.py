"""The C++ of this folder, compiled for the machine at hand, once, and loaded.

The shared object lies in the user's cache folder under a name made of its source,
the compiler and the processor, so that a second process compiles nothing; it is
written aside and renamed. Left out: anything but a C++ compiler on Linux or
macOS; without one, callers go on with their torch path.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

SOURCE = Path(__file__).with_name("decode.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-std=c++17", "-shared", "-fPIC", "-fopenmp")


class SharedObject:
    """Compiles in a thread of its own, if it has to; `get` is what was loaded, or None while there is none."""

    def __init__(self) -> None:
        self.problem = ""  # why there is none and will be none
        self._loaded: ctypes.CDLL | None = None
        self._thread = threading.Thread(target=self._build, daemon=True, name="compile decode.cpp")
        self._thread.start()

    def get(self, *, wait: bool = False) -> ctypes.CDLL | None:
        if wait:
            self._thread.join()
        return self._loaded

    def _build(self) -> None:
        try:
            self._loaded = ctypes.CDLL(str(_compiled()))
        except (OSError, subprocess.SubprocessError) as error:
            detail = getattr(error, "stderr", "") or error
            self.problem = f"decode.cpp: saw no compiled code ({str(detail).strip():.300}); decoding goes on in torch"


_shared_object: SharedObject | None = None


def shared_object() -> SharedObject:
    """The one of this process, whose compilation begins with the first call."""
    global _shared_object
    if _shared_object is None:
        _shared_object = SharedObject()
    return _shared_object


def _compiled() -> Path:
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    if compiler is None:
        raise OSError(f"saw no C++ compiler, expected one of {', '.join(COMPILERS)}")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    named = "\n".join((SOURCE.read_text(), version, *FLAGS, _processor()))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openk2"
    target = folder / f"decode-{hashlib.sha256(named.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            made = Path(aside) / target.name
            command = [compiler, *FLAGS, "-o", str(made), str(SOURCE)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            os.replace(made, target)
    return target


def _processor() -> str:
    """What -march=native depends on."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    return next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
