"""Running code that a model wrote: in a process of its own, never in ours.

Two kinds, and every report says which it was. `bubblewrap` (where `bwrap` is
installed and may be used): own namespaces, no network, the system's files read
only, no process left behind. `process limits` is weaker: limits on time, memory
and file sizes, an empty environment, a folder of its own and a process group
that is killed at the end; but the code can read what its user can read, and
reach the network. Neither stops code that was written to fool its own tests.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from openk2.environments.mcp import GUARD

SECONDS = 10
MEMORY_BYTES = 1 << 30
FILE_BYTES = 8 << 20
BUBBLEWRAP, PROCESS_LIMITS = "bubblewrap", "process limits"
_HARNESS = Path(__file__).with_name("harness.py")
_ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """`failure` is "" if every test passed."""

    failure: str
    timed_out: bool = False


def run_tests(code: str, tests: str, entry_point: str, *, seconds: int = SECONDS) -> Finding:
    """Run `tests` after `code`, in which they find `entry_point`. The calling thread has to outlive it."""
    with tempfile.TemporaryDirectory(prefix="openk2-", ignore_cleanup_errors=True) as folder:
        box, token = Path(folder), secrets.token_hex(16)
        task = {
            "code": code, "tests": tests, "entry_point": entry_point, "token": token,
            "seconds": seconds, "bytes": MEMORY_BYTES, "file_bytes": FILE_BYTES,
        }  # fmt: skip
        (box / "task.json").write_text(json.dumps(task), encoding="utf-8")
        if not _run(box, seconds):
            return Finding(f"it ran longer than {seconds} s", timed_out=True)
        return _finding(box, token)


@lru_cache(maxsize=1)
def sandbox_kind() -> str:
    """`bubblewrap` where it works, else `process limits`."""
    if not _bwrap():
        return PROCESS_LIMITS
    with tempfile.TemporaryDirectory(prefix="openk2-") as folder:
        command = [*_bubblewrap(Path(folder)), *_python(), "-c", "pass"]
        done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, check=False, timeout=60)
    return PROCESS_LIMITS if done.returncode else BUBBLEWRAP  # containers often forbid the namespaces it needs


def _run(box: Path, seconds: int) -> bool:
    """Whether it ended by itself."""
    walls = _bubblewrap(box) if sandbox_kind() == BUBBLEWRAP else []
    harness = [*_python(), "-c", _HARNESS.read_text(encoding="utf-8")]
    command = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *walls, *harness]
    with open(box / "output", "wb") as output:
        process = subprocess.Popen(
            command, cwd=box, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group: the process may be gone and have left others."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _finding(box: Path, token: str) -> Finding:
    try:
        verdict = json.loads(_read(box / "verdict.json"))
        if isinstance(verdict, dict) and verdict.get("token") == token:
            return Finding(str(verdict["failure"])[:_SHOWN])
    except (OSError, ValueError):
        pass
    try:
        said = _read(box / "output").decode(errors="replace").strip().splitlines()
    except OSError:
        said = []
    return Finding(f"the process ended before its tests did{f': {said[-1]}' if said else ''}"[:_SHOWN])


def _read(path: Path) -> bytes:
    """The beginning of a file that the code may have made into anything: links and pipes are errors here."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path.name} is no file")
        return file.read(100_000)


def _python() -> list[str]:
    """The interpreter without the packages that are installed for it."""
    return [os.path.realpath(sys.executable), "-I", "-S"]


def _bwrap() -> str:
    """The program's path, "" where it is not installed."""
    return shutil.which("bwrap") or ""


def _bubblewrap(box: Path) -> list[str]:
    command = [_bwrap(), "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib64", "sbin"):
        root = Path("/", name)
        if root.is_symlink():
            command += ["--symlink", os.readlink(root), str(root)]
        elif root.is_dir():
            command += ["--ro-bind", str(root), str(root)]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for prefix in _outside_usr((sys.base_prefix, str(Path(os.path.realpath(sys.executable)).parent))):
        command += ["--ro-bind", prefix, prefix]
    return [*command, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", str(box), "/box",
            "--chdir", "/box"]  # fmt: skip


def _outside_usr(prefixes: Sequence[str]) -> list[str]:
    return [prefix for prefix in dict.fromkeys(prefixes) if not prefix.startswith("/usr/")]
