"""Asking one target: streamed requests, their times, and what is tried again.

Tried again, with growing random pauses and a bound: 408, 429 and 5xx, errors in
the stream, timeouts, lost connections, streams that end too early. A server's
Retry-After holds back every request to the target. Invariants: redirects are
not followed, so that a key reaches no other host; the key stands in no message.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from openk2.evaluate.testrun.replies import Fault, Reply
from openk2.evaluate.testrun.settings import RunSettings
from openk2.evaluate.testrun.streams import DONE, Collector, EventParser, StreamFault, error_text
from openk2.evaluate.testrun.targets import Target
from openk2.version import __version__

_CONNECT_SECONDS = 10.0
_DRAIN_SECONDS = 1.0
_ERROR_BYTES = 65536
_LONGEST_BACKOFF = 60.0
_AGAIN = (408, 429)
# What no pause mends: the rest of the target's prompts are not asked.
_HOPELESS = (401, 402, 403)
_HOPELESS_CODES = ("insufficient_quota", "invalid_api_key")


@dataclass(frozen=True, slots=True)
class _Attempt:
    reply: Reply
    again: bool = False
    wait_s: float | None = None  # as the server asked
    hopeless: bool = False


class Pace:
    """When the next request of a target may go: `per_minute` apart, and not while the server asked for quiet."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._interval
        await asyncio.sleep(start - now)

    def hold(self, seconds: float) -> None:
        self._next = max(self._next, time.monotonic() + seconds)


class Endpoint:
    """A target's connection. `closed` says why nothing more should be asked, "" as long as it should."""

    def __init__(self, target: Target, key: str, settings: RunSettings) -> None:
        self.closed = ""
        self._target, self._key, self._settings = target, key, settings
        self._pace = Pace(settings.per_minute)
        self._random = random.Random()
        headers = {"user-agent": f"openk2/{__version__}"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=settings.concurrency),
            follow_redirects=False,
            trust_env=not target.is_loopback,  # proxies lead away from this machine
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def first_model(self) -> str:
        """The first model that the server lists. ValueError where it lists none."""
        where = f"target {self._target.name}: {self._target.url}/models"
        advice = "expected a list of models; start the server or say model=NAME"
        try:
            async with asyncio.timeout(self._settings.timeout):
                response = await self._client.get(f"{self._target.url}/models")
            if response.status_code != 200:
                raise ValueError(f"{where}: saw HTTP {response.status_code}, {advice}")
            return str(response.json()["data"][0]["id"])
        except (httpx.HTTPError, TimeoutError) as error:
            raise ValueError(f"{where}: saw no answer ({type(error).__name__}), {advice}") from None
        except (KeyError, IndexError, TypeError, json.JSONDecodeError):
            raise ValueError(f"{where}: saw an answer without one, {advice}") from None

    async def ask(self, body: Mapping[str, Any]) -> tuple[Reply, int]:
        """The reply, and how many attempts it took. Faults that outlast the attempts are in the reply."""
        content = json.dumps(body, ensure_ascii=False).encode()
        for attempt in range(1, self._settings.attempts + 1):
            await self._pace.turn()
            found = await self._attempt(content)
            if found.hopeless and found.reply.fault is not None:
                self.closed = found.reply.fault.message
            if not found.again or attempt == self._settings.attempts:
                break
            if found.wait_s is None:
                await asyncio.sleep(self._backoff(attempt))
            elif found.wait_s > self._settings.longest_wait:
                return _told_to_wait(found.reply, found.wait_s), attempt
            else:
                self._pace.hold(found.wait_s)
        return found.reply, attempt

    def _backoff(self, attempt: int) -> float:
        longest = min(self._settings.backoff * 2.0 ** (attempt - 1), _LONGEST_BACKOFF)
        return longest * (0.5 + 0.5 * self._random.random())

    async def _attempt(self, content: bytes) -> _Attempt:
        started, collector = time.perf_counter(), Collector()

        def failed(kind: str, message: str, *, again: bool = True) -> _Attempt:
            fault = Fault(kind, self._without_key(message))
            return _Attempt(collector.reply(time.perf_counter() - started, fault), again)

        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._exchange(content, collector, started)
        except (TimeoutError, httpx.TimeoutException):
            return failed("timeout", f"no whole answer within {self._settings.timeout:g} seconds")
        except StreamFault as error:
            fault = replace(error.fault, message=self._without_key(error.fault.message))
            reply = collector.reply(time.perf_counter() - started, fault)
            hopeless = error.code in _HOPELESS_CODES or fault.status in _HOPELESS
            return _Attempt(reply, fault.kind == "error_event" and not hopeless, hopeless=hopeless)
        except httpx.DecodingError as error:
            return failed("bad_stream", str(error), again=False)
        except httpx.RequestError as error:
            kind = "cut_stream" if collector.begun else "connection"
            return failed(kind, f"{type(error).__name__}: {error}".strip(": "))

    async def _exchange(self, content: bytes, collector: Collector, started: float) -> _Attempt:
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        url = f"{self._target.url}/chat/completions"
        async with self._client.stream("POST", url, content=content, headers=headers) as response:
            if response.status_code != 200:
                return await self._refused(response, started)
            if response.headers.get("content-type", "").startswith("application/json"):
                collector.add((await response.aread()).decode(errors="replace"), time.perf_counter() - started)
                # Nothing was streamed, so the first token's time is not known.
                return _Attempt(replace(collector.reply(time.perf_counter() - started), first_token_s=None))
            return await _read_stream(response, collector, started)

    async def _refused(self, response: httpx.Response, started: float) -> _Attempt:
        raw = b""
        async for chunk in response.aiter_bytes():
            raw += chunk
            if len(raw) > _ERROR_BYTES:
                break
        text = raw.decode(errors="replace")
        try:
            message, code = error_text(json.loads(text))
        except (ValueError, RecursionError):
            message, code = error_text(" ".join(text.split()))
        status = response.status_code
        fault = Fault("http_error", self._without_key(f"HTTP {status}: {message}".strip(": ")), status)
        hopeless = status in _HOPELESS or code in _HOPELESS_CODES
        again = (status in _AGAIN or status >= 500) and not hopeless
        wait = _retry_after(response.headers.get("retry-after")) if again else None
        return _Attempt(Reply(total_s=time.perf_counter() - started, fault=fault), again, wait, hopeless)

    def _without_key(self, message: str) -> str:
        return message.replace(self._key, "(the key)") if self._key else message


async def _read_stream(response: httpx.Response, collector: Collector, started: float) -> _Attempt:
    parser, chunks = EventParser(), response.aiter_bytes()
    async for chunk in chunks:
        for event in parser.feed(chunk):
            if event == DONE:
                reply = collector.reply(time.perf_counter() - started)
                await _drain(chunks)
                return _Attempt(reply)
            collector.add(event, time.perf_counter() - started)
    for event in parser.end():
        if event == DONE:
            return _Attempt(collector.reply(time.perf_counter() - started))
    seconds = time.perf_counter() - started
    if collector.finished:  # not all servers say that they are done
        return _Attempt(collector.reply(seconds))
    return _Attempt(collector.reply(seconds, Fault("cut_stream", "the stream ended before the answer did")), True)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read what little may follow: only a response that was read to its end leaves a connection for the next."""
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in chunks:
                pass


def _retry_after(value: str | None) -> float | None:
    """Seconds from now, given as such or as a date; None where the header is absent or unreadable."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _told_to_wait(reply: Reply, seconds: float) -> Reply:
    assert reply.fault is not None
    message = f"{reply.fault.message} (asked to wait {seconds:.0f} s, more than longest_wait)"
    return replace(reply, fault=replace(reply.fault, message=message))
