"""The thread that steps the engine, and what it is handed.

Invariants: the engine is touched by this thread alone; every job that was
taken ends with exactly one `Ended` or `ApiError`, also where the engine
breaks; nothing here waits for a client. Left out: restarting an engine that
broke (its cache may hold anything; let a supervisor start a new process).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import time
import traceback
from collections import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from openk2.engine.engine import Usage
from openk2.engine.sequence import Request, Sequence, Status
from openk2.observe.memory import give_back_freed_memory
from openk2.protocols import Grammar, SamplingParams
from openk2.serve.answers import Answer, Piece
from openk2.serve.errors import ApiError
from openk2.serve.metrics import Metrics

Result = TypeVar("Result")

GATHER_SECONDS = 0.05  # that an engine without work waits at most for requests that are being read;
SETTLE_SECONDS = 0.01  # that none may have come for it to begin, where several ran together before
IDLE_SECONDS = 20.0  # without work, after which freed memory goes back to the system


class StepEngine(Protocol):
    """What is asked of an engine (`openk2.engine.engine.Engine`)."""

    model: Any  # its config is read

    @property
    def has_work(self) -> bool: ...

    def submit(self, request: Request) -> Sequence:
        """Raises `ValueError` for a request that can never run."""
        ...

    def cancel(self, sequence: Sequence) -> None: ...

    def step(self) -> abc.Sequence[Sequence]:
        """One pass; the sequences that ended in it."""
        ...

    def usage(self) -> Usage: ...

    def load(self, weights: Mapping[str, Tensor], sha256: str) -> str:
        """Take over weights that have this hash. Raises `ValueError` for those of another model."""
        ...


@dataclass(frozen=True)
class Admitted:
    """The engine has taken the job on."""


@dataclass(frozen=True)
class Ended:
    """The job's end, as OpenAI says it, the stop string that brought it, and what it took."""

    reason: str
    stop_string: str | None
    prompt_tokens: int
    cached_tokens: int
    sampled_tokens: int


Event = Admitted | Piece | Ended | ApiError


@dataclass(eq=False)
class Job:
    """One continuation: what to sample, how to show it, and where to send that."""

    prompt: tuple[int, ...]
    params: SamplingParams
    answer: Answer
    stream: int = 0
    grammar: Grammar | None = None
    post: Callable[[Event], None] = field(init=False)  # where its events go, on the event loop
    sequence: Sequence | None = None
    last: float = field(default_factory=time.monotonic)  # when it arrived, then when its newest token came


class Worker:
    """Runs jobs on `engine`. `submit` and `cancel` may be called from any thread."""

    def __init__(self, engine: StepEngine, metrics: Metrics, *, max_waiting: int) -> None:
        self._engine, self._metrics, self._max_waiting = engine, metrics, max_waiting
        self._changed = threading.Condition()
        self._arrived: list[Job] = []
        self._cancelled: list[Job] = []
        self._errands: list[tuple[Callable[[StepEngine], Any], concurrent.futures.Future[Any]]] = []
        self._live: set[Job] = set()  # without an end
        self._waiting: set[Job] = set()  # without a token
        self._running: dict[Sequence, Job] = {}
        self._outbox: list[tuple[Job, Event]] = []  # of this step
        self._coming = 0  # requests that jobs are being made of
        self._together = 0  # sequences at most since the engine had none
        self._stopping = False
        self.failure = ""  # what broke the engine
        self.usage: Usage = engine.usage()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Jobs' `post` is called on `loop`."""
        self._loop = loop
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self._thread.is_alive() and not self.failure and not self._stopping

    @property
    def num_queued(self) -> int:
        """Jobs that have not reached the engine."""
        return len(self._arrived)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """A request is being read and may bring jobs, for which an engine without work waits a little."""
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                self._changed.notify()

    def submit(self, jobs: abc.Sequence[Job]) -> None:
        """Queue all of `jobs`, or none and raise `ApiError`."""
        with self._changed:
            if not self.ready:
                raise ApiError(503, self.failure or "the server is stopping; ask another one")
            if len(jobs) > self._max_waiting:
                raise ApiError(
                    400, f"n: saw {len(jobs)} continuations, expected at most {self._max_waiting}; ask for fewer"
                )
            if len(self._waiting) + len(jobs) > self._max_waiting:
                raise ApiError(
                    429,
                    f"the server is full: {len(self._waiting)} continuations wait, at most {self._max_waiting} may; "
                    "try again later",
                    code="rate_limit_exceeded",
                    headers={"retry-after": "1"},
                )
            self._arrived += jobs
            self._live.update(jobs)
            self._waiting.update(jobs)
            self._changed.notify()

    def cancel(self, jobs: abc.Sequence[Job]) -> None:
        """End `jobs` at the next step; those that have ended are left alone."""
        with self._changed:
            self._cancelled += jobs
            self._changed.notify()

    async def between_steps(self, action: Callable[[StepEngine], Result]) -> Result:
        """`action(engine)` on the engine's thread, where nothing runs; raises `ApiError` where something does."""
        done: concurrent.futures.Future[Result] = concurrent.futures.Future()
        with self._changed:
            if not self.ready:
                raise ApiError(503, self.failure or "the server is stopping")
            self._errands.append((action, done))
            self._changed.notify()
        return await asyncio.wrap_future(done)

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after the step that it is in; whatever runs is given up."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._wait():
                if not self._engine.has_work:
                    self._gather()
                self._take_on()
                if self._engine.has_work:
                    for sequence in self._engine.step():
                        self._end(sequence)
                self._send()
                self.usage = self._engine.usage()
            self._fail(ApiError(503, "the server stopped while this request ran; ask again"))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.failure = f"the engine has failed ({type(error).__name__}) and takes no more requests"
            print(f"error: {self.failure}; restart the server", file=sys.stderr, flush=True)
            self._fail(ApiError(500, "the engine failed while this request ran; restart the server", code="engine"))

    def _wait(self) -> bool:
        """Sleep until there is something to do; False where that is to end."""
        if not self._sleep(IDLE_SECONDS):
            give_back_freed_memory()
            self._sleep(None)
        return not self._stopping

    def _sleep(self, seconds: float | None) -> bool:
        """Until there is something to do, `seconds` at most; whether there is."""
        with self._changed:
            return self._changed.wait_for(self._is_called, seconds)

    def _is_called(self) -> bool:
        asked = self._arrived or self._cancelled or self._errands
        return bool(self._stopping or asked or self._engine.has_work)

    def _gather(self) -> None:
        """Wait for requests that come together: read together, their prompts take less time than one by one. A client
        that asks alone does not wait for others."""
        until, seen = time.monotonic() + GATHER_SECONDS, -1
        settle, self._together = SETTLE_SECONDS if self._together > 1 else 0.0, 0
        with self._changed:
            while (self._coming or len(self._arrived) != seen) and (left := until - time.monotonic()) > 0:
                seen = len(self._arrived)
                self._changed.wait(left if self._coming else min(left, settle))

    def _take_on(self) -> None:
        with self._changed:
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
            errands, self._errands = self._errands, []
        for action, done in errands:
            self._run_errand(action, done)
        for job in arrived:
            self._begin(job)
        for job in cancelled:
            if job.sequence is not None and job.sequence in self._running:
                self._engine.cancel(job.sequence)

    def _run_errand(self, action: Callable[[StepEngine], Any], done: concurrent.futures.Future[Any]) -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            if self._live:
                raise ApiError(409, f"the server writes {len(self._live)} answers; ask when it writes none")
            done.set_result(action(self._engine))
        except Exception as error:
            done.set_exception(error)

    def _begin(self, job: Job) -> None:
        request = Request(
            job.prompt, job.params, stream=job.stream, grammar=job.grammar, on_token=lambda _: self._on_token(job)
        )
        try:
            job.sequence = self._engine.submit(request)
        except ValueError as error:
            self._finish(job, ApiError(400, str(error)))
            return
        except Exception as error:  # of its grammar, most likely: nothing has been read for it yet
            self._finish(job, _failed(error))
            return
        self._running[job.sequence] = job
        self._together = max(self._together, len(self._running))
        self._metrics.prompt_tokens.inc(len(job.prompt))
        self._outbox.append((job, Admitted()))
        if job.sequence.status is Status.FINISHED:  # nothing legal fits into the tokens that are left
            self._end(job.sequence)

    def _on_token(self, job: Job) -> bool:
        """Send on what the newest token adds; true where no further one is wanted."""
        assert job.sequence is not None
        now = time.monotonic()
        if job.sequence.num_sampled == 1:
            with self._changed:
                self._waiting.discard(job)
            self._metrics.first_token.observe(now - job.last)
            self._metrics.cached_tokens.inc(job.sequence.num_cached)
        else:
            self._metrics.next_token.observe(now - job.last)
        job.last = now
        self._metrics.generated_tokens.inc()
        piece = job.answer.take(job.sequence)
        if piece:
            self._outbox.append((job, piece))
        return job.answer.stop_string is not None

    def _end(self, sequence: Sequence) -> None:
        job = self._running.pop(sequence)
        try:
            if sequence.error is not None:
                raise sequence.error
            piece = job.answer.close()
        except Exception as error:
            self._finish(job, _failed(error))
            return
        if piece:
            self._outbox.append((job, piece))
        reason, stop_string = job.answer.reason(sequence.finish_reason), job.answer.stop_string
        self._finish(job, Ended(reason, stop_string, len(job.prompt), sequence.num_cached, sequence.num_sampled))

    def _finish(self, job: Job, last: Ended | ApiError) -> None:
        with self._changed:
            self._live.discard(job)
            self._waiting.discard(job)
        self._outbox.append((job, last))

    def _send(self) -> None:
        """Wake the event loop once for all that a step brought: waking it for each token costs more than the token."""
        events, self._outbox = self._outbox, []
        if events:
            with suppress(RuntimeError):  # the loop has closed: nobody listens
                self._loop.call_soon_threadsafe(_hand_out, events)

    def _fail(self, error: ApiError) -> None:
        with self._changed:
            left, errands, self._errands = list(self._live), self._errands, []
        for job in left:
            self._finish(job, error)
        for _, done in errands:
            if done.set_running_or_notify_cancel():
                done.set_exception(error)
        self._send()


def _failed(error: Exception) -> ApiError:
    """What a client is told of a failure that is its request's alone; the operator is told all of it."""
    traceback.print_exception(error, file=sys.stderr)
    name = type(error).__name__
    return ApiError(
        500, f"this answer could not be written ({name}); others go on, and the log says why", code="answer"
    )


def _hand_out(events: abc.Sequence[tuple[Job, Event]]) -> None:
    for job, event in events:
        job.post(event)
