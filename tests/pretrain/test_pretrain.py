"""Pre-training end to end on a small folder of text: what it leaves behind, and that it can be continued."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import SMALL, same_tensors, silent_console

from openk2.chat.tokenizer import Tokenizer
from openk2.checkpoint.native import load_latest
from openk2.config import MODEL_PRESETS
from openk2.config.run import DataConfig, OptimConfig, PretrainConfig, TrainConfig
from openk2.config.serialize import from_dict
from openk2.data.loader import PretrainLoader, validation_batches
from openk2.data.prepare import load_manifest
from openk2.model.model import Model
from openk2.observe.metrics import read_metrics
from openk2.plan.parameters import plan_parameters
from openk2.pretrain import pretrain
from openk2.pretrain.loop import _Source
from openk2.pretrain.report import write_page
from openk2.train import loop, session
from openk2.train.step import train_step

STEPS = 6
WORDS = (
    "river stone lantern winter copper meadow thread harbour signal garden mirror timber window orchard engine "
    "marble candle pepper saddle bridge feather kettle ribbon anchor valley hammer basket planet"
).split()


def write_texts(folder: Path) -> None:
    """About 60 kB in two domains: sentences of random words, so that no two documents repeat each other."""
    rng = np.random.default_rng(0)
    for domain, ending in (("letters", "."), ("notes", " -")):
        (folder / domain).mkdir(parents=True)
        for index in range(16):
            lines = [" ".join(rng.choice(WORDS, size=9)) + ending for _ in range(30)]
            (folder / domain / f"{index}.txt").write_text("\n".join(lines) + "\n")


def make_config(texts: Path, **train: float) -> PretrainConfig:
    settings = {
        "steps": STEPS,
        "batch_tokens": 512,
        "micro_batch_tokens": 256,
        "sequence_length": 64,
        "warmup_steps": 1,
        "decay_steps": 2,
        "dtype": "fp32",
        "checkpoint_every": 2,
        "eval_every": 3,
    }
    return PretrainConfig(
        dataclasses.replace(SMALL, vocab_size=640, num_hidden_layers=2),
        DataConfig(path=str(texts), max_bytes=200_000, val_bytes=2_000),
        OptimConfig(lr=1e-2),
        TrainConfig(**settings | train),
        copy_fraction=0.25,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PretrainConfig, Model, Tokenizer, str]:
    """The folder of a finished run, its config, what was returned and what was said."""
    texts = tmp_path_factory.mktemp("texts")
    write_texts(texts)
    config, folder = make_config(texts), tmp_path_factory.mktemp("run") / "pretrain"
    console, heard = silent_console()
    with pytest.MonkeyPatch.context() as patch:
        without_compiling(patch)
        model, tokenizer = pretrain(config, folder, console)
    return folder, config, model, tokenizer, heard.getvalue()


def without_compiling(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(session, "fusion_available", lambda: (False, "switched off in tests"))
    patch.setattr(loop, "matmul_flops_per_s", lambda dtype: 1e9)


def test_the_run_is_on_record(run):
    folder, config, model, _, heard = run
    record = json.loads((folder / "run.json").read_text())
    assert record["stage"] == "pretrain" and record["resolved"] == {"fusion": False, "dtype": "fp32"}
    assert from_dict(PretrainConfig, record["config"]) == config
    assert "parameters by Muon" in heard and "training a tokenizer of 640 entries" in heard
    found = load_latest(folder / "checkpoints")
    assert found is not None and found[0] == STEPS
    assert same_tensors(found[1]["model"], dict(model.state_dict()))
    assert found[1]["cursor"]["tokens_seen"] == STEPS * 384  # six rows of text; the other two are copies
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000004", "step-000006"]


def test_tokenizer_and_data_are_kept_and_fit_each_other(run):
    folder, config, _, tokenizer, _ = run
    loaded = Tokenizer.load(folder / "tokenizer")
    assert loaded.digest() == tokenizer.digest() and loaded.vocab_size == config.model.vocab_size
    manifest = load_manifest(folder / "data")
    assert manifest.tokenizer_digest == tokenizer.digest() and set(manifest.domains) == {"letters", "notes"}
    assert tokenizer.decode(tokenizer.encode("river stone")) == "river stone"


def test_its_page_shows_every_heads_logits_and_names_no_other_stage(run):
    folder, config = run[0], run[1]
    page = write_page(config, folder, "openk2 pretrain").read_text()
    assert 'aria-label="Largest logit of every head' in page and 'aria-label="Training loss' in page
    assert "Not in this report" not in page and "reinforcement" not in page.lower()
    assert json.loads((folder / "report.json").read_text())["max_logit"] > 0


def test_the_loss_falls_and_every_step_is_measured(run):
    folder, config, *_ = run
    found = read_metrics(folder / "metrics.jsonl")
    assert [record.step for record in found] == list(range(1, STEPS + 1))
    assert found[0].loss == pytest.approx(math.log(config.model.vocab_size), abs=0.7)
    assert found[-1].loss < found[0].loss - 0.5
    assert [record.step for record in found if "val_bpb.letters" in record.extra] == [3, 6]
    for record in found:
        assert 500 < record.tokens <= 512 and record.bits_per_byte and record.matmul_share and record.expert_load
    last = found[-1].extra
    assert last["val_bpb.notes"] < found[2].extra["val_bpb.notes"]


def test_bits_per_byte_while_training_are_of_the_text_alone(run):
    """Text that costs 2 nats a target and copies that cost 50 make a loss in between, and 2 for the text."""
    folder, config, *_ = run
    source = _Source(PretrainLoader(folder / "data", 64, 8), config, 300, 4)
    micro_batches = source(0).micro_batches
    assert [len(micro.input_ids) for micro in micro_batches] == [4, 4]
    total = 0.0
    for index, micro in enumerate(micro_batches):
        nats = torch.full(micro.targets.shape, 2.0)
        nats[2:] = 50.0 if index else 2.0  # the last two rows of the second micro-batch are the copies
        total += float(micro.objective(-nats * (micro.targets >= 0)))
    nats, targets = source.text_loss()
    assert nats / targets == pytest.approx(2.0) and 2.0 < total < 50.0


@pytest.mark.parametrize(("fraction", "rows"), [(0.125, 8), (0.125, 4), (0.3, 1), (0.0, 8)])
def test_copies_are_spread_over_the_steps_whatever_the_batch(run, fraction, rows):
    """In 40 steps so many rows of copies as the fraction says, evenly, and every step is full."""
    folder, config, *_ = run
    train = dataclasses.replace(config.train, batch_tokens=64 * rows, micro_batch_tokens=64)
    config = dataclasses.replace(config, train=train, copy_fraction=fraction)
    source = _Source(PretrainLoader(folder / "data", 64, rows), config, 300, 1)
    counts = [config.copy_rows(step) for step in range(40)]
    assert sum(counts) == round(fraction * rows * 40) and max(counts) - min(counts) <= 1
    for step in range(10):
        micro_batches = source(step).micro_batches
        assert len(micro_batches) == rows
        for micro in micro_batches:
            micro.objective(torch.zeros(micro.targets.shape))
        assert (source.text_loss()[1] == 0) == (counts[step] == rows)
    assert source.loader.tokens_seen == 64 * (10 * rows - sum(counts[:10]))


def test_bits_per_byte_are_of_the_held_out_text(run):
    """Counted over again: all nats of the held-out tokens, over the bytes that these tokens spell."""
    folder, _, model, tokenizer, _ = run
    for domain in ("letters", "notes"):
        nats = spelt = 0.0
        for given in validation_batches(folder / "data", domain, 64, 4):
            for row in range(given.num_rows):
                for document in set(given.document_ids[row].tolist()) - {-1}:
                    place = given.document_ids[row] == document
                    ids, targets = given.input_ids[row][place], given.targets[row][place]
                    with torch.no_grad():
                        rows = model(torch.from_numpy(ids)[None])[0].log_softmax(-1)
                    counted = targets >= 0
                    nats -= float(rows[counted.nonzero()[0], targets[counted]].sum())
                    spelt += sum(len(tokenizer.token_bytes(int(token))) for token in targets[counted])
        assert spelt > 1000
        found = read_metrics(folder / "metrics.jsonl")[-1].extra[f"val_bpb.{domain}"]
        assert found == pytest.approx(nats / math.log(2) / spelt, rel=1e-4)
        text = (folder / "data" / "validation" / f"{domain}.txt").read_bytes()
        assert spelt == len(text)  # all of it was seen: it fits the rows that are looked at


def test_another_config_in_the_same_folder_is_refused_in_one_line(run, monkeypatch):
    without_compiling(monkeypatch)
    folder, config, *_ = run
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=2e-2))
    with pytest.raises(ValueError, match=r"saw optim\.lr = 0\.02, expected 0\.01") as caught:
        pretrain(other, folder, silent_console()[0])
    assert "\n" not in str(caught.value)


def test_a_model_beyond_this_machine_is_refused_before_anything_is_made(tmp_path: Path):
    config = dataclasses.replace(make_config(tmp_path), model=MODEL_PRESETS["k2_1t"])
    with pytest.raises(ValueError, match=r"1,026,408,232,448 parameters.* 12,317 GB .*; choose a smaller preset or"):
        pretrain(config, tmp_path / "run", silent_console())
    assert not (tmp_path / "run").exists()


def test_every_process_of_a_run_makes_the_whole_weights(monkeypatch):
    params = plan_parameters(SMALL).total
    monkeypatch.setattr(session.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 16 * params}.get)
    session.refuse_beyond_memory(SMALL, 2)
    with pytest.raises(ValueError, match="weights, gradients and momentum"):
        session.refuse_beyond_memory(SMALL, 3)


def test_without_its_last_checkpoint_the_run_ends_the_same(run, tmp_path: Path, monkeypatch):
    """Two steps are taken again, from the data where the older checkpoint stood."""
    without_compiling(monkeypatch)
    whole, config, model, *_ = run
    folder = tmp_path / "pretrain"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000006")
    console, heard = silent_console()
    resumed, _ = pretrain(config, folder, console)
    assert "pretrain: going on from step 4 of 6" in heard.getvalue() and "training a tokenizer" not in heard.getvalue()
    assert same_tensors(dict(resumed.state_dict()), dict(model.state_dict()))
    first, second = load_latest(whole / "checkpoints"), load_latest(folder / "checkpoints")
    assert first is not None and second is not None
    parts = ("model", "optimizer", "cursor")  # the record kept beside them holds clock times
    assert all(same_tensors(first[1][part], second[1][part]) for part in parts)
    ours, theirs = read_metrics(folder / "metrics.jsonl"), read_metrics(whole / "metrics.jsonl")
    assert [(r.step, r.loss, r.grad_norm, r.extra) for r in ours] == [
        (r.step, r.loss, r.grad_norm, r.extra) for r in theirs
    ]


def test_the_seed_alone_decides(run, tmp_path: Path, monkeypatch):
    """A run in another folder ends bit for bit where the first one did, however the process's own generator stood."""
    without_compiling(monkeypatch)
    _, config, model, *_ = run
    torch.manual_seed(12345)
    again, _ = pretrain(config, tmp_path / "again", silent_console()[0])
    assert same_tensors(dict(again.state_dict()), dict(model.state_dict()))


def test_micro_batches_follow_the_config(run, tmp_path: Path, monkeypatch):
    without_compiling(monkeypatch)
    texts = Path(run[1].data.path)
    seen = []

    def counted(model, optimizer, micro_batches, **settings):
        seen.append(([tuple(micro.input_ids.shape) for micro in micro_batches], settings["lr"]))
        return train_step(model, optimizer, micro_batches, **settings)

    monkeypatch.setattr(loop, "train_step", counted)
    pretrain(make_config(texts, steps=2, decay_steps=1, micro_batch_tokens=128), tmp_path / "run", silent_console()[0])
    assert [shapes for shapes, _ in seen] == [[(2, 64)] * 4] * 2
    assert [lr for _, lr in seen] == pytest.approx([1e-2, 1e-3])


def test_the_model_computes_as_the_config_says(tmp_path, monkeypatch):
    """And flex, which cannot train on the CPU, is refused before the first step."""
    write_texts(tmp_path / "texts")
    seen: list[Model] = []
    monkeypatch.setattr(session, "fusion_available", lambda: (False, "a test"))
    monkeypatch.setattr("openk2.pretrain.loop.fit", lambda plan, model, *rest: seen.append(model))
    config = make_config(tmp_path / "texts", attention="sdpa", recompute="selective")
    pretrain(config, tmp_path / "run", silent_console()[0])
    assert [(model.attention, model.recompute) for model in seen] == [("sdpa", True)]
    with pytest.raises(ValueError, match=r"train\.attention: saw flex on the CPU"):
        pretrain(make_config(tmp_path / "texts", attention="flex"), tmp_path / "other", silent_console()[0])
