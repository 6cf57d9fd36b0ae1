"""The chat page in a real browser, against a real server whose engine replays answers."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import CODEC, Running, eventually, running
from scripted_engine import ScriptedEngine, calling, spelt
from test_report_page import LUMINANCE

from openk2.protocols import Message
from openk2.serve import page as page_package

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> & \u202eback\x07"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": HOSTILE,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOLS = ("calculator", "weekday", "set_note", "get_note")


class Opened:
    """The page in a browser context of its own, with all that it said and asked for."""

    def __init__(self, browser: Any, server: Running, engine: ScriptedEngine, **options: Any) -> None:
        self.server, self.engine = server, engine
        self.messages: list[str] = []
        self.requests: list[Any] = []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request))

    def load(self) -> Opened:
        self.page.goto(self.server.url)
        self.page.wait_for_selector("#offered > :not(p)", state="attached")
        return self

    def send(self, text: str = "hi") -> None:
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def ask(self, text: str, *replies: Message | str, first_call_index: int = 0) -> None:
        """Send `text`, to which the model says `replies`, and wait for the end."""
        self.reply(*replies, first_call_index=first_call_index)
        self.send(text)
        self.ended()

    def reply(self, *replies: Message | str, first_call_index: int = 0) -> None:
        self.engine.replies.extend(iter(spelt(CODEC, said, first_call_index=first_call_index)) for said in replies)

    def ended(self) -> None:
        self.page.wait_for_selector(".answer >> nth=-1 >> text=Retry")

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def bodies(self) -> list[dict[str, Any]]:
        """Of the requests for answers."""
        asked = [request for request in self.requests if request.url.endswith("/chat/completions")]
        return [json.loads(request.post_data) for request in asked]

    def load_anew(self) -> None:
        """As if it had never been opened."""
        self.page.evaluate("localStorage.clear(), sessionStorage.clear()")
        self.messages.clear()
        self.requests.clear()
        self.load()

    def check(self) -> None:
        """What holds after every test: nothing left the origin, nothing broke a rule or failed."""
        origin = self.server.url + "/"
        assert all(request.url.startswith(origin) for request in self.requests)
        # The browser itself notes answers that are no success.
        assert [text for text in self.messages if not text.startswith("Failed to load resource: the server")] == []
        assert self.page.title() == f"{self.server.service.settings.model_name} · chat"

    def close(self) -> None:
        self.check()
        self.context.close()


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine(CODEC, context=4096)


@pytest.fixture(scope="module")
def server(engine: ScriptedEngine) -> Iterator[Running]:
    with running(engine, tools=TOOLS, model_name="small") as found:
        yield found


@pytest.fixture(scope="module")
def shared(browser: Any, server: Running, engine: ScriptedEngine) -> Iterator[Opened]:
    found = Opened(browser, server, engine).load()
    yield found
    found.context.close()


@pytest.fixture()
def opened(shared: Opened, engine: ScriptedEngine) -> Iterator[Opened]:
    engine.replies.clear()
    engine.requests.clear()
    engine.going.set()
    engine.pace = 0.0
    shared.load_anew()
    yield shared
    shared.check()


def paused(ids: Iterator[int], count: int, engine: ScriptedEngine) -> Iterator[int]:
    """The first `count` of `ids`; the rest once the engine is let go again."""
    for at, token in enumerate(ids, 1):
        if at == count:
            engine.going.clear()
        yield token


def endless(engine: ScriptedEngine) -> None:
    engine.pace = 0.002
    engine.replies.append(itertools.cycle(CODEC.tokenizer.encode("and so on ")))


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


def test_both_themes_and_the_switch(browser: Any, server: Running, engine: ScriptedEngine) -> None:
    engine.replies.clear()
    for scheme, other in (("dark", "light"), ("light", "dark")):
        opened = Opened(browser, server, engine, color_scheme=scheme).load()
        opened.page.check("text=weekday")
        opened.ask("hi", calling(("weekday", '{"date": "2024-02-30"}')), "`a`\n\n```\nb\n```")
        background = "getComputedStyle(document.body).backgroundColor"
        first = opened.page.evaluate(background)
        assert weak_texts(opened.page) == []
        opened.page.click("#theme")
        assert opened.page.evaluate("document.documentElement.dataset.theme") == other
        second = opened.page.evaluate(background)
        assert (brightness(first) > brightness(second)) == (scheme == "light")
        assert weak_texts(opened.page) == []
        opened.page.reload()
        opened.page.wait_for_selector("#offered .tool")
        assert opened.page.evaluate(background) == second
        opened.close()


def weak_texts(page: Any) -> Any:
    """Texts whose contrast with what is behind them is less than 4.5."""
    return page.evaluate(
        f"""() => {{ {LUMINANCE}
            const behind = e => {{ while (e) {{ const c = getComputedStyle(e).backgroundColor;
                if (!c.endsWith(', 0)')) return c; e = e.parentElement; }} return 'rgb(255,255,255)'; }};
            return [...document.querySelectorAll('p, h1, h2, h3, h4, b, small, label, code, pre, span, button')]
                .filter(e => e.innerText && e.checkVisibility())
                .map(e => [e.outerHTML.slice(0, 60), contrast(getComputedStyle(e).color, behind(e))])
                .filter(([, ratio]) => ratio < 4.5); }}"""
    )


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_on_a_phone_nothing_is_wider_and_the_panel_is_a_drawer(
    browser: Any, server: Running, engine: ScriptedEngine
) -> None:
    engine.replies.clear()
    phone = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}
    opened = Opened(browser, server, engine, **phone).load()
    page = opened.page
    assert not page.is_visible("#panel")
    page.click("#toggle-panel")
    page.check("text=calculator")
    assert page.evaluate("document.getElementById('main').inert")
    page.keyboard.press("Escape")
    page.wait_for_selector("#panel", state="hidden")
    wide = "x" * 200
    calls = calling(("calculator", json.dumps({"expression": "1+" * 80 + "1"})), content=wide)
    opened.ask(wide, calls, f"{wide}\n\n```\n{wide}\n```")
    page.click(".call summary")
    beyond = page.evaluate(
        "[...document.querySelectorAll('#main *, #head *')].filter(e => !e.closest('figure pre, .preview, svg'))"
        ".filter(e => e.getBoundingClientRect().right > 375.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert beyond == [] and page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.evaluate("document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth")
    small = page.evaluate(
        "[...document.querySelectorAll('.icon, .round')].filter(e => e.checkVisibility())"
        ".map(e => e.getBoundingClientRect()).filter(r => r.width < 32 || r.height < 32).length"
    )
    assert small == 0
    opened.close()


def test_a_key_is_asked_for_and_kept_for_the_tab_only(browser: Any) -> None:
    engine = ScriptedEngine(CODEC)
    with running(engine, api_key="s3cret", tools=TOOLS, model_name="small") as server:
        opened = Opened(browser, server, engine)
        page = opened.page
        page.goto(server.url)
        page.fill("#key", "another")
        page.press("#key", "Enter")
        page.wait_for_selector("text=The server refused the key.")
        page.fill("#key", "s3cret")
        page.press("#key", "Enter")
        page.wait_for_selector("#offered .tool")
        opened.ask("hi", "Hello.")
        assert page.evaluate("Object.values(sessionStorage)") == ["s3cret"]
        assert "s3cret" not in page.evaluate("JSON.stringify(localStorage) + location.href + document.body.innerHTML")
        page.reload()
        page.wait_for_selector("#offered .tool")
        opened.close()


def test_the_policy_stops_what_a_mistake_would_let_in(opened: Opened) -> None:
    """Were markup ever made of text, the browser would refuse it."""
    refused = (
        "(() => { try { document.getElementById('log').innerHTML = '<i>'; return false } catch { return true } })()"
    )
    assert opened.page.evaluate(refused)
    assert opened.page.evaluate("fetch('http://127.0.0.1:9/').then(() => false, () => true)")
    assert any("Content Security Policy" in text for text in opened.messages)
    opened.messages.clear()
    opened.requests[:] = [request for request in opened.requests if ":9/" not in request.url]


def test_no_script_makes_markup_of_text() -> None:
    folder = Path(page_package.__file__).parent
    files = [path for path in folder.iterdir() if path.suffix in (".js", ".html")]
    assert len(files) > 5
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|setHTML|https?://(?!www\.w3\.org/2000/svg)"
    for path in files:
        assert re.findall(banned, path.read_text(encoding="utf-8")) == [], path.name
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<script>|<style", page)
