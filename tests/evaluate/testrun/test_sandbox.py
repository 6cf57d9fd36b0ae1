"""Code of a model runs elsewhere, within limits, and cannot pass by ending early."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openk2.evaluate.testrun import sandbox
from openk2.evaluate.testrun.sandbox import BUBBLEWRAP, PROCESS_LIMITS, run_tests, sandbox_kind


@pytest.fixture(params=[PROCESS_LIMITS, BUBBLEWRAP])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each kind of sandbox, where the machine has it."""
    sandbox_kind.cache_clear()
    if request.param == PROCESS_LIMITS:
        monkeypatch.setattr(sandbox, "_bwrap", lambda: "")
    elif shutil.which("bwrap") is None or sandbox_kind() != BUBBLEWRAP:
        pytest.skip("bubblewrap is not installed, or may not make namespaces here")
    assert sandbox_kind() == request.param
    yield request.param
    sandbox_kind.cache_clear()


def failure(code: str, tests: str = "f()", seconds: int = 10) -> str:
    return run_tests(code, tests, "f", seconds=seconds).failure


def test_it_runs_in_another_process(kind: str) -> None:
    code = "import os\ndef f():\n    return os.getpid()\n"
    assert failure(code, f"assert f() != {os.getpid()}") == ""


def test_the_test_that_failed_is_told(kind: str) -> None:
    said = failure("def f():\n    return 3\n", "assert f() == 3\nassert f() == 4\n")
    assert said == "a test failed: AssertionError in assert f() == 4"
    assert failure("1 / 0\n") == "the code failed: ZeroDivisionError: division by zero"
    assert failure("f = 3\n") == "no function f"


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), 9)", "open('verdict.json', 'w').write('{}')"])
def test_who_ends_early_has_not_passed(kind: str, ending: str) -> None:
    code = f"import os\ndef f():\n    {ending}\n    os._exit(0)\n"
    assert failure(code).startswith("the process ended before its tests did")
    assert failure("import sys\ndef f():\n    sys.exit(0)\n").startswith("a test failed: SystemExit")


def test_time_memory_and_files_are_limited(kind: str) -> None:
    found = run_tests("def f():\n    while True: pass\n", "f()", "f", seconds=1)
    assert found.timed_out and found.failure == "it ran longer than 1 s"
    assert "MemoryError" in failure("def f():\n    return len(bytearray(2 << 30))\n")
    endless = "def f():\n    for _ in range(64): print('x' * (1 << 20))\n"
    assert failure(endless)  # the file of its output is full
    assert "File too large" in failure("def f():\n    open('big', 'wb').write(bytes(64 << 20))\n")


def test_the_environment_is_not_ours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "sk-123")
    code = "import os\ndef f():\n    return dict(os.environ)\n"
    assert failure(code, "assert 'SECRET_KEY' not in f() and 'HOME' not in f()") == ""
    assert failure("def f():\n    import openk2\n").startswith("a test failed: ModuleNotFoundError")


def test_nothing_is_left_running(kind: str, tmp_path: Path) -> None:
    where = tmp_path / "alive" if kind == PROCESS_LIMITS else Path("/box/alive")
    code = (
        "import os, time\ndef f():\n    if os.fork() == 0:\n        while True:\n"
        f"            open({str(where)!r}, 'a').write('x')\n            time.sleep(0.01)\n    time.sleep(0.1)\n"
    )
    assert failure(code) == ""
    before = where.stat().st_size if where.exists() else 0
    time.sleep(0.1)
    assert before == (where.stat().st_size if where.exists() else 0)


@pytest.mark.parametrize("name", ["verdict.json", "output"])
@pytest.mark.parametrize("made", ["os.mkfifo({0!r})", "os.symlink({1!r}, {0!r})", "os.symlink('/dev/zero', {0!r})"])
def test_what_the_code_leaves_in_place_of_its_files_is_not_followed(
    kind: str, name: str, made: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sk-123\n")
    code = (
        f"import os\ndef f():\n    os.path.lexists({name!r}) and os.remove({name!r})\n"
        f"    {made.format(name, str(secret))}\n    os._exit(0)\n"
    )
    assert failure(code) == "the process ended before its tests did"


def test_bubblewrap_hides_files_and_the_network(kind: str) -> None:
    if kind != BUBBLEWRAP:
        pytest.skip("process limits hide neither")
    assert "FileNotFoundError" in failure(f"def f():\n    open({str(Path(__file__))!r})\n")
    assert "Read-only" in failure("def f():\n    open('/usr/x', 'w')\n")
    interfaces = "import socket\ndef f():\n    return [name for _, name in socket.if_nameindex()]\n"
    assert failure(interfaces, "assert f() == ['lo'], f()") == ""
