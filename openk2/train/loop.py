"""The loop that all training stages share: step, record, evaluate, checkpoint, resume.

A stage hands in where its micro-batches come from and what is saved of that
source; this loop knows no stage. Invariants: the schedule is a function of the
step alone; a checkpoint holds everything the next step reads, so a killed run
goes on where it stood and ends bit for bit where an uninterrupted one ends;
Ctrl-C finishes the step, saves, and then stops.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from openk2.checkpoint.native import load_latest, save_checkpoint
from openk2.config.run import OptimConfig, TrainConfig
from openk2.model.model import Model
from openk2.observe.console import Console, step_line
from openk2.observe.metrics import MetricsWriter, StepRecord, load_summary, read_metrics
from openk2.optim.muonclip import MuonClip
from openk2.optim.schedule import wsd
from openk2.parallel.world import ALONE, World
from openk2.train.batch import MicroBatch
from openk2.train.precision import matmul_flops_per_s
from openk2.train.state import pack, unpack
from openk2.train.step import StepResult, train_step


@dataclass(frozen=True)
class StepInput:
    """One step's micro-batches and a stage's own figures about them."""

    micro_batches: list[MicroBatch]
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know of a stage.

    `source(step)` makes the step's input; `cursor()` and `restore(cursor)` save
    and set back the source's place; `evaluate()` returns validation figures,
    recorded as "val_*"; `flops_per_token` counts forward and backward.
    """

    stage: str
    steps: int
    peak_lr: float
    warmup_steps: int
    decay_steps: int
    final_lr_ratio: float
    balance_loss_alpha: float
    bias_update_rate: float
    checkpoint_every: int
    source: Callable[[int], StepInput]
    cursor: Callable[[], dict[str, Any]]
    restore: Callable[[dict[str, Any]], None]
    after: Callable[[], Mapping[str, float]] | None = None  # the stage's own figures once the step is taken
    evaluate: Callable[[], Mapping[str, float]] | None = None
    eval_every: int = 0
    flops_per_token: float = 0.0
    bytes_per_token: float | None = None
    # Nats and targets of text that the last step saw here, where its loss counts more than text.
    text_loss: Callable[[], tuple[float, float]] | None = None

    @classmethod
    def scheduled(cls, stage: str, train: TrainConfig, optim: OptimConfig, **what: Any) -> Plan:
        """A plan whose schedule, balance and intervals are those of a config's `train` and `optim` sections."""
        return cls(
            stage=stage,
            steps=train.steps,
            peak_lr=optim.lr,
            warmup_steps=train.warmup_steps,
            decay_steps=train.decay_steps,
            final_lr_ratio=train.final_lr_ratio,
            balance_loss_alpha=train.balance_loss_alpha,
            bias_update_rate=train.bias_update_rate,
            checkpoint_every=train.checkpoint_every,
            eval_every=train.eval_every,
            **what,
        )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the state was saved; the text says how to go on."""


def fit(plan: Plan, model: Model, optimizer: MuonClip, folder: Path, console: Console, world: World = ALONE) -> None:
    """Train `model` in place until `plan.steps`, from the folder's newest good checkpoint if there is one.

    In a world of several processes each takes its turn at a step's micro-batches, and the first one writes.
    """
    begun = _resume(plan, model, optimizer, folder, console, world)
    if begun >= plan.steps:
        return
    peak = matmul_flops_per_s(model.compute_dtype) * world.size
    started, counted_from = time.perf_counter(), begun
    with _writer(folder, world) as metrics, _CtrlC() as ctrl_c:
        for step in range(begun, plan.steps):
            begin = time.perf_counter()
            given = plan.source(step)
            # Each process must call the same collectives, so each takes as many micro-batches as the others.
            assert len(given.micro_batches) % world.size == 0, (len(given.micro_batches), world.size)
            result = train_step(
                model,
                optimizer,
                given.micro_batches[world.rank :: world.size],
                lr=_learning_rate(plan, step),
                balance_loss_alpha=plan.balance_loss_alpha,
                bias_update_rate=plan.bias_update_rate,
                world=world,
            )
            done, now = step + 1, time.perf_counter()
            eta = (now - started) / (done - counted_from) * (plan.steps - done)
            if done == begun + 1:  # the first step compiles kernels: the next ones are counted without it
                started, counted_from = now, done
            extra = {**given.extra, **(plan.after() if plan.after else {})}
            record = _record(plan, done, result, now - begin, peak, extra, eta, world)
            stop = world.any(ctrl_c.pressed)
            if stop or done == plan.steps or done % plan.checkpoint_every == 0:
                # Before the evaluation, which may run out of memory, and with the record, which a kill now would lose.
                state = {**pack(model, optimizer, plan.cursor()), "record": record.to_json()}
                if world.first:
                    save_checkpoint(folder / "checkpoints", done, state)
            record = _evaluated(plan, record)
            if metrics:
                metrics.write(record)
            console.line(step_line(record, plan.steps))
            if stop:
                raise Interrupted(f"{plan.stage}: stopped at step {done}, saved in {folder}; the same command goes on")


def _learning_rate(plan: Plan, step: int) -> float:
    return plan.peak_lr * wsd(
        step,
        steps=plan.steps,
        warmup_steps=plan.warmup_steps,
        decay_steps=plan.decay_steps,
        final_ratio=plan.final_lr_ratio,
    )


def _evaluated(plan: Plan, record: StepRecord) -> StepRecord:
    """The record with the validation figures, if they are due."""
    due = plan.eval_every and (record.step % plan.eval_every == 0 or record.step == plan.steps)
    if plan.evaluate is None or not due:
        return record
    figures = {f"val_{name}": value for name, value in plan.evaluate().items()}
    return replace(record, extra={**record.extra, **figures})


def _writer(folder: Path, world: World) -> AbstractContextManager[MetricsWriter | None]:
    return MetricsWriter(folder / "metrics.jsonl") if world.first else nullcontext()


def _resume(plan: Plan, model: Model, optimizer: MuonClip, folder: Path, console: Console, world: World) -> int:
    """The step to go on from; the metrics then hold the records of exactly the steps before it."""
    found = world.one_by_one(lambda: load_latest(folder / "checkpoints", warn=console.warn))
    step = 0 if found is None else found[0]
    if found is not None:
        plan.restore(unpack(found[1], model, optimizer))
        console.line(f"{plan.stage}: going on from step {step} of {plan.steps}")
    with _writer(folder, world) as metrics:
        missing = False
        if metrics:
            metrics.truncate_after(step)
            written = read_metrics(folder / "metrics.jsonl")
            missing = found is not None and (not written or written[-1].step < step)
        if found is not None and world.any(missing):
            record = _evaluated(plan, StepRecord.from_json(found[1]["record"]))
            if metrics:
                metrics.write(record)
    return step


def _record(
    plan: Plan,
    step: int,
    result: StepResult,
    seconds: float,
    peak: float,
    extra: Mapping[str, float],
    eta: float,
    world: World,
) -> StepRecord:
    counts = result.expert_counts.float()
    load = (counts / counts.mean(-1, keepdim=True).clamp(min=1e-9)).tolist()
    dead, ratio = load_summary(load)
    gamma = result.report.gamma
    if result.report.skipped:
        extra = {**extra, "skipped": 1.0}
    loss = result.loss
    if plan.text_loss:
        nats, targets = world.sum(torch.tensor(plan.text_loss(), dtype=torch.float64)).tolist()
        loss = nats / targets if targets else math.nan
    bits = loss / math.log(2)
    return StepRecord(
        step=step,
        stage=plan.stage,
        loss=result.loss,
        tokens=result.tokens,
        tokens_per_s=result.tokens / seconds,
        wall_s=seconds,
        balance_loss=result.balance_loss,
        bits_per_byte=bits / plan.bytes_per_token if plan.bytes_per_token else None,
        matmul_share=plan.flops_per_token * result.tokens / seconds / peak if plan.flops_per_token else None,
        grad_norm=result.report.grad_norm,
        lr=_learning_rate(plan, step - 1),
        update_rms=result.report.update_rms,
        max_logit=float(result.max_scores.max()),
        clipped_heads=0 if gamma is None else int((gamma < 1).sum()),
        max_logits=result.max_scores.tolist(),
        logit_bounds=result.score_bounds.tolist(),
        gamma=() if gamma is None or not bool((gamma < 1).any()) else gamma.tolist(),
        expert_load=load,
        dead_experts=dead,
        load_ratio=ratio,
        eta_s=eta,
        extra=extra,
    )


class _CtrlC:
    """The first Ctrl-C is noted and waits for the step's end; the second one interrupts at once."""

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> _CtrlC:
        try:
            self._before = signal.signal(signal.SIGINT, self._note)
        except ValueError:  # not in the main thread: whoever is there handles signals
            self._before = None
        return self

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
