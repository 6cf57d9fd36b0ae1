"""OpenAI's answers, made of chunks: streamed as they are, or folded into one.

Invariant: the whole answer is the concatenation of the chunks that a stream
would have sent, since it is made of them. Left out: system_fingerprint.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from openk2.chat.tokenizer import Tokenizer
from openk2.serve.answers import Piece, Token
from openk2.serve.errors import ApiError
from openk2.serve.exchange import Exchange
from openk2.serve.openai_requests import ChatRequest, CompletionRequest, Sampling
from openk2.serve.wire import event
from openk2.serve.worker import Ended

Chunk = dict[str, Any]

KEEP_ALIVE = b": waiting\n\n"
_LEAST = -9999.0  # JSON has no infinity


async def chat_chunks(
    exchange: Exchange, request: ChatRequest, model: str, tokenizer: Tokenizer
) -> AsyncIterator[Chunk]:
    """`chat.completion.chunk`s; the last one carries the usage."""
    head = _head("chatcmpl", "chat.completion.chunk", model)

    def chunk(index: int, delta: Chunk, tokens: Sequence[Token] = (), reason: str | None = None) -> Chunk:
        told = {"content": [_told(token, tokenizer) for token in tokens], "refusal": None} if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
        return {**head, "choices": [choice]}

    for index in range(request.n):
        yield chunk(index, {"role": "assistant", "content": ""})
    usage = _Usage(request.n)
    async for index, found in exchange.events():
        if isinstance(found, Ended):
            usage.add(index, found)
            yield chunk(index, {}, reason=found.reason)
            continue
        tokens = found.shown if request.logprobs else ()
        if found.text or tokens:
            yield chunk(index, {"content": found.text}, tokens)
        for call in found.calls:
            yield chunk(index, {"tool_calls": [call]})
    yield {**head, "choices": [], "usage": usage.told()}


async def text_chunks(
    exchange: Exchange, request: CompletionRequest, model: str, tokenizer: Tokenizer
) -> AsyncIterator[Chunk]:
    """`text_completion` chunks; the last one carries the usage."""
    head = _head("cmpl", "text_completion", model)
    usage = _Usage(request.n)
    async for index, found in exchange.events():
        choice: Chunk = {"index": index, "text": "", "logprobs": None, "finish_reason": None}
        if isinstance(found, Ended):
            usage.add(index, found)
            choice["finish_reason"] = found.reason
        else:
            choice["text"] = found.text
            if request.logprobs is not None and found.shown:
                choice["logprobs"] = _text_log_probs(found.shown, tokenizer)
            choice |= _extensions(found, request)
        yield {**head, "choices": [choice]}
    yield {**head, "choices": [], "usage": usage.told()}


async def events(chunks: AsyncIterator[Chunk], request: Sampling) -> AsyncGenerator[bytes, None]:
    """A stream's events; a failure on the way is the last but for [DONE], which only a whole answer has."""
    try:
        async for chunk in chunks:
            if request.stream_options.include_usage:
                yield event({"usage": None, **chunk})
            elif chunk["choices"]:
                yield event(chunk)
    except ApiError as error:
        yield event(error.openai())
    else:
        yield b"data: [DONE]\n\n"


async def whole_chat(chunks: AsyncIterator[Chunk]) -> Chunk:
    """A `chat.completion`: the chunks, folded."""
    answer, choices = await _folded(chunks, "chat.completion", _add_delta)
    for choice in choices:
        message = choice["message"]
        message["refusal"] = None
        if message.get("tool_calls"):
            message["content"] = message["content"] or None
    return answer


async def whole_text(chunks: AsyncIterator[Chunk]) -> Chunk:
    """A `text_completion`: the chunks, folded."""
    answer, _ = await _folded(chunks, "text_completion", _add_text)
    return answer


async def _folded(
    chunks: AsyncIterator[Chunk], kind: str, add: Callable[[Chunk, Chunk], None]
) -> tuple[Chunk, list[Chunk]]:
    choices: dict[int, Chunk] = {}
    answer: Chunk = {}
    async for chunk in chunks:
        answer = {**chunk, "object": kind}
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"index": part["index"], "logprobs": None})
            add(choice, part)
            _append(choice, "logprobs", part["logprobs"])
            choice["finish_reason"] = part["finish_reason"]
    answer["choices"] = [choices[index] for index in sorted(choices)]
    return answer, answer["choices"]


def _add_delta(choice: Chunk, part: Chunk) -> None:
    message = choice.setdefault("message", {"role": "assistant", "content": ""})
    message["content"] += part["delta"].get("content", "")
    for call in part["delta"].get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            function = dict(call["function"])
            calls.append({"id": call["id"], "type": call["type"], "function": function})
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]


def _add_text(choice: Chunk, part: Chunk) -> None:
    choice["text"] = choice.get("text", "") + part["text"]
    for name in ("token_ids", "token_logprobs", "experts"):
        if name in part:
            choice[name] = choice.get(name, []) + part[name]


def _append(choice: Chunk, name: str, lists: Chunk | None) -> None:
    """Go on with the lists that `choice[name]` holds."""
    if lists is None:
        return
    if choice[name] is None:
        choice[name] = {}
    for key, more in lists.items():
        choice[name][key] = more if more is None else choice[name].get(key, []) + more


def _head(prefix: str, kind: str, model: str) -> Chunk:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


class _Usage:
    """Tokens of an answer; a prompt counts once, however many continuations it has."""

    def __init__(self, per_prompt: int) -> None:
        self._per_prompt = per_prompt
        self._prompt = self._cached = self._sampled = 0

    def add(self, index: int, ended: Ended) -> None:
        self._sampled += ended.sampled_tokens
        if index % self._per_prompt == 0:
            self._prompt += ended.prompt_tokens
            self._cached += ended.cached_tokens

    def told(self) -> Chunk:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._sampled,
            "total_tokens": self._prompt + self._sampled,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


def _log_prob(value: float) -> float:
    return max(value, _LEAST)


def _told(token: Token, tokenizer: Tokenizer) -> Chunk:
    def one(row: int, log_prob: float) -> Chunk:
        spelt = tokenizer.decode_bytes([row])
        return {"token": spelt.decode("utf-8", "replace"), "logprob": _log_prob(log_prob), "bytes": list(spelt)}

    return {**one(token.id, token.log_prob), "top_logprobs": [one(*likely) for likely in token.top]}


def _text_log_probs(tokens: Sequence[Token], tokenizer: Tokenizer) -> Chunk:
    return {
        "tokens": [tokenizer.decode([token.id]) for token in tokens],
        "token_logprobs": [_log_prob(token.log_prob) for token in tokens],
        "top_logprobs": [
            {tokenizer.decode([row]): _log_prob(log_prob) for row, log_prob in token.top} for token in tokens
        ],
        "text_offset": [token.begin for token in tokens],
    }


def _extensions(piece: Piece, request: CompletionRequest) -> Chunk:
    found: Chunk = {}
    if request.return_token_ids:
        found["token_ids"] = [token.id for token in piece.sampled]
        found["token_logprobs"] = [_log_prob(token.log_prob) for token in piece.sampled]
    if request.return_experts:
        found["experts"] = [token.experts for token in piece.sampled]
    return found
