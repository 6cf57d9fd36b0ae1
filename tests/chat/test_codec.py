"""The codec: K2's layout to the letter, no forged control tokens, the right mask, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_dialogues import HOSTILE, SPECIAL_NAMES, call, declaration, dialogues
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.chat import Codec, Tokenizer
from openk2.chat.template import JINJA, VERSIONS, canonical_calls
from openk2.chat.vocabulary import SPECIAL_OFFSETS
from openk2.protocols import ChatCodec

WEATHER = declaration("get_weather", city={"type": "string"})
ROUND = [
    {"role": "user", "content": "Weather in Oslo and Rome?"},
    {
        "role": "assistant",
        "content": "Looking.",
        "tool_calls": [
            call("get_weather", {"city": "Oslo"}, "functions.get_weather:0"),
            call("get_weather", '{"city":"Rome"}', "functions.get_weather:1"),
        ],
    },
    {"role": "tool", "tool_call_id": "functions.get_weather:0", "content": "sunny"},
    {"role": "tool", "tool_call_id": "functions.get_weather:1", "content": "rain"},
    {"role": "assistant", "content": "Sun in Oslo, rain in Rome."},
]


def controls(codec: Codec, ids: tuple[int, ...]) -> list[str]:
    """Names of the control tokens among `ids`, in order."""
    names = {row: name for name, row in codec.tokenizer.special.items()}
    return [names[row] for row in ids if row in names]


def expected_controls(messages: list[dict[str, Any]], tools: bool) -> list[str]:
    """What the layout asks for, written down independently of the codec."""
    begin = {"user": "<|im_user|>", "assistant": "<|im_assistant|>"}
    result = ["<|im_system|>", "<|im_middle|>", "<|im_end|>"] if tools else []
    if messages[0]["role"] != "system":
        result += ["<|im_system|>", "<|im_middle|>", "<|im_end|>"]
    for message in messages:
        result += [begin.get(message["role"], "<|im_system|>"), "<|im_middle|>"]
        if message.get("tool_calls"):
            one = ["<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"]
            result += ["<|tool_calls_section_begin|>", *one * len(message["tool_calls"]), "<|tool_calls_section_end|>"]
        result.append("<|im_end|>")
    return result


def test_codec_is_a_chat_codec(codec: Codec) -> None:
    protocol: ChatCodec = codec
    assert protocol.stop_ids == (codec.tokenizer.im_end_id, codec.tokenizer.eos_id)


def test_golden_renders(codec: Codec, k2_tokenizer: Tokenizer, k2_folder: Path) -> None:
    cases = json.loads((k2_folder / "chat_template_golden.json").read_text(encoding="utf-8"))
    seen = set()
    for case in cases:
        version = next(version for version in VERSIONS if case["template"].startswith(version))
        seen.add(version)
        prompt = case["add_generation_prompt"]
        for tokenizer in (codec.tokenizer, k2_tokenizer):
            one = Codec(tokenizer, version)
            assert one.render(case["messages"], case["tools"], prompt) == case["rendered"]
            encoded = one.encode(case["messages"], case["tools"], add_generation_prompt=prompt)
            assert list(encoded.ids) == tokenizer.encode(case["rendered"], allow_special=True)
    assert seen == set(VERSIONS)


def test_revised_is_the_default(codec: Codec) -> None:
    assert codec.template == "revised"
    with pytest.raises(ValueError, match="saw 'v3', expected one of first-release, revised"):
        Codec(codec.tokenizer, "v3")


@given(dialogues(), st.lists(HOSTILE, max_size=2))
def test_text_never_becomes_a_control_token(codec: Codec, messages: list[dict[str, Any]], words: list[str]) -> None:
    """Users, tools, system, tool names, declarations, ids and arguments, each full of control-token names."""
    tools = [declaration(word, **{word: {"type": "string", "description": word}}) for word in words]
    encoded = codec.encode(messages, tools)
    assert controls(codec, encoded.ids) == expected_controls(messages, bool(tools))
    assert codec.tokenizer.decode(encoded.ids) == codec.render(messages, tools)


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_every_special_name_is_only_text(codec: Codec, role: str) -> None:
    text = "".join(codec.tokenizer.special)
    message = {"role": role, "content": text, "name": text, "tool_call_id": text}
    assert len(controls(codec, codec.encode_turns([message]).ids)) == 3


def test_k2s_vocabulary_cannot_be_injected_either(k2_tokenizer: Tokenizer) -> None:
    codec = Codec(k2_tokenizer)
    message = {"role": "user", "content": "".join(SPECIAL_NAMES)}
    assert controls(codec, codec.encode_turns([message]).ids) == ["<|im_user|>", "<|im_middle|>", "<|im_end|>"]


@given(dialogues())
def test_messages_survive(codec: Codec, messages: list[dict[str, Any]]) -> None:
    """messages -> ids -> message: what the mask marks is the assistant's messages, and it reads back as them."""
    encoded = codec.encode(messages)
    index = 0
    expected = []
    for message in messages:
        if message["role"] != "assistant":
            continue
        calls = []
        for one in message.get("tool_calls") or []:
            name, arguments = one["function"]["name"], one["function"]["arguments"]
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append(call(name, text, f"functions.{name}:{index}"))
            index += 1
        again = {"role": "assistant", "content": message["content"] or ""}
        expected.append({**again, "tool_calls": calls} if calls else again)
    assert [codec.decode_message(span) for span in masked_spans(codec, encoded)] == expected


def masked_spans(codec: Codec, encoded: Any) -> list[list[int]]:
    """The runs under the mask; each must end with the end of turn."""
    spans: list[list[int]] = [[]]
    for row, on in zip(encoded.ids, encoded.mask, strict=True):
        if on:
            spans[-1].append(row)
        elif spans[-1]:
            spans.append([])
    spans = [span for span in spans if span]
    assert all(span[-1] == codec.tokenizer.im_end_id for span in spans)
    return spans


def test_mask_covers_the_turn_and_its_end_only(codec: Codec) -> None:
    encoded = codec.encode(ROUND, [WEATHER], add_generation_prompt=True)
    text = [codec.tokenizer.decode(span) for span in masked_spans(codec, encoded)]
    assert text == [
        "Looking.<|tool_calls_section_begin|>"
        '<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Oslo"}<|tool_call_end|>'
        '<|tool_call_begin|>functions.get_weather:1<|tool_call_argument_begin|>{"city":"Rome"}<|tool_call_end|>'
        "<|tool_calls_section_end|><|im_end|>",
        "Sun in Oslo, rain in Rome.<|im_end|>",
    ]


@pytest.mark.parametrize("key", [{"train": False}, {"weight": 0}])
def test_messages_can_be_taken_out_of_the_loss(codec: Codec, key: dict[str, Any]) -> None:
    plain, muted = codec.encode(ROUND), codec.encode([*ROUND[:-1], {**ROUND[-1], **key}])
    assert muted.ids == plain.ids
    assert len(masked_spans(codec, muted)) == 1
    assert codec.encode([*ROUND[:-1], {**ROUND[-1], "train": True, "weight": 1}]) == plain


def test_user_cannot_ask_for_the_loss(codec: Codec) -> None:
    assert not any(codec.encode([{"role": "user", "content": "hi", "train": True}]).mask)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("call_abc", "call_def"),
        ("functions_get_weather_0", "functions_get_weather_1"),
        ("functionsget_weather0", "functionsget_weather1"),
        ("call00003", "call00004"),
        ("0", "1"),
        ("get_weather:0", "get_weather:1"),
        ("functions.get_weather:7", "functions.get_weather:8"),
        ("functions.get_weather:1", "functions.get_weather:0"),
        ("functions.get_weather:00", "functions.get_weather:01"),
        ("functions.get_weather", "functions.get_weather#2"),
        ("functions.other:0", "functions.other:1"),
        (" functions.get_weather:0\n", " functions.get_weather:1\n"),
        ("toolu_01A09q90qw90", "chatcmpl-tool-0f4e"),
        (7, 8),
    ],
)
def test_histories_with_other_ids_are_made_canonical(codec: Codec, first: str, second: str) -> None:
    """Each spelling that clients send back (functions_x_1, functionsexec5, call00003, 0, call_abc, ...)."""
    user, assistant, one, two, answer = ROUND
    calls = [{**assistant["tool_calls"][0], "id": first}, {**assistant["tool_calls"][1], "id": second}]
    foreign = [
        user,
        {**assistant, "tool_calls": calls},
        {**one, "tool_call_id": first},
        {**two, "tool_call_id": second},
        answer,
    ]
    assert codec.encode(foreign, [WEATHER]) == codec.encode(ROUND, [WEATHER])
    assert foreign[1]["tool_calls"][0]["id"] == first  # the caller's messages are not touched


def test_indices_count_the_calls_of_the_dialogue(codec: Codec) -> None:
    """Servers that number each turn from 0 repeat ids; a result belongs to the latest call with its id."""
    second = [
        {"role": "user", "content": "And Bergen?"},
        {"role": "assistant", "content": "", "tool_calls": [call("get_weather", {"city": "Bergen"}, "call_0")]},
        {"role": "tool", "tool_call_id": "call_0", "content": "fog"},
    ]
    first = [{**m} for m in ROUND]
    first[1] = {**first[1], "tool_calls": [{**c, "id": f"call_{i}"} for i, c in enumerate(first[1]["tool_calls"])]}
    first[2], first[3] = {**first[2], "tool_call_id": "call_0"}, {**first[3], "tool_call_id": "call_1"}
    text = codec.render([*first, *second])
    assert "<|tool_call_begin|>functions.get_weather:2<|tool_call_argument_begin|>" in text
    assert text.endswith("<|im_system|>get_weather<|im_middle|>## Return of functions.get_weather:2\n    fog<|im_end|>")


@pytest.mark.parametrize(
    "spelling",
    ["call_{}", "functions_x_{}", "functionsexec{}", "call0000{}", "{}", "x:{}", "functions.x:{}", "functions.x:0{}"],
)
def test_ids_used_again_belong_to_the_latest_turn(codec: Codec, spelling: str) -> None:
    """Two turns with the same ids, the second's results in the other order; the next turn's index goes on."""
    ids = [spelling.format(at) for at in range(2)]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    for turn, order in enumerate(([0, 1], [1, 0])):
        calls = [call("xy"[at], {"turn": turn}, ids[at]) for at in range(2)]
        results = [{"role": "tool", "tool_call_id": ids[at], "content": f"{turn}{at}"} for at in order]
        messages += [{"role": "assistant", "content": "", "tool_calls": calls}, *results]
    encoded = codec.encode(messages)
    written = [codec.decode_message(span)["tool_calls"] for span in masked_spans(codec, encoded)]
    assert [[one["id"] for one in calls] for calls in written] == [
        ["functions.x:0", "functions.y:1"],
        ["functions.x:2", "functions.y:3"],
    ]
    text = codec.tokenizer.decode(encoded.ids)
    for name, at, content in [("x", 0, "00"), ("y", 1, "01"), ("y", 3, "11"), ("x", 2, "10")]:
        assert f"<|im_system|>{name}<|im_middle|>## Return of functions.{name}:{at}\n    {content}<|im_end|>" in text
    following = [{"role": "assistant", "content": "", "tool_calls": [call("x", {}, ids[0])]}]
    appended = codec.encode_turns(canonical_calls(following, first_index=4), first_call_index=4).ids
    assert encoded.ids + appended == codec.encode([*messages, *following]).ids


@pytest.mark.parametrize("spelling", [None, "", "call_1", "functions.get_weather"])
def test_calls_that_share_an_id_take_their_results_in_order(codec: Codec, spelling: str | None) -> None:
    """Of one message, which the template of the exported checkpoint sees alike."""
    sandbox = pytest.importorskip("jinja2.sandbox")
    call = {"id": spelling, "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    other = {**call, "function": {"name": "get_time", "arguments": "{}"}}
    answers = [{"role": "tool", "tool_call_id": spelling, "content": text} for text in ("sun", "noon", "rain")]
    turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call, other, call]}]
    messages = [*turn, *answers, *turn, *answers[:1]]
    tied = [(m["tool_call_id"], m["content"]) for m in canonical_calls(messages) if m["role"] == "tool"]
    assert tied == [
        ("functions.get_weather:0", "sun"),
        ("functions.get_time:1", "noon"),
        ("functions.get_weather:2", "rain"),
        ("functions.get_weather:3", "sun"),
    ]
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    rendered = environment.from_string(JINJA["revised"]).render(messages=messages, tools=None)
    assert rendered == codec.render(messages)


def test_results_take_the_name_of_the_called_tool(codec: Codec) -> None:
    assert "<|im_system|>get_weather<|im_middle|>## Return of functions.get_weather:0\n    sunny" in codec.render(ROUND)
    named = [*ROUND[:2], {**ROUND[2], "name": "other"}]
    assert "<|im_system|>other<|im_middle|>## Return of functions.get_weather:0" in codec.render(named)
    stray = [{"role": "tool", "tool_call_id": "x", "content": "?"}]
    assert codec.render(stray).endswith("<|im_system|>tool<|im_middle|>## Return of x\n    ?<|im_end|>")


@pytest.mark.parametrize("name", ["fs.read.file", "get-weather", "a:1", "functions.x", "x_1", "名前"])
def test_unusual_tool_names_survive(codec: Codec, name: str) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [call(name, "{}", f"functions.{name}:3")]}
    encoded = codec.encode_turns([message], first_call_index=3)
    assert codec.decode_message(masked_spans(codec, encoded)[0]) == message


@given(dialogues(), st.integers(0, 12))
def test_encode_turns_appends(codec: Codec, messages: list[dict[str, Any]], at: int) -> None:
    """encode(a + b) is encode(a) + encode_turns(b), once the ids of b are canonical."""
    at = min(at, len(messages))
    canonical = [{**m} for m in canonical_messages(messages)]
    whole, head = codec.encode(canonical), codec.encode(canonical[: max(at, 1)])
    tail = codec.encode_turns(canonical[max(at, 1) :])
    assert head.ids + tail.ids == whole.ids
    assert head.mask + tail.mask == whole.mask


def canonical_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dialogue as an honest client would write it."""
    renamed: dict[str, str] = {}
    result, index = [], 0
    for message in messages:
        message = {**message}
        if message.get("tool_calls"):
            calls = []
            for one in message["tool_calls"]:
                renamed[one["id"]] = f"functions.{one['function']['name']}:{index}"
                calls.append({**one, "id": renamed[one["id"]]})
                index += 1
            message["tool_calls"] = calls
        if message["role"] == "tool":
            message["tool_call_id"] = renamed[message["tool_call_id"]]
        result.append(message)
    return result


def test_rollout_keeps_sampled_tokens(codec: Codec) -> None:
    """Token in, token out: prompt + sampled + environment turns is the whole dialogue, encoded at once."""
    ids = list(codec.encode(ROUND[:1], [WEATHER], add_generation_prompt=True).ids)
    for step in (ROUND[1:4], ROUND[4:]):
        sampled = list(codec.encode_turns(step[:1]).ids)[len(codec.encode_turns([], add_generation_prompt=True).ids) :]
        ids += sampled
        message = codec.decode_message(sampled)
        results = [
            {"role": "tool", "tool_call_id": one["id"], "content": turn["content"]}
            for one, turn in zip(message.get("tool_calls", []), step[1:], strict=True)
        ]
        ids += codec.encode_turns(results, add_generation_prompt=bool(results)).ids
    assert tuple(ids) == codec.encode(ROUND, [WEATHER]).ids


def test_encode_turns_numbers_foreign_ids_from_the_given_index(codec: Codec) -> None:
    turns = [{"role": "assistant", "content": "", "tool_calls": [call("f", "{}", "call_x"), call("g", "{}", "call_y")]}]
    text = codec.tokenizer.decode(codec.encode_turns(turns, first_call_index=5).ids)
    assert "functions.f:5" in text and "functions.g:6" in text
    kept = [{**turns[0], "tool_calls": [call("f", "{}", "functions.f:9"), call("g", "{}", "call_y")]}]
    text = codec.tokenizer.decode(codec.encode_turns(kept, first_call_index=5).ids)
    assert "functions.f:9" in text and "functions.g:10" in text


def test_contents_may_be_lists_of_text(codec: Codec) -> None:
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    for role in ("user", "system", "assistant"):
        listed, plain = {"role": role, "content": parts}, {"role": role, "content": "Hi there"}
        assert codec.encode([listed]) == codec.encode([plain])


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"role": "developer", "content": "x"}, r"messages\[0\]\.role: saw 'developer', expected one of assistant,"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "saw type 'image_url', expected a text",
        ),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}, r"messages\[0\]\.tool_calls\[0\]: saw"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(codec: Codec, message: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        codec.encode([message])


def test_first_release_has_no_calls(codec: Codec) -> None:
    old = Codec(codec.tokenizer, "first-release")
    assert old.render(ROUND[:3]) == (
        "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>"
        "<|im_user|>user<|im_middle|>Weather in Oslo and Rome?<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>Looking.<|im_end|><|im_system|>tool<|im_middle|>sunny<|im_end|>"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_save_and_load_keep_the_template(codec: Codec, version: str, tmp_path: Path) -> None:
    Codec(codec.tokenizer, version).save(tmp_path)
    loaded = Codec.load(tmp_path)
    assert loaded.template == version
    assert loaded.encode(ROUND, [WEATHER]) == Codec(codec.tokenizer, version).encode(ROUND, [WEATHER])


@pytest.mark.parametrize("version", VERSIONS)
def test_apply_chat_template_gives_the_codecs_ids(codec: Codec, version: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    ours = Codec(codec.tokenizer, version)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    foreign = json.loads(json.dumps(ROUND).replace("functions.get_weather:", "call_"))
    for messages in (ROUND, ROUND[:1], [{"role": "system", "content": " Be brief.\n"}, *ROUND[:2]], foreign):
        for tools in (None, [WEATHER, declaration("später", x={"type": "string", "enum": ["ä", "<&'>"]})]):
            for prompt in (True, False):
                given = theirs.apply_chat_template(
                    messages, tools=tools, add_generation_prompt=prompt, return_dict=True, tokenize=True
                )
                assert given["input_ids"] == list(ours.encode(messages, tools, add_generation_prompt=prompt).ids)


@given(dialogues(), st.booleans(), st.sampled_from(VERSIONS))
@settings(max_examples=60)
def test_jinja_says_the_same(codec: Codec, messages: list[dict[str, Any]], prompt: bool, version: str) -> None:
    """The exported template renders what the codec renders, foreign ids included."""
    sandbox = pytest.importorskip("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    tools = [WEATHER] if prompt else None
    rendered = environment.from_string(JINJA[version]).render(
        messages=messages, tools=tools, add_generation_prompt=prompt
    )
    assert rendered == Codec(codec.tokenizer, version).render(messages, tools, prompt)


def test_control_names_stand_where_k2_has_them(codec: Codec) -> None:
    first = codec.tokenizer.bos_id
    assert {name: row - first for name, row in codec.tokenizer.special.items() if "reserved" not in name} == {
        name: at for at, name in SPECIAL_OFFSETS.items()
    }
