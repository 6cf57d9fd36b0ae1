"""What the benchmarks of learning share: one small model, its text, a training run, and two processes that make runs.

A run is the package's own: `Model`, `MuonClip`, `train_step`, the prepared text of the built-in sources. Only what is
asked of it differs (`Run`). Everything in it follows from the run's fields and the machine: weights and the order of
the rows are drawn by its seed, and a shorter run reads the first rows of a longer one. Rows are shuffled one by one,
for documents are long and a step would else see one or two of them. Losses are of held-out text, the first rows of
every domain, the same for all runs.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import time
import unittest.mock
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from _rows import Rows, fuse
from torch import Tensor

from openk2.chat.tokenizer import Tokenizer
from openk2.config import DataConfig, ModelConfig, OptimConfig
from openk2.data.corpus import build_corpus, training_texts
from openk2.data.loader import PretrainLoader, validation_batches
from openk2.data.prepare import load_manifest, prepare
from openk2.evaluate import statistics
from openk2.model.model import Model
from openk2.observe.memory import keep_freed_memory
from openk2.ops.attention import hidden_pairs
from openk2.ops.attention_backends import BACKENDS
from openk2.optim.muonclip import MuonClip
from openk2.optim.schedule import wsd
from openk2.train.batch import supervised
from openk2.train.precision import DTYPES, choose_dtype
from openk2.train.step import train_step
from openk2.train.validation import mean_loss

# The speedrun's shape at half its width: 1.3M parameters, 8 experts of which a token meets 2.
MODEL = ModelConfig(
    vocab_size=2_048,
    hidden_size=128,
    intermediate_size=384,
    moe_intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    n_routed_experts=8,
    num_experts_per_tok=2,
    q_lora_rank=64,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    routed_scaling_factor=2.0,
    max_position_embeddings=256,
    initializer_range=0.05,
)
DATA = DataConfig(max_bytes=16_000_000, val_bytes=65_536)  # 6.2M tokens: no run reads one twice
LENGTH, ROWS = 256, 16  # tokens of a row, rows of a step
LONGEST = 1_200  # steps of the longest run: rows are shuffled among so many steps' rows, whatever a run reads
DECAY, FINAL = 0.4, 0.1  # shares of the steps, and of the peak rate
VALIDATION_ROWS = 64  # of each domain
TEXT = Path(__file__).parents[1] / "out" / "benchmark-text"
PROCESSES = 2  # of one thread each


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run. `softcap` caps attention's logits at cap * tanh(logit / cap). At step `collapse_at` the router
    of the MoE layer number `collapsed` sends all tokens to the same experts."""

    optim: OptimConfig
    steps: int
    seed: int
    dtype: str
    softcap: float | None = None
    warmup: float = 0.05  # share of the steps
    collapse_at: int | None = None
    collapsed: int = 0

    @property
    def tokens(self) -> int:
        return self.steps * ROWS * LENGTH


@dataclasses.dataclass(frozen=True)
class Learnt:
    """Training losses [steps], the largest logits fp32 [steps, L, H] and what the clip left of them, expert counts
    [steps, L_moe, E], and the loss on held-out text in nats a token."""

    losses: list[float]
    max_scores: Tensor
    gamma: Tensor
    expert_counts: Tensor
    validation: float
    seconds: float


def learn(run: Run) -> Learnt:
    """Train from scratch. A run whose loss is no number any more stops there, with infinite validation loss."""
    begin = time.perf_counter()
    model = Model(MODEL, compute_dtype=DTYPES[run.dtype]).init_weights(run.seed)
    optimizer = MuonClip.from_config(
        model.parameter_specs(split_heads=run.optim.muon_split), model.qk_groups(), run.optim
    )
    model.qk_clip_tau = optimizer.qk_clip_tau
    batch = PretrainLoader(TEXT / "data", LENGTH, LONGEST * ROWS, run.seed).next_batch()
    order = np.random.default_rng(run.seed).permutation(batch.num_rows)
    losses, scores, gammas, counts = [], [], [], []
    with softcapped(run.softcap) if run.softcap else nullcontext():
        for step in range(run.steps):
            if step == run.collapse_at:
                _collapse(model, run.collapsed)
            result = train_step(
                model,
                optimizer,
                supervised(batch.take(order[step * ROWS : (step + 1) * ROWS]), ROWS),
                lr=run.optim.lr * schedule(step, run),
                balance_loss_alpha=1e-4,
                bias_update_rate=1e-2,
            )
            losses.append(result.loss)
            scores.append(result.max_scores)
            gammas.append(torch.ones_like(result.max_scores) if result.report.gamma is None else result.report.gamma)
            counts.append(result.expert_counts)
            if not math.isfinite(result.loss) or result.report.skipped:
                break
        domains = load_manifest(TEXT / "data").validation_domains
        held_out = (validation_batches(TEXT / "data", name, LENGTH, ROWS, VALIDATION_ROWS) for name in domains)
        whole = len(losses) == run.steps
        validation = mean_loss(model, (part for batches in held_out for part in batches)) if whole else math.inf
    seconds = time.perf_counter() - begin
    return Learnt(losses, torch.stack(scores), torch.stack(gammas), torch.stack(counts), validation, seconds)


def schedule(step: int, run: Run) -> float:
    """K2's warm-up, stable and decay, in shares of the run."""
    warmup, decay = (round(share * run.steps) for share in (run.warmup, DECAY))
    return wsd(step, steps=run.steps, warmup_steps=warmup, decay_steps=decay, final_ratio=FINAL)


def _collapse(model: Model, layer: int) -> None:
    """Scores lie between 0 and 1, so that a selection bias of 1 beats any of them."""
    bias = model.routers()[layer].e_score_correction_bias
    bias.zero_()
    bias[: MODEL.num_experts_per_tok] = 1.0


@contextmanager
def softcapped(cap: float) -> Iterator[None]:
    """Attention whose logits are cap * tanh(logit / cap); what it reports are the logits before."""

    def attend(q: Tensor, k: Tensor, v: Tensor, prepared: Any, scale: float) -> tuple[Tensor, Tensor]:
        hidden = hidden_pairs(prepared[0].starts)
        scores = (q @ k.transpose(-1, -2)).float() * scale
        weights = (cap * torch.tanh(scores / cap)).masked_fill(hidden, -torch.inf).softmax(-1)
        return weights.to(v.dtype) @ v, scores.detach().masked_fill(hidden, -torch.inf).amax(-1)

    with unittest.mock.patch.object(BACKENDS["tiled"], "attend", attend):
        yield


def begin(description: str, **paths: str) -> tuple[Rows, str]:
    """The benchmark's rows and the dtype of its products; the text is prepared if it is not there yet."""
    torch.set_num_threads(1)
    rows = Rows(description, **paths)
    dtype = choose_dtype("auto", print)
    if not (TEXT / "tokenizer" / "tokenizer.json").exists():
        corpus = build_corpus(DATA, print)
        print(f"training a tokenizer of {MODEL.vocab_size:,} entries")
        Tokenizer.train(training_texts(DATA, corpus), MODEL.vocab_size).save(TEXT / "tokenizer")
    prepare(DATA, Tokenizer.load(TEXT / "tokenizer"), TEXT / "data", print)
    return rows, dtype


class Measure(Protocol):
    """Makes a run in another process and gives its row's figures."""

    def __call__(self, run: Run) -> dict[str, Any]: ...


def make(rows: Rows, runs: dict[str, Run], measure: Measure) -> list[dict[str, Any]]:
    """The rows of `runs` by name, in their order; those that are missing are made, two at a time, longest first."""
    missing = {name: run for name, run in runs.items() if rows.missing(name)}
    todo = sorted(missing.items(), key=lambda item: -item[1].steps)
    steps, done, started = sum(run.steps for run in missing.values()), 0, time.perf_counter()
    if todo:
        with multiprocessing.get_context("spawn").Pool(min(PROCESSES, len(todo)), _one_thread) as pool:
            jobs = [(name, run, measure) for name, run in todo]
            for number, (name, figures) in enumerate(pool.imap_unordered(_job, jobs), start=1):
                rows.add(name, **figures)
                done += missing[name].steps
                spent = time.perf_counter() - started
                left = spent / done * (steps - done)
                print(f"{number} of {len(todo)} runs, {spent:.0f} s, about {left:.0f} s to go", flush=True)
    return [rows.find(name) for name in runs]


def _one_thread() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    fuse()


def _job(job: tuple[str, Run, Measure]) -> tuple[str, dict[str, Any]]:
    name, run, measure = job
    return name, measure(run)


def mean_and_interval(values: Sequence[float]) -> tuple[float, list[float]]:
    """The mean and its 95% interval by Student's t."""
    found = statistics.mean(values)
    half = T_975[found.n - 1] * found.stderr if found.n > 1 else math.inf
    return found.value, [found.value - half, found.value + half]


T_975 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)  # by degrees of freedom
