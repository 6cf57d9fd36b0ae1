"""OpenAI's API through its official client, against a real server: answers, streams, calls, extensions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from running_server import CODEC, Running, running
from scripted_engine import CALCULATOR, CHOSEN, LAYERS, QUESTION, ScriptedEngine, calling, spelt

from openk2.engine.engine import Engine, EngineSettings

ENGINE = ScriptedEngine(CODEC)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ENGINE) as found:
        yield found


@pytest.fixture()
def client(server: Running) -> Iterator[openai.OpenAI]:
    ENGINE.forget()
    with server.openai() as found:
        yield found


def test_the_prompt_is_the_codecs_and_the_answer_the_models(client: openai.OpenAI) -> None:
    ENGINE.say("It is 42, 世界.")
    answer = client.chat.completions.create(model="openk2", messages=[QUESTION], seed=5, temperature=0.25)
    [choice] = answer.choices
    assert choice.message.content == "It is 42, 世界." and choice.finish_reason == "stop"
    [request] = ENGINE.requests
    assert request.prompt == CODEC.encode([QUESTION], add_generation_prompt=True).ids
    assert (request.params.seed, request.params.temperature, request.params.stop_ids) == (5, 0.25, CODEC.stop_ids)
    assert answer.usage.prompt_tokens == len(request.prompt)
    assert answer.usage.prompt_tokens_details.cached_tokens == len(request.prompt) // 2
    assert answer.usage.completion_tokens == len(spelt(CODEC, "It is 42, 世界."))


def test_without_a_temperature_k2s_own_is_used(client: openai.OpenAI) -> None:
    client.chat.completions.create(model="openk2", messages=[QUESTION], max_tokens=2)
    assert ENGINE.requests[0].params.temperature == 0.6 and ENGINE.requests[0].params.max_new_tokens == 2


def test_every_sampling_field_reaches_the_engine(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="openk2", messages=[QUESTION], max_completion_tokens=3, top_p=0.5, presence_penalty=0.5,
        frequency_penalty=-0.5, logprobs=True, top_logprobs=2, seed=-1,
        extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.5},
    )  # fmt: skip
    params = ENGINE.requests[0].params
    assert (params.max_new_tokens, params.top_p, params.presence_penalty) == (3, 0.5, 0.5)
    assert (params.frequency_penalty, params.top_log_probs, params.seed) == (-0.5, 2, 2**63 - 1)
    assert (params.top_k, params.min_p, params.repetition_penalty) == (4, 0.1, 1.5)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "It is 42, 世界."},
        calling(("calculator", '{"expression": "6*7"}'), ("calculator", '{"expression": "1"}'), content="Let me see."),
    ],
)
def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI, message: Any) -> None:
    ENGINE.say(message, message)
    options: dict[str, Any] = {"model": "openk2", "messages": [QUESTION], "tools": [CALCULATOR], "logprobs": True}
    whole = client.chat.completions.create(**options)
    with client.chat.completions.stream(**options) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].finish_reason == whole.choices[0].finish_reason
    assert streamed.choices[0].message.content == (whole.choices[0].message.content or "")
    assert streamed.choices[0].logprobs.content == whole.choices[0].logprobs.content
    calls = [call.model_dump(exclude={"index"}) for call in streamed.choices[0].message.tool_calls or ()]
    for call in calls:
        call["function"].pop("parsed_arguments", None)
    assert calls == [call.model_dump() for call in whole.choices[0].message.tool_calls or ()]


def test_usage_is_streamed_only_where_it_is_asked_for_in_a_last_chunk_without_choices(client: openai.OpenAI) -> None:
    ENGINE.say("It is.", "It is.")
    options: dict[str, Any] = {"model": "openk2", "messages": [QUESTION], "stream": True}
    assert all(chunk.choices and chunk.usage is None for chunk in client.chat.completions.create(**options))
    chunks = list(client.chat.completions.create(**options, stream_options={"include_usage": True}))
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].usage.completion_tokens == len(spelt(CODEC, "It is."))


def test_three_turns_with_tools(client: openai.OpenAI) -> None:
    ENGINE.say(calling(("calculator", '{"expression": "6*7"}')), "It is 42.")
    ENGINE.say(calling(("calculator", '{"expression": "42+1"}')), first_call_index=1)
    messages: list[Any] = [QUESTION]
    for ids in (["functions.calculator:0"], None, ["functions.calculator:1"]):
        answer = client.chat.completions.create(model="openk2", messages=messages, tools=[CALCULATOR])
        message = answer.choices[0].message
        assert [call.id for call in message.tool_calls or ()] == (ids or [])
        assert answer.choices[0].finish_reason == ("tool_calls" if ids else "stop")
        messages.append(message)  # as the client gives it, fields of other services included
        if message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "42"})
        else:
            messages.append({"role": "user", "content": "And one more?"})
    assert ENGINE.requests[2].grammar.first_call_index == 1
    plain = [item if isinstance(item, dict) else item.model_dump(exclude_none=True) for item in messages[:5]]
    assert ENGINE.requests[2].prompt == CODEC.encode(plain, [CALCULATOR], add_generation_prompt=True).ids


@pytest.mark.parametrize("id_", ["call_abc", None])
def test_foreign_call_ids_and_thoughts_of_other_models_leave_no_trace(client: openai.OpenAI, id_: str | None) -> None:
    called = calling(("calculator", '{"expression": "1"}'))
    foreign = {**called, "tool_calls": [{**called["tool_calls"][0], "id": id_}], "reasoning_content": "Hm."}
    result = {"role": "tool", "tool_call_id": id_, "content": "1"}
    client.chat.completions.create(
        model="openk2", messages=[QUESTION, foreign, result], tools=[CALCULATOR], max_tokens=9
    )
    canonical = [QUESTION, called, {**result, "tool_call_id": called["tool_calls"][0]["id"]}]
    assert ENGINE.requests[0].prompt == CODEC.encode(canonical, [CALCULATOR], add_generation_prompt=True).ids


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "calculator"}}])
def test_calls_that_are_demanded_come_and_obey_their_schema(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model="openk2", messages=[QUESTION], tools=[CALCULATOR], tool_choice=choice, parallel_tool_calls=False,
        max_tokens=80, seed=3,
    )  # fmt: skip
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
    assert isinstance(json.loads(call.function.arguments)["expression"], str)


def test_calls_that_are_forbidden_do_not_come(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="openk2", messages=[QUESTION], tools=[CALCULATOR], tool_choice="none", max_tokens=5
    )
    mask = ENGINE.requests[0].grammar.start(50).mask()
    assert not mask[CODEC.tokenizer.special["<|tool_calls_section_begin|>"]]
    assert ENGINE.requests[0].prompt == CODEC.encode([QUESTION], [CALCULATOR], add_generation_prompt=True).ids


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "maxItems": 2}}},
    ],
)
def test_json_is_what_was_asked_for(client: openai.OpenAI, response_format: Any) -> None:
    answer = client.chat.completions.create(
        model="openk2", messages=[QUESTION], response_format=response_format, max_tokens=60, seed=1
    )
    kind = dict if response_format["type"] == "json_object" else list
    assert isinstance(json.loads(answer.choices[0].message.content), kind)


def test_several_continuations_each_draw_from_their_own_stream(client: openai.OpenAI) -> None:
    ENGINE.say("one", "two", "three")
    answer = client.chat.completions.create(model="openk2", messages=[QUESTION], n=3)
    assert [choice.message.content for choice in answer.choices] == ["one", "two", "three"]
    assert [request.stream for request in ENGINE.requests] == [0, 1, 2]
    assert answer.usage.prompt_tokens == len(ENGINE.requests[0].prompt)
    assert len({request.params.seed for request in ENGINE.requests}) == 1


def test_stop_strings_end_the_sequence_itself(client: openai.OpenAI) -> None:
    ENGINE.say("It is 42. And so on.")
    answer = client.chat.completions.create(model="openk2", messages=[QUESTION], stop=["42. A", "zzz"])
    assert answer.choices[0].message.content == "It is " and answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < len(spelt(CODEC, "It is 42. And so on."))


def test_length_ends_an_answer(client: openai.OpenAI) -> None:
    ENGINE.say("It is 42. And so on.")
    answer = client.chat.completions.create(model="openk2", messages=[QUESTION], max_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3
    hopeless = client.chat.completions.create(
        model="openk2", messages=[QUESTION], tools=[CALCULATOR], tool_choice="required", max_tokens=3
    )
    assert hopeless.choices[0].finish_reason == "length" and hopeless.usage.completion_tokens == 0


def test_log_probabilities_of_the_shown_tokens(client: openai.OpenAI) -> None:
    ENGINE.say("é 42")
    answer = client.chat.completions.create(model="openk2", messages=[QUESTION], logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in told).decode() == "é 42"
    assert [token.logprob for token in told] == [-0.5 * at for at in range(1, len(told) + 1)]
    assert all(len(token.top_logprobs) == 2 for token in told)


def test_completions_go_on_from_text_and_from_ids(client: openai.OpenAI) -> None:
    ids = [1, CODEC.tokenizer.im_end_id, 2]
    ENGINE.replies.extend(iter(CODEC.tokenizer.encode(text)) for text in ("a", "b", "c", "d"))
    for prompt, wanted in (
        ("It is", (CODEC.tokenizer.bos_id, *CODEC.tokenizer.encode("It is"))),
        (ids, tuple(ids)),
        ([ids], tuple(ids)),
        (["It is"], (CODEC.tokenizer.bos_id, *CODEC.tokenizer.encode("It is"))),
    ):
        answer = client.completions.create(model="openk2", prompt=prompt, max_tokens=1)
        assert ENGINE.requests[-1].prompt == wanted and ENGINE.requests[-1].grammar is None
        assert answer.choices[0].text == "abcd"[len(ENGINE.requests) - 1]
        assert answer.choices[0].finish_reason == "length" and answer.usage.prompt_tokens == len(wanted)


def test_completions_tell_what_training_needs(client: openai.OpenAI) -> None:
    stop = CODEC.tokenizer.im_end_id
    sampled = [*CODEC.tokenizer.encode("It is"), stop]
    ENGINE.replies.extend([iter(sampled), iter(sampled)])
    options: dict[str, Any] = {
        "model": "openk2", "prompt": "x", "max_tokens": 50, "logprobs": 1,
        "extra_body": {"return_token_ids": True, "return_experts": True},
    }  # fmt: skip
    [choice] = client.completions.create(**options).choices
    assert choice.text == "It is" and choice.token_ids == sampled
    assert choice.token_logprobs == [-0.5 * at for at in range(1, len(sampled) + 1)]
    assert [len(experts) for experts in choice.experts] == [LAYERS] * len(sampled)
    assert all(len(layer) == CHOSEN for experts in choice.experts for layer in experts)
    assert choice.logprobs.tokens == [CODEC.tokenizer.decode([token]) for token in sampled[:-1]]
    assert [choice.text[offset:] for offset in choice.logprobs.text_offset][:1] == ["It is"]
    parts = [chunk.choices[0] for chunk in client.completions.create(**options, stream=True)]
    assert "".join(part.text for part in parts) == "It is" and parts[-1].finish_reason == "stop"
    assert [token for part in parts for token in getattr(part, "token_ids", [])] == sampled


def test_choices_of_several_prompts_are_in_order(client: openai.OpenAI) -> None:
    ENGINE.replies.extend(iter(CODEC.tokenizer.encode(text)) for text in "abcd")
    answer = client.completions.create(model="openk2", prompt=["x", "yy"], n=2, max_tokens=1)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    assert answer.usage.prompt_tokens == sum(len(CODEC.tokenizer.encode(text)) + 1 for text in ("x", "yy"))


def test_models_tokenize_and_metrics(server: Running, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["openk2"] == [client.models.retrieve("openk2").id]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert server.post("/tokenize", {"text": "It <|im_end|> is"}).json()["ids"] == CODEC.tokenizer.encode(
        "It <|im_end|> is"
    )
    asked = server.post("/tokenize", {"messages": [QUESTION], "tools": [CALCULATOR]}).json()
    assert asked["ids"] == list(CODEC.encode([QUESTION], [CALCULATOR], add_generation_prompt=True).ids)
    assert asked["count"] == len(asked["ids"])
    before = server.get("/metrics").text
    client.completions.create(model="openk2", prompt="x", max_tokens=7, seed=1)
    after = server.get("/metrics").text
    assert value(after, "openk2_generated_tokens_total") - value(before, "openk2_generated_tokens_total") == 7
    counted = [
        ("/v1/completions", 200),
        ("/v1/models/{name:path}", 200),
        ("/v1/models/{name:path}", 404),
        ("/metrics", 200),
    ]
    for route, status in counted:
        assert value(after, f'openk2_requests_total{{route="{route}",status="{status}"}}') >= 1
    assert server.get("/nowhere").status_code == 404 and server.get("/").status_code == 200
    after = server.get("/metrics").text
    assert value(after, 'openk2_requests_total{route="other",status="404"}') >= 1
    assert value(after, 'openk2_requests_total{route="/",status="200"}') >= 1
    assert value(after, "openk2_inter_token_seconds_count") - value(before, "openk2_inter_token_seconds_count") == 6
    assert value(after, 'openk2_cache_blocks{state="kept"}') == 1


def value(metrics: str, name: str) -> float:
    return float(next(line.rpartition(" ")[2] for line in metrics.splitlines() if line.startswith(name + " ")))


def test_a_real_model_answers_and_leaves_nothing_behind() -> None:
    from small_checkpoint import small_model

    engine = Engine(small_model(), EngineSettings(cache_tokens=4096))
    with running(engine) as found, found.openai() as client:
        options: dict[str, Any] = {"model": "openk2", "messages": [QUESTION], "seed": 3, "max_tokens": 40}
        one = client.chat.completions.create(**options, tools=[CALCULATOR], tool_choice="required")
        two = client.chat.completions.create(**options, tools=[CALCULATOR], tool_choice="required")
        assert one.choices[0].message == two.choices[0].message and one.choices[0].finish_reason == "tool_calls"
        assert two.usage.prompt_tokens_details.cached_tokens > 0
        told = client.completions.create(model="openk2", prompt="It", max_tokens=4, extra_body={"return_experts": True})
        config = engine.model.config
        assert len(told.choices[0].experts[0]) == config.num_moe_layers
    assert engine.usage().running == 0 and not engine.has_work
    engine.check()
