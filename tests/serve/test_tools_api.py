"""Tools that the server runs: what is offered, what is refused, what breaks, and the page's files beside them."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import CODEC, Running, eventually, running
from scripted_engine import ScriptedEngine

from openk2.environments import declarations
from openk2.environments.git_fixture import fixture_files
from openk2.serve import tools
from openk2.serve.errors import ApiError
from openk2.serve.page import FILES
from openk2.serve.settings import ServeSettings
from openk2.serve.tools import CallRequest, Toolbox

STUBBORN = shlex.join([sys.executable, str(Path(__file__).parents[1] / "environments" / "stubborn_server.py")])
REPOSITORY = next(iter(fixture_files()))
BUILTIN = ("calculator", "weekday", "set_note", "get_note", "git_log")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedEngine(CODEC), tools=(*BUILTIN, STUBBORN)) as found:
        yield found


def call(server: Running, name: str, arguments: Any, **more: Any) -> httpx.Response:
    return server.post("/v1/tools/call", {"name": name, "arguments": arguments, **more})


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and "\n" not in found["message"]
    return found


def test_tools_are_listed_with_their_origin(server: Running) -> None:
    listed = {tool["function"]["name"]: tool for tool in server.get("/v1/tools").json()["data"]}
    assert list(listed)[: len(BUILTIN)] == list(BUILTIN)
    [calculator] = declarations(("calculator",))
    assert listed["calculator"] == {**calculator, "origin": "builtin"}
    assert listed["echo"]["origin"] == "stubborn_server.py" and listed["echo"]["function"]["description"]


def test_the_listed_declarations_are_those_of_a_request(server: Running) -> None:
    listed = server.get("/v1/tools").json()["data"]
    declared = [{key: tool[key] for key in ("type", "function")} for tool in listed]
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": declared}
    assert server.post("/tokenize", body).status_code == 200


@pytest.mark.parametrize("arguments", [{"expression": "6*7"}, '{"expression": "6*7"}'])
def test_a_call_is_run_from_an_object_and_from_a_models_text(server: Running, arguments: Any) -> None:
    assert call(server, "calculator", arguments).json() == {"content": "42"}


def test_calls_of_an_mcp_server_and_of_the_recorded_one(server: Running) -> None:
    assert call(server, "echo", {"text": "snow ☃,\n2 lines"}).json() == {"content": "snow ☃,\n2 lines"}
    refused = error(call(server, "git_log", {"repo_path": "elsewhere"}), 400)
    assert "elsewhere" in refused["message"] and refused["code"] == "tool_refused"
    assert "Commit" in call(server, "git_log", {"repo_path": REPOSITORY}).json()["content"]


def test_notes_belong_to_a_dialogue(server: Running) -> None:
    note = {"key": "k", "text": "milk"}
    assert call(server, "set_note", note, dialogue="one").json() == {"content": "saved"}
    assert call(server, "get_note", {"key": "k"}, dialogue="one").json() == {"content": "milk"}
    for other in ({"dialogue": "two"}, {}):
        assert "no note" in error(call(server, "get_note", {"key": "k"}, **other), 400)["message"]


def test_only_the_latest_dialogues_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "MAX_DIALOGUES", 2)
    box = Toolbox(("set_note", "get_note"), timeout=5)

    def said(name: str, dialogue: str, **arguments: str) -> str:
        return asyncio.run(box.call(CallRequest(name=name, arguments=arguments, dialogue=dialogue)))

    for dialogue in ("a", "b", "c"):
        said("set_note", dialogue, key="k", text=dialogue)
    assert [said("get_note", dialogue, key="k") for dialogue in ("b", "c")] == ["b", "c"]
    with pytest.raises(ApiError, match="no note"):
        said("get_note", "a", key="k")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("calculator", {"expression": 5}, "not of type"),
        ("calculator", {}, "required"),
        ("calculator", {"expression": "1", "digits": 2}, "unknown argument 'digits'"),
        ("calculator", {"expression": "1/0"}, "zero"),
        ("calculator", "{", "not JSON"),
        ("calculator", "[1]", "not a JSON object"),
        ("calculator", '{"expression": NaN}', "not JSON"),
        ("weekday", {"date": "2024-02-30"}, "no such date"),
        ("echo", {"text": 5}, "not of type"),
        ("refuse", {}, "I would rather not"),
    ],
)
def test_what_a_tool_refuses_is_said_for_the_model(server: Running, name: str, arguments: Any, words: str) -> None:
    found = error(call(server, name, arguments), 400)
    assert found["code"] == "tool_refused" and words in found["message"]


def test_arguments_nested_too_deeply_are_refused(server: Running) -> None:
    deep = '{"expression": ' + "[" * 50_000 + "]" * 50_000 + "}"
    assert error(call(server, "calculator", deep), 400)["code"] == "tool_refused"
    body = f'{{"name": "calculator", "arguments": {deep}}}'
    answer = httpx.post(
        f"{server.url}/v1/tools/call", content=body, headers={"content-type": "application/json"}, timeout=20
    )
    assert answer.status_code == 400


def test_an_unknown_tool_and_a_malformed_call(server: Running) -> None:
    assert error(call(server, "rm", {}), 404)["param"] == "name"
    assert error(server.post("/v1/tools/call", {"name": "calculator"}), 400)["param"] == "arguments"
    assert error(call(server, "calculator", {}, extra=1), 400)["param"] == "extra"
    assert error(call(server, "calculator", {}, dialogue="x" * 65), 400)["param"] == "dialogue"


def test_without_tools_nothing_is_offered() -> None:
    with running(ScriptedEngine(CODEC)) as server:
        assert server.get("/v1/tools").json() == {"object": "list", "data": []}
        assert "--tools" in error(call(server, "calculator", {"expression": "1"}), 404)["message"]


def test_a_long_result_is_cut_and_says_so(server: Running) -> None:
    long = "x" * (tools.MAX_RESULT_CHARACTERS + 5)
    content = call(server, "echo", {"text": long}).json()["content"]
    assert content.startswith("x" * tools.MAX_RESULT_CHARACTERS + "\n(cut here") and str(len(long)) in content
    assert call(server, "echo", {"text": long[5:]}).json()["content"] == long[5:]


def test_a_server_that_died_is_started_again_for_the_next_call(server: Running) -> None:
    before = call(server, "process_id", {}).json()["content"]
    assert error(call(server, "die", {}), 503)["code"] == "tool_failed"
    after = call(server, "process_id", {}).json()["content"]
    assert after != before


def test_a_tool_that_hangs_holds_nothing_up_and_is_given_up() -> None:
    box = Toolbox((STUBBORN, "calculator"), timeout=30)

    async def both() -> None:
        hanging = asyncio.create_task(box.call(CallRequest(name="hang", arguments={})))
        await asyncio.sleep(0)  # the call has begun
        assert await box.call(CallRequest(name="calculator", arguments={"expression": "1+1"})) == "2"
        assert not hanging.done()
        hanging.cancel()
        box.timeout = 0.3
        with pytest.raises(ApiError, match="longer than 0.3 seconds") as late:
            await box.call(CallRequest(name="hang", arguments={}))
        assert late.value.status == 504

    asyncio.run(both())
    box.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_the_servers_process_ends_with_the_application() -> None:
    with running(ScriptedEngine(CODEC), tools=(STUBBORN,)) as server:
        process = Path("/proc", call(server, "process_id", {}).json()["content"])
        assert process.exists()
    eventually(lambda: not process.exists())


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (("calculater",), "calculater.*expected one of calculator"),
        (("no-such-program --flag",), "command line of an MCP server"),
        (("'unclosed",), "No closing quotation"),
        (("",), "command line"),
        (("sql_query",), "no table"),
        (("calculator", "calculator"), "two tools of the name 'calculator'"),
        ((f"{shlex.quote(sys.executable)} -c 'print(1)'",), "did not start"),
        ((STUBBORN, STUBBORN), "two tools of the name 'echo'"),
    ],
)
def test_what_cannot_be_offered_is_refused_at_the_start(entries: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        Toolbox(entries, timeout=30)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python3", "-m", "mcp_server_git"], "mcp_server_git"),
        (["/usr/bin/npx", "-y", "@scope/server-files", "/data"], "server-files"),
        (["uvx", "mcp-server-time"], "mcp-server-time"),
        (["/somewhere/bin/mine", "--key", "secret"], "mine"),
    ],
)
def test_a_server_is_named_without_its_arguments(command: list[str], name: str) -> None:
    assert tools._server_name(command) == name


def test_the_time_limit_has_to_be_positive() -> None:
    with pytest.raises(ValueError, match="tool_timeout"):
        ServeSettings(tool_timeout=0)


def test_the_key_guards_the_tools_but_not_the_page() -> None:
    with running(ScriptedEngine(CODEC), api_key="s3cret", tools=("calculator",)) as server:
        assert error(server.get("/v1/tools"), 401) and error(call(server, "calculator", {}), 401)
        assert "s3cret" not in "".join(server.get(path).text for path in FILES)


def test_the_pages_files_come_with_their_policy(server: Running) -> None:
    for path in FILES:
        answer = server.get(path)
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ") and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "*" not in policy
    assert {Path(path).suffix for path in FILES} >= {"", ".css", ".js"}
    assert server.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert server.get("/page/index.html").status_code == 404
    assert server.get("/page/__init__.py").status_code == 404
    assert server.post("/", {}).status_code in (404, 405)
    assert 'route="/page/main.js"' in server.get("/metrics").text
