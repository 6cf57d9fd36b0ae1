"""The step record survives the disk, a crash in mid-line, and numbers that are not finite."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from openk2.observe.metrics import MetricsWriter, StepRecord, load_summary, read_metrics


def record(step: int, **values: object) -> StepRecord:
    given: dict[str, object] = {
        "step": step, "stage": "pretrain", "loss": 4.0 - step / 10, "tokens": 1024 * step,
        "tokens_per_s": 512.0, "wall_s": 2.0 * step,
    }  # fmt: skip
    return StepRecord(**{**given, **values})  # type: ignore[arg-type]


FULL = record(
    3, balance_loss=1e-4, bits_per_byte=1.75, matmul_share=0.4, grad_norm=0.9, lr=3e-3,
    update_rms={"muon.attention": 0.2, "adamw.embedding": 0.003}, max_logit=17.5, clipped_heads=2,
    max_logits=((12.0, 3.5), (17.5, 1.0)), logit_bounds=((12.5, 3.75), (17.5, 1.0)), gamma=((1.0, 1.0), (0.5, 1.0)),
    expert_load=((0.5, 1.5), (2.0, 0.0)), dead_experts=1, load_ratio=2.0,
    eta_s=60.0, extra={"reward_mean": 0.25},
)  # fmt: skip


def test_every_field_survives_the_round_trip(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "sub" / "metrics.jsonl") as writer:
        writer.write(FULL)
    assert read_metrics(tmp_path / "sub" / "metrics.jsonl") == [FULL]


def test_numbers_that_are_not_finite_stay_valid_json() -> None:
    line = record(1, loss=math.nan, grad_norm=math.inf, extra={"entropy": math.nan}).to_json()
    values = json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert values["loss"] is None and values["grad_norm"] is None and values["extra"] == {"entropy": None}
    back = StepRecord.from_json(line)
    assert math.isnan(back.loss) and back.grad_norm is None


def test_a_torn_last_line_is_ignored_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(record(1))
    with path.open("ab") as file:
        file.write(record(2).to_json().encode()[:40])
    assert [entry.step for entry in read_metrics(path)] == [1]
    with MetricsWriter(path) as writer:
        writer.write(record(2))
    assert [entry.step for entry in read_metrics(path)] == [1, 2]


def test_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{record(1).to_json()}\n{{"step": 2\n{record(3).to_json()}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2: ") as caught:
        read_metrics(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["[1]", '{"step": 1}', FULL.to_json()[:-1] + ',"surprise":1}'])
def test_what_is_not_a_record_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"saw|missing"):
        StepRecord.from_json(line)


def test_resuming_drops_the_steps_beyond_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for step in range(1, 8):
            writer.write(record(step))
    with MetricsWriter(path) as writer:
        writer.truncate_after(4)
        writer.write(record(5, loss=1.0))
    records = read_metrics(path)
    assert [entry.step for entry in records] == [1, 2, 3, 4, 5]
    assert records[-1].loss == 1.0


def test_a_killed_writer_loses_no_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    script = (
        "import os, signal, sys\n"
        "from openk2.observe.metrics import MetricsWriter, StepRecord\n"
        "writer = MetricsWriter(sys.argv[1])\n"
        "for step in range(1, 51):\n"
        "    writer.write(StepRecord(step=step, stage='sft', loss=1.0, tokens=1, tokens_per_s=1.0, wall_s=1.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert [entry.step for entry in read_metrics(path)] == list(range(1, 51))


def test_load_summary_counts_dead_experts_and_finds_the_worst_layer() -> None:
    assert load_summary(((1.0, 1.0, 1.0, 1.0), (0.0, 0.5, 0.5, 3.0))) == (1, 3.0)
    assert load_summary(()) == (0, 1.0)


def test_observe_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import openk2.observe.console, openk2.observe.files, openk2.observe.lock, openk2.observe.memory\n"
        "import openk2.observe.metrics, openk2.observe.report, openk2.observe.run_folder\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
