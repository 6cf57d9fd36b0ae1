"""`Generate` over an OpenAI-compatible endpoint: `/v1/completions` with token ids in and out.

The tokens are those of the checkpoint's own tokenizer, so nothing is ever
re-tokenised. Invariant: what the caller must have and the endpoint does not
give (token ids, log-probabilities, experts) is an error that names it, never
made up. RL's sampler over an endpoint also hands new weights to it, through a
folder that both see; only `openk2 serve` takes them. Left out: grammars
(servers take schemas, not masks), scoring of given text by the endpoint (few
do it; the sampler scores with the policy here).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.torch import save_file

from openk2.engine.scoring import score
from openk2.engine.weights import engine_weights, weights_hash
from openk2.model.model import Model
from openk2.protocols import Completion, Grammar, SamplingParams

_MAX_ERROR_CHARACTERS = 300
_MAX_PROMPTS = 128  # of one request


class RemoteGenerate:
    """An endpoint as `protocols.Generate`. `with_experts`: completions have to hold the experts, as RL needs them."""

    def __init__(
        self, url: str, *, model: str = "", key_env: str = "", with_experts: bool = False, timeout: float = 600.0
    ) -> None:
        """`url` ends where `/completions` follows; `model` "" takes the first that is listed; `key_env` names the
        environment variable that holds the key. Raises `ValueError` for an endpoint that does not answer."""
        key = os.environ.get(key_env, "") if key_env else ""
        if key_env and not key:
            raise ValueError(f"{url}: saw no key in the environment variable {key_env}, expected one; set it")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.url, self._with_experts = url.rstrip("/"), with_experts
        self._client = httpx.Client(base_url=self.url + "/", headers=headers, timeout=timeout)
        listed = self._json(self._client.build_request("GET", "models")).get("data") or [{}]
        described = next((m for m in listed if m.get("id") == model), listed[0] if not model else {})
        self.model: str = model or str(described.get("id", ""))
        self.context_length: int | None = described.get("max_model_len")

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        on_token: Callable[[int, int], None] | None = None,
        grammars: Sequence[Grammar | None] | None = None,
    ) -> list[Completion]:
        if any(grammar is not None for grammar in grammars or ()):
            raise ValueError(f"{self.url}: saw a grammar, expected none: an endpoint cannot be given masks")
        drafts = [_Draft(params.stop_ids) for _ in prompts]
        for index, choice in self._choices(prompts, params):
            for token in drafts[index].add(choice, self.url, with_experts=self._with_experts):
                if on_token is not None:
                    on_token(index, token)
        return [draft.completion(self.url) for draft in drafts]

    def _choices(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Parts of answers as they come, each with its prompt's number, which is the stream that it draws from."""
        for first in range(0, len(prompts), _MAX_PROMPTS):
            body = self._body(prompts[first : first + _MAX_PROMPTS], params)
            if first:
                body["first_stream"] = first
            try:
                with self._client.stream("POST", "completions", json=body) as response:
                    self._check(response)
                    for line in _lines(response):
                        if line.startswith(b"data: {"):
                            chunk = json.loads(line[6:])
                            if "error" in chunk:
                                raise ValueError(f"{self.url}: {chunk['error'].get('message', chunk['error'])}")
                            for choice in chunk.get("choices") or ():
                                yield first + choice["index"], choice
            except httpx.HTTPError as error:
                raise ValueError(f"{self.url}: the connection broke ({type(error).__name__}); ask again") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.url}: saw an event that is not JSON ({error}), expected JSON") from None

    def _body(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": params.seed,
            "stream": True,
            "logprobs": 1,
            "return_token_ids": True,
        }
        for name in ("top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
            if getattr(params, name) != getattr(SamplingParams(), name):  # not every server knows them
                body[name] = getattr(params, name)
        if self._with_experts:
            body["return_experts"] = True
        return body

    def _json(self, request: httpx.Request) -> dict[str, Any]:
        try:
            response = self._client.send(request)
            self._check(response)
            return dict(response.json())
        except (httpx.HTTPError, json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{self.url}: saw no OpenAI-compatible server ({type(error).__name__}: {error})") from None

    def _check(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            said = response.read().decode("utf-8", "replace")[:_MAX_ERROR_CHARACTERS]
            raise ValueError(f"{self.url}: saw status {response.status_code}: {said}")


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """A body's lines. They end by a line feed alone: texts hold other ends of lines, at which httpx would cut."""
    rest = b""
    for part in response.iter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        yield from lines


class RemoteSampler(RemoteGenerate):
    """An endpoint as RL's `protocols.Sampler`: `openk2 serve --weights-folder FOLDER`, where `folder` is FOLDER.

    Raises `ValueError` for an endpoint that does not take weights or does not tell what RL needs.
    """

    def __init__(self, url: str, folder: Path, policy: Model, *, model: str = "", key_env: str = "") -> None:
        super().__init__(url, model=model, key_env=key_env, with_experts=True)
        self._folder, self._policy, self._number = folder, policy, 0

    def sync(self, model: Model) -> str:
        """Have the endpoint take over `model`'s weights; returns their SHA-256, which those over there have too."""
        weights = engine_weights(model)
        sha256 = weights_hash(weights)
        self._number += 1
        path = self._folder / f"weights-{os.getpid()}-{self._number}.safetensors"
        aside = path.with_suffix(".tmp")
        try:
            save_file({name: value.contiguous() for name, value in weights.items()}, aside)
            os.replace(aside, path)
            body = {"file": path.name, "sha256": sha256}
            taken = self._json(self._client.build_request("POST", "weights", json=body))
        finally:
            path.unlink(missing_ok=True)
            aside.unlink(missing_ok=True)
        if taken.get("sha256") != sha256:
            raise ValueError(f"{self.url}: saw weights with the hash {taken.get('sha256')}, expected {sha256}")
        return sha256

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """`protocols.Score` by the policy here, whose weights the endpoint has."""
        return score(self._policy, sequences)


class _Draft:
    """What one prompt has been answered so far; nothing is taken after a stop id."""

    def __init__(self, stop_ids: Sequence[int]) -> None:
        self._stop_ids = frozenset(stop_ids)
        self._ids: list[int] = []
        self._log_probs: list[float] = []
        self._experts: list[Any] = []
        self._reason = ""

    def add(self, choice: dict[str, Any], url: str, *, with_experts: bool) -> list[int]:
        """The tokens that a part adds. Raises `ValueError` where something is missing."""
        taken: list[int] = []
        ids = choice.get("token_ids")
        if ids is None and not choice.get("text"):
            ids = []  # the end alone
        if ids is None:
            raise ValueError(
                f"{url}: saw no token_ids in an answer, expected them: the endpoint must know return_token_ids"
            )
        log_probs = choice.get("token_logprobs") or (choice.get("logprobs") or {}).get("token_logprobs") or []
        experts = choice.get("experts")
        if len(log_probs) != len(ids):
            raise ValueError(f"{url}: saw {len(log_probs)} log-probabilities of {len(ids)} tokens, expected as many")
        if with_experts and len(experts or ()) != len(ids):
            raise ValueError(f"{url}: saw tokens without experts, expected return_experts to be known: RL replays them")
        for at, token in enumerate(ids):
            if self._reason == "stop":
                break
            self._ids.append(token)
            self._log_probs.append(log_probs[at])
            self._experts += [] if experts is None else [experts[at]]
            taken.append(token)
            if token in self._stop_ids:
                self._reason = "stop"
        self._reason = self._reason or choice.get("finish_reason") or ""
        return taken

    def completion(self, url: str) -> Completion:
        if not self._reason:
            raise ValueError(f"{url}: saw an answer without an end, expected a finish_reason; ask again")
        experts = np.array(self._experts) if self._experts else None
        return Completion(tuple(self._ids), tuple(self._log_probs), self._reason, experts)
