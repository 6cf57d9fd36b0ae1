"""The files that a run leaves, the table, the choice of column, and one-line errors before anything runs."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from openk2.chat import Codec
from openk2.evaluate.format import figure, results_table
from openk2.evaluate.published import published_figure
from openk2.evaluate.records import EvalSettings
from openk2.evaluate.runner import Progress, evaluate, resolve
from openk2.evaluate.statistics import Estimate, mean, proportion
from openk2.evaluate.task_files import read_task_file
from openk2.evaluate.tasks import TASKS
from openk2.evaluate.tasks.bits_per_byte import BitsPerByte

QUESTIONS = [
    {"prompt": "Capital of France?", "answer": "Paris", "match": "contains", "group": "capitals"},
    {"prompt": "2 + 2?", "answer": "4", "match": "numeric", "group": "sums"},
    {"prompt": "3 + 3?", "answer": "6", "match": "numeric", "group": "sums", "id": "three"},
]
TASK_LINE = {
    "id": "t1",
    "domain": "calculator",
    "system": "",
    "tools": ["calculator"],
    "turns": [{"user": "1+1?", "calls": [{"name": "calculator", "arguments": {"expression": "1+1"}}], "answer": "2"}],
    "setup": {},
    "rubric": [],
}


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "mine.jsonl", QUESTIONS)


def answer(prompt: str) -> str:
    return "It is Paris." if "France" in prompt else "That is 4."


def test_both_files_are_written_and_agree(
    questions: Path, tmp_path: Path, codec: Codec, scripted: Any, uniform: Callable[[int], Any]
) -> None:
    out, seen = tmp_path / "out" / "eval", list[Progress]()
    results = evaluate(
        [questions, BitsPerByte({"prose": ["abc", "defg"]})],
        scripted(answer),
        uniform(512),
        codec,
        settings=EvalSettings(variant="instruct", seed=5, batch_size=2),
        out=out,
        about={"checkpoint": "c"},
        progress=seen.append,
    )
    content = json.loads((out / "evaluation.json").read_text())
    items = (out / "items.jsonl").read_bytes()
    lines = [json.loads(line) for line in items.decode().splitlines()]
    assert content["items_sha256"] == hashlib.sha256(items).hexdigest()
    assert content["about"] == {"checkpoint": "c"} and content["settings"]["seed"] == 5
    mine = content["results"]["mine"]
    assert (mine["value"], mine["n"]) == (pytest.approx(2 / 3), 3)
    assert mine["stderr"] == pytest.approx(proportion(2, 3).stderr)
    assert mine["groups"]["sums"]["value"] == 0.5
    assert {"template", "prompts_sha256", "decoding", "seed", "num_shots"} <= set(mine["card"])
    assert [(line["id"], line["output"], line["score"], line["failure"]) for line in lines[:3]] == [
        ("line-1", "It is Paris.", 1.0, ""),
        ("line-2", "That is 4.", 1.0, ""),
        ("three", "That is 4.", 0.0, "wrong_answer"),
    ]
    assert "Capital of France?" in lines[0]["prompt"]
    assert [line["task"] for line in lines[3:]] == ["bits_per_byte"] * 2
    assert results["bits_per_byte"].estimate.value == pytest.approx(9.0)
    assert [(p.task, p.done, p.total) for p in seen if p.task == "mine"] == [("mine", 2, 3), ("mine", 3, 3)]
    assert seen[0].eta_s is not None and seen[1].eta_s == 0.0
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "items.jsonl"]


def test_a_run_cut_short_leaves_the_finished_tasks(
    questions: Path, tmp_path: Path, codec: Codec, scripted: Any
) -> None:
    def stop(sequences: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(
            [questions, BitsPerByte({"x": ["abc"]})],
            scripted(answer),
            stop,
            codec,
            settings=EvalSettings(),
            out=tmp_path,
        )
    assert list(json.loads((tmp_path / "evaluation.json").read_text())["results"]) == ["mine"]


def test_the_same_run_writes_the_same_bytes(questions: Path, tmp_path: Path, codec: Codec, scripted: Any) -> None:
    for name in ("a", "b"):
        evaluate([questions], scripted(answer), None, codec, settings=EvalSettings(limit=2), out=tmp_path / name)
    for name in ("evaluation.json", "items.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_mixed_file_gives_two_tasks(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "mix.jsonl", [TASK_LINE, *QUESTIONS])
    assert [task.name for task in resolve(path)] == ["mix.tools", "mix.questions"]
    tasks, questions = read_task_file(path)
    assert tasks[0].turns[0].calls[0].arguments == {"expression": "1+1"}
    assert [question.id for question in questions] == ["line-2", "line-3", "three"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a"}, "field 'answer': saw nothing, expected text"),
        ({"prompt": "", "answer": "b"}, "field 'prompt': saw '', expected text"),
        ({"prompt": "a", "answer": 4}, "field 'answer': saw 4, expected text"),
        (
            {"prompt": "a", "answer": "b", "match": "regex"},
            "field 'match': saw 'regex', expected exact, numeric, contains",
        ),
        ({"prompt": "a", "answer": "b", "match": ["exact"]}, "field 'match': saw ['exact'], expected exact"),
        ({"prompt": "a", "answer": "four", "match": "numeric"}, "field 'answer': saw 'four', expected a number"),
        ({"prompt": "a", "answer": "b", "macth": "exact"}, "field 'macth': saw an unknown field"),
        ({"question": "a"}, "expected 'turns' (a tool task) or 'prompt' (a question)"),
        ({"prompt": "a", "answer": "b", "id": "line-1"}, "field 'id': saw 'line-1', which line 1 has"),
        ({**TASK_LINE, "tools": ["calculator", "calculatr"]}, "calculatr"),
        ({**TASK_LINE, "tools": [["calculator"]]}, "expected the names of tools"),
        ({**TASK_LINE, "tools": []}, "turns[0].calls: saw 'calculator', expected a tool that the task offers (none)"),
        ({**TASK_LINE, "setup": {"tble": 3}}, "tble"),
        ({**TASK_LINE, "setup": {"table": 3}}, "field 'setup'"),
        ({**TASK_LINE, "turns": []}, "saw no turns"),
        ({key: value for key, value in TASK_LINE.items() if key != "id"}, "id"),
        ([1, 2], "saw a JSON list, expected an object"),
    ],
)
def test_a_broken_line_is_named_in_one_line(tmp_path: Path, line: Any, message: str) -> None:
    path = write_lines(tmp_path / "mine.jsonl", [QUESTIONS[0], line])
    with pytest.raises(ValueError) as caught:
        read_task_file(path)
    assert str(caught.value).startswith(f"{path}:2: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_come_before_anything_runs(questions: Path, tmp_path: Path, codec: Codec) -> None:
    def attempt(*wanted: Any, **options: Any) -> None:
        evaluate(list(wanted), None, None, codec, settings=EvalSettings(), **options)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"saw 'gsm8', expected one of .*; did you mean gsm8k\?"):
        attempt(questions, "gsm8")
    with pytest.raises(ValueError, match="gsm8k: saw no data folder"):
        attempt(questions, "gsm8k")
    with pytest.raises(ValueError, match="saw no file"):
        attempt(questions, tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="saw 'mine' more than once"):
        attempt(questions, questions)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="saw no lines"):
        attempt(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(("name", "value"), [("variant", "chat"), ("limit", 0), ("batch_size", -1)])
def test_settings_refuse_nonsense(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"evaluate.{name}: saw"):
        EvalSettings(**{name: value})


def test_base_and_instruct_columns_are_never_mixed() -> None:
    base, instruct = published_figure("mmlu", "base"), published_figure("mmlu", "instruct")
    assert base and instruct
    assert (base["column"], base["value"]) == ("Kimi-K2-Base", pytest.approx(0.8779))
    assert (instruct["column"], instruct["value"]) == ("Kimi-K2-Instruct", pytest.approx(0.895))
    assert published_figure("gsm8k", "instruct") is None, "published for the base model only"
    assert published_figure("math", "instruct")["benchmark"] == "MATH-500"  # type: ignore[index]
    assert "arXiv:2507.20534" in base["source"]


def test_published_figures_match_the_reference(assets: Path) -> None:
    rows = (assets / "k2" / "eval_base.csv").read_text().splitlines()
    table = {
        row.split(",")[0]: float(row.split(",")[1]) for row in rows[1:] if row.split(",")[1].replace(".", "").isdigit()
    }
    for task, row in (("mmlu", "MMLU 5"), ("gsm8k", "GSM8K 8"), ("math", "MATH 4")):
        assert published_figure(task, "base")["value"] == pytest.approx(table[row] / 100)  # type: ignore[index]


def test_the_table_shows_n_error_chance_and_the_column(
    questions: Path, codec: Codec, scripted: Any, uniform: Any
) -> None:
    results = evaluate(
        [questions, BitsPerByte({"prose": ["abc", "defg"]})],
        scripted(answer),
        uniform(512),
        codec,
        settings=EvalSettings(variant="instruct"),
    )
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(results_table(results, groups=True))
    text = console.export_text()
    assert "66.7% ± 27.2" in text and "20.8 to 93.9" in text
    assert "9.000 ± 0.000" in text and "xz" in text
    assert "capitals" in text and "0%" in text


def test_a_narrow_terminal_cuts_no_figure(questions: Path, codec: Codec, scripted: Any) -> None:
    found = evaluate([questions], scripted(answer), None, codec, settings=EvalSettings(variant="instruct"))
    (name, result), *_ = found.items()
    published = {"value": 0.974, "column": "Kimi-K2-Instruct", "benchmark": "MATH-500"}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table({name: replace(result, published=published)}))
    text = console.export_text()
    for whole in (
        "task",
        "measure",
        "result ± stderr",
        "95% interval",
        "chance",
        "66.7% ± 27.2",
        "20.8 to 93.9",
        "97.4%",
    ):
        assert whole in text
    assert "…" not in text


def test_figures_with_undefined_parts_are_dashes() -> None:
    assert figure(Estimate(float("nan"), 0, float("nan")), "accuracy") == "-"
    assert figure(mean([0.5]), "accuracy") == "50.0% ± -"


def test_the_registry_is_keyed_by_the_tasks_own_names() -> None:
    assert sorted(TASKS) == ["bits_per_byte", "freehand", "gsm8k", "math", "mmlu", "phrasings"]
    assert all(name == task.name for name, task in TASKS.items())
