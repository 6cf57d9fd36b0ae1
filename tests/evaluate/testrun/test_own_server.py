"""A test run against our own server: real tokens, real tool calls, real usage, by its own port each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from running_server import CODEC, running
from scripted_engine import ScriptedEngine, calling, spelt

from openk2.evaluate.testrun import RunSettings, Target, run_prompts
from openk2.observe.console import Console

TOOL = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Works out a formula.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}


def test_our_server_answers_and_is_not_asked_again_on_another_port(
    prompts: Callable[..., Path], tmp_path: Path, quick: Callable[..., RunSettings], console: Console
) -> None:
    call = {"name": "calculator", "arguments": {"expression": "6*7"}}
    folder = prompts(
        a_text={"prompt": "What is 6 times 7?", "check": {"numeric": 42}, "max_tokens": 64, "temperature": 0},
        b_call={"prompt": "Work out 6*7.", "check": {"tool_call": call}, "tools": [TOOL], "max_tokens": 200},
        c_cut={"prompt": "Talk.", "check": {"contains": "end"}, "max_tokens": 3},
    )
    said = [spelt(CODEC, "It is 42, 世界."), spelt(CODEC, calling(("calculator", '{"expression": "6*7"}'))),
            spelt(CODEC, "This goes on to the end.")]  # fmt: skip
    for replies in (said, []):
        engine = ScriptedEngine(CODEC, *replies)
        with running(engine) as server:
            target = Target(f"{server.url}/v1", "ours", identity="step-5")
            report = run_prompts(folder, [target], tmp_path / "run", settings=quick(concurrency=1, seed=1),
                                 console=console)  # fmt: skip
        assert len(engine.requests) == len(replies)
    found = {entry["id"]: entry["answers"]["ours"][0] for entry in report.figures["prompts"]}
    assert {name: answer["failure"] or answer["state"] for name, answer in found.items()} == {
        "a_text": "pass", "b_call": "pass", "c_cut": "length",
    }  # fmt: skip
    assert found["a_text"]["completion_tokens"] == len(said[0]) and found["c_cut"]["completion_tokens"] == 3
    assert all(answer["first_token_s"] is not None for answer in found.values())
    assert report.figures["summary"][0]["model"] == "openk2"
