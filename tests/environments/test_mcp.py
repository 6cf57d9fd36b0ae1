"""The MCP client with a real server and with one that misbehaves: answers, timeouts, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openk2.environments.mcp import McpServer
from openk2.protocols import EnvironmentFailure, ToolError

STUBBORN = str(Path(__file__).with_name("stubborn_server.py"))


def is_running(process_id: int) -> bool:
    """Whether the process exists and is no zombie (nobody may be there to reap it)."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process_id}/stat")
    try:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(process_id: int) -> bool:
    """Whether the process ends; the limit is only there for the case that it never does."""
    for _ in range(1000):
        if not is_running(process_id):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def server() -> Iterator[McpServer]:
    opened = McpServer([sys.executable, STUBBORN])
    yield opened
    opened.close()
    opened.close()


def test_tools_and_answers(server: McpServer) -> None:
    specs = {spec["function"]["name"]: spec["function"] for spec in server.declarations()}
    assert set(specs) == {"echo", "process_id", "refuse", "hang", "die"}
    assert specs["echo"]["description"] == "Say it again"
    assert specs["echo"]["parameters"]["required"] == ["text"]
    text = 'snow \u2603, a "quote",\nand a line'
    assert server.call("echo", {"text": text}) == text


def test_refusals_leave_the_server_usable(server: McpServer) -> None:
    with pytest.raises(ToolError, match="I would rather not"):
        server.call("refuse", {})
    with pytest.raises(ToolError):
        server.call("echo", {"text": 5})
    with pytest.raises(ToolError):
        server.call("no_such_tool", {})
    assert server.call("echo", {"text": "still here"}) == "still here"


def test_close_ends_a_server_that_outlives_its_stdin() -> None:
    server = McpServer([sys.executable, STUBBORN, "outlive"])
    process_id = int(server.call("process_id", {}))
    assert is_running(process_id)
    server.close()
    assert not is_running(process_id)
    with pytest.raises(EnvironmentFailure, match="closed"):
        server.call("echo", {"text": "x"})


def test_a_server_that_dies_is_an_environment_failure() -> None:
    server = McpServer([sys.executable, STUBBORN])
    with pytest.raises(EnvironmentFailure):
        server.call("die", {})
    with pytest.raises(EnvironmentFailure):
        server.call("echo", {"text": "x"})


def test_a_server_that_hangs_is_ended(tmp_path: Path) -> None:
    server = McpServer([sys.executable, STUBBORN])
    process_id = int(server.call("process_id", {}))
    server._timeout = 0.3
    with pytest.raises(EnvironmentFailure, match="does not answer"):
        server.call("hang", {})
    assert ended(process_id)


@pytest.mark.parametrize(
    ("command", "timeout"),
    [
        (["no-such-command-anywhere"], 20.0),
        ([sys.executable, "-c", "print('hello')"], 20.0),
        ([sys.executable, "-c", "import time; time.sleep(1000)  # openk2-silent-server"], 0.5),
    ],
)
def test_a_server_that_does_not_start(command: list[str], timeout: float) -> None:
    with pytest.raises(EnvironmentFailure, match="did not start"):
        McpServer(command, timeout=timeout)
    if Path("/proc/self/cmdline").exists():
        assert not any("openk2-silent-server" in line for line in _command_lines())


def _command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace")
        except OSError:
            continue


PARENT = """
import sys, time
from openk2.environments.mcp import McpServer
server = McpServer([sys.executable, *sys.argv[1:]])
print(server.call("process_id", {}), flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can kill a child that outlives its stdin")
def test_no_orphan_after_kill_9_of_the_parent() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, STUBBORN, "outlive"], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        assert is_running(process_id)
        parent.send_signal(signal.SIGKILL)
    assert ended(process_id)


def test_no_orphan_after_an_exit_without_close() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT.replace("time.sleep(1000)", "sys.exit()"), STUBBORN]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True, timeout=60)
    assert ended(int(done.stdout))
