"""The chat page in a real browser, against a real server whose engine replays answers: answers, edits, retries."""

from __future__ import annotations

import json
import re

import pytest
from chat_page import HOSTILE, WEATHER, Opened, endless, paused
from running_server import CODEC, eventually
from scripted_engine import ScriptedEngine, calling, spelt


def test_an_answer_appears_as_it_comes(opened: Opened, engine: ScriptedEngine) -> None:
    text = "It is 1776. You use tools."
    engine.replies.append(paused(iter(spelt(CODEC, text)), 4, engine))
    opened.send("What is 37 times 48?")
    opened.page.wait_for_selector(".answer .text p")
    begun = opened.texts(".answer .text")[0].strip()
    assert text.startswith(begun) and begun != text
    assert opened.page.get_attribute(".answer", "aria-busy") == "true"
    assert opened.page.is_visible("#stop") and not opened.page.is_visible("#send")
    engine.going.set()
    opened.ended()
    assert opened.texts(".answer .text") == [text] and opened.texts(".bubble") == ["What is 37 times 48?"]
    assert opened.page.get_attribute(".answer", "aria-busy") == "false"
    assert opened.page.is_visible("#send") and opened.page.inner_text("#status") == "The answer is complete"
    used = len(engine.requests[0].prompt) + len(spelt(CODEC, text))
    assert opened.page.inner_text("#used") == f"{used} of 4,096 tokens"
    stats = f"{len(spelt(CODEC, text))} tokens · [0-9.]+ tokens/s · first after [0-9.]+ s"
    assert re.fullmatch(stats, opened.page.inner_text(".stats"))


@pytest.mark.parametrize("way", ["button", "key"])
def test_stop_ends_the_answer_and_the_servers_sequence(opened: Opened, engine: ScriptedEngine, way: str) -> None:
    endless(engine)
    opened.send()
    opened.page.wait_for_selector(".answer .text >> text=and so on")
    assert engine.usage().running == 1
    if way == "button":
        opened.page.click("#stop")
    else:
        opened.page.keyboard.press("Escape")
    opened.ended()
    eventually(lambda: engine.usage().running == 0)
    assert opened.texts(".note") == ["Stopped."] and opened.page.is_visible("#send")
    engine.pace = 0.0
    opened.ask("and now?", "Hello.")
    said = opened.bodies()[-1]["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "user"] and "and so on" in said[1]["content"]


def test_an_earlier_message_is_edited_and_what_followed_is_gone(opened: Opened) -> None:
    opened.ask("one", "First.")
    opened.ask("two", "Second.")
    opened.page.hover(".bubble >> nth=0")
    opened.page.click(".user >> nth=0 >> text=Edit")
    opened.page.fill(".edit textarea", "one, but better")
    opened.reply("Anew.")
    opened.page.press(".edit textarea", "Enter")
    opened.page.wait_for_selector("text=Anew.")
    opened.ended()
    assert opened.texts(".bubble") == ["one, but better"] and opened.texts(".answer .text") == ["Anew."]
    assert opened.bodies()[-1]["messages"] == [{"role": "user", "content": "one, but better"}]


def test_an_edit_during_an_answer_ends_that_answer(opened: Opened, engine: ScriptedEngine) -> None:
    endless(engine)
    opened.send("one")
    opened.page.wait_for_selector(".answer .text >> text=and so on")
    opened.page.press("#message", "ArrowUp")
    opened.page.fill(".edit textarea", "two")
    opened.reply("Done.")
    opened.page.click(".edit >> text=Send")
    opened.page.wait_for_selector("text=Done.")
    opened.ended()
    assert opened.texts(".bubble") == ["two"] and len(opened.texts(".answer")) == 1
    eventually(lambda: engine.usage().running == 0)


def test_retry_answers_the_same_message_anew(opened: Opened) -> None:
    opened.ask("one", "First.")
    opened.ask("two", "Second.")
    opened.reply("Better.")
    opened.page.click(".answer >> nth=1 >> text=Retry")
    opened.page.wait_for_selector("text=Better.")
    opened.ended()
    assert opened.texts(".answer .text") == ["First.", "Better."] and opened.texts(".bubble") == ["one", "two"]
    assert opened.bodies()[-1] == opened.bodies()[-2]


def test_copy_gives_the_text_as_it_was_written(opened: Opened) -> None:
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=opened.server.url)
    opened.ask("code", "See:\n\n```python\nx = 1\n```")
    opened.page.click(".foot >> text=Copy")
    opened.page.wait_for_selector(".foot >> text=Copied")
    assert opened.page.evaluate("navigator.clipboard.readText()") == "See:\n\n```python\nx = 1\n```"
    assert opened.texts("figure pre") == ["x = 1"]
    opened.page.click("figcaption >> text=Copy")
    opened.page.wait_for_selector("figcaption >> text=Copied")
    assert opened.page.evaluate("navigator.clipboard.readText()") == "x = 1"


def test_what_anyone_wrote_stays_text(opened: Opened) -> None:
    opened.page.click("text=Paste declarations")
    opened.page.fill("#pasted", json.dumps([{**WEATHER, "function": {**WEATHER["function"], "name": "<b>x</b>"}}]))
    name = "<b>x</b>"
    arguments = json.dumps({"city": HOSTILE})
    opened.reply(f"`{HOSTILE}`\n\n```<i>\n{HOSTILE}\n```", calling((name, arguments), content=HOSTILE))
    opened.send(HOSTILE)
    opened.ended()
    opened.send("again")
    opened.page.fill(".ask textarea", HOSTILE)
    opened.reply("Done.", first_call_index=1)
    opened.page.click("text=Send result")
    opened.page.wait_for_selector("text=Done.")
    opened.ended()
    counted = "document.querySelectorAll('#log :is(img, script, b b, i, bdo)').length + document.images.length"
    assert opened.page.evaluate(counted) == 0
    assert opened.page.evaluate("document.querySelector('.call summary b').textContent") == name
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\x07", "\\x07")
    assert opened.texts(".bubble")[0] == shown and opened.page.inner_text("figure pre") == shown
    assert opened.page.evaluate("document.querySelector('.result').textContent") == shown
    assert opened.bodies()[-1]["messages"][-1]["content"] == HOSTILE
