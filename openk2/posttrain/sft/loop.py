"""Supervised fine-tuning: dialogues -> packed examples -> the shared step.

Only what the assistant is to produce counts in the loss, its end of turn
included (the codec's mask). K2 fine-tunes with Muon as it pre-trained.
Left out: curricula and multi-epoch schedules by length.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from openk2.chat.codec import Codec
from openk2.config.run import SFTConfig
from openk2.config.serialize import to_dict
from openk2.data.dialogues import Dialogue, dialogues_digest, encode_dialogues
from openk2.data.loader import ExampleLoader
from openk2.data.packing import pack_examples
from openk2.model.model import Model
from openk2.observe.console import Console
from openk2.plan.flops import plan_flops
from openk2.train.batch import supervised
from openk2.train.loop import Plan, StepInput, fit
from openk2.train.session import make_optimizer, open_run, set_compute
from openk2.train.validation import copy_loss, mean_loss


def sft(
    config: SFTConfig,
    base: Model,
    codec: Codec,
    dialogues: list[Dialogue],
    path: Path,
    console: Console,
    *,
    stage: str = "sft",
) -> None:
    """Fine-tune `base` in place in the run folder `path`, or resume doing so."""
    train = config.train
    identity = {**to_dict(config), "tokenizer": codec.tokenizer.digest(), "dialogues": dialogues_digest(dialogues)}
    folder, dtype = open_run(path, identity, stage=stage, seed=train.seed, dtype=train.dtype, console=console)
    with folder:
        base.compute_dtype = dtype
        set_compute(base, train, console)
        optimizer = make_optimizer(base, config.optim, console)
        rows = train.batch_tokens // train.sequence_length
        micro_rows = train.micro_batch_tokens // train.sequence_length
        pad_id = codec.tokenizer.pad_id
        training = [dialogue for dialogue in dialogues if not dialogue.held_out]
        held_out = [dialogue for dialogue in dialogues if dialogue.held_out]
        if held_out and not training:
            training, held_out = held_out, []
            console.line("the few dialogues all fell on the held-out side; they are trained on, and none is held out")
        examples = encode_dialogues(training, codec)
        loader = ExampleLoader(examples, train.sequence_length, rows, train.seed, pad_id)
        console.line(
            f"{len(training):,} dialogues, {len(loader.too_long)} too long for {train.sequence_length} tokens, "
            f"{loader.rows_per_epoch:,} packed rows an epoch, {loader.fill:.0%} full; {len(held_out)} held out"
        )
        validation = pack_examples(encode_dialogues(held_out, codec), train.sequence_length, pad_id).batch

        def evaluate() -> Mapping[str, float]:
            return {
                "loss": mean_loss(base, validation.chunks(micro_rows)),
                "copy": copy_loss(base, codec.tokenizer.num_ordinary),
            }

        plan = Plan.scheduled(
            stage,
            train,
            config.optim,
            source=lambda step: StepInput(supervised(loader.next_batch(), micro_rows)),
            cursor=loader.state_dict,
            restore=loader.load_state_dict,
            evaluate=evaluate if validation.num_rows else None,
            flops_per_token=plan_flops(base.config, context=train.sequence_length).training,
        )
        fit(plan, base, optimizer, path, console)
