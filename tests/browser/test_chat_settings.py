"""The chat page's settings, refusals and keys of the keyboard."""

from __future__ import annotations

import json

from chat_page import Opened
from scripted_engine import ScriptedEngine, calling


def test_settings_reach_the_request_and_are_remembered(opened: Opened, engine: ScriptedEngine) -> None:
    page = opened.page
    assert opened.page.evaluate("Object.keys(localStorage)") == []
    opened.page.click("text=Penalties")
    values = {
        "temperature": 0.25, "max_tokens": 90, "top_p": 0.5, "top_k": 4, "min_p": 0.1, "seed": 9,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.5,
    }  # fmt: skip
    for name, value in values.items():
        page.fill(f"[name={name}]", str(value))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    page.fill("#system", "You use tools.")
    page.check("text=calculator")
    page.select_option("[name=tool_choice]", label="call calculator")
    page.uncheck("[name=parallel_tool_calls]")
    page.fill("#schema", json.dumps(schema))
    opened.ask("hi", calling(("calculator", '{"expression": "1"}')), '{"n": 1}')
    first, second = opened.bodies()
    assert {name: first[name] for name in values} == values and first["stream_options"] == {"include_usage": True}
    assert first["messages"] == [{"role": "system", "content": "You use tools."}, {"role": "user", "content": "hi"}]
    assert first["tool_choice"] == {"type": "function", "function": {"name": "calculator"}}
    assert "tool_choice" not in second  # once it has called, it may answer
    assert first["parallel_tool_calls"] is False and first["response_format"]["json_schema"]["schema"] == schema
    params = engine.requests[0].params
    assert (params.temperature, params.max_new_tokens, params.top_k, params.seed) == (0.25, 90, 4, 9)
    page.reload()
    page.wait_for_selector("#offered .tool")
    assert page.input_value("[name=min_p]") == "0.1" and page.is_checked("text=calculator")
    assert page.input_value("[name=tool_choice]") == "=calculator"
    page.click("#reset-settings")
    page.uncheck("text=calculator")
    opened.ask("hi", "Hello.")
    assert set(opened.bodies()[-1]) == {"stream", "stream_options", "messages"}


def test_an_answer_without_room_says_that_it_was_cut(opened: Opened) -> None:
    opened.page.fill("[name=max_tokens]", "2")
    opened.ask("hi", "Hello, it goes on and on.")
    assert opened.texts(".note") == ["Cut: no more tokens were allowed, or the context is full."]
    assert opened.page.inner_text(".stats").startswith("2 tokens")


def test_wrong_settings_are_told_and_not_sent(opened: Opened) -> None:
    opened.page.fill("[name=temperature]", "3")
    opened.send()
    assert opened.page.inner_text("#problem") == "Temperature: expected a number, at least 0 and at most 2."
    opened.page.fill("[name=temperature]", "")
    opened.page.fill("#schema", "[1]")
    opened.page.press("#message", "Enter")
    assert "expected an object" in opened.page.inner_text("#problem") and opened.bodies() == []


def test_a_refusal_of_the_server_is_shown_and_can_be_retried(opened: Opened, engine: ScriptedEngine) -> None:
    opened.ask("hi " * 5000)
    assert "context" in opened.page.inner_text("article > .error") and not engine.requests
    opened.page.press("#message", "ArrowUp")
    opened.page.fill(".edit textarea", "hi")
    opened.reply("Hello.")
    opened.page.press(".edit textarea", "Enter")
    opened.page.wait_for_selector("text=Hello.")


def test_the_keyboard(opened: Opened) -> None:
    page = opened.page
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#message") == "one\ntwo" and opened.bodies() == []
    opened.reply("First.")
    page.keyboard.press("Enter")
    opened.ended()
    assert opened.texts(".bubble") == ["one\ntwo"] and page.input_value("#message") == ""
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.matches('.edit textarea')")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "message" and opened.texts(".bubble") == ["one\ntwo"]
    page.keyboard.press("?")
    assert page.is_visible("#help") and page.input_value("#message") == ""
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")
    page.keyboard.type("what?")
    assert page.input_value("#message") == "what?" and not page.is_visible("#help")
    page.keyboard.press("Control+k")
    page.wait_for_selector(".greeting")
    assert opened.texts("article") == [] and page.evaluate("document.activeElement.id") == "message"
    outlines = []
    for _ in range(12):
        page.keyboard.press("Tab")
        outlines.append(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    assert set(outlines) == {"solid"}
