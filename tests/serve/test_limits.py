"""Clients that hang up, are too many, too slow or too large; an engine that breaks."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import openai
import pytest
from raw_requests import BODY, CHAT, connected, engine_with, sent
from running_server import CODEC, eventually, running
from scripted_engine import CALCULATOR, ScriptedEngine

from openk2.chat.grammar import Turn, TurnGrammar
from openk2.engine.engine import Engine, EngineSettings
from openk2.serve import app as app_module
from openk2.serve import wire, worker
from openk2.serve.answers import ChatAnswer


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


def test_where_several_ran_together_the_next_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "GATHER_SECONDS", 60.0)
    monkeypatch.setattr(worker, "SETTLE_SECONDS", 2.0)
    engine = ScriptedEngine(CODEC)
    asked = {"prompt": "a", "max_tokens": 2}
    with running(engine) as server, ThreadPoolExecutor(2) as clients:

        def one() -> httpx.Response:
            return server.post("/v1/completions", asked)

        one()  # alone
        assert server.post("/v1/completions", {**asked, "n": 2}).status_code == 200
        first = clients.submit(one)
        eventually(lambda: server.service.worker.num_queued == 1)
        second = clients.submit(one)
        eventually(lambda: server.service.worker.num_queued == 2)
        assert len(engine.requests) == 3
        assert first.result(20).status_code == second.result(20).status_code == 200


def test_without_work_freed_memory_is_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(worker, "give_back_freed_memory", lambda: given.append(engine.usage().running))
    engine = ScriptedEngine(CODEC)
    with running(engine) as server, ThreadPoolExecutor(1) as client:
        for times in (1, 2):
            eventually(lambda times=times: len(given) == times)
            time.sleep(0.5)
            engine.going.clear()
            answer = client.submit(server.post, "/v1/completions", {"prompt": "a", "max_tokens": 3})
            eventually(lambda: engine.usage().running == 1)
            time.sleep(0.5)
            assert len(given) == times
            engine.going.set()
            assert answer.result(20).status_code == 200
    assert not any(given)


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


def test_an_engine_that_breaks_before_a_token_came_answers_500() -> None:
    engine = engine_with(1)
    engine.fault = RuntimeError("broken")
    with running(engine) as server:
        answer = server.post(CHAT, BODY)
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    "where", [(TurnGrammar, "start"), (Turn, "accept"), (ChatAnswer, "take"), (ChatAnswer, "close")], ids=lambda w: w[1]
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_fails_disturbs_no_other(
    where: tuple[type, str], stream: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two that run at once one meets an error in its grammar, its text, or its end."""
    engine = ScriptedEngine(CODEC, context=10**6)
    engine.going.clear()
    body = {**BODY, "max_tokens": 40, "tools": [CALCULATOR], "tool_choice": "required"}
    with running(engine) as server, ThreadPoolExecutor(2) as client:
        good = client.submit(server.post, CHAT, body)
        eventually(lambda: engine.usage().running == 1)
        kind, name = where
        make, real, later = kind.__init__, getattr(*where), []

        def making(this: Any, *args: Any, **named: Any) -> None:
            later.append(this)
            make(this, *args, **named)

        def failing(this: Any, *args: Any) -> Any:
            if name == "start" or any(this is other for other in later):
                raise LookupError("a secret")
            return real(this, *args)

        monkeypatch.setattr(kind, "__init__", making)
        monkeypatch.setattr(kind, name, failing)
        bad = client.submit(server.post, CHAT, {**body, "stream": stream})
        if name != "start":
            eventually(lambda: engine.usage().running == 2)
        engine.going.set()
        failed = bad.result(20)
        assert stream or failed.status_code == 500
        error = json.loads(failed.text.rstrip().splitlines()[-1].removeprefix("data: "))["error"]
        assert error["type"] == "server_error" and error["code"] == "answer"
        assert "LookupError" in error["message"] and "secret" not in error["message"]
        answered = good.result(20)
        assert answered.status_code == 200 and answered.json()["choices"][0]["finish_reason"] == "tool_calls"
        assert server.get("/health").status_code == 200
    assert "a secret" in capfd.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [%s]}' % b",".join([b"-1"] * 200_000),
        b'{"messages": [{"role": "user", "content": "a"}], %s}' % b",".join(b'"x%d": 1' % n for n in range(200_000)),
    ],
    ids=["elements", "fields"],
)
def test_a_body_of_many_mistakes_is_told_one(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pydantic keeps an error for each, which takes gigabytes, while everybody waits."""
    counts: list[int] = []
    tell = app_module.validation_error
    monkeypatch.setattr(
        app_module, "validation_error", lambda errors, seen: counts.append(len(errors)) or tell(errors, seen)
    )
    with running(engine_with(0)) as server:
        answer = httpx.post(server.url + CHAT, content=body, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == 400 and counts == [1]


def test_a_schema_that_takes_too_long_is_given_up_and_holds_up_none_without(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, go_on = threading.Event(), threading.Event()
    real = TurnGrammar.__init__

    def slow(self: TurnGrammar, lexicon: Any, tools: Any = (), **named: Any) -> None:
        if tools:
            compiling.set()
            go_on.wait(20)
        real(self, lexicon, tools, **named)

    monkeypatch.setattr(TurnGrammar, "__init__", slow)
    with running(ScriptedEngine(CODEC), request_timeout=2.0) as server, ThreadPoolExecutor(50) as clients:
        body = {**BODY, "max_tokens": 2}
        # More than there are threads for what has no limit of its own.
        held_up = [clients.submit(server.post, CHAT, {**body, "tools": [CALCULATOR]}) for _ in range(50)]
        assert compiling.wait(10)
        time.sleep(0.3)
        assert server.post(CHAT, body).status_code == 200
        answers = [answer.result(20) for answer in held_up]
        assert {answer.status_code for answer in answers} == {504}
        assert "took longer than 2 seconds" in answers[0].json()["error"]["message"]
        go_on.set()
        eventually(lambda: server.post(CHAT, {**body, "tools": [CALCULATOR]}).status_code == 200)


def test_a_mistake_of_the_server_says_that_the_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TurnGrammar, "__init__", lambda *_, **__: 1 / 0)
    with running(ScriptedEngine(CODEC)) as server, httpx.Client(base_url=server.url) as client:
        answer = client.post(CHAT, json=BODY)
        assert answer.status_code == 500 and answer.headers["connection"] == "close"
        assert client.get("/health").status_code == 200


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
