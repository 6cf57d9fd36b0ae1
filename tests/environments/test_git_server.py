"""The fixture repositories, the live git server over them, and the recording that stands in for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from openk2.environments import TOOL_NAMES, open_environment
from openk2.environments.git_fixture import GIT_SPECS, RECORDING, build_repositories, fixture_files, fixture_log
from openk2.environments.recording import RecordedServer, record
from openk2.protocols import Task, ToolError

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="the `git` command is not installed")
needs_server = pytest.mark.skipif(
    shutil.which("git") is None or find_spec("mcp_server_git") is None,
    reason="the `git` command or the mcp-server-git package is not installed",
)


@pytest.fixture
def recorded() -> RecordedServer:
    return RecordedServer(GIT_SPECS, RECORDING)


@pytest.fixture(scope="module")
def live() -> Iterator[object]:
    from openk2.environments.git_server import GitServer

    server = GitServer()
    yield server
    server.close()


@needs_server
def test_two_fresh_live_servers_and_the_recording_agree(live: object) -> None:
    from openk2.environments.git_server import GitServer, fixture_calls

    some = slice(0, None, 6)
    other = GitServer()
    try:
        texts = [record(server, fixture_calls()[some]) for server in (live, other)]  # type: ignore[arg-type]
    finally:
        other.close()
    assert texts[0] == texts[1]
    recorded = "".join(RECORDING.read_text(encoding="utf-8").splitlines(keepends=True)[some])
    assert texts[0] == recorded, "the recording is stale: run python -m openk2.environments.git_server"


@needs_server
@pytest.mark.slow
def test_the_whole_recording_is_what_the_live_server_says(live: object) -> None:
    from openk2.environments.git_server import fixture_calls

    assert record(live, fixture_calls()) == RECORDING.read_text(encoding="utf-8")  # type: ignore[arg-type]


@needs_server
def test_declarations_keep_the_servers_names_and_required_arguments(live: object) -> None:
    full = {spec["function"]["name"]: spec["function"]["parameters"] for spec in live._server.declarations()}  # type: ignore[attr-defined]
    for spec in GIT_SPECS:
        function = spec["function"]
        theirs = full[function["name"]]
        assert set(function["parameters"]["required"]) == set(theirs["required"])
        assert set(function["parameters"]["properties"]) <= set(theirs["properties"])
        for name, schema in function["parameters"]["properties"].items():
            assert schema["type"] == theirs["properties"][name]["type"]


@needs_server
def test_no_real_path_reaches_the_model(live: object) -> None:
    folder = live._folder.name  # type: ignore[attr-defined]
    calls = [
        ("git_show", {"repo_path": "shop", "revision": "no-such-branch:PORT"}),
        ("git_show", {"repo_path": "shop", "revision": "--help"}),
        ("git_branch", {"repo_path": "shop", "branch_type": "odd"}),
        ("git_log", {"repo_path": "shop", "max_count": -1}),
        ("git_show", {"repo_path": folder + "/shop", "revision": "main:PORT"}),
        ("git_show", {"repo_path": "../shop", "revision": "main:PORT"}),
        ("git_show", {"revision": "main:PORT"}),
        ("git_show", {"repo_path": "shop", "revision": "main"}),
        ("git_log", {"repo_path": "shop", "max_count": "x"}),
    ]
    for line in record(live, calls).splitlines():  # type: ignore[arg-type]
        said = json.loads(line)
        text = said.get("answer", said.get("error"))
        given = str(said["arguments"].get("repo_path"))
        assert folder not in text.replace(given, ""), said
        assert "Traceback" not in text


@needs_server
def test_the_servers_own_words_name_no_real_path(live: object) -> None:
    folder = Path(live._folder.name)  # type: ignore[attr-defined]
    (folder / "mail").rename(folder / "gone")
    try:
        # Unmasked, the server says where it looked.
        with pytest.raises(ToolError) as refusal:
            live.call("git_log", {"repo_path": "mail", "max_count": 1})  # type: ignore[attr-defined]
    finally:
        (folder / "gone").rename(folder / "mail")
    assert str(refusal.value) == "mail"


@needs_server
def test_a_live_server_answers_in_place_of_the_recording(live: object) -> None:
    task = Task("t", "git_show", "", ("git_show", "calculator"), ())
    environment = open_environment(task, servers=[live])  # type: ignore[list-item]
    # Not in the recording, so this can only come from the server.
    assert environment.call("git_show", {"repo_path": "shop", "revision": "main~1:OWNER"}) == "Ada"
    assert environment.call("calculator", {"expression": "1+1"}) == "2"
    environment.close()
    assert live.call("git_show", {"repo_path": "shop", "revision": "main:PORT"}) == "8000"  # type: ignore[attr-defined]


@needs_git
def test_commit_hashes_are_the_same_everywhere(tmp_path: Path) -> None:
    heads = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths = build_repositories(tmp_path / folder)
        heads.append({name: (path / "refs/heads/main").read_text() for name, path in paths.items()})
    assert heads[0] == heads[1]
    assert heads[0]["shop"].startswith("2191fe7"), "the fixture changed: record it again"


def test_the_recording_holds_what_the_fixture_says(recorded: RecordedServer) -> None:
    for repository, branches in fixture_files().items():
        listed = recorded.call("git_branch", {"repo_path": repository, "branch_type": "local"})
        assert set(listed.replace("*", " ").split()) == set(branches)
        for branch, files in branches.items():
            for file, line in files.items():
                assert recorded.call("git_show", {"repo_path": repository, "revision": f"{branch}:{file}"}) == line
    for repository, commits in fixture_log().items():
        said = recorded.call("git_log", {"repo_path": repository, "max_count": 3})
        written = [line.partition(": ")[2] for line in said.splitlines() if line.startswith(("Author", "Message"))]
        assert written == [part for commit in commits for part in commit]


def test_fixture_values_vary() -> None:
    values = {
        (file, line)
        for branches in fixture_files().values()
        for files in branches.values()
        for file, line in files.items()
    }
    assert len({line for file, line in values if file == "PORT"}) >= 14
    assert len({line for file, line in values if file == "OWNER"}) >= 5


def test_replay_ignores_the_order_of_arguments_and_the_type_of_whole_numbers(recorded: RecordedServer) -> None:
    assert recorded.call("git_log", {"max_count": 1.0, "repo_path": "shop"}) == recorded.call(
        "git_log", {"repo_path": "shop", "max_count": 1}
    )
    with pytest.raises(ToolError, match="no such git_log call"):
        recorded.call("git_log", {"repo_path": "shop", "max_count": 77})


def test_a_broken_recording_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    path.write_text('{"tool": "t", "arguments": {}, "answer": "a"}\n{"tool": "t"}\n')
    with pytest.raises(ValueError, match=r"recording.jsonl line 2: saw"):
        RecordedServer([], path)


def test_git_tools_need_neither_git_nor_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    environment = open_environment(Task("t", "git_show", "", TOOL_NAMES, ()))
    assert environment.call("git_show", {"repo_path": "game", "revision": "dev:OWNER"}) == "Grace"
