"""A run keeps every answer and asks nothing twice: after an end, a kill, a change of prompts or of checks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_http import Asked, Said, echo, refusal, serving, text

from openk2.cli import main
from openk2.evaluate.testrun import Report, RunSettings, Target, render_report, run_prompts
from openk2.observe.console import Console

Quick = Callable[..., RunSettings]
Prompts = Callable[..., Path]
ONE, TWO, THREE = {"prompt": "one", "check": {"contains": "one"}}, {"prompt": "two"}, {"prompt": "three"}


def said(console: Console) -> str:
    return console.stream.getvalue()  # type: ignore[attr-defined]


def states(report: Report, prompt: str) -> dict[str, list[str]]:
    [found] = [entry for entry in report.figures["prompts"] if entry["id"] == prompt]
    return {target: [answer["state"] for answer in answers] for target, answers in found["answers"].items()}


def test_every_prompt_goes_to_every_target_once(
    prompts: Prompts, tmp_path: Path, quick: Quick, console: Console
) -> None:
    folder, out = prompts(one=ONE, two=TWO), tmp_path / "run"
    with serving() as first, serving() as second:
        targets = [Target.parse(f"{first.url},name=a"), Target.parse(f"{second.url},name=b,model=own")]
        report = run_prompts(folder, targets, out, settings=quick(), console=console)
        assert sorted(asked.text for asked in first.asked) == ["one", "two"]
        assert {asked.body["model"] for asked in first.asked} == {"org/first"}
        assert {asked.body["model"] for asked in second.asked} == {"own"} and second.listed == []
        assert all(asked.body["stream"] and asked.body["stream_options"] for asked in first.asked)
        assert states(report, "one") == {"a": ["pass"], "b": ["pass"]}
        assert states(report, "two") == {"a": ["unchecked"], "b": ["unchecked"]}
        again = run_prompts(folder, targets, out, settings=quick(), console=console)
        assert (len(first.asked), len(second.asked)) == (2, 2)
    assert again.figures == report.figures and "4 of 4 answers are there, 0 to ask" in said(console)
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {
        "run.json", "prompts.jsonl", "answers.jsonl", "report.json", "report.html",
    }  # fmt: skip


def test_samples_and_seeds(prompts: Prompts, tmp_path: Path, quick: Quick, console: Console) -> None:
    with serving() as server:
        target = [Target.parse(f"{server.url},name=t")]
        run_prompts(prompts(one=ONE), target, tmp_path / "run", settings=quick(samples=2, seed=5), console=console)
        assert sorted(asked.body["seed"] for asked in server.asked) == [5, 6]
        report = run_prompts(
            prompts(one=ONE), target, tmp_path / "run", settings=quick(samples=3, seed=5), console=console
        )
        assert sorted(asked.body["seed"] for asked in server.asked) == [5, 6, 7]
        assert states(report, "one") == {"t": ["pass"] * 3}
        without = run_prompts(prompts(one=ONE), target, tmp_path / "run", settings=quick(samples=2), console=console)
        assert [asked.body.get("seed") for asked in server.asked[3:]] == [None, None]  # equal bodies, two samples
    assert states(without, "one") == {"t": ["pass"] * 2}


def test_extras_win_and_nulls_take_out(prompts: Prompts, tmp_path: Path, quick: Quick, console: Console) -> None:
    extra = {"max_tokens": None, "max_completion_tokens": 9, "stream_options": None}
    with serving() as server:
        target = Target(server.url, "t", extra=extra)
        run_prompts(prompts(one={**ONE, "max_tokens": 5}), [target], tmp_path / "run", settings=quick(),
                    console=console)  # fmt: skip
    [asked] = server.asked
    assert asked.body["max_completion_tokens"] == 9 and not {"max_tokens", "stream_options"} & set(asked.body)


def test_a_changed_prompt_is_asked_again_and_told(
    prompts: Prompts, tmp_path: Path, quick: Quick, console: Console
) -> None:
    with serving() as server:
        target = [Target.parse(f"{server.url},name=t")]
        run_prompts(prompts(one=ONE, two=TWO), target, tmp_path / "run", settings=quick(), console=console)
        run_prompts(prompts(two={"prompt": "zwei"}), target, tmp_path / "run", settings=quick(), console=console)
        assert [asked.text for asked in server.asked[2:]] == ["zwei"]
        assert "two: it asks something else than when it was answered, so it is asked again" in said(console)
        # The old answer is still there.
        run_prompts(prompts(two=TWO), target, tmp_path / "run", settings=quick(), console=console)
        assert len(server.asked) == 3


def test_another_model_behind_a_name_is_told(prompts: Prompts, tmp_path: Path, quick: Quick, console: Console) -> None:
    with serving() as server:
        for model in ("small", "large"):
            target = Target(server.url, "t", model)
            run_prompts(prompts(one=ONE), [target], tmp_path / "run", settings=quick(), console=console)
    assert [asked.body["model"] for asked in server.asked] == ["small", "large"]
    assert "t: the model is large, it was small, so what it is to answer is asked anew" in said(console)


def test_a_corrected_check_needs_no_answer(prompts: Prompts, tmp_path: Path, quick: Quick, console: Console) -> None:
    out = tmp_path / "run"
    with serving() as server:
        target = [Target.parse(f"{server.url},name=t")]
        before = run_prompts(prompts(one={**ONE, "check": {"exact": "one"}}), target, out, settings=quick(),
                             console=console)  # fmt: skip
        assert states(before, "one") == {"t": ["fail"]}
        after = render_report(out, prompts=prompts(one=ONE))
        assert states(after, "one") == {"t": ["pass"]} and len(server.asked) == 1
    assert states(render_report(out), "one") == {"t": ["pass"]}


def test_faults_are_kept_told_and_asked_again(prompts: Prompts, tmp_path: Path, quick: Quick, console: Console) -> None:
    broken = True

    def script(asked: Asked, n: int) -> Said:
        return refusal(400, "not today") if broken and asked.text == "two" else echo(asked, n)

    with serving(script) as server:
        target = [Target.parse(f"{server.url},name=t")]
        report = run_prompts(prompts(one=ONE, two=TWO), target, tmp_path / "run", settings=quick(), console=console)
        assert states(report, "two") == {"t": ["unanswered"]}
        assert "warning: t, two: http_error: HTTP 400: not today" in said(console)
        broken = False
        report = run_prompts(prompts(one=ONE, two=TWO), target, tmp_path / "run", settings=quick(), console=console)
        assert states(report, "two") == {"t": ["unchecked"]}
        assert sorted(asked.text for asked in server.asked) == ["one", "two", "two"]


def test_a_refused_key_ends_the_target_and_not_the_others(
    prompts: Prompts, tmp_path: Path, quick: Quick, console: Console
) -> None:
    many = {f"p{at}": {"prompt": f"number {at}"} for at in range(8)}
    with serving(lambda asked, n: refusal(401, "no")) as closed, serving() as open_:
        targets = [Target.parse(f"{closed.url},name=closed"), Target.parse(f"{open_.url},name=open")]
        report = run_prompts(prompts(**many), targets, tmp_path / "run", settings=quick(concurrency=1), console=console)
    assert (len(closed.asked), len(open_.asked)) == (1, 8)
    assert "warning: closed: nothing more was asked of it: HTTP 401: no" in said(console)
    summary = {row["target"]: row for row in report.figures["summary"]}
    assert (summary["closed"]["unanswered"], summary["closed"]["missing"], summary["open"]["answered"]) == (1, 7, 8)


def test_the_command_says_which_target_gave_no_answer(
    prompts: Prompts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(prompts(one=ONE)), str(tmp_path / "run")
    with serving(lambda asked, n: refusal(400, "no")) as mute, serving() as open_:
        assert main(["testrun", folder, f"{open_.url},name=open", "--out", out]) == 0
        seen = capsys.readouterr()
        table = next(line for line in seen.out.splitlines() if "95% interval" in line)
        assert "unanswered" in table, "a table that goes to a file is not cut"
        assert main(["testrun", folder, f"{mute.url},name=mute", f"{open_.url},name=open", "--out", out]) == 1
    assert "mute: saw no answer to any prompt" in capsys.readouterr().err


def test_a_name_stands_for_one_thing_in_a_folder(
    prompts: Prompts, tmp_path: Path, quick: Quick, console: Console
) -> None:
    with serving() as first, serving() as second:
        run_prompts(prompts(one=ONE), [Target(first.url, "t")], tmp_path / "run", settings=quick(), console=console)
        with pytest.raises(ValueError, match="target t: saw http.*, expected http.*, which has that name in this"):
            run_prompts(prompts(one=ONE), [Target(second.url, "t")], tmp_path / "run", settings=quick(),
                        console=console)  # fmt: skip
        assert second.asked == []
        # Behind the ports of two starts there may be one checkpoint.
        for server in (first, second):
            run_prompts(prompts(one=ONE), [Target(server.url, "own", identity="step-5")], tmp_path / "run",
                        settings=quick(), console=console)  # fmt: skip
        assert (len(first.asked), len(second.asked)) == (2, 0)


def test_targets_of_earlier_starts_stay_in_the_report(
    prompts: Prompts, tmp_path: Path, quick: Quick, console: Console
) -> None:
    with serving() as server:
        for name in ("a", "b"):
            report = run_prompts(
                prompts(one=ONE), [Target(server.url, name)], tmp_path / "run", settings=quick(), console=console
            )
    assert states(report, "one") == {"a": ["pass"], "b": ["pass"]}


def test_prompts_that_ask_the_same_are_asked_once(
    prompts: Prompts, tmp_path: Path, quick: Quick, console: Console
) -> None:
    with serving() as server:
        report = run_prompts(prompts(one=ONE, same={**ONE, "check": {"exact": "x"}}), [Target(server.url, "t")],
                             tmp_path / "run", settings=quick(), console=console)  # fmt: skip
    assert len(server.asked) == 1
    assert (states(report, "one"), states(report, "same")) == ({"t": ["pass"]}, {"t": ["fail"]})


def test_what_is_wrong_is_said_before_anything_is_asked(
    prompts: Prompts, tmp_path: Path, quick: Quick, console: Console
) -> None:
    with serving() as server:
        with pytest.raises(ValueError, match="saw no target"):
            run_prompts(prompts(one=ONE), [], tmp_path / "run", console=console)
        with pytest.raises(ValueError, match="variable NO_SUCH_KEY"):
            run_prompts(prompts(one=ONE), [Target(server.url, "t"), Target(server.url, "u", key_env="NO_SUCH_KEY")],
                        tmp_path / "run", console=console)  # fmt: skip
        other = tmp_path / "other"
        other.mkdir()
        (other / "run.json").write_text('{"stage": "pretrain"}')
        with pytest.raises(ValueError, match='stage: saw "pretrain", expected "testrun"; use another folder'):
            run_prompts(prompts(one=ONE), [Target(server.url, "t")], other, console=console)
        assert server.asked == []
    with pytest.raises(ValueError, match="saw no run.json, expected the folder of a test run"):
        render_report(tmp_path / "nowhere")
    for wrong in ({"samples": 0}, {"timeout": 0.0}, {"per_minute": -1.0}, {"seed": -1}, {"attempts": 0}):
        with pytest.raises(ValueError, match="testrun\\.\\w+: saw"):
            RunSettings(**wrong)


def test_no_key_is_written_anywhere(
    prompts: Prompts, tmp_path: Path, quick: Quick, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN_KEY", "sk-very-secret")
    with serving(lambda asked, n: refusal(400, "wrong: sk-very-secret")) as server:
        target = Target.parse(f"{server.url},key=OWN_KEY")
        run_prompts(prompts(one=ONE), [target], tmp_path / "run", settings=quick(), console=console)
        assert "sk-very-secret" in str(server.asked[0].headers)
    assert all(b"sk-very-secret" not in path.read_bytes() for path in (tmp_path / "run").iterdir())
    assert "sk-very-secret" not in said(console)


KILLED = """
import sys
from pathlib import Path
from openk2.evaluate.testrun import RunSettings, Target, run_prompts
run_prompts(sys.argv[1], [Target(sys.argv[2], "t")], sys.argv[3], settings=RunSettings(concurrency=2))
"""


def test_after_kill_9_no_answer_that_came_is_asked_again(
    prompts: Prompts, tmp_path: Path, quick: Quick, console: Console
) -> None:
    folder = prompts(**{f"p{at}": {"prompt": f"number {at}"} for at in range(8)})
    out = tmp_path / "run"

    killed = threading.Event()

    def script(asked: Asked, n: int) -> Said:
        if len(server.asked) > 5:
            killed.wait(60)
        return text("said ", asked.text)

    with serving(script) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder), server.url, str(out)], stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 60
        # Five are answered and kept, two are under way.
        while not (out / "answers.jsonl").exists() or (out / "answers.jsonl").read_bytes().count(b"\n") < 5:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
        kept = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
        # The kill came in the middle of a line.
        with open(out / "answers.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(kept[0])[:50])
        before = len(server.asked)
        report = run_prompts(folder, [Target(server.url, "t")], out, settings=quick(), console=console)
        asked_again = [asked.text for asked in server.asked[before:]]
    answered = {f"number {line['prompt'][1:]}" for line in kept}
    assert len(answered) == 5 and not answered & set(asked_again) and len(asked_again) == 3
    assert [row["answered"] for row in report.figures["summary"]] == [8]
    lines = (out / "answers.jsonl").read_bytes().splitlines()
    assert len(lines) == 8 and all(json.loads(line)["reply"]["fault"] is None for line in lines)


def test_one_process_a_folder(prompts: Prompts, tmp_path: Path, quick: Quick, console: Console) -> None:
    from openk2.observe.lock import RunLock

    with serving() as server, RunLock(tmp_path / "run"), pytest.raises(ValueError, match=f"process {os.getpid()}"):
        run_prompts(prompts(one=ONE), [Target(server.url, "t")], tmp_path / "run", settings=quick(), console=console)
    assert server.asked == []


def test_a_broken_line_is_named(prompts: Prompts, tmp_path: Path, quick: Quick, console: Console) -> None:
    out = tmp_path / "run"
    with serving() as server:
        run_prompts(prompts(one=ONE), [Target(server.url, "t")], out, settings=quick(), console=console)
    (out / "answers.jsonl").write_bytes(b'{"target": "t"}\n' + (out / "answers.jsonl").read_bytes())
    with pytest.raises(ValueError, match="answers.jsonl:1: saw a line that is no answer"):
        render_report(out)
