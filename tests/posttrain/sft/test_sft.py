"""A user's own chat JSONL takes the road of the recipe: it trains, or one line says which line is wrong and how."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_checkpoint import VOCAB, small_codec, talk_line, tool_line, write_checkpoint, write_lines

import openk2
from openk2.cli import main
from openk2.data.dialogues import dialogues_digest, encode_dialogues, read_dialogues
from openk2.observe.metrics import read_metrics

QUICK = """--train.steps 2 --train.warmup_steps 1 --train.decay_steps 1 --train.batch_tokens 1024 --train.dtype fp32
    --train.micro_batch_tokens 1024 --train.sequence_length 1024 --train.eval_every 2 --train.checkpoint_every 1"""


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openk2.train.session.fusion_available", lambda: (False, "a test"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small") / "base", kind="base")


def sft(checkpoint: Path, data: Path, out: Path) -> int:
    return main(["sft", str(checkpoint), "--data", str(data), "--out", str(out), *QUICK.split()])


def test_own_dialogues_train_and_the_model_is_exported(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [talk_line(f"Say {number}.", f"{number}!") for number in range(60)]
    data = write_lines(tmp_path / "mine.jsonl", *lines, "", tool_line())
    assert sft(checkpoint, data, tmp_path / "run") == 0
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record.step for record in records] == [1, 2]
    assert all(abs(record.loss - math.log(VOCAB)) < 0.5 for record in records)
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "model")
    before, _ = openk2.load(checkpoint)
    model, codec = openk2.load(tmp_path / "run" / "model")
    assert codec is not None and codec.tokenizer.digest() == small_codec().tokenizer.digest()
    changed = [k for k, v in model.state_dict().items() if not v.equal(before.state_dict()[k])]
    assert len(changed) > 10
    generation = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == codec.tokenizer.im_end_id


def test_the_same_command_again_only_reads(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "mine.jsonl", *[talk_line(str(n)) for n in range(8)])
    for _ in range(2):
        assert sft(checkpoint, data, tmp_path / "run") == 0
    assert "going on from step 2 of 2" in capsys.readouterr().err
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2


def test_other_data_in_the_same_folder_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        sft(checkpoint, write_lines(tmp_path / "a.jsonl", *[talk_line(str(n)) for n in range(8)]), tmp_path / "r") == 0
    )
    capsys.readouterr()
    assert sft(checkpoint, write_lines(tmp_path / "b.jsonl", talk_line("Else?")), tmp_path / "r") == 2
    assert "use a new folder" in capsys.readouterr().err


def without(line: dict[str, Any], place: int, key: str) -> dict[str, Any]:
    messages = [dict(message) for message in line["messages"]]
    del messages[place][key]
    return {**line, "messages": messages}


BROKEN = {
    "broken JSON": ('{"messages": [', "broken JSON", "expected one JSON object a line"),
    "nested too deep": ("[" * 100_000, "broken JSON", "expected one JSON object a line"),
    "not UTF-8 text": ('"\\ud800', "broken JSON", "expected one JSON object a line"),
    "not an object": ("[1]", "the line: saw [1]", "expected an object"),
    "no messages": ({"prompt": "hi"}, "messages: saw nothing", "expected a list"),
    "missing role": (without(talk_line(), 0, "role"), "messages[0].role: saw nothing", "expected one of"),
    "no assistant message": (
        {"messages": talk_line()["messages"][:1]},
        'messages: saw ["user"]',
        "at least one assistant",
    ),
    "result without a call": (
        tool_line(result_id="other"),
        'messages[2].tool_call_id: saw "other"',
        "a call not answered",
    ),
    "undeclared tool": (
        {**tool_line(), "tools": []},
        'function.name: saw "calculator"',
        "expected a declared tool (none)",
    ),
    "arguments not JSON": (tool_line(arguments="6*7"), 'function.arguments: saw "6*7"', "expected JSON"),
    "arguments outside the schema": (
        tool_line(arguments='{"x": 1}'),
        "function.arguments",
        "expected what calculator declares",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_ends_with_one_line_that_says_where(
    case: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, seen, expected = BROKEN[case]
    data = write_lines(tmp_path / "mine.jsonl", talk_line(), tool_line(), line, talk_line())
    assert sft(checkpoint, data, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: {data}: line 3: ")
    assert seen in error and expected in error
    assert not (tmp_path / "run").exists(), "nothing is begun before the data is known to be good"


def test_an_empty_file_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sft(checkpoint, write_lines(tmp_path / "mine.jsonl"), tmp_path / "run") == 2
    assert "saw no dialogues" in capsys.readouterr().err


def test_a_checkpoint_without_a_tokenizer_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((checkpoint / name).read_bytes())
    assert sft(bare, write_lines(tmp_path / "mine.jsonl", talk_line()), tmp_path / "run") == 2
    assert "saw no tokenizer" in capsys.readouterr().err


def test_the_loss_counts_what_the_assistant_says_and_its_end_of_turn(tmp_path: Path) -> None:
    codec = small_codec()
    dialogues = read_dialogues(write_lines(tmp_path / "d.jsonl", tool_line()))
    [(ids, mask)] = encode_dialogues(dialogues, codec)
    learned = codec.tokenizer.decode([token for token, counted in zip(ids, mask, strict=True) if counted])
    assert learned == (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.calculator:0<|tool_call_argument_begin|>"
        '{"expression": "6*7"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>It is 42.<|im_end|>'
    )


def test_the_held_out_side_of_a_line_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    lines = [talk_line(f"Question {number}?") for number in range(400)]
    few = read_dialogues(write_lines(tmp_path / "few.jsonl", *lines[100:200]))
    many = read_dialogues(write_lines(tmp_path / "many.jsonl", *reversed(lines)))
    side = {one.messages[0]["content"]: one.held_out for one in many}
    assert all(side[one.messages[0]["content"]] == one.held_out for one in few)
    assert 1 <= sum(side.values()) <= 20  # 2% of 400
    assert not any(one.held_out for one in read_dialogues(tmp_path / "many.jsonl", validation_share=0.0))


def test_the_digest_is_of_what_is_said(tmp_path: Path) -> None:
    one, same, other = (
        dialogues_digest(read_dialogues(write_lines(tmp_path / "d.jsonl", line)))
        for line in (talk_line(), {**talk_line(), "id": 7}, talk_line(answer="Good day!"))
    )
    assert one == same != other


def test_the_model_computes_as_the_settings_say(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("openk2.posttrain.sft.loop.fit", lambda plan, model, *rest: seen.append(model))
    data = write_lines(tmp_path / "mine.jsonl", *[talk_line(str(n)) for n in range(8)])
    settings = [*QUICK.split(), "--train.attention", "sdpa", "--train.recompute", "selective"]
    assert main(["sft", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "run"), *settings]) == 0
    assert [(model.attention, model.recompute) for model in seen] == [("sdpa", True)]
