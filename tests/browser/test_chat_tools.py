"""Tools on the chat page: picked, pasted, broken, and declared wrongly."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from chat_page import WEATHER, Opened, paused
from running_server import CODEC, running
from scripted_engine import ScriptedEngine, calling, spelt


def test_a_picked_tool_is_run_and_the_answer_goes_on(opened: Opened, engine: ScriptedEngine) -> None:
    opened.page.check("text=calculator")
    opened.page.check("text=weekday")
    calls = calling(
        ("calculator", '{"expression": "37*48"}'), ("weekday", '{"date": "2024-02-30"}'), content="Let me see."
    )
    engine.replies.append(paused(iter(spelt(CODEC, calls)), 30, engine))
    opened.send("What is 37 times 48?")
    opened.page.wait_for_selector(".call pre >> text=expression")
    assert opened.page.get_attribute(".call", "data-state") == "writing"
    opened.reply("It is 1776.")
    engine.going.set()
    opened.ended()
    assert opened.texts(".answer .text") == ["Let me see.", "It is 1776."]
    assert [opened.page.locator(".call").nth(at).get_attribute("data-state") for at in (0, 1)] == ["done", "refused"]
    assert "1776" in opened.texts(".preview")[0]
    opened.page.click(".call summary >> nth=0")
    assert opened.texts(".call >> nth=0 >> pre") == ['{\n  "expression": "37*48"\n}', "1776"]
    roles = [(message["role"], message["content"]) for message in opened.bodies()[-1]["messages"][1:]]
    assert roles == [("assistant", "Let me see."), ("tool", "1776"), ("tool", "error: no such date: 2024-02-30")]
    opened.ask("thanks", "Bye.")
    assert len(opened.bodies()[-1]["messages"]) == 6


def test_notes_last_for_one_chat(opened: Opened) -> None:
    for name in ("set_note", "get_note"):
        opened.page.check(f"text={name}")
    opened.ask("keep it", calling(("set_note", '{"key": "k", "text": "milk"}')), "Kept.")
    opened.reply(calling(("get_note", '{"key": "k"}')), first_call_index=1)
    opened.ask("what was it?", "Milk.")
    assert "milk" in opened.texts(".preview")[-1]
    opened.page.keyboard.press("Control+k")
    opened.page.wait_for_selector(".greeting")
    opened.ask("what was it?", calling(("get_note", '{"key": "k"}')), "I do not know.")
    assert "no note" in opened.texts(".preview")[-1]


def test_rounds_of_calls_are_bounded(opened: Opened) -> None:
    opened.page.check("text=calculator")
    for at in range(8):
        opened.reply(calling(("calculator", '{"expression": "1"}')), first_call_index=at)
    opened.send("forever")
    opened.page.wait_for_selector("text=Stopped after 8 rounds of calls.")
    assert len(opened.bodies()) == 8


def test_a_pasted_tool_asks_for_its_result(opened: Opened, engine: ScriptedEngine) -> None:
    opened.page.click("text=Paste declarations")
    opened.page.fill("#pasted", json.dumps([WEATHER]))
    opened.reply(calling(("weather", '{"city": "Oslo"}')))
    opened.send("Will it rain?")
    opened.page.wait_for_selector(".ask")
    assert engine.usage().running == 0 and opened.page.is_visible("#stop")
    assert opened.page.evaluate("document.activeElement.matches('.ask textarea')")
    opened.reply("It will.")
    opened.page.fill(".ask textarea", "rain, 4 degrees")
    opened.page.press(".ask textarea", "Enter")
    opened.page.wait_for_selector("text=It will.")
    opened.ended()
    *_, called, result = opened.bodies()[-1]["messages"]
    assert called["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert result == {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "rain, 4 degrees"}
    assert opened.bodies()[-1]["tools"] == [WEATHER]


def test_a_picked_tool_that_broke_asks_for_its_result(browser: Any) -> None:
    stubborn = Path(__file__).parents[1] / "environments" / "stubborn_server.py"
    engine = ScriptedEngine(CODEC, context=4096)
    with running(engine, tools=(shlex.join([sys.executable, str(stubborn)]),), model_name="small") as server:
        opened = Opened(browser, server, engine).load()
        opened.page.check("text=die")
        assert opened.texts(".badge")[0] == "stubborn_server.py"
        opened.reply(calling(("die", "{}")))
        opened.send("Try it.")
        opened.page.wait_for_selector(".ask .error >> text=MCP server")
        opened.page.fill(".ask textarea", "it is gone")
        opened.reply("I see.")
        opened.page.click("text=Send result")
        opened.page.wait_for_selector("text=I see.")
        assert opened.bodies()[-1]["messages"][-1]["content"] == "it is gone"
        opened.close()


def test_stopped_at_a_question_the_dialogue_goes_on_without_the_call(opened: Opened) -> None:
    opened.page.click("text=Paste declarations")
    opened.page.fill("#pasted", json.dumps(WEATHER))
    opened.reply(calling(("weather", '{"city": "Oslo"}')))
    opened.send("Will it rain?")
    opened.page.wait_for_selector(".ask")
    opened.page.keyboard.press("Escape")
    opened.ended()
    assert opened.page.get_attribute(".call", "data-state") == "dropped" and not opened.texts(".ask")
    opened.ask("never mind", "As you like.")
    assert [message["role"] for message in opened.bodies()[-1]["messages"]] == ["user", "user"]


def test_wrong_declarations_are_told_in_a_line_and_not_sent(opened: Opened) -> None:
    opened.page.click("text=Paste declarations")
    for text, words in (
        ("[{", "not JSON"),
        ("[3]", "[0]: expected an object"),
        ('[{"type": "web_search"}]', '[0].type: expected "function"'),
        ('{"type": "function", "function": {}}', "[0].function.name"),
        (json.dumps([WEATHER, WEATHER]), "[1].function.name: weather is there already"),
    ):
        opened.page.fill("#pasted", text)
        told = opened.page.inner_text("#pasted-problem")
        assert words in told and "\n" not in told
    opened.send("hi")
    assert opened.page.inner_text("#problem") == told and opened.bodies() == []
    assert opened.page.input_value("#message") == "hi"
