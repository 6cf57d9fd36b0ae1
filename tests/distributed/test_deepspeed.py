"""DeepSpeed as an engine: refused where it does not fit, and runs that other engines go on with.

What it computes is compared with one process in `test_sharded.py`, as for every engine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from small_training import same_tensors, silent_console
from worlds import needs_deepspeed

from openk2.checkpoint.native import load_latest
from openk2.cli import main
from openk2.config.run import ParallelConfig
from openk2.parallel import deepspeed
from openk2.pretrain import pretrain
from openk2.recipes import tiny_pretrain


@pytest.fixture(params=[None, "0.18.4"], ids=["not installed", "too old"])
def unfit(request, monkeypatch):
    """What is said of the DeepSpeed that is there."""

    def version(name: str) -> str:
        assert name == "deepspeed"
        if request.param is None:
            raise PackageNotFoundError(name)
        return request.param

    monkeypatch.setattr(deepspeed, "version", version)
    return f"saw deepspeed {request.param or 'not installed'}, expected version 0.19.8 or newer; "


def test_the_audit_says_what_to_install(unfit, capsys):
    assert main(["audit-optimizer", "tiny", "--engine", "deepspeed"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith(f"error: parallel.engine: {unfit}")
    assert "DS_BUILD_OPS=0 pip install --no-build-isolation 'deepspeed>=0.19.8'" in said.err


def test_pretraining_says_it_before_it_makes_anything(unfit, tmp_path):
    config = replace(tiny_pretrain(), parallel=ParallelConfig(dp=2, engine="deepspeed"))
    with pytest.raises(ValueError, match=unfit):
        pretrain(config, tmp_path / "run", silent_console()[0])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("found", ["0.19.8", "0.19.10", "0.20.0rc1", "1.0", "0.19.8+cpu"])
def test_newer_versions_are_let_in(found, monkeypatch):
    monkeypatch.setattr(deepspeed, "version", lambda _: found)
    deepspeed.refuse_without_deepspeed()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dp": 2, "engine": "zero"}, r"parallel\.engine: saw zero, expected one of fsdp, deepspeed"),
        ({"engine": "deepspeed"}, r"parallel\.engine: saw deepspeed with parallel\.dp 1, expected 2 processes"),
        ({"dp": 2, "engine": "deepspeed", "zero": 3}, r"parallel\.zero: saw 3, expected 1"),
        ({"dp": 2, "zero": 1}, r"parallel\.zero: saw 1 with engine fsdp, where it would change nothing, expected none"),
        ({"dp": 2, "ep": 2, "engine": "deepspeed"}, r"parallel\.ep: saw 2 with engine deepspeed, expected 1"),
    ],
)
def test_what_cannot_be_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ParallelConfig(**settings)


SHORT = """--train.steps 3 --train.warmup_steps 1 --train.decay_steps 1 --train.batch_tokens 1024 --train.dtype fp32
    --train.micro_batch_tokens 256 --train.sequence_length 256 --train.eval_every 3 --train.checkpoint_every 1
    --data.val_bytes 500 --model.vocab_size 640 --model.hidden_size 32 --model.num_hidden_layers 2
    --optim.ns_dtype fp32""".split()


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_is_gone_on_with_by_any_engine(tmp_path):
    """Real runs under torchrun: whole, and continued from the middle by DeepSpeed, FSDP2 and one process."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(8):
        (texts / f"{number}.txt").write_text(f"The {number}th text speaks of the number {number}. " * 30)

    def run(out: Path, *parallel: str) -> str:
        started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if parallel else []
        command = [*started, "-m", "openk2", "pretrain", "tiny", "--data", str(texts), "--out", str(out), *SHORT]
        done = subprocess.run(
            [sys.executable, *command, *parallel],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{out / 'base'}\n"  # and nothing of DeepSpeed's
        return done.stderr

    def reached(out: Path) -> dict[str, object]:
        step, state = load_latest(out / "checkpoints")
        assert step == 3
        return {name: state[name] for name in ("model", "optimizer", "cursor")}

    zero, whole = ("--parallel.dp", "2", "--engine", "deepspeed", "--zero", "1"), tmp_path / "whole"
    run(whole, *zero)
    for how, parallel in {"deepspeed": zero, "fsdp": zero[:2], "alone": ()}.items():
        cut = tmp_path / how
        shutil.copytree(whole, cut)
        shutil.rmtree(cut / "base")
        shutil.rmtree(cut / "checkpoints" / "step-000003")
        assert "going on from step 2 of 3" in run(cut, *parallel)
        if how == "deepspeed":
            assert same_tensors(reached(cut), reached(whole))
        for name, tensor in reached(whole)["model"].items():
            assert torch.dist(tensor, reached(cut)["model"][name]) <= 1e-5 * tensor.norm(), (how, name)
