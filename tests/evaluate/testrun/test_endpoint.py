"""Asking a server on good days and bad ones: what comes back, what is tried again, and where the key goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from scripted_http import DONE, Asked, Said, calls, delta, event, refusal, serving, text, usage

from openk2.evaluate.testrun import RunSettings, Target
from openk2.evaluate.testrun.endpoint import Endpoint
from openk2.evaluate.testrun.replies import Reply, ToolCall

BODY = {"model": "m", "messages": [{"role": "user", "content": "世界?"}]}
Quick = Callable[..., RunSettings]


def ask(url: str, settings: RunSettings, *, key: str = "", times: int = 1) -> list[tuple[Reply, int]]:
    """Ask the same `times` times over at once; (reply, attempts) of each."""

    async def go() -> list[tuple[Reply, int]]:
        endpoint = Endpoint(Target(url, "t"), key, settings)
        try:
            return await asyncio.gather(*(endpoint.ask(BODY) for _ in range(times)))
        finally:
            await endpoint.close()

    return asyncio.run(go())


def test_a_good_answer(quick: Quick) -> None:
    with serving(lambda asked, n: text("Hel", "lo 世界", tokens=(12, 7))) as server:
        [(reply, attempts)] = ask(server.url, quick(), key="sk-1")
    assert (reply.content, reply.finish_reason, reply.model) == ("Hello 世界", "stop", "scripted")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.fault, attempts) == (12, 7, None, 1)
    assert reply.first_token_s is not None and reply.total_s is not None and reply.first_token_s <= reply.total_s
    [asked] = server.asked
    assert asked.path == "/v1/chat/completions" and asked.body == BODY
    assert {name.casefold(): value for name, value in asked.headers.items()}["authorization"] == "Bearer sk-1"


def test_the_first_token_is_timed_and_not_the_first_byte(quick: Quick) -> None:
    said = Said([delta(role="assistant"), b": wait\n\n", 0.2, delta(content="x", finish="stop"), 0.1, DONE])
    with serving(lambda asked, n: said) as server:
        [(reply, _)] = ask(server.url, quick())
    assert reply.first_token_s is not None and reply.total_s is not None
    assert reply.first_token_s >= 0.2 and reply.total_s >= reply.first_token_s + 0.1


def test_tool_calls_split_over_deltas(quick: Quick) -> None:
    made = (("look", '{"at": "世界"}'), ("go", "{}"))
    with serving(lambda asked, n: calls(*made)) as server:
        [(reply, _)] = ask(server.url, quick())
    assert reply.tool_calls == tuple(ToolCall(name, given, f"call-{at}") for at, (name, given) in enumerate(made))
    assert (reply.content, reply.finish_reason) == ("", "tool_calls")


@pytest.mark.parametrize(
    "said",
    [
        Said([delta(content="x"), delta(finish="stop")]),  # neither usage nor [DONE]
        Said([delta(content="x"), delta(finish="stop"), b"data: [DONE]"]),  # no empty line at the end
        Said([json.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}).encode()],
             headers={"content-type": "application/json; charset=utf-8"}),  # not streamed
    ],
)  # fmt: skip
def test_servers_that_leave_things_out(said: Said, quick: Quick) -> None:
    with serving(lambda asked, n: said) as server:
        [(reply, attempts)] = ask(server.url, quick())
    assert (reply.content, reply.fault, attempts, reply.prompt_tokens) == ("x", None, 1, None)


def busy(wait: str) -> Callable[[Asked, int], Said]:
    return lambda asked, n: refusal(429, "slow down", retry_after=wait) if n == 0 else text("x")


def test_retry_after_is_obeyed(quick: Quick) -> None:
    with serving(busy("0.3")) as server:
        [(reply, attempts)] = ask(server.url, quick())
    assert (reply.content, attempts) == ("x", 2)
    first, second = server.asked
    assert second.at - first.at >= 0.3


def test_retry_after_may_be_a_date_and_may_be_too_far_off(quick: Quick) -> None:
    with serving(busy("soon")) as server:  # unreadable: the usual pause
        [(reply, _)] = ask(server.url, quick())
    assert reply.content == "x"
    for wait in ("3600", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)):
        with serving(busy(wait)) as server:
            [(reply, attempts)] = ask(server.url, quick(longest_wait=5.0))
        assert reply.fault is not None and reply.fault.status == 429 and attempts == 1
        assert "more than longest_wait" in reply.fault.message


def test_retry_after_holds_back_every_request_to_the_target(quick: Quick) -> None:
    async def two(url: str) -> None:
        endpoint = Endpoint(Target(url, "t"), "", quick())
        first = asyncio.create_task(endpoint.ask(BODY))
        while len(server.asked) < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # the refusal has come long since
        await endpoint.ask({**BODY, "seed": 2})
        await first
        await endpoint.close()

    with serving(lambda asked, n: busy("0.8")(asked, n) if "seed" not in asked.body else text("y")) as server:
        asyncio.run(two(server.url))
    refused, *others = server.asked
    assert len(others) == 2 and all(asked.at - refused.at >= 0.8 for asked in others)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (refusal(500, "oops"), "http_error"),
        (refusal(503, "loading"), "http_error"),
        (Said([b"<html>bad gateway</html>"], 502, {"content-type": "text/html"}), "http_error"),
        (Said([delta(content="half")], cut=True), "cut_stream"),
        (Said([delta(content="half")]), "cut_stream"),
        (Said([]), "cut_stream"),
        (Said([delta(content="half"), event({"error": {"message": "worker died", "code": 500}})]), "error_event"),
        (Said([delta(content="half"), 1.5]), "timeout"),
        (Said(cut=True), "connection"),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again_within_bounds(bad: Said, kind: str, quick: Quick) -> None:
    settings = quick(timeout=0.5, attempts=2)
    with serving(lambda asked, n: bad if n == 0 else text("whole")) as server:
        [(reply, attempts)] = ask(server.url, settings)
    assert (reply.content, reply.fault, attempts, len(server.asked)) == ("whole", None, 2, 2)
    with serving(lambda asked, n: bad) as server:
        [(reply, attempts)] = ask(server.url, settings)
    assert reply.fault is not None and (reply.fault.kind, attempts, len(server.asked)) == (kind, 2, 2)
    assert reply.content == ("half" if b"half" in b"".join(p for p in bad.parts if isinstance(p, bytes)) else "")


@pytest.mark.parametrize(
    ("bad", "kind", "closed"),
    [
        (refusal(400, "context too long"), "http_error", False),
        (refusal(404, "no such model"), "http_error", False),
        (refusal(401, "wrong key"), "http_error", True),
        (Said([json.dumps({"error": {"message": "pay", "code": "insufficient_quota"}}).encode()], 429,
              {"content-type": "application/json"}), "http_error", True),
        (Said([b"data: {broken\n\n"]), "bad_stream", False),
    ],
)  # fmt: skip
def test_what_will_not_pass_is_not_tried_again(bad: Said, kind: str, closed: bool, quick: Quick) -> None:
    async def go(url: str) -> tuple[Reply, str]:
        endpoint = Endpoint(Target(url, "t"), "", quick())
        reply, _ = await endpoint.ask(BODY)
        await endpoint.close()
        return reply, endpoint.closed

    with serving(lambda asked, n: bad) as server:
        reply, why = asyncio.run(go(server.url))
    assert reply.fault is not None and reply.fault.kind == kind and len(server.asked) == 1
    assert bool(why) is closed


def test_no_server_is_a_fault_and_no_crash(quick: Quick) -> None:
    with serving() as server:
        url = server.url
    [(reply, attempts)] = ask(url, quick())
    assert reply.fault is not None and (reply.fault.kind, attempts) == ("connection", 3)


def test_a_redirect_takes_the_key_nowhere(quick: Quick) -> None:
    with serving() as thief:
        away = Said([], 307, {"location": f"{thief.url}/chat/completions"})
        with serving(lambda asked, n: away) as server:
            [(reply, _)] = ask(server.url, quick(), key="sk-secret")
    assert reply.fault is not None and reply.fault.status == 307
    assert thief.asked == [] and thief.listed == []


@pytest.mark.parametrize(
    "said",
    [refusal(400, "the key sk-secret is wrong"), Said([event({"error": {"message": "sk-secret?", "code": 400}})])],
)
def test_the_key_stands_in_no_message(said: Said, quick: Quick) -> None:
    with serving(lambda asked, n: said) as server:
        [(reply, _)] = ask(server.url, quick(attempts=1), key="sk-secret")
    assert reply.fault is not None and "sk-secret" not in str(reply) and "(the key)" in reply.fault.message


def test_requests_are_a_minutes_share_apart(quick: Quick) -> None:
    with serving() as server:
        ask(server.url, quick(per_minute=600.0), times=4)
    times = sorted(asked.at for asked in server.asked)
    assert len(times) == 4 and times[-1] - times[0] >= 0.25  # three tenths, but for what the first took to arrive


def test_the_first_model_is_the_default(quick: Quick) -> None:
    async def first(url: str) -> str:
        endpoint = Endpoint(Target(url, "t"), "", quick())
        try:
            return await endpoint.first_model()
        finally:
            await endpoint.close()

    with serving() as server:
        assert asyncio.run(first(server.url)) == "org/first"
    with pytest.raises(ValueError, match="saw no answer .*expected a list of models; start the server or say model="):
        asyncio.run(first(server.url))


def test_usage_in_a_chunk_of_its_own_is_taken(quick: Quick) -> None:
    said = Said([delta(content="x"), delta(finish="length"), usage(3, 4), DONE])
    with serving(lambda asked, n: said) as server:
        [(reply, _)] = ask(server.url, quick())
    assert (reply.prompt_tokens, reply.completion_tokens, reply.finish_reason) == (3, 4, "length")


def test_connections_are_used_again(quick: Quick) -> None:
    with serving() as server:
        ask(server.url, quick(concurrency=1), times=5)
    assert len(server.asked) == 5 and len({asked.port for asked in server.asked}) == 1
