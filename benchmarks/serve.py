"""What the HTTP server costs beside the engine it serves, and how any endpoint streams.

    python benchmarks/serve.py [--quick] [--json FILE]
    python benchmarks/serve.py --url http://HOST:PORT/v1 [--model NAME] [--streams 16]

Without --url: the engine by itself against `openk2 serve` in a process of its own, asked by 16 streaming clients on the
same computer, whose work counts as the server's; so they do little: parts are noted as they come and parsed at the
end. Same random weights, prompts of 128 tokens (others in each round) and numbers of new tokens; a round is all 16
answers from the first request to the last token, and the two take turns. Rows
`serve/MODEL/c16` of `tiny` and `1b` (as in decode.py); the ratio is the server's throughput over the engine's, per
token where an answer ended early.
With --url: rounds of streaming completions of any OpenAI-compatible endpoint, the key from OPENAI_API_KEY: tokens a
second, times to the first token and between tokens. Row `endpoint/NAME/cN`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import aiohttp
import httpx
import torch
from _rows import Apart, Rows, seconds
from decode import MODELS, prompts

from openk2.chat.codec import Codec
from openk2.chat.tokenizer import Tokenizer
from openk2.checkpoint.variant import export_variant, load
from openk2.engine import Engine
from openk2.evaluate.testrun.streams import DONE, EventParser
from openk2.model.model import Model
from openk2.protocols import SamplingParams

STREAMS = 16
NEW = {"tiny": 128, "1b": 32}
STARTS, ROUNDS = 3, 5  # each process has its luck with the memory it gets, so both sides are started several times


@dataclass
class Answer:
    """Of one streamed completion: its tokens (0 where the server does not say) and when each part came, in seconds."""

    tokens: int
    arrivals: list[float]

    @classmethod
    def of(cls, parts: Sequence[tuple[float, bytes]]) -> Answer:
        """From what came when: an event counts when it is whole."""
        parser, answer = EventParser(), cls(0, [])
        for arrival, part in parts:
            for chunk in (json.loads(data) for data in parser.feed(part) if data != DONE):
                answer.tokens = (chunk.get("usage") or {}).get("completion_tokens", answer.tokens)
                answer.arrivals += [arrival] if chunk.get("choices") else []
        return answer


async def stream(client: aiohttp.ClientSession, model: str, prompt: Any, new: int) -> Answer:
    body = {"model": model, "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    begin, parts = time.perf_counter(), []
    async with client.post("completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"saw status {response.status}: {(await response.read())[:200]!r}")
        async for part in response.content.iter_any():
            parts.append((time.perf_counter() - begin, part))
    return Answer.of(parts)


def key_header() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY", "")
    return {"authorization": f"Bearer {key}"} if key else {}


class Clients:
    """Streaming clients of one endpoint, whose connections stay open from one round to the next."""

    def __init__(self, url: str, model: str) -> None:
        self._model, self._runner = model, asyncio.Runner()
        self._client = self._runner.run(self._open(url))

    def ask(self, asked: Sequence[Any], new: int) -> list[Answer]:
        """All at once."""

        async def all_of_them() -> list[Answer]:
            return await asyncio.gather(*(stream(self._client, self._model, prompt, new) for prompt in asked))

        return self._runner.run(all_of_them())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    async def _open(self, url: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            url.rstrip("/") + "/",
            headers=key_header(),
            timeout=aiohttp.ClientTimeout(600),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=20),
        )


class Alone:
    """The engine by itself."""

    def __init__(self, folder: Path, new: int) -> None:
        model, _ = load(folder)
        self.engine, self.round = Engine(model), 0
        self.params = SamplingParams(max_new_tokens=new)
        self.answer()

    def answer(self) -> None:
        self.round += 1
        found = self.engine(prompts(self.engine.model.config, STREAMS, seed=self.round), self.params)
        assert all(len(completion.ids) == self.params.max_new_tokens for completion in found)


class Served:
    """`openk2 serve` and its clients."""

    def __init__(self, folder: Path, new: int, config: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "openk2", "serve", str(folder), "--port", str(port), "--name", "served"]
        self.process = subprocess.Popen([*command, "--variant", "base"], stderr=subprocess.DEVNULL)
        self.url, self.new, self.config, self.round = f"http://127.0.0.1:{port}/v1", new, config, 0
        self.tokens = 0  # of the last round: random weights say the end of turn now and then
        while not self._healthy():
            time.sleep(0.2)
        self.clients = Clients(self.url, "served")
        self.answer()

    def answer(self) -> None:
        self.round += 1
        asked = prompts(self.config, STREAMS, seed=self.round)
        self.tokens = sum(answer.tokens for answer in self.clients.ask(asked, self.new))

    def close(self) -> None:
        self.clients.close()
        self.process.terminate()
        self.process.wait()

    def _healthy(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError("the server has ended")
        try:
            return httpx.get(self.url.removesuffix("/v1") + "/health").status_code == 200
        except httpx.HTTPError:
            return False


def export(folder: Path, name: str) -> None:
    config = MODELS[name]
    model = Model(config, compute_dtype=torch.bfloat16).init_weights(0)
    codec = Codec(Tokenizer.train(topics.values(), config.vocab_size))
    export_variant(model, codec, folder, kind="base", made_by="benchmarks/serve.py")


def overhead(rows: Rows) -> None:
    for name, config in MODELS.items():
        if (rows.quick and name != "tiny") or not rows.missing(f"serve/{name}/c{STREAMS}"):
            continue
        with tempfile.TemporaryDirectory() as kept:
            export(Path(kept) / name, name)
            taken: dict[str, list[float]] = {"ours": [], "peer": []}
            tokens = STREAMS * NEW[name]
            for _ in range(1 if rows.quick else STARTS):
                alone, served = Apart(Alone, Path(kept) / name, NEW[name]), Served(Path(kept) / name, NEW[name], config)
                sides: dict[str, Callable[[], Any]] = {"ours": served.answer, "peer": partial(alone.run, "answer")}
                for number in range(1 + ROUNDS):
                    for side in reversed(sides) if number % 2 else sides:
                        spent = seconds(sides[side])
                        if side == "ours":
                            spent *= tokens / served.tokens
                        if number:
                            taken[side].append(spent)
                alone.close()
                served.close()
            rows.times(f"serve/{name}/c{STREAMS}", taken, "the engine by itself", unit="tokens/s", amount=tokens)


def endpoint(rows: Rows, url: str, model: str | None, streams: int) -> None:
    if model is None:
        listed = httpx.get(url.rstrip("/") + "/models", headers=key_header())
        model = listed.raise_for_status().json()["data"][0]["id"]
    row = f"endpoint/{model}/c{streams}"
    if not rows.missing(row):
        return
    texts = list(topics.values())
    rates, firsts, gaps = [], [], []
    clients = Clients(url, model)
    for number in range(2 if rows.quick else 5):
        asked = [f"({number}) {texts[(number * streams + i) % len(texts)][:400]}" for i in range(streams)]
        begin = time.perf_counter()
        answers = clients.ask(asked, 64)
        spent = time.perf_counter() - begin
        rates.append(sum(answer.tokens for answer in answers) / spent)
        firsts += [answer.arrivals[0] for answer in answers if answer.arrivals]
        gaps += [b - a for answer in answers for a, b in zip(answer.arrivals, answer.arrivals[1:], strict=False)]
    rows.add(
        row,
        unit="tokens/s",
        ours=statistics.median(rates),
        spread=[min(rates), max(rates)],
        n=len(rates),
        first_token_ms=statistics.median(firsts) * 1e3 if firsts else None,
        between_parts_ms=statistics.median(gaps) * 1e3 if gaps else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--url")
    parser.add_argument("--model")
    parser.add_argument("--streams", type=int, default=STREAMS)
    own, sys.argv[1:] = parser.parse_known_args()
    rows = Rows(__doc__.splitlines()[0] + " Also: --url, --model, --streams; see the file's head.")
    if own.url:
        endpoint(rows, own.url, own.model, own.streams)
    else:
        overhead(rows)


if __name__ == "__main__":
    main()
