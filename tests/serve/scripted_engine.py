"""An engine without a model: it replays token ids, or draws uniformly from what the grammar allows.

The same interface as `openk2.engine.engine.Engine`; tests of the server need no weights.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from openk2.chat.codec import Codec
from openk2.engine.block_pool import BLOCK
from openk2.engine.engine import Usage
from openk2.engine.sequence import Request, Sequence, Status
from openk2.protocols import Message

QUESTION = {"role": "user", "content": "What is 6 times 7?"}
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Works out a formula.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
LAYERS, CHOSEN = 2, 3  # of the experts that it claims to have used


class ScriptedEngine:
    """`replies` are the ids of the requests to come, one after the other; a request beyond them is drawn at random."""

    def __init__(self, codec: Codec, *replies: Iterable[int], context: int = 1024) -> None:
        self.codec, self.replies = codec, deque(map(iter, replies))
        vocabulary = codec.tokenizer.vocab_size
        self.model: Any = SimpleNamespace(
            config=SimpleNamespace(max_position_embeddings=context, vocab_size=vocabulary)
        )
        self.requests: list[Request] = []
        self.going = threading.Event()  # cleared, steps take no token
        self.going.set()
        self.pace = 0.0  # seconds a step takes
        self.fault: Exception | None = None  # what the next step raises
        self.fault_on_submit: Exception | None = None
        self._running: dict[Sequence, Iterator[int]] = {}
        self._cancelled: set[Sequence] = set()

    def say(self, *messages: Message, first_call_index: int = 0) -> None:
        """Answer the requests to come with these messages."""
        self.replies.extend(iter(spelt(self.codec, m, first_call_index=first_call_index)) for m in messages)

    def forget(self) -> None:
        """What was asked, and what was to be answered."""
        self.requests.clear()
        self.replies.clear()

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def submit(self, request: Request) -> Sequence:
        if self.fault_on_submit is not None:
            raise self.fault_on_submit
        room = self.model.config.max_position_embeddings - len(request.prompt)
        if room < 1:
            raise ValueError(f"engine: saw a prompt of {len(request.prompt)} tokens, expected fewer")
        limit = min(request.params.max_new_tokens, room)
        constraint = request.grammar.start(limit) if request.grammar else None
        random = np.random.Generator(np.random.Philox(key=[request.params.seed, request.stream]))
        sequence = Sequence(request, limit, constraint, random, tokens=list(request.prompt))
        sequence.num_cached = len(request.prompt) // 2
        self.requests.append(request)
        if constraint is not None and constraint.hopeless:
            sequence.status, sequence.finish_reason = Status.FINISHED, "length"
        else:
            self._running[sequence] = self.replies.popleft() if self.replies else self._drawn(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        self._cancelled.add(sequence)

    def step(self) -> list[Sequence]:
        self.going.wait(0.005)
        time.sleep(self.pace)
        if self.fault is not None:
            raise self.fault
        ended = []
        for sequence, ids in list(self._running.items()):
            if sequence in self._cancelled:
                sequence.finish_reason = "cancelled"
            elif self.going.is_set():
                self._take(sequence, next(ids))
            if sequence.finish_reason:
                sequence.status = Status.FINISHED
                del self._running[sequence]
                ended.append(sequence)
        self._cancelled.clear()
        return ended

    def usage(self) -> Usage:
        blocks = self.model.config.max_position_embeddings // BLOCK
        return Usage(blocks, blocks - 1, 1, len(self._running), 0)

    def _take(self, sequence: Sequence, token: int) -> None:
        params = sequence.request.params
        sequence.tokens.append(token)
        sequence.log_probs.append(-0.5 * sequence.num_sampled)
        sequence.experts.append(np.full((LAYERS, CHOSEN), sequence.num_sampled))
        if params.top_log_probs:
            sequence.top.append([(token, -0.5)] * params.top_log_probs)
        if token in params.stop_ids:
            sequence.finish_reason = "stop"
        elif sequence.num_sampled == sequence.limit:
            sequence.finish_reason = "length"
        if sequence.tell():
            sequence.finish_reason = "stop"
        if sequence.error is not None:
            sequence.finish_reason = "error"

    def _drawn(self, sequence: Sequence) -> Iterator[int]:
        everything = np.ones(self.model.config.vocab_size, dtype=bool)
        while True:
            allowed = sequence.allowed()
            yield sequence.standing(
                int(sequence.random.choice(np.flatnonzero(everything if allowed is None else allowed)))
            )


def spelt(codec: Codec, message: Message | str, *, first_call_index: int = 0) -> tuple[int, ...]:
    """The ids by which a model says `message`, the end of turn included."""
    message = {"role": "assistant", "content": message} if isinstance(message, str) else message
    encoded = codec.encode_turns([message], first_call_index=first_call_index)
    return tuple(token for token, chosen in zip(encoded.ids, encoded.mask, strict=True) if chosen)


def calling(*calls: tuple[str, str], content: str = "") -> Message:
    """An assistant's message that calls (name, arguments as JSON)."""
    spelt_calls = [
        {"id": str(at), "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": spelt_calls}
