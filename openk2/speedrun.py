"""The whole recipe as one function, top to bottom: text in, a small tool-using assistant and a report out.

Every stage keeps its own folder and can be killed and taken up again; a stage
that is done is read, not run. Left out: everything that a stage knows itself.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from openk2.chat.codec import Codec
from openk2.checkpoint.variant import export_variant, load
from openk2.config.run import SFTConfig, SpeedrunConfig
from openk2.config.serialize import digest
from openk2.data.dialogues import Dialogue, read_dialogues
from openk2.data.loader import validation_texts
from openk2.engine.engine import Engine
from openk2.evaluate import EvalSettings, Result, evaluate, load_set
from openk2.evaluate.dataset_files import subset
from openk2.evaluate.tasks.bits_per_byte import BitsPerByte
from openk2.evaluate.tasks.tools import ToolCalls
from openk2.model.model import Model
from openk2.observe.console import Console
from openk2.observe.files import write_atomic
from openk2.observe.lock import RunLock
from openk2.observe.memory import give_back_memory, peak_rss_bytes, wall_since_process_start
from openk2.observe.metrics import read_metrics
from openk2.observe.report import write_report
from openk2.posttrain.rl import rl
from openk2.posttrain.rl.critic import Trust
from openk2.posttrain.rl.loop import pool_dialogues
from openk2.posttrain.sft import sft
from openk2.posttrain.synth import held_out_tasks, synthesise
from openk2.pretrain import pretrain
from openk2.protocols import Task
from openk2.speedrun_report import assemble


def speedrun(config: SpeedrunConfig, out: Path, console: Console) -> Path:
    """Run or resume the recipe in `out`; returns the path of report.html."""
    with RunLock(out):
        stages, recipe = Stages(out, config, console), _Recipe(config, out, console)
        stages.run("pretrain", recipe.base_model)
        stages.run("evaluate base", lambda: recipe.measured("base", "base"))
        manifest = stages.run("synth", recipe.trajectories)
        stages.run("sft", recipe.fine_tuned)
        stages.run("evaluate sft", lambda: recipe.measured("sft-model", "sft"))
        critic = stages.run("rl", recipe.reinforced)
        stages.run("evaluate rl", lambda: recipe.measured("instruct", "rl"))
        stages.run("more sft", recipe.control)
        stages.run("evaluate more sft", lambda: recipe.measured("more-sft-model", "more_sft"))
        page = write_report(assemble(out, config, stages.finished, manifest, critic, recipe.command), out)
    console.result(f"report: {page}")
    console.result(f"talk to it: openk2 chat {out / 'instruct'}")
    return page


class _Recipe:
    """The stages, each from the files of those before it to files of its own; each returns its figures."""

    def __init__(self, config: SpeedrunConfig, out: Path, console: Console) -> None:
        self.config, self.out, self.console = config, out, console
        self.command = "openk2 " + " ".join(sys.argv[1:])

    @functools.cached_property
    def dialogues(self) -> list[Dialogue]:
        return read_dialogues(self.out / "synth" / "trajectories.jsonl")

    def base_model(self) -> dict[str, Any]:
        model, tokenizer = pretrain(self.config.pretrain, self.out / "pretrain", self.console)
        export_variant(model, Codec(tokenizer), self.out / "base", kind="base", made_by=self.command)
        return {}

    def trajectories(self) -> dict[str, Any]:
        with self.console.progress("synthesising", unit="attempts") as bar:
            return synthesise(self.config.synth, self.out / "synth", lambda done, _: bar.advance(done - bar.done))

    def fine_tuned(self) -> dict[str, Any]:
        model, codec = self._to_train("base")
        sft(self.config.sft, model, codec, self.dialogues, self.out / "sft", self.console)
        self._export(model, codec, "sft-model")
        return {}

    def reinforced(self) -> dict[str, Any]:
        model, codec = self._to_train("sft-model")
        trust = rl(self.config.rl, model, codec, self.dialogues, self.out / "rl", self.console, make_sampler=Engine)
        self._export(model, codec, "instruct")
        return _critic_figures(trust)

    def control(self) -> dict[str, Any]:
        settings = control_config(self.config, self.out)
        same = pool_dialogues(self.dialogues, self.config.rl) + [d for d in self.dialogues if d.held_out]
        model, codec = self._to_train("sft-model")
        sft(settings, model, codec, same, self.out / "more_sft", self.console, stage="more_sft")
        self._export(model, codec, "more-sft-model")
        return {"steps": settings.train.steps}

    def measured(self, variant: str, stage: str) -> dict[str, Any]:
        return _measure(self.out / variant, self.out, stage, self.config, self.console)

    def _to_train(self, variant: str) -> tuple[Model, Codec]:
        model, codec = load(self.out / variant, dtype=torch.float32)
        assert codec is not None, "every variant of the speedrun has a tokenizer"
        return model, codec

    def _export(self, model: Model, codec: Codec, variant: str) -> None:
        export_variant(model, codec, self.out / variant, kind="instruct", made_by=self.command)


class Stages:
    """Runs each stage once: what it returned, its time and memory are kept in `stages.json`."""

    def __init__(self, out: Path, config: SpeedrunConfig, console: Console) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.console = out / "stages.json", console
        self.digest = digest(config)
        kept = self._read()
        if kept["config"] != self.digest:
            raise ValueError(f"{out}: saw a speedrun of another config, expected the same one; use another --out")
        self.finished: list[dict[str, Any]] = kept["stages"]
        self._first = not self.finished

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"config": self.digest, "stages": []}
        try:
            kept: dict[str, Any] = json.loads(self.path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{self.path}: saw broken JSON ({error}), expected the record of finished stages; delete it and each "
                "stage is checked again"
            ) from None
        return kept

    def run(self, name: str, stage: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The stage's figures: those kept, or those of running it now."""
        for done in self.finished:
            if done["name"] == name:
                return dict(done["figures"])
        self.console.section(name)
        # The first stage answers for the time since the process started: interpreter and imports included.
        begin = time.monotonic() - (wall_since_process_start() if self._first else 0.0)
        self._first = False
        figures = dict(stage())
        give_back_memory()
        wall = time.monotonic() - begin
        self.finished.append({"name": name, "wall_s": wall, "peak_rss_bytes": peak_rss_bytes(), "figures": figures})
        write_atomic(self.path, json.dumps({"config": self.digest, "stages": self.finished}, indent=2))
        return figures


def control_config(config: SpeedrunConfig, out: Path) -> SFTConfig:
    """SFT that goes on at the rate at which it ended, for as many steps as fit into the time that RL took.

    The control that RL is compared with: a rate raised again would first undo what SFT has settled.
    """
    seconds = sum(record.wall_s for record in read_metrics(out / "rl" / "metrics.jsonl"))
    per_step = [record.wall_s for record in read_metrics(out / "sft" / "metrics.jsonl")]
    steps = max(2, round(seconds / (sum(per_step) / len(per_step))))
    train = config.sft.train
    optim = dataclasses.replace(config.sft.optim, lr=config.sft.optim.lr * max(train.final_lr_ratio, 0.01))
    train = dataclasses.replace(train, steps=steps, warmup_steps=min(5, steps // 2), decay_steps=0, eval_every=steps)
    return dataclasses.replace(config.sft, train=train, optim=optim)


def _measure(variant: Path, out: Path, stage: str, config: SpeedrunConfig, console: Console) -> dict[str, Any]:
    """Held-out figures of a variant; bits per byte where pre-training is concerned, tools everywhere."""
    model, codec = load(variant)
    assert codec is not None
    engine = Engine(model)
    most = config.evaluate.base_tasks if stage == "base" else sys.maxsize
    tasks: list[Any] = [
        ToolCalls("held_out", held_out_tasks(min(config.evaluate.tool_tasks, most), config.evaluate.seed)),
        *(ToolCalls(name, _subset(name, config, most)) for name in ("phrasings", "freehand")),
    ]
    if stage in ("base", "rl"):
        length = config.pretrain.train.sequence_length
        texts = validation_texts(out / "pretrain" / "data", codec.tokenizer)
        tasks.insert(0, BitsPerByte(texts, context_length=length, stride=length * 3 // 4))
    settings = EvalSettings(
        variant="base" if stage == "base" else "instruct",
        seed=config.evaluate.seed,
        context_length=model.config.max_position_embeddings,
        max_new_tokens=config.evaluate.max_new_tokens,
        batch_size=256,
    )
    started = time.monotonic()
    results = evaluate(
        tasks,
        engine,
        engine.score,
        codec,
        settings=settings,
        out=out / "evaluation" / stage,
        about={"variant": str(variant), "stage": stage},
        progress=lambda p: console.line(f"{stage}: {p.task} {p.done}/{p.total}") if p.done == p.total else None,
    )
    console.line(f"{stage}: measured in {time.monotonic() - started:.0f} s")
    return {name: _figures(result) for name, result in results.items()}


def _subset(name: str, config: SpeedrunConfig, most: int) -> list[Task]:
    return subset(load_set(name), min(config.evaluate.set_tasks or most, most), config.evaluate.seed, name)


def _figures(result: Result) -> dict[str, Any]:
    return {**result.as_dict(), "card": {}}


def _critic_figures(trust: Trust) -> dict[str, Any]:
    return {
        "pairs": trust.decided,
        "agreement": trust.agreement,
        "stderr": trust.stderr,
        "position_bias": trust.position_bias,
        "verdict": trust.verdict(),
    }
