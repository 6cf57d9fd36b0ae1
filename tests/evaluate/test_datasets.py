"""GSM8K, MATH, MMLU and a user's own questions: each proves that its gold answers score 1 and wrong ones 0."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openk2.chat import Codec
from openk2.evaluate.dataset_files import subset
from openk2.evaluate.generated import Question
from openk2.evaluate.records import Result
from openk2.evaluate.tasks.gsm8k import GSM8K
from openk2.evaluate.tasks.math import Math
from openk2.evaluate.tasks.mmlu import LETTERS, MMLU, Choice
from openk2.evaluate.tasks.own import OwnQuestions

Run = Callable[..., Result]
VARIANTS = pytest.mark.parametrize("variant", ["base", "instruct"])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Small sets in the real layout."""
    for name in ("gsm8k", "math", "mmlu/dev", "mmlu/test"):
        (tmp_path / name).mkdir(parents=True)
    for part, start in (("train", 0), ("test", 100)):
        lines = [
            {"question": f"What is {n} and 1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
            for n in range(start, start + 12)
        ]
        (tmp_path / f"gsm8k/{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    problems = [
        {"problem": f"Halve {n}.", "solution": f"So $\\boxed{{\\frac{{{n}}}{{2}}}}$.", "type": ("Odd", "Even")[n % 2]}
        for n in range(1, 13)
    ]
    (tmp_path / "math/test.json").write_text("\n".join(map(json.dumps, problems)))
    for subject in ("tall_things", "wide_things"):
        rows = [f'"{subject}, {n}?",w,x,y,z,{n % 4}' for n in range(10)]
        header = "question,choice0,choice1,choice2,choice3,answer"
        (tmp_path / f"mmlu/dev/{subject}_dev.csv").write_text("\n".join([header, *rows[:5]]))
        (tmp_path / f"mmlu/test/{subject}_test.csv").write_text("\n".join([header, *rows]))
    return tmp_path


def asked(prompt: str, questions: Sequence[Question]) -> Question:
    """The question that a prompt ends with (the shots before it are other questions)."""
    return max(questions, key=lambda question: prompt.rfind(question.text))


def letter_score(items: Sequence[Choice], codec: Codec, offset: int) -> Callable[..., list[np.ndarray]]:
    """A `Score` that finds the letter `offset` after the right one the most probable."""

    def score(sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        found = []
        for ids in sequences:
            text = codec.tokenizer.decode(ids)
            item = max(items, key=lambda item: text.rfind(item.text))
            preferred = LETTERS[(item.answer + offset) % 4]
            found.append(np.full(len(ids) - 1, -0.1 if text.endswith(preferred) else -5.0))
        return found

    return score


@VARIANTS
@pytest.mark.parametrize("task", [GSM8K(), Math()], ids=lambda task: task.name)
def test_generated_tasks_prove_themselves(task: Any, data: Path, run: Run, scripted: Any, variant: str) -> None:
    items = task.load(data, None, 0)
    right = run(task, items, generate=scripted(lambda prompt: asked(prompt, items).reference), variant=variant)
    assert (right.estimate.value, right.estimate.n) == (1.0, len(items))
    wrong = run(task, items, generate=scripted(lambda prompt: r"#### 99999 or \boxed{99999}"), variant=variant)
    assert (wrong.estimate.value, wrong.details["failures"]) == (0.0, {"wrong_answer": len(items)})
    mute = run(task, items, generate=scripted(lambda prompt: "I do not know."), variant=variant)
    assert (mute.estimate.value, mute.details["failures"]) == (0.0, {"no_answer": len(items)})
    assert right.chance == 0.0
    assert right.card["prompts_sha256"] == wrong.card["prompts_sha256"]


@VARIANTS
def test_mmlu_proves_itself(data: Path, run: Run, codec: Codec, uniform: Any, variant: str) -> None:
    items = MMLU().load(data, None, 0)
    right = run(MMLU(), items, score=letter_score(items, codec, 0), variant=variant)
    assert (right.estimate.value, right.estimate.n, right.chance) == (1.0, 20, 0.25)
    assert sorted(right.groups) == ["tall_things", "wide_things"]
    wrong = run(MMLU(), items, score=letter_score(items, codec, 1), variant=variant)
    assert wrong.estimate.value == 0.0
    # A model that knows nothing is at chance exactly: ties share the point.
    assert run(MMLU(), items, score=uniform(512), variant=variant).estimate.value == 0.25


def test_base_prompts_are_plain_and_instruct_prompts_are_dialogues(data: Path, run: Run, scripted: Any) -> None:
    items = GSM8K().load(data, 1, 0)
    plain, chat = (
        run(GSM8K(), items, generate=scripted(lambda prompt: "#### 0"), variant=variant).records[0].prompt
        for variant in ("base", "instruct")
    )
    assert plain.startswith("[BOS]Question: What is 0 and 1?\nAnswer: It is 1.\n#### 1\n\nQuestion: ")
    assert plain.endswith(f"Question: {items[0].text}\nAnswer:")
    assert "<<" not in plain
    assert chat.endswith(f"{items[0].text}<|im_end|><|im_assistant|>assistant<|im_middle|>")
    assert chat.count("<|im_assistant|>") == 8 + 1


def test_what_follows_the_answer_is_not_judged(data: Path, run: Run, scripted: Any) -> None:
    items = GSM8K().load(data, 3, 0)
    ramble = "I give up.\n\nQuestion: What is 100 and 1?\nAnswer: #### "
    result = run(GSM8K(), items, generate=scripted(lambda p: ramble + asked(p, items).expected))
    assert result.estimate.value == 0.0


def test_a_cut_answer_is_a_failure_of_length(data: Path, run: Run, scripted: Any) -> None:
    items = GSM8K().load(data, 2, 0)
    result = run(GSM8K(), items, generate=scripted(lambda prompt: "well " * 200), max_new_tokens=30)
    assert result.details["failures"] == {"length": 2}
    assert result.details["answer_tokens"]["value"] == 30


def test_shots_are_dropped_until_the_prompt_fits(data: Path, run: Run, scripted: Any) -> None:
    items = GSM8K().load(data, 2, 0)
    generate = scripted(lambda prompt: asked(prompt, items).reference)
    short = run(GSM8K(), items, generate=generate, context_length=200, max_new_tokens=40)
    assert 0 < short.card["num_shots"]["min"] < 8
    assert short.estimate.value == 1.0
    none = run(GSM8K(), items, generate=generate, context_length=60, max_new_tokens=40)
    assert (none.estimate.value, none.estimate.n) == (0.0, 2), "not asked counts as wrong, and is not dropped"
    assert none.details["failures"] == {"prompt_too_long": 2}
    tight = run(MMLU(), MMLU().load(data, 2, 0), context_length=20)
    assert (tight.estimate.value, tight.details["failures"]) == (0.0, {"prompt_too_long": 2})


def test_shots_of_math_are_never_scored(data: Path) -> None:
    items = Math().load(data, None, 0)
    assert len(items) == 8
    shown = {shot.question for item in items for shot in item.shots}
    assert not shown & {item.text for item in items}


def test_a_limit_means_the_same_items_every_time() -> None:
    numbers = list(range(1000))
    chosen = subset(numbers, 50, 3, "x")
    assert chosen == subset(numbers, 50, 3, "x") == sorted(chosen)
    assert len(set(chosen)) == 50
    assert chosen != subset(numbers, 50, 4, "x")
    assert subset(numbers, 2000, 3, "x") == numbers


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gsm8k/test.jsonl", '{"question": "a", "answer": "b"}', r"test.jsonl:1: field 'answer': saw no '#### number'"),
        ("gsm8k/test.jsonl", '{"question": "a"', r"test.jsonl:1: saw broken JSON"),
        ("gsm8k/train.jsonl", '{"question": 3, "answer": "#### 1"}', r"train.jsonl:1: field 'question': saw 3"),
        ("math/test.json", '{"problem": "a", "solution": "2"}', r"test.json:1: field 'solution': saw no \\boxed"),
        ("mmlu/test/tall_things_test.csv", "a,b\n", r"saw header 'a,b', expected 'question,choice0"),
        (
            "mmlu/dev/tall_things_dev.csv",
            "question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,E\n",
            r"row 2: field 'answer': saw 'E', expected 0, 1, 2 or 3",
        ),
    ],
)
def test_broken_data_is_named_by_line(data: Path, name: str, content: str, message: str) -> None:
    (data / name).write_text(content)
    task = {"gsm8k": GSM8K(), "math": Math(), "mmlu": MMLU()}[name.split("/")[0]]
    with pytest.raises(ValueError, match=message) as caught:
        task.load(data, None, 0)
    assert "\n" not in str(caught.value)


def test_missing_data_says_where_it_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --data FOLDER"):
        GSM8K().load(None, None, 0)
    for task in (GSM8K(), Math(), MMLU()):
        with pytest.raises(ValueError, match="check --data"):
            task.load(tmp_path, None, 0)


@pytest.mark.parametrize(
    ("kind", "expected", "output", "right"),
    [
        ("exact", "Paris", " Paris\n", True),
        ("exact", "Paris", "Paris.", False),
        ("contains", "paris", "It is Paris.", True),
        ("contains", "Paris", "It is Rome.", False),
        ("numeric", "1200", "That makes 3 times 400 = 1,200.", True),
        ("numeric", "1200", "1200 or 1300", False),
        ("numeric", "1200", "many", False),
    ],
)
def test_own_questions(run: Run, scripted: Any, kind: str, expected: str, output: str, right: bool) -> None:
    question = Question("1", "mine", "Which?", expected, expected, kind=kind)
    task = OwnQuestions("mine", [question])
    for variant in ("base", "instruct"):
        result = run(task, task.load(None, None, 0), generate=scripted(lambda prompt: output), variant=variant)
        assert result.estimate.value == float(right)


def test_real_gsm8k_answers_are_all_found(datasets: Path) -> None:
    items = GSM8K().load(datasets, None, 0)
    assert len(items) == 1319
    assert all(GSM8K().judge(item, item.reference)[1] for item in items)
    assert not any(GSM8K().judge(item, item.reference + "1")[1] for item in items)


def test_real_math_answers_are_all_found(datasets: Path) -> None:
    items = Math().load(datasets, None, 0)
    assert len(items) == 5000 - 4
    assert all(Math().judge(item, item.reference)[1] for item in items)
    wrong = [Math().judge(item, r"\boxed{-987654321}")[1] for item in items[:200]]
    assert not any(wrong)


def test_real_mmlu_is_read_whole_and_proves_itself(datasets: Path, run: Run, codec: Codec) -> None:
    assert len(MMLU().load(datasets, None, 0)) == 14042
    items = MMLU().load(datasets, 40, 0)
    result = run(MMLU(), items, score=letter_score(items, codec, 0), context_length=8192)
    assert math.isclose(result.estimate.value, 1.0)
