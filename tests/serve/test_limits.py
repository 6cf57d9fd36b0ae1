"""Clients that hang up, are too many, too slow or not let in; an engine that breaks; a server that stops."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from running_server import CODEC, Running, eventually, running
from scripted_engine import ScriptedEngine

from openk2.engine.engine import Engine, EngineSettings
from openk2.serve import wire, worker
from openk2.serve.server import serve
from openk2.serve.settings import ServeSettings

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def endless() -> Iterator[int]:
    """The ids of a model that never stops."""
    return itertools.cycle(CODEC.tokenizer.encode("and so on "))


def engine_with(count: int) -> ScriptedEngine:
    return ScriptedEngine(CODEC, *(endless() for _ in range(count)), context=10**6)


def connected(server: Running) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def sent(server: Running, body: dict[str, Any]) -> socket.socket:
    """A connection on which a chat request has been sent."""
    text = json.dumps(body).encode()
    connection = connected(server)
    connection.sendall(
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % (CHAT.encode(), len(text))
        + text
    )
    return connection


@pytest.mark.parametrize(
    "said", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n"]
)
def test_what_is_no_http_gets_an_error_in_the_same_shape(said: bytes) -> None:
    with running(ScriptedEngine(CODEC)) as server:
        with connected(server) as connection:
            connection.sendall(said)
            head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ") and b"application/json" in head
        assert "Invalid HTTP request" in json.loads(body)["error"]["message"]
        assert server.get("/health").status_code == 200


@pytest.mark.parametrize(("patience", "waits"), [(30.0, True), (0.01, False)])
def test_an_idle_engine_waits_a_little_for_requests_that_are_being_read(
    patience: float, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "GATHER_SECONDS", patience)
    engine = ScriptedEngine(CODEC, [5] * 3)
    with running(engine) as server, ThreadPoolExecutor(1) as client:
        with server.service.worker.coming():
            answer = client.submit(server.post, "/v1/completions", {"prompt": "a", "max_tokens": 3})
            if waits:
                eventually(lambda: server.service.worker.num_queued == 1)
                time.sleep(0.05)
                assert engine.requests == []
            else:
                assert answer.result(20).status_code == 200
        assert answer.result(20).json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_sequences(stream: bool) -> None:
    engine = engine_with(2)
    with running(engine) as server:
        connection = sent(server, {**BODY, "stream": stream, "n": 2})
        eventually(lambda: engine.usage().running == 2)
        if stream:
            assert connection.recv(100)
        connection.close()
        eventually(lambda: engine.usage().running == 0)
        assert server.get("/health").status_code == 200


def test_hanging_up_frees_the_blocks_of_a_real_engine() -> None:
    from small_checkpoint import small_model

    engine = Engine(small_model(), EngineSettings(cache_tokens=4096))
    with running(engine) as server:
        connection = sent(server, {**BODY, "stream": True, "n": 2, "max_tokens": 900})
        assert connection.recv(100)
        connection.close()
        eventually(lambda: not engine.has_work)
    usage = engine.usage()
    assert usage.free + usage.kept == usage.blocks
    engine.check()


def test_a_client_that_hangs_up_while_it_waits_is_forgotten() -> None:
    engine = engine_with(1)
    engine.going.clear()
    with running(engine) as server:
        connection = sent(server, {**BODY, "stream": True})
        eventually(lambda: engine.usage().running == 1)
        connection.close()
        eventually(lambda: engine.usage().running == 0)


def test_too_many_requests_are_told_to_come_back() -> None:
    engine = engine_with(4)
    engine.going.clear()
    with running(engine, max_waiting=2) as server:
        waiting = [sent(server, {**BODY, "max_tokens": 2}) for _ in range(2)]
        eventually(lambda: len(engine.requests) + server.service.worker.num_queued == 2)
        with server.openai() as client, pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="openk2", messages=BODY["messages"])
        assert refused.value.response.headers["retry-after"] == "1"
        assert refused.value.code == "rate_limit_exceeded" and refused.value.type == "rate_limit_error"
        with server.anthropic() as other, pytest.raises(anthropic.RateLimitError):
            other.messages.create(model="openk2", max_tokens=2, messages=BODY["messages"])
        engine.going.set()
        for connection in waiting:
            assert b"200 OK" in connection.recv(1000)
        assert server.post(CHAT, {**BODY, "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_takes_too_long_is_broken_off(stream: bool) -> None:
    engine = engine_with(1)
    with running(engine, request_timeout=0.3) as server:
        answer = server.post(CHAT, {**BODY, "stream": stream})
        if stream:
            last = answer.text.rstrip().splitlines()[-1]
            assert "timeout" in json.loads(last.removeprefix("data: "))["error"]["code"]
        else:
            assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
            assert answer.headers["x-should-retry"] == "false"
        eventually(lambda: engine.usage().running == 0)


def test_what_the_engine_cannot_take_on_is_refused_in_its_words() -> None:
    engine = engine_with(1)
    engine.fault_on_submit = ValueError("engine: saw too much")
    with running(engine) as server:
        answer = server.post(CHAT, {**BODY, "stream": True})
        assert answer.status_code == 400 and answer.json()["error"]["message"] == "engine: saw too much"
        engine.fault_on_submit = None
        assert server.post(CHAT, {**BODY, "max_tokens": 2}).status_code == 200


def test_a_stream_that_waits_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "KEEP_ALIVE_SECONDS", 0.05)
    engine = engine_with(2)
    with running(engine) as server:
        for path, sign in ((CHAT, ": waiting"), ("/v1/messages", "event: ping")):
            engine.going.clear()
            body = {**BODY, "stream": True, "max_tokens": 2}
            with httpx.stream("POST", server.url + path, json=body, timeout=20) as answer:
                lines = (line for line in answer.iter_lines() if line)
                assert [next(line for line in lines if line == sign) for _ in range(3)]
                engine.going.set()
                assert any("length" in line or "max_tokens" in line for line in lines)


def test_an_engine_that_breaks_fails_its_requests_and_the_health_check(capfd: pytest.CaptureFixture[str]) -> None:
    engine = engine_with(2)
    with running(engine) as server:
        assert server.get("/health").json() == {"status": "ok"}
        streamed: list[str] = []
        thread = threading.Thread(target=lambda: streamed.append(server.post(CHAT, {**BODY, "stream": True}).text))
        thread.start()
        eventually(lambda: engine.usage().running == 1)
        engine.going.clear()
        engine.fault = RuntimeError("out of memory")
        engine.going.set()
        thread.join(10)
        error = json.loads(streamed[0].rstrip().splitlines()[-1].removeprefix("data: "))["error"]
        assert error["type"] == "server_error" and "out of memory" not in error["message"]
        assert server.get("/health").status_code == 503
        assert server.post(CHAT, BODY).status_code == 503
        refused = server.post("/v1/messages", {**BODY, "max_tokens": 2})
        assert refused.status_code == 503 and refused.json()["error"]["type"] == "overloaded_error"
    assert "out of memory" in capfd.readouterr().err


@pytest.mark.parametrize("where", ["fault", "fault_on_submit"])
def test_an_engine_that_breaks_before_a_token_came_answers_500(where: str) -> None:
    engine = engine_with(1)
    setattr(engine, where, RuntimeError("broken"))
    with running(engine) as server:
        answer = server.post(CHAT, BODY)
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_is_too_large_is_refused_before_it_has_come(chunked: bool) -> None:
    with running(engine_with(0), max_body_bytes=1000) as server:
        content: Any = b"x" * 5000
        if chunked:
            content = iter([b"x" * 600] * 5)
        answer = httpx.post(server.url + CHAT, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413 and answer.json()["error"]["type"] == "invalid_request_error"
        answer = httpx.post(server.url + "/v1/messages", content=b"x" * 5000)
        assert answer.json()["error"]["type"] == "request_too_large"


def test_slow_clients_are_cut_off() -> None:
    with running(engine_with(0), receive_timeout=0.3) as server:
        headers = connected(server)
        headers.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        assert headers.recv(1000) == b""
        further = connected(server)
        further.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in further.recv(1000)
        further.sendall(b"GET /health HTTP/1.1\r\nHo")
        while part := further.recv(1000):
            assert b"HTTP/1.1 2" not in part
        body = connected(server)
        body.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        assert b"408" in body.recv(1000).splitlines()[0]
        assert body.recv(1000) == b"" or body.recv(1000) == b""


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LocalHost:1", 200), ("127.0.0.1:8000", 200), ("[::1]:80", 200), ("models.lan", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1@evil.example", 403), ("", 403),
        ("localhost:80:80", 403),
    ],
)  # fmt: skip
def test_other_names_for_this_computer_are_refused(named: Running, host: str, status: int) -> None:
    for path in ("/health", "/v1/models"):
        assert named.get(path, headers={"host": host}).status_code == status


@pytest.fixture(scope="module")
def named() -> Iterator[Running]:
    with running(engine_with(0), allow_hosts=("Models.lan",)) as server:
        yield server


def test_every_name_may_be_used_where_others_can_reach_the_server() -> None:
    assert ServeSettings(host="0.0.0.0").hosts is None
    assert ServeSettings(host="0.0.0.0", allow_hosts=("a.lan",)).hosts == {"a.lan"}


def test_the_key_is_asked_for_everywhere_but_at_the_health_check() -> None:
    with running(ScriptedEngine(CODEC), api_key="sésame") as server:
        assert server.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            answer = server.get(path)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        right = "sésame".encode()
        for headers in ({"authorization": b"Bearer " + right}, {"x-api-key": right}):
            assert server.get("/v1/models", headers=headers).status_code == 200
        for headers in ({"authorization": b"Basic " + right}, {"x-api-key": b"sesame"}, {"authorization": b"Bearer"}):
            assert server.get("/v1/models", headers=headers).status_code == 401
    with running(ScriptedEngine(CODEC), api_key="k") as server:
        with server.openai("k") as client:
            assert client.completions.create(model="openk2", prompt="x", max_tokens=1).choices
        with server.anthropic("wrong") as other, pytest.raises(anthropic.AuthenticationError):
            other.messages.create(model="openk2", max_tokens=1, messages=BODY["messages"])


def test_other_origins_are_let_in_only_by_name() -> None:
    asking = {"origin": "https://page.example", "access-control-request-method": "POST"}
    with running(engine_with(0)) as server:
        assert server.get("/health", headers=asking).headers.get("access-control-allow-origin") is None
        assert httpx.options(server.url + CHAT, headers=asking).status_code == 405
    with running(engine_with(0), allow_origins=("https://page.example",)) as server:
        allowed = httpx.options(server.url + CHAT, headers=asking)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        refused = httpx.options(server.url + CHAT, headers={**asking, "origin": "https://evil.example"})
        assert refused.headers.get("access-control-allow-origin") is None


def test_settings_that_mean_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="max_waiting 0"):
        ServeSettings(max_waiting=0)
    monkeypatch.delenv("NO_KEY_HERE", raising=False)
    with pytest.raises(ValueError, match="NO_KEY_HERE"):
        serve(engine_with(0), CODEC, ServeSettings(api_key_env="NO_KEY_HERE", port=0))
    other = engine_with(0)
    other.model.config.vocab_size = 7
    with pytest.raises(ValueError, match="7 rows"):
        serve(other, CODEC, ServeSettings(port=0))


PROCESS = """
import itertools, sys
sys.path[:0] = {paths!r}
from scripted_engine import ScriptedEngine
from small_checkpoint import small_codec
from openk2.serve import wire
from openk2.serve.server import serve
from openk2.serve.settings import ServeSettings

CODEC = small_codec()
words = CODEC.tokenizer.encode("and so on ")
engine = ScriptedEngine(CODEC, itertools.cycle(words), itertools.chain(words * 10, [CODEC.tokenizer.im_end_id]),
                        context=10**9)
engine.pace = 0.01
serve(engine, CODEC, ServeSettings(port=0, grace={grace}))
print("returned")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_accepting_lets_answers_end_and_tells_what_was_cut(number: int, repository: Path) -> None:
    paths = [str(repository / "tests" / "serve"), str(repository / "tests" / "posttrain" / "sft")]
    code = textwrap.dedent(PROCESS).format(paths=paths, grace=2)
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=repository, env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1].removesuffix("/v1")
        eventually(lambda: reachable(url))
        with (
            httpx.stream("POST", url + CHAT, json={**BODY, "stream": True}, timeout=20) as endless_answer,
            httpx.stream("POST", url + CHAT, json={**BODY, "stream": True}, timeout=20) as short_answer,
        ):
            process.send_signal(number)
            eventually(lambda: not reachable(url))
            assert short_answer.read().decode().rstrip().endswith("[DONE]")
            error = json.loads(endless_answer.read().decode().rstrip().splitlines()[-1].removeprefix("data: "))
        assert "stopped" in error["error"]["message"]
        out, err = process.communicate(timeout=20)
        assert out == "returned\n" and process.returncode == 0
        assert "cut a chat completion after" in err and "Traceback" not in err
    finally:
        process.kill()
        process.wait()


def reachable(url: str) -> bool:
    try:
        return httpx.get(url + "/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_a_server_that_stops_is_not_healthy_and_takes_nothing_more() -> None:
    with running(engine_with(0)) as server:
        server.service.stopping = True
        assert server.get("/health").status_code == 503
        assert server.post(CHAT, BODY).status_code == 503
        server.service.stopping = False
