"""Tool-call success with policies that do all right, all wrong, or meet a broken environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from openk2.chat import Codec
from openk2.evaluate.records import Result
from openk2.evaluate.task_files import SETS, SETS_FOLDER, load_set
from openk2.evaluate.tasks import tools
from openk2.evaluate.tasks.tools import ToolCalls
from openk2.protocols import Completion, ExpectedCall, Message, Outcome, Rollout, SamplingParams, Task, Turn

Run = Callable[..., Result]


def sum_task(index: int) -> Task:
    left, right = 100 + index, 1000 + 7 * index
    call = ExpectedCall("calculator", {"expression": f"{left} + {right}"})
    turn = Turn(f"Please add {left} and {right}.", (call,), str(left + right))
    return Task(f"sum-{index}", "calculator", "Use the tools.", ("calculator",), (turn,))


TASKS = [sum_task(index) for index in range(6)]


class ToolPolicy:
    """Makes the calls that a task expects, one a message, then states the answer; `spoil` may change each message."""

    def __init__(self, codec: Codec, tasks: Sequence[Task], spoil: Callable[[Message], Message] = lambda m: m) -> None:
        self.codec, self.tasks, self.spoil = codec, tasks, spoil

    def __call__(self, prompts: Sequence[Sequence[int]], params: SamplingParams, **_: Any) -> list[Completion]:
        return [self._complete(prompt, params) for prompt in prompts]

    def _complete(self, prompt: Sequence[int], params: SamplingParams) -> Completion:
        text = self.codec.tokenizer.decode(prompt)
        turn = max((turn for task in self.tasks for turn in task.turns), key=lambda turn: text.rfind(turn.user))
        made = text[text.rfind(turn.user) :].count("<|im_assistant|>") - 1
        message: Message = {"role": "assistant", "content": f"The answer is {turn.answer}."}
        if made < len(turn.calls):
            call = turn.calls[made]
            function = {"name": call.name, "arguments": json.dumps(call.arguments)}
            before = text.count("<|tool_call_begin|>")
            made_call = {"id": f"functions.{call.name}:{before}", "type": "function", "function": function}
            message = {"role": "assistant", "content": "", "tool_calls": [made_call]}
        turn_ids = self.codec.encode_turns([self.spoil(message)])
        ids = [token for token, sampled in zip(turn_ids.ids, turn_ids.mask, strict=True) if sampled]
        cut = tuple(ids[: params.max_new_tokens])
        return Completion(cut, (0.0,) * len(cut), "stop" if len(cut) == len(ids) else "length")


def wrong_arguments(message: Message) -> Message:
    for call in message.get("tool_calls", ()):
        call["function"]["arguments"] = '{"expression": "1 + 1"}'
    return message


def broken_json(message: Message) -> Message:
    for call in message.get("tool_calls", ()):
        call["function"]["arguments"] = '{"expression": '
    return message


def wrong_answer(message: Message) -> Message:
    return message if message.get("tool_calls") else {**message, "content": "The answer is 3."}


def no_call(message: Message) -> Message:
    return {"role": "assistant", "content": "I would rather not."}


SETTINGS = {"context_length": 100_000, "max_new_tokens": 2_000, "variant": "instruct"}


def test_the_perfect_policy_succeeds(run: Run, codec: Codec) -> None:
    task = ToolCalls("sums", TASKS)
    result = run(task, task.load(None, None, 0), generate=ToolPolicy(codec, TASKS), batch_size=4, **SETTINGS)
    assert (result.estimate.value, result.estimate.n, result.chance) == (1.0, 6, 0.0)
    assert {part: figure["value"] for part, figure in result.details["parts"].items()} == dict.fromkeys(tools.PARTS, 1)
    assert result.groups["calculator"].n == 6
    assert result.details["failures"] == {}
    record = result.records[0]
    assert record.prompt.endswith("<|im_assistant|>assistant<|im_middle|>")
    assert "Please add 100 and 1000." in record.prompt
    assert "1100" in record.output and "1100" not in record.prompt
    assert 0 < result.details["answer_tokens"]["value"] < len(record.output)


@pytest.mark.parametrize(
    ("spoil", "failure", "part", "value"),
    [
        (wrong_arguments, "wrong_arguments", "arguments_valid", 1.0),
        (broken_json, "bad_json", "arguments_valid", 0.0),
        (wrong_answer, "wrong_answer", "tool_correct", 1.0),
        (no_call, "no_call", "tool_correct", 0.0),
    ],
)
def test_each_way_to_be_wrong_scores_zero_and_is_named(
    run: Run, codec: Codec, spoil: Callable[[Message], Message], failure: str, part: str, value: float
) -> None:
    result = run(ToolCalls("sums", TASKS), TASKS, generate=ToolPolicy(codec, TASKS, spoil), **SETTINGS)
    assert result.estimate.value == 0.0
    assert result.details["failures"] == {failure: 6}
    assert result.details["parts"][part]["value"] == value


def test_a_cut_answer_fails_and_is_counted(run: Run, codec: Codec) -> None:
    settings = {**SETTINGS, "max_new_tokens": 5}
    result = run(ToolCalls("sums", TASKS), TASKS, generate=ToolPolicy(codec, TASKS), **settings)
    assert (result.estimate.value, result.details["truncated"]) == (0.0, 6)
    assert result.details["answer_tokens"]["max"] == 5


def test_a_dialogue_longer_than_the_context_is_not_sent(run: Run, codec: Codec) -> None:
    def refuse(*args: Any, **kwargs: Any) -> list[Completion]:
        raise AssertionError("too long to send")

    result = run(ToolCalls("sums", TASKS), TASKS, generate=refuse, context_length=200, max_new_tokens=100)
    assert (result.estimate.value, result.estimate.n, result.details["truncated"]) == (0.0, 6, 6)


def test_environment_failures_are_excluded_and_counted(run: Run, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tools.run_episodes

    def half_broken(tasks: Sequence[Task], *args: Any, **kwargs: Any) -> list[Rollout]:
        rollouts = real(tasks, *args, **kwargs)
        for rollout in rollouts[::2]:
            rollout.outcome = Outcome(False, False, False, False, failure="environment")
        return rollouts

    monkeypatch.setattr(tools, "run_episodes", half_broken)
    result = run(ToolCalls("sums", TASKS), TASKS, generate=ToolPolicy(codec, TASKS), **SETTINGS)
    assert (result.estimate.value, result.estimate.n) == (1.0, 3)
    assert result.details["excluded_environment_failures"] == 3
    assert result.details["parts"]["finished"]["n"] == 3
    monkeypatch.setattr(
        tools, "run_episodes", lambda tasks, *a, **k: [r for task in tasks for r in half_broken([task], *a, **k)]
    )
    empty = run(ToolCalls("sums", TASKS), TASKS, generate=ToolPolicy(codec, TASKS), **SETTINGS)
    assert empty.as_dict()["value"] is None, "nothing was measured, which is not a zero"


def test_limit_is_a_subset(codec: Codec) -> None:
    chosen = ToolCalls("sums", TASKS).load(None, 3, 0)
    assert len(chosen) == 3 and chosen == ToolCalls("sums", TASKS).load(None, 3, 0)


@pytest.mark.parametrize("name", SETS)
def test_shipped_sets_prove_themselves(run: Run, codec: Codec, name: str) -> None:
    if not (SETS_FOLDER / f"{name}.jsonl").is_file():
        pytest.skip(f"sets/{name}.jsonl is not there")
    tasks = load_set(name)
    result = run(ToolCalls(name), tasks, generate=ToolPolicy(codec, tasks), **SETTINGS)
    wrong = [(record.id, record.failure) for record in result.records if record.score != 1.0]
    assert not wrong
    assert result.estimate.n == len(tasks)
    assert run(ToolCalls(name), tasks, generate=ToolPolicy(codec, tasks, no_call), **SETTINGS).estimate.value < 0.5


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(ValueError, match="saw 'freehnd', expected one of phrasings, freehand"):
        load_set("freehnd")
