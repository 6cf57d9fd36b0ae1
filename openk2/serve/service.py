"""From a request's schema to jobs, and from jobs to a running exchange.

Invariants: nothing reaches the engine that does not fit the context; counting
tokens and compiling grammars, which can take a while, happen off the event
loop (`jobs` methods are for threads).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

from anyio import CapacityLimiter, to_thread
from safetensors import SafetensorError
from safetensors.torch import load_file
from starlette.types import Receive

from openk2.chat.codec import Codec
from openk2.chat.grammar import Lexicon
from openk2.engine.block_pool import BLOCK
from openk2.engine.weights import weights_hash
from openk2.protocols import SamplingParams
from openk2.serve.answers import ChatAnswer, TextAnswer
from openk2.serve.anthropic_requests import CountRequest
from openk2.serve.dialogue import Dialogue
from openk2.serve.errors import ApiError, late, shown
from openk2.serve.exchange import Exchange
from openk2.serve.metrics import Metrics
from openk2.serve.openai_requests import CompletionRequest, TokenizeRequest, WeightsRequest
from openk2.serve.settings import ServeSettings
from openk2.serve.worker import Job, StepEngine, Worker


class AnyRequest(Protocol):
    """A request for continuations."""

    @property
    def constrained(self) -> bool:
        """Whether the grammar of what it asks for is made of schemas."""
        ...


RequestT = TypeVar("RequestT", bound=AnyRequest)


class TurnRequest(AnyRequest, Protocol):
    """A request for an assistant's turn, of either API."""

    @property
    def model(self) -> str | None: ...

    @property
    def most(self) -> int | None: ...

    @property
    def stops(self) -> tuple[str, ...]: ...

    @property
    def n(self) -> int: ...

    def dialogue(self) -> Dialogue: ...

    def params(self, stop_ids: tuple[int, ...], *, most: int, temperature: float) -> SamplingParams:
        """`most` tokens; `temperature` where the request says none."""
        ...


class Service:
    """One model behind both APIs."""

    def __init__(self, engine: StepEngine, codec: Codec, settings: ServeSettings, say: Callable[[str], None]) -> None:
        config = engine.model.config
        if config.vocab_size != codec.tokenizer.vocab_size:
            raise ValueError(
                f"serve: saw a model of {config.vocab_size} rows and a tokenizer of {codec.tokenizer.vocab_size}, "
                "expected as many; load both from one checkpoint"
            )
        self.codec, self.settings, self.say = codec, settings, say
        self.metrics = Metrics()
        self.worker = Worker(engine, self.metrics, max_waiting=settings.max_waiting)
        self.context: int = min(config.max_position_embeddings, self.worker.usage.blocks * BLOCK)
        self.stopping = False
        self._lexicon = Lexicon(codec.tokenizer)
        self._compiling = threading.Lock()  # a lexicon has none of its own
        self._few = CapacityLimiter(4)  # threads for requests with schemas
        self._running: dict[Exchange, str] = {}  # and what each is, for the report of a stop

    @property
    def ready(self) -> bool:
        return self.worker.ready and not self.stopping

    def turn_jobs(self, request: TurnRequest) -> list[Job]:
        """One job a continuation of a dialogue."""
        self.check_model(request.model)
        self._check_chat()
        dialogue = request.dialogue()
        prompt = dialogue.ids(self.codec)
        params = request.params(
            self.codec.stop_ids,
            most=self._room(prompt, request.most, "messages"),
            temperature=self.settings.temperature,
        )
        with self._compiling if request.constrained else nullcontext():
            grammar = dialogue.grammar(self._lexicon)
        return [
            Job(prompt, params, ChatAnswer(self.codec, request.stops), stream=index, grammar=grammar)
            for index in range(request.n)
        ]

    def text_jobs(self, request: CompletionRequest) -> list[Job]:
        """`n` jobs a prompt."""
        self.check_model(request.model)
        jobs: list[Job] = []
        for part in request.prompts:
            prompt = self._text_prompt(part)
            params = request.params(
                self.codec.stop_ids,
                most=self._room(prompt, request.most, "prompt"),
                temperature=self.settings.temperature,
            )
            for _ in range(request.n):
                answer = TextAnswer(
                    self.codec,
                    request.stops,
                    tell_tokens=request.return_token_ids,
                    tell_experts=request.return_experts,
                )
                jobs.append(Job(prompt, params, answer, stream=request.first_stream + len(jobs)))
        return jobs

    async def load_weights(self, request: WeightsRequest) -> str:
        """Take over new weights where nothing runs; returns their hash."""
        folder = self.settings.weights_folder
        if folder is None:
            raise ApiError(404, "weights: this server takes none; start it with --weights-folder")
        return await self.worker.between_steps(lambda engine: _load(engine, folder / request.file, request.sha256))

    def turn_ids(self, request: CountRequest) -> tuple[int, ...]:
        """The prompt that a dialogue makes."""
        self.check_model(request.model)
        self._check_chat()
        return request.dialogue().ids(self.codec)

    def tokenize(self, request: TokenizeRequest) -> list[int]:
        self.check_model(request.model)
        if (request.text is None) == (request.messages is None):
            raise ApiError(400, "body: saw text and messages or neither, expected one of them")
        if request.text is not None:
            return self.codec.tokenizer.encode(request.text)
        return list(request.dialogue().ids(self.codec))

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.settings.model_name):
            raise ApiError(
                404,
                f"model: saw {shown(name)}, expected {shown(self.settings.model_name)}",
                param="model",
                code="model_not_found",
            )

    async def open(
        self, make_jobs: Callable[[RequestT], list[Job]], request: RequestT, receive: Receive, what: str
    ) -> tuple[Exchange, list[Job]]:
        """Start the jobs that `make_jobs`, on a thread, makes of `request`; whoever gets the exchange closes it."""
        began = time.monotonic()
        with ExitStack() as undo:
            with self.worker.coming():
                jobs = await self._made(make_jobs, request)
                if self.stopping:
                    raise ApiError(503, "the server is stopping; ask another one")
                spent = time.monotonic() - began
                exchange = Exchange(self.worker, receive, self.settings.request_timeout, self._closed, spent=spent)
                undo.callback(exchange.close)
                self._running[exchange] = what
                exchange.submit(jobs)
            await exchange.admitted()
            undo.pop_all()
        return exchange, jobs

    async def _made(self, make_jobs: Callable[[RequestT], list[Job]], request: RequestT) -> list[Job]:
        """Schemas are compiled one after the other: few threads at most wait for that, the others serve what has none.
        A thread cannot be stopped; that of a request which took too long ends by itself, and what it made is dropped.
        """
        few = self._few if request.constrained else None
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                return await to_thread.run_sync(make_jobs, request, abandon_on_cancel=True, limiter=few)
        except TimeoutError:
            raise late(self.settings.request_timeout) from None

    def cut(self) -> None:
        """End what still runs, and say what that was."""
        for exchange, what in list(self._running.items()):
            self.say(f"cut {what} after {exchange.num_sampled} tokens: it did not end within the grace period")
            exchange.break_off(ApiError(503, "the server stopped before the answer was complete; ask again"))

    def _closed(self, exchange: Exchange) -> None:
        self._running.pop(exchange, None)

    def _check_chat(self) -> None:
        if not self.settings.chat:
            raise ApiError(
                400,
                "messages: this is a base model, which continues text and has not been taught to answer; use "
                "/v1/completions",
                code="base_model",
            )

    def _room(self, prompt: Sequence[int], most: int | None, where: str) -> int:
        """How many tokens may be sampled."""
        room = self.context - len(prompt)
        if room < 1:
            raise ApiError(
                400,
                f"{where}: saw {len(prompt)} tokens, expected at most {self.context - 1} (the model's context is "
                f"{self.context}); shorten them",
                param=where,
                code="context_length_exceeded",
            )
        return min(most or room, room)

    def _text_prompt(self, part: str | list[int]) -> tuple[int, ...]:
        """Ids as they are; text as documents were trained on, after [BOS]."""
        tokenizer = self.codec.tokenizer
        if isinstance(part, str):
            return (tokenizer.bos_id, *tokenizer.encode(part))
        outside = next((row for row in part if row >= tokenizer.vocab_size), None)
        if outside is not None:
            raise ApiError(
                400, f"prompt: saw token id {outside}, expected 0 to {tokenizer.vocab_size - 1}", param="prompt"
            )
        return tuple(part)


def _load(engine: StepEngine, path: Path, sha256: str) -> str:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ApiError(400, f"file: {path.name} cannot be read ({error})", param="file") from None
    found = weights_hash(weights)
    if found != sha256:
        raise ApiError(
            400,
            f"sha256: saw {sha256}, expected {found}, the hash of the tensors in {path.name} "
            "(openk2.engine.weights.weights_hash, not that of the file's bytes)",
            param="sha256",
        )
    try:
        return engine.load(weights, sha256)
    except ValueError as error:
        raise ApiError(400, str(error), param="file") from None
