"""One request's continuations as asyncio sees them: events in, until all have ended.

Invariants: whatever ends an exchange (its last event, a client that hangs up,
the time limit, the server's stop) ends its sequences too; events of one
continuation come in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from starlette.types import Receive

from openk2.serve.answers import Piece
from openk2.serve.errors import ApiError, late
from openk2.serve.worker import Admitted, Ended, Event, Job, Worker


class Exchange:
    """Made on the event loop; `close` may be called at any time and again."""

    def __init__(
        self,
        worker: Worker,
        receive: Receive,
        timeout: float,
        closed: Callable[[Exchange], None],
        *,
        spent: float = 0.0,
    ) -> None:
        """`spent` seconds of `timeout` are over already."""
        self._worker, self._closed = worker, closed
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._early: deque[tuple[int, Piece | Ended]] = deque()
        self._jobs: Sequence[Job] = ()
        self._broken: ApiError | None = None
        self._timer = loop.call_later(max(0.0, timeout - spent), self.break_off, late(timeout))
        self._watch = loop.create_task(self._hang_up(receive))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Raises `ApiError` where the server is full or stopping."""
        for index, job in enumerate(jobs):
            job.post = partial(self._post, index)
        self._worker.submit(jobs)
        self._jobs = jobs

    async def admitted(self) -> None:
        """Returns once the engine has taken all jobs on, and raises `ApiError` where it will not."""
        waiting = len(self._jobs)
        while waiting:
            index, event = await self._next()
            if isinstance(event, Admitted):
                waiting -= 1
            else:  # of a job that runs while others have still to be taken on
                self._early.append((index, event))

    async def events(self) -> AsyncIterator[tuple[int, Piece | Ended]]:
        """What the continuations add, in the order in which it comes, until all have ended."""
        left = len(self._jobs)
        while left:
            index, event = self._early.popleft() if self._early else await self._next()
            assert not isinstance(event, Admitted), "taken on twice"
            left -= isinstance(event, Ended)
            yield index, event

    def break_off(self, error: ApiError) -> None:
        """End with `error`, before whatever a slow client has not fetched yet."""
        self._broken = error
        self._events.put_nowait((0, error))

    @property
    def num_sampled(self) -> int:
        """Tokens so far."""
        return sum(job.sequence.num_sampled for job in self._jobs if job.sequence is not None)

    def close(self) -> None:
        """Stop listening, and end what still runs."""
        self._timer.cancel()
        self._watch.cancel()
        self._worker.cancel(self._jobs)
        self._jobs = ()
        self._closed(self)

    async def _next(self) -> tuple[int, Admitted | Piece | Ended]:
        index, event = await self._events.get()
        if self._broken is not None:
            raise self._broken
        if isinstance(event, ApiError):
            raise event
        return index, event

    def _post(self, index: int, event: Event) -> None:
        self._events.put_nowait((index, event))

    async def _hang_up(self, receive: Receive) -> None:
        """Wait for the client to go. Nobody reads the error; the status is what proxies log for it."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.break_off(ApiError(499, "the client has gone", code="client_gone"))
