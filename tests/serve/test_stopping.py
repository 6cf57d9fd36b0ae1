"""Settings that mean nothing, and a server that is told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest
from raw_requests import BODY, CHAT, engine_with
from running_server import CODEC, eventually, running

from openk2.serve.server import serve
from openk2.serve.settings import ServeSettings


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
