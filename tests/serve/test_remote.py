"""`Generate` over our own server against the engine in this process, and endpoints that lack what is needed."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from running_server import CODEC, Running, running
from scripted_engine import ScriptedEngine
from small_checkpoint import small_model, write_checkpoint

from openk2.cli import main
from openk2.engine import Engine, EngineSettings
from openk2.engine.remote import RemoteGenerate
from openk2.model.model import Model
from openk2.protocols import SamplingParams

PROMPTS = [[5, 9, 200, 31], [7], [5, 9, 200, 31]]
PARAMS = SamplingParams(max_new_tokens=12, temperature=1.0, top_p=0.95, seed=3, stop_ids=CODEC.stop_ids)


@pytest.fixture(scope="module")
def model() -> Model:
    model = Model(small_model().config, compute_dtype=torch.bfloat16)
    return model.init_weights(1).eval()


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    """In the deterministic mode: which requests share a step is a matter of chance."""
    with running(Engine(model, EngineSettings(attention="invariant")), model_name="small") as server:
        yield server


def test_completions_are_those_of_the_engine_here(server: Running, model: Model) -> None:
    here = Engine(model, EngineSettings(attention="invariant"))(PROMPTS, PARAMS)
    heard: list[tuple[int, int]] = []
    remote = RemoteGenerate(server.url + "/v1", with_experts=True)
    assert (remote.model, remote.context_length) == ("small", 1024)
    found = remote(PROMPTS, PARAMS, on_token=lambda index, token: heard.append((index, token)))
    for index, (one, other) in enumerate(zip(found, here, strict=True)):
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-6)
        assert one.experts is not None and (one.experts == other.experts).all()
        assert tuple(token for owner, token in heard if owner == index) == one.ids
    assert remote([], PARAMS) == []


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\r", "\x1c"])
def test_a_text_may_hold_any_end_of_line(end: str) -> None:
    ids = CODEC.tokenizer.encode(f"a{end}b")
    with running(ScriptedEngine(CODEC, ids)) as server:
        [found] = RemoteGenerate(server.url + "/v1")([[5]], dataclasses.replace(PARAMS, max_new_tokens=len(ids)))
    assert list(found.ids) == ids and found.finish_reason == "length"


def test_nothing_is_taken_after_a_stop_id(server: Running) -> None:
    remote = RemoteGenerate(server.url + "/v1")
    free = remote(PROMPTS[:1], PARAMS)[0]
    stop = free.ids[3]
    cut = remote(PROMPTS[:1], dataclasses.replace(PARAMS, stop_ids=(stop,)))[0]
    assert cut.ids == free.ids[: free.ids.index(stop) + 1] and cut.finish_reason == "stop"


def test_what_an_endpoint_cannot_do_is_refused(server: Running) -> None:
    remote = RemoteGenerate(server.url + "/v1")
    with pytest.raises(ValueError, match="saw a grammar, expected none"):
        remote(PROMPTS[:1], PARAMS, grammars=[object()])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="saw status 400: .*token id 99999"):
        remote([[99999]], PARAMS)
    with pytest.raises(ValueError, match="saw no OpenAI-compatible server"):
        RemoteGenerate("http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="saw status 404"):
        RemoteGenerate(server.url + "/v2")
    with pytest.raises(ValueError, match="saw no key in the environment variable NO_SUCH_KEY"):
        RemoteGenerate(server.url + "/v1", key_env="NO_SUCH_KEY")


class _Other(BaseHTTPRequestHandler):
    """A server that answers every completion with one part."""

    part: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "other"}]}).encode(), "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._send(f"data: {json.dumps({'choices': [self.part]})}\n\ndata: [DONE]\n\n".encode(), "text/event-stream")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ({"text": "a"}, "saw no token_ids"),
        ({"token_ids": [1]}, "saw 0 log-probabilities of 1 tokens"),
        ({"token_ids": [1], "token_logprobs": [-1.0]}, "saw tokens without experts"),
        ({"token_ids": [1], "token_logprobs": [-1.0], "experts": [[[0]]]}, "saw an answer without an end"),
    ],
)
def test_rl_refuses_an_endpoint_without_what_it_needs(part: dict[str, Any], complaint: str) -> None:
    handler = type("Handler", (_Other,), {"part": {"index": 0, "text": "", "finish_reason": None, **part}})
    with HTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        remote = RemoteGenerate(f"http://127.0.0.1:{other.server_port}/v1", with_experts=True)
        with pytest.raises(ValueError, match=complaint):
            remote([[1]], PARAMS)
        other.shutdown()


def test_chat_and_evaluation_ask_an_endpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "small")
    with running(Engine(small_model())) as server:
        url = server.url + "/v1"
        assert main(["chat", str(folder), "--endpoint", url, "--prompt", "Hello", "--max-new-tokens", "8"]) == 0
        assert main(["evaluate", str(folder), "--endpoint", url, "--tasks", "phrasings", "--limit", "2", "--json"]) == 0
        assert '"phrasings"' in capsys.readouterr().out
        assert server.service.metrics.generated_tokens._value.get() > 8
