"""Pre-training: text -> tokenizer -> packed rows -> a base model, as one linear story.

K2's schedule (warm-up, stable, decay), MuonClip, auxiliary-loss-free balance.
Beside the text, and only where a recipe asks for it, rows to be copied.
Left out: long-context extension and the annealing mixture, which come as
further phases of the same loop.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openk2.chat.template import CallId, prelude, turns
from openk2.chat.tokenizer import Tokenizer
from openk2.config.run import PretrainConfig
from openk2.config.serialize import to_dict
from openk2.data.batch import concatenate
from openk2.data.copying import copying_rows
from openk2.data.corpus import Corpus, build_corpus, training_texts
from openk2.data.loader import PretrainLoader, validation_batches
from openk2.data.prepare import Manifest, prepare
from openk2.data.sources import existing
from openk2.environments import TOOL_NAMES, declarations
from openk2.model.induction import start_with_induction
from openk2.model.model import Model
from openk2.observe.console import Console
from openk2.parallel.sharding import lay_out, refuse_unavailable
from openk2.parallel.world import ALONE, World
from openk2.plan.flops import plan_flops
from openk2.protocols import Message
from openk2.train.batch import MicroBatch, supervised
from openk2.train.loop import Plan, StepInput, fit
from openk2.train.session import fresh_model, make_optimizer, open_run, refuse_beyond_memory, set_compute
from openk2.train.state import whole_state
from openk2.train.validation import copy_loss, mean_loss

STAGE = "pretrain"
FORMAT_COPIES = 400
VALIDATION_ROWS = 32  # rows of each domain looked at while training; the evaluation stage reads them all


def pretrain(config: PretrainConfig, path: Path, console: Console, world: World = ALONE) -> tuple[Model, Tokenizer]:
    """Run or resume pre-training in the folder `path`; returns the trained model and its tokenizer.

    Under torchrun every process runs this; `world` is what they share, and each gets the whole model back.
    """
    train = config.train
    world.agree(lambda: refuse_unavailable(config.parallel))
    refuse_beyond_memory(config.model, world.size)
    if config.data.path is not None:
        existing(config.data.path)  # a misspelt path is refused before kernels are compiled
    folder, dtype = open_run(
        path, to_dict(config), stage=STAGE, seed=train.seed, dtype=train.dtype, console=console, world=world
    )
    with folder:
        # Before the text, which takes a while: a shape that cannot be is refused at once.
        torch.manual_seed(train.seed)
        model = fresh_model(config.model, train.seed, dtype)
        if config.induction:
            console.line("the weights start with an induction circuit")
            start_with_induction(model, train.seed)
        tokenizer, manifest = world.one_by_one(lambda: _text(config, path, console))
        set_compute(model, train, console)
        placement = lay_out(model, config.parallel, world)
        optimizer = make_optimizer(model, config.optim, console, placement)
        rows = train.batch_tokens // train.sequence_length
        micro_rows = math.gcd(train.micro_batch_tokens // train.sequence_length, rows // world.size)
        loader = PretrainLoader(path / "data", train.sequence_length, rows, train.seed)
        source = _Source(loader, config, tokenizer.num_ordinary, micro_rows)
        plan = Plan.scheduled(
            STAGE,
            train,
            config.optim,
            source=source,
            cursor=loader.state_dict,
            restore=loader.load_state_dict,
            evaluate=_validation(model, path / "data", manifest, tokenizer, train.sequence_length, micro_rows),
            flops_per_token=plan_flops(config.model, context=train.sequence_length).training,
            bytes_per_token=_bytes_per_token(manifest),
            text_loss=source.text_loss,
        )
        fit(plan, model, optimizer, path, console, world)
        if world.size > 1:
            trained = whole_state(model)
            model = fresh_model(config.model, train.seed, dtype)
            model.load_state_dict(trained)
    return model, tokenizer


class _Source:
    """A step's rows, text first and then what is to be copied; and the text's own part of the loss."""

    def __init__(self, loader: PretrainLoader, config: PretrainConfig, num_tokens: int, micro_rows: int) -> None:
        self.loader, self.config, self.num_tokens, self.micro_rows = loader, config, num_tokens, micro_rows
        self.nats = self.targets = 0.0

    def __call__(self, step: int) -> StepInput:
        train, num_copies = self.config.train, self.config.copy_rows(step)
        num_text = self.loader.batch_rows - num_copies
        batch = self.loader.next_batch(num_text)
        if num_copies:
            rng = np.random.default_rng([train.seed, step])
            batch = concatenate([batch, copying_rows(num_copies, train.sequence_length, self.num_tokens, rng)])
        self.nats = self.targets = 0.0
        rows = self.micro_rows
        micro_batches = enumerate(supervised(batch, rows))
        return StepInput([self._watched(micro, max(num_text - index * rows, 0)) for index, micro in micro_batches])

    def text_loss(self) -> tuple[float, float]:
        """Nats of the text that the last step read here, and its targets."""
        return self.nats, self.targets

    def _watched(self, micro: MicroBatch, num_text: int) -> MicroBatch:
        """The same, which also adds up the nats and targets of its first `num_text` rows."""
        weights = micro.weights[:num_text]

        def objective(log_probs: Tensor) -> Tensor:
            self.targets += float(weights.sum())
            self.nats -= float((log_probs[:num_text].detach() * weights).sum())
            return micro.objective(log_probs)

        return replace(micro, objective=objective)


def _text(config: PretrainConfig, path: Path, console: Console) -> tuple[Tokenizer, Manifest]:
    """The tokenizer, trained on the training split, and the prepared token shards."""
    saved = path / "tokenizer"
    corpus: Corpus | None = None
    if (saved / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(saved)
    else:
        corpus = build_corpus(config.data, console.line)
        console.line(f"training a tokenizer of {config.model.vocab_size:,} entries")
        texts = itertools.chain(training_texts(config.data, corpus), itertools.repeat(_dialogue_text(), FORMAT_COPIES))
        tokenizer = Tokenizer.train(texts, config.model.vocab_size)
        tokenizer.save(saved)
    return tokenizer, prepare(config.data, tokenizer, path / "data", console.line, corpus)


def _dialogue_text() -> str:
    """What every dialogue to come carries: a vocabulary that never saw it needs half as many tokens again."""
    specs = declarations(TOOL_NAMES)
    messages: list[Message] = [{"role": "user", "content": "SELECT FROM WHERE COUNT SUM MAX MIN"}]
    for index, spec in enumerate(specs):
        name, arguments = spec["function"]["name"], spec["function"]["parameters"]["properties"]
        function = {"name": name, "arguments": json.dumps(dict.fromkeys(arguments, ""))}
        call_id = str(CallId(name, index))
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [{"id": call_id, "function": function}]},
            {"role": "tool", "name": name, "tool_call_id": call_id, "content": ""},
        ]
    segments = itertools.chain(prelude("revised", messages, specs), turns("revised", messages))
    return "\n".join(segment.text for segment in segments if not segment.control)


def _bytes_per_token(manifest: Manifest) -> float:
    domains = manifest.domains.values()
    return sum(d["train_bytes"] for d in domains) / sum(d["train_tokens"] for d in domains)


def _validation(
    model: Model, data: Path, manifest: Manifest, tokenizer: Tokenizer, sequence_length: int, rows: int
) -> Callable[[], Mapping[str, float]] | None:
    """Bits per byte by domain over its first held-out rows, "bpb.DOMAIN", and the loss of copying, "copy"."""
    if not manifest.validation_domains:
        return None
    lengths = np.array([len(tokenizer.token_bytes(row)) for row in range(tokenizer.vocab_size)])

    def evaluate() -> dict[str, float]:
        found = {"copy": copy_loss(model, tokenizer.num_ordinary)}
        for domain in manifest.validation_domains:
            batches = list(validation_batches(data, domain, sequence_length, rows, VALIDATION_ROWS))
            targets = np.concatenate([batch.targets[batch.targets >= 0] for batch in batches])
            nats = mean_loss(model, batches) * len(targets)
            found[f"bpb.{domain}"] = nats / math.log(2) / float(lengths[targets].sum())
        return found

    return evaluate
