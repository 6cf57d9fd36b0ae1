"""The whole recipe as a user runs it, on a very small model: what it leaves behind, and that it can be killed.

The text is a handful of the interpreter's own files (`--pretrain.data.path`), so no data package is needed; PATH
holds no C++ compiler, so no kernel is compiled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import openk2
from openk2.observe.metrics import MetricsWriter, StepRecord
from openk2.speedrun import control_config

pytestmark = pytest.mark.timeout(400)

TEXTS = "argparse ast calendar difflib fractions inspect pathlib random shutil statistics textwrap zipfile".split()
SETTINGS = """
    --pretrain.data.max_bytes 300000 --pretrain.data.val_bytes 8192
    --pretrain.model.vocab_size 1024 --pretrain.model.hidden_size 32 --pretrain.model.intermediate_size 64
    --pretrain.model.moe_intermediate_size 16 --pretrain.model.num_hidden_layers 2
    --pretrain.model.num_attention_heads 2 --pretrain.model.n_routed_experts 4 --pretrain.model.num_experts_per_tok 2
    --pretrain.model.q_lora_rank 16 --pretrain.model.kv_lora_rank 16 --pretrain.model.qk_nope_head_dim 16
    --pretrain.model.qk_rope_head_dim 8 --pretrain.model.v_head_dim 16
    --pretrain.train.steps 8 --pretrain.train.warmup_steps 2 --pretrain.train.decay_steps 2
    --pretrain.train.checkpoint_every 2 --pretrain.train.eval_every 8 --pretrain.train.dtype fp32
    --synth.attempts 60
    --sft.train.steps 6 --sft.train.warmup_steps 1 --sft.train.decay_steps 2 --sft.train.checkpoint_every 2
    --sft.train.eval_every 6 --sft.train.sequence_length 1024 --sft.train.dtype fp32
    --rl.steps 3 --rl.prompts_per_step 2 --rl.group_size 2 --rl.pool_tasks 4 --rl.token_budget 8 --rl.dtype fp32
    --rl.checkpoint_every 1
    --evaluate.tool_tasks 4 --evaluate.base_tasks 3 --evaluate.max_new_tokens 2 --evaluate.samples 2
""".split()
STAGES = [
    "pretrain", "evaluate base", "synth", "sft", "evaluate sft", "rl", "evaluate rl", "more sft", "evaluate more sft",
]  # fmt: skip
VARIANTS = ("base", "instruct")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    library = Path(argparse.__file__).parent
    for name in TEXTS:
        source = library / f"{name}.py"
        if source.is_file():  # from 3.13 on pathlib is a package
            (folder / f"{name}.txt").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """The command in a session of its own, one thread, so that its children can be told from others'."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": str(Path(sys.executable).parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "openk2", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def members(session: int) -> Iterator[int]:
    """Living processes of a session."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[3] == str(session) and fields[0] != "Z":
            yield int(folder.name)


def run(*arguments: str) -> tuple[str, str]:
    """stdout and stderr of a command that must end well and leave no process behind."""
    process = start(arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert not list(members(process.pid)), "a child outlived the command"
    return out, err


def command(out: Path, text: Path) -> list[str]:
    return ["speedrun", "smoke", "--out", str(out), "--pretrain.data.path", str(text), *SETTINGS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    out = tmp_path_factory.mktemp("speedrun") / "smoke"
    said, _ = run(*command(out, text))
    assert f"report: {out / 'report.html'}" in said
    return out


def weights(out: Path) -> dict[str, str]:
    """SHA-256 of each variant's weights. The control is left out: its number of steps follows the clock."""
    names = ("base", "sft-model", "instruct")
    return {name: hashlib.sha256((out / name / "model.safetensors").read_bytes()).hexdigest() for name in names}


def test_the_report_has_every_figure(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == STAGES
    assert report["wall_s"] == pytest.approx(sum(stage["wall_s"] for stage in report["stages"]))
    assert report["peak_rss_bytes"] > 10**8 and report["max_logit"] > 0
    assert report["val_bpb"].keys() == report["xz_bpb"].keys() == {"text"}
    assert 1 < report["xz_bpb"]["text"] < 8 and 1 < report["val_bpb"]["text"] < 12
    assert report["tool_success"].keys() == {"base", "sft", "more_sft", "rl"}
    for stage, figures in report["tool_success"].items():
        assert 0 <= figures["rate"] <= 1 and figures["stderr"] >= 0
        assert figures["n"] == (3 if stage == "base" else 4)
        assert figures["sets"]["freehand"]["n"] == figures["sets"]["phrasings"]["n"] == (3 if stage == "base" else 12)
    assert report["critic"]["verdict"] and len(report["samples"]) == 4
    assert report["config"]["rl"]["steps"] == 3 and report["seed"] == 0
    assert report["parameters"]["total"] == sum(
        t.numel() for t in openk2.load(finished / "base")[0].state_dict().values()
    )


def test_the_page_is_whole_and_self_contained(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    for section in ("goals", "pretraining", "experts", "tools", "samples", "trajectories", "cost"):
        assert f'id="{section}"' in page
    assert "<script" not in page and not re.search(r'(?:src|href)="(?!data:|#)', page)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_a_hugging_face_folder(finished: Path, variant: str) -> None:
    folder = finished / variant
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "generation_config.json", "LICENSE", "README.md",
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "openk2 speedrun smoke" in card and "not affiliated with moonshot ai" in card.lower()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "deepseek_v3"


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_gives_our_logits_and_our_ids(finished: Path, variant: str) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    folder = finished / variant
    model, codec = openk2.load(folder, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert codec is not None
    messages = [{"role": "user", "content": "What is 6*7?"}]
    ids = codec.encode(messages, add_generation_prompt=True).ids
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert tuple(found["input_ids"]) == ids
    with torch.no_grad():
        ours, expected = model(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
    assert torch.allclose(ours, expected, atol=1e-4, rtol=1e-4)


def snapshot(out: Path) -> dict[str, tuple[int, bytes]]:
    """Everything that a stage writes, with its time; the report is put together anew each time."""
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest())
        for path in out.rglob("*")
        if path.is_file() and path.name != ".lock" and not path.name.startswith("report.")
    }


def test_the_same_command_again_only_reads(finished: Path, text: Path) -> None:
    before = snapshot(finished)
    _, said = run(*command(finished, text))
    assert snapshot(finished) == before
    assert "loss" not in said, "no stage runs"


def test_another_config_in_the_same_folder_is_refused(finished: Path, text: Path) -> None:
    process = start([*command(finished, text), "--rl.tau", "0.2"])
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and err.count("\n") == 1 and "another config" in err


def test_the_instruct_variant_talks(finished: Path) -> None:
    said, _ = run("chat", str(finished / "instruct"), "--prompt", "hi", "--max-new-tokens", "12")
    assert said.strip()


def test_own_questions_are_measured(finished: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "mine.jsonl"
    questions = [{"prompt": "What is 2+2?", "answer": "4", "match": "numeric"}, {"prompt": "Say hi.", "answer": "hi"}]
    tasks.write_text("".join(json.dumps(question) + "\n" for question in questions))
    said, _ = run("evaluate", str(finished / "instruct"), "--tasks", str(tasks), "--json")
    [result] = json.loads(said).values()
    assert result["n"] == 2 and 0 <= result["value"] <= 1 and "stderr" in result


def kill_after(out: Path, text: Path, metrics: str, steps: int) -> None:
    """Start the command and kill -9 it, children and all, once `steps` steps of a stage are on record."""
    process = start(command(out, text))
    limit = time.monotonic() + 200
    recorded = 0
    while process.poll() is None and time.monotonic() < limit and recorded < steps:
        recorded = (out / metrics).read_bytes().count(b"\n") if (out / metrics).exists() else 0
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_in_every_training_stage_it_ends_bit_for_bit_where_a_whole_run_ends(
    finished: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    kill_after(out, text, "pretrain/metrics.jsonl", 3)
    kill_after(out, text, "sft/metrics.jsonl", 3)
    kill_after(out, text, "rl/metrics.jsonl", 1)
    _, said = run(*command(out, text))
    assert "rl: going on from step" in said
    assert weights(out) == weights(finished)
    figures = [json.loads((folder / "report.json").read_text())["val_bpb_by_stage"] for folder in (out, finished)]
    assert figures[0] == figures[1]


def test_the_control_goes_on_as_fine_tuning_ended_for_as_long_as_rl_took(tmp_path: Path) -> None:
    for stage, seconds in (("sft", [0.5, 1.5]), ("rl", [6.0, 4.5, 4.5])):
        (tmp_path / stage).mkdir()
        with MetricsWriter(tmp_path / stage / "metrics.jsonl") as metrics:
            for step, wall in enumerate(seconds, start=1):
                metrics.write(StepRecord(step=step, stage=stage, loss=1.0, tokens=9, tokens_per_s=9.0, wall_s=wall))
    config = openk2.recipes.speedrun()
    control = control_config(config, tmp_path)
    assert control.train.steps == 15 and control.train.decay_steps == 0
    assert control.optim.lr == pytest.approx(config.sft.optim.lr * config.sft.train.final_lr_ratio)
    assert control.train.batch_tokens == config.sft.train.batch_tokens
