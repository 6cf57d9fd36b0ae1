"""The loop: interrupted anywhere and continued, a run ends bit for bit where an uninterrupted one ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import batch, build, make_muonclip, same_tensors, silent_console

from openk2.checkpoint.native import load_latest
from openk2.observe.metrics import StepRecord, read_metrics
from openk2.optim.schedule import wsd
from openk2.train import loop
from openk2.train.batch import MicroBatch, supervised
from openk2.train.loop import Interrupted, Plan, StepInput, fit
from openk2.train.validation import mean_loss

STEPS = 10
CLOCK_FIELDS = ("tokens_per_s", "wall_s", "matmul_share", "eta_s")


class Crash(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "matmul_flops_per_s", lambda dtype: 1e9)


class Run:
    """One process's worth of state: a fresh model, optimizer and data source, over a folder that may hold a run."""

    def __init__(
        self, folder: Path, before_step: Mapping[int, Callable[[], None]] | None = None, **changes: Any
    ) -> None:
        self.folder, self.before_step, self.drawn = folder, before_step or {}, 0
        self.model = build()
        self.optimizer = make_muonclip(self.model)
        self.console, self.heard = silent_console()
        settings: dict[str, Any] = {
            "stage": "pretrain",
            "steps": STEPS,
            "peak_lr": 3e-3,
            "warmup_steps": 2,
            "decay_steps": 5,
            "final_lr_ratio": 0.1,
            "balance_loss_alpha": 1e-2,
            "bias_update_rate": 1e-2,
            "checkpoint_every": 5,
            "source": self.source,
            "cursor": lambda: {"drawn": self.drawn},
            "restore": lambda cursor: setattr(self, "drawn", cursor["drawn"]),
            "after": lambda: {"drawn": float(self.drawn)},
            "evaluate": lambda: {"loss": mean_loss(self.model, [batch(99)])},
            "eval_every": 4,
            "flops_per_token": 1.0,
            "bytes_per_token": 2.0,
        }
        self.plan = Plan(**settings | changes)

    def source(self, step: int) -> StepInput:
        self.before_step.get(step, lambda: None)()
        assert step == self.drawn  # the cursor follows the steps
        self.drawn += 1
        return StepInput(supervised(batch(self.drawn), 2), {"source_step": float(step)})

    def fit(self) -> None:
        fit(self.plan, self.model, self.optimizer, self.folder, self.console)


def records(folder: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl holds, but for the clock."""
    kept = [asdict(record) for record in read_metrics(folder / "metrics.jsonl")]
    return [{name: value for name, value in record.items() if name not in CLOCK_FIELDS} for record in kept]


def crash() -> None:
    raise Crash


def assert_ended_alike(folder: Path, whole: Path) -> None:
    assert records(folder) == records(whole)
    assert [record["step"] for record in records(folder)] == list(range(1, STEPS + 1))
    ours, theirs = load_latest(folder / "checkpoints"), load_latest(whole / "checkpoints")
    assert ours is not None and theirs is not None and ours[0] == theirs[0] == STEPS
    parts = ("model", "optimizer", "cursor")  # the record kept beside them holds clock times
    assert all(same_tensors(ours[1][part], theirs[1][part]) for part in parts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_flops_per_s", lambda dtype: 1e9)
        Run(folder).fit()
    return folder


def test_the_record_of_a_run(whole: Path):
    found = read_metrics(whole / "metrics.jsonl")
    assert [record.step for record in found] == list(range(1, STEPS + 1))
    assert [record.lr for record in found] == [
        3e-3 * wsd(step, steps=STEPS, warmup_steps=2, decay_steps=5, final_ratio=0.1) for step in range(STEPS)
    ]
    assert [record.extra["source_step"] for record in found] == list(range(STEPS))
    assert [record.extra["drawn"] for record in found] == list(range(1, STEPS + 1))
    assert [record.step for record in found if "val_loss" in record.extra] == [4, 8, 10]
    for record in found:
        assert record.tokens == 128 and record.bits_per_byte == pytest.approx(record.loss / np.log(2) / 2)
        assert record.balance_loss is not None and record.clipped_heads == 0
        assert record.max_logit == pytest.approx(max(max(row) for row in record.max_logits), abs=1e-3)
        assert [len(row) for row in record.max_logits] == [2, 2, 2] and record.gamma == ()
        assert [round(sum(row) / 4, 2) for row in record.expert_load] == [1.0, 1.0]
        assert {name.partition(".")[0] for name in record.update_rms} == {"muon", "adamw"}
        assert record.grad_norm and record.matmul_share and record.eta_s is not None


def test_the_first_step_which_compiles_is_left_out_of_the_time_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a clock where the first step takes 100 s and each other one a second."""
    ticks = [0.0, 0.0] + [t for step in range(STEPS) for t in (100.0 + step, 100.0 + step)]
    monkeypatch.setattr(loop.time, "perf_counter", iter(ticks).__next__)
    Run(tmp_path).fit()
    to_go = [record.eta_s for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert to_go == [900.0, *(float(STEPS - done) for done in range(2, STEPS + 1))]


def test_a_run_killed_between_checkpoints_is_continued_bit_for_bit(tmp_path: Path, whole: Path):
    first = Run(tmp_path, {7: crash})
    with pytest.raises(Crash):
        first.fit()
    assert [record["step"] for record in records(tmp_path)] == list(range(1, 8))  # two steps beyond the checkpoint
    second = Run(tmp_path)
    second.fit()
    assert "going on from step 5 of 10" in second.heard.getvalue()
    assert_ended_alike(tmp_path, whole)


@pytest.mark.parametrize("at", [5, 10])
def test_a_run_killed_while_it_saves_loses_no_record(tmp_path: Path, whole: Path, at: int, monkeypatch):
    real = loop.save_checkpoint

    def save(folder: Path, step: int, state: dict[str, Any]) -> None:
        if step == at:
            raise Crash
        real(folder, step, state)

    monkeypatch.setattr(loop, "save_checkpoint", save)
    with pytest.raises(Crash):
        Run(tmp_path).fit()
    monkeypatch.setattr(loop, "save_checkpoint", real)
    Run(tmp_path).fit()
    assert_ended_alike(tmp_path, whole)


def test_a_run_killed_right_after_saving_loses_no_record(tmp_path: Path, whole: Path, monkeypatch):
    real = loop.save_checkpoint

    def save(folder: Path, step: int, state: dict[str, Any]) -> None:
        real(folder, step, state)
        raise Crash

    for _ in range(2):  # at step 5, and at the last one
        monkeypatch.setattr(loop, "save_checkpoint", save)
        with pytest.raises(Crash):
            Run(tmp_path).fit()
    monkeypatch.setattr(loop, "save_checkpoint", real)
    Run(tmp_path).fit()
    assert_ended_alike(tmp_path, whole)


def test_a_run_killed_while_it_evaluates_loses_no_record(tmp_path: Path):
    """The last step is both saved and evaluated: its figures must be on record whichever way it ends."""
    calls = iter((lambda: {}, lambda: {}, crash))  # at steps 4, 8 and 10
    with pytest.raises(Crash):
        Run(tmp_path, evaluate=lambda: next(calls)()).fit()
    Run(tmp_path).fit()
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [record.step for record in found] == list(range(1, STEPS + 1)) and "val_loss" in found[-1].extra


def test_a_torn_last_checkpoint_is_passed_over(tmp_path: Path, whole: Path):
    Run(tmp_path).fit()
    last = tmp_path / "checkpoints" / "step-000010"
    largest = max(last.iterdir(), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    again = Run(tmp_path)
    again.fit()
    assert "warning" in again.heard.getvalue().lower() and "going on from step 5" in again.heard.getvalue()
    assert_ended_alike(tmp_path, whole)


def test_a_finished_run_is_left_alone(tmp_path: Path, whole: Path):
    Run(tmp_path).fit()
    content = (tmp_path / "metrics.jsonl").read_bytes()
    again = Run(tmp_path, {step: crash for step in range(STEPS)})
    again.fit()
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    found = load_latest(whole / "checkpoints")
    assert found is not None and same_tensors(dict(again.model.state_dict()), found[1]["model"])


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path: Path, whole: Path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped at step 4, saved in .*; the same command goes on"):
        Run(tmp_path, {3: interrupt}).fit()
    assert signal.getsignal(signal.SIGINT) is before
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None and found[0] == 4
    Run(tmp_path).fit()
    assert_ended_alike(tmp_path, whole)
    assert issubclass(Interrupted, KeyboardInterrupt)


def test_ctrl_c_while_it_evaluates_is_saved_too(tmp_path: Path):
    """Step 4 is evaluated and no checkpoint is due: one more step is taken, and what the message says is saved is."""

    def evaluate() -> dict[str, float]:
        interrupt()
        return {"loss": 1.0}

    with pytest.raises(Interrupted, match="stopped at step 5"):
        Run(tmp_path, evaluate=evaluate).fit()
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None and found[0] == 5 and found[1]["cursor"] == {"drawn": 5}


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path):
    def twice() -> None:
        interrupt()
        interrupt()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        Run(tmp_path, {3: twice}).fit()
    assert not isinstance(caught.value, Interrupted) and signal.getsignal(signal.SIGINT) is before
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]


def test_a_skipped_step_is_recorded_as_one(tmp_path: Path):
    run = Run(tmp_path, steps=2, warmup_steps=0, decay_steps=0)
    micro = supervised(batch(), 4)[0]

    def source(step: int) -> StepInput:
        factor = float("nan") if step else 1.0
        broken = MicroBatch(
            micro.input_ids, micro.targets, micro.weights, micro.example_ids, micro.layout, lambda p: -p.mean() * factor
        )
        return StepInput([broken])

    fit(Plan(**{**vars(run.plan), "source": source}), run.model, run.optimizer, tmp_path, run.console)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert "skipped" not in first.extra and second.extra["skipped"] == 1.0 and np.isnan(second.loss)
    assert isinstance(second, StepRecord) and torch.isfinite(run.model.lm_head.weight).all()
