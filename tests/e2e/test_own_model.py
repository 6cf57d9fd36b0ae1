"""docs/guides/your-own-model.md: dialogues -> SFT -> export -> serve -> a tool conversation by the official client."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_checkpoint import write_checkpoint

from openk2.checkpoint.variant import load
from openk2.cli import main

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "your-own-model.md"


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    command = [sys.executable, "-m", "openk2", "serve", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said = server.stderr.readline()
            assert " on http" in said, said + server.stderr.read()
            yield said.rpartition(" on ")[2].strip()
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.fixture(scope="module")
def line() -> dict:
    """The dialogue that the guide shows."""
    found = re.search(r"```json\n(.*)\n```", GUIDE.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory, line: dict) -> Path:
    folder = tmp_path_factory.mktemp("own")
    base, data = write_checkpoint(folder / "instruct"), folder / "my_dialogues.jsonl"
    data.write_text((json.dumps(line) + "\n") * 8)
    options = ["--train.steps", "2", "--train.warmup_steps", "1", "--train.decay_steps", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openk2.train.session.fusion_available", lambda: (False, "a test"))
        assert main(["sft", str(base), "--data", str(data), "--out", str(folder / "mine"), *options]) == 0
    return folder / "mine" / "model"


def test_a_tool_conversation_through_the_official_client(mine: Path, line: dict) -> None:
    openai = pytest.importorskip("openai")
    with served(mine, "--name", "mine") as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["mine"]
        messages, tools = line["messages"][:1], line["tools"]
        for turn in range(3):  # three calls and their results, the ids going on
            asked = {"model": "mine", "messages": messages, "tools": tools, "tool_choice": "required", "seed": turn}
            whole = client.chat.completions.create(**asked, max_tokens=150, parallel_tool_calls=False)
            chunks = list(
                client.chat.completions.create(**asked, max_tokens=150, parallel_tool_calls=False, stream=True)
            )
            [call] = whole.choices[0].message.tool_calls
            assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "tool_calls"
            streamed = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
            assert "".join(c.function.arguments or "" for c in streamed) == call.function.arguments
            assert (call.id, call.function.name) == (f"functions.kiln_calendar:{turn}", "kiln_calendar")
            assert json.loads(call.function.arguments)["day"] in ("monday", "friday")
            messages = [
                *messages,
                whole.choices[0].message,
                {"role": "tool", "tool_call_id": call.id, "content": "free"},
            ]
        answer = client.chat.completions.create(
            model="mine", messages=messages, tools=tools, tool_choice="none", max_tokens=5
        )
        assert answer.choices[0].message.tool_calls is None and answer.usage.prompt_tokens > 50


def test_the_same_conversation_through_anthropics_client(mine: Path, line: dict) -> None:
    anthropic = pytest.importorskip("anthropic")
    declared = [tool["function"] for tool in line["tools"]]
    tools = [{"name": f["name"], "input_schema": f["parameters"]} for f in declared]
    with served(mine, "--name", "mine", "--deterministic") as url:
        client = anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0)
        messages, ids = line["messages"][:1], set()
        for turn in range(3):
            asked = {"model": "mine", "max_tokens": 150, "messages": messages, "tools": tools}
            asked["tool_choice"] = {"type": "any", "disable_parallel_tool_use": True}
            asked["extra_body"] = {"temperature": 0}
            whole = client.messages.create(**asked)
            with client.messages.stream(**asked) as stream:
                streamed = stream.get_final_message()
            assert whole.stop_reason == streamed.stop_reason == "tool_use"
            assert [block.model_dump() for block in whole.content] == [block.model_dump() for block in streamed.content]
            call = whole.content[-1]
            ids.add(call.id)
            assert (len(ids), call.name) == (turn + 1, "kiln_calendar") and call.id.startswith("toolu_")
            assert call.input["day"] in ("monday", "friday")
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "free"}
            messages = [
                *messages,
                {"role": "assistant", "content": [block.model_dump() for block in whole.content]},
                {"role": "user", "content": [result]},
            ]
        answer = client.messages.create(
            model="mine", max_tokens=5, messages=messages, tools=tools, tool_choice={"type": "none"}
        )
        assert [block.type for block in answer.content] == ["text"] and answer.usage.input_tokens > 50


def test_transformers_loads_the_same_folder(mine: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(mine, dtype=torch.float32).eval()
    ours, codec = load(mine, dtype=torch.float32)
    assert codec is not None
    ids = torch.tensor([codec.encode([{"role": "user", "content": "Is the kiln free?"}]).ids])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(mine)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Is the kiln free?"}], return_dict=False)
    assert prompt == ids[0].tolist()
