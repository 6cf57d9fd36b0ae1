"""Bad input ends with exit code 2 and exactly one line on stderr, whatever is wrong."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_checkpoint import talk_line, write_lines

import openk2
from openk2.cli import checks, command, main
from openk2.observe.lock import RunLock
from openk2.ops import cpp

COMMANDS = (
    "speedrun", "pretrain", "synth", "sft", "rl", "evaluate", "chat", "serve", "testrun", "params", "audit-optimizer",
    "verify-resume", "show-sample", "compare-modes",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"example:\n  openk2 {command} " in capsys.readouterr().out.replace(
        "openk2 speedrun\n", "openk2 speedrun \n"
    )


def test_the_list_of_commands_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in lines if re.match("    [a-z]", line)) == COMMANDS


def test_an_option_with_a_default_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "0: any that is free (default: 8000)" in said and "(default: 127.0.0.1)" in said
    for nothing in ("None", "False", "[]", "SUPPRESS", "(default: )"):
        assert nothing not in said


@pytest.mark.parametrize("kernels", [None, OSError("no room")])
def test_an_operator_is_told_what_could_not_be_compiled(
    kernels: OSError | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_kernels() -> None:
        if kernels is not None:
            raise kernels

    for problem in ("", "decode.cpp: saw no compiler"):
        monkeypatch.setattr(cpp, "shared_object", lambda: SimpleNamespace(problem=problem, get=lambda wait: None))  # noqa: B023
        command._compile(SimpleNamespace(native=object(), compile_kernels=compile_kernels))
        told = problem or (kernels and "kernels were not compiled (OSError: no room)")
        assert capsys.readouterr().err == (f"warning: {told}\n" if told else "")


def test_a_port_in_use_is_named_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        assert main(["serve", "--synthetic", "tiny", "--port", str(port)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"127.0.0.1:{port} cannot be listened on" in error and "choose another with --port" in error


@pytest.mark.parametrize("command", ["speedrun", "pretrain", "synth", "sft", "rl", "audit-optimizer"])
def test_settings_are_listed_with_their_values(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--list-settings"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 5 and all(line.startswith("--") and "  (" in line for line in lines)


MISTAKES = {
    "": "required: COMMAND",
    "pretran tiny": "invalid choice: 'pretran'",
    "params": "required: preset",
    "params tiny --jsn": "saw unknown argument '--jsn'",
    "params tiny --js": "saw unknown argument '--js'",
    "params tiny more": "saw unknown argument 'more'",
    "params tiny --context few": "invalid int value",
    "params tiny --context 0": "expected at least 1",
    "params tinny": "expected one of tiny, small, moonlight_16b_a3b, k2_1t; did you mean tiny?",
    "pretrain tinny": "did you mean tiny?",
    "audit-optimizer k2_1": "did you mean k2_1t?",
    "verify-resume tinny": "did you mean tiny?",
    "verify-resume k2_1t": "expected tiny or small",
    "verify-resume tiny --stages sft,rll": "--stages: saw 'rll'",
    "verify-resume tiny --steps 1": "expected at least 2",
    "pretrain tiny --train.stps 5": "did you mean --train.steps?",
    "pretrain tiny --train.steps": "--train.steps",
    "pretrain tiny --train.steps many": "--train.steps: saw 'many', expected an integer",
    "pretrain tiny --train.steps 1.5": "--train.steps: saw '1.5', expected an integer",
    "pretrain tiny --train.dtype fp8": "expected one of auto, bf16, fp32",
    "pretrain tiny --train.steps 5": "train.warmup_steps",
    "pretrain tiny --optim.name adamw --optim.momentum 0.9": "would change nothing while optim.name is adamw",
    "pretrain tiny --data texts --data.code_fraction 0.1": "would change nothing while data.path is texts",
    "pretrain tiny --engine zero": "--parallel.engine: saw 'zero', expected one of fsdp, deepspeed",
    "pretrain tiny --engine fsdp --parallel.engine fsdp": "--parallel.engine: saw it twice",
    "pretrain tiny --engine deepspeed": "saw deepspeed with parallel.dp 1, expected 2 processes or more",
    "pretrain tiny --engine deepspeed --parallel.dp 2": "torchrun --nproc-per-node 2",
    "pretrain tiny --engine deepspeed --parallel.dp 2 --zero 2": "parallel.zero: saw 2, expected 1",
    "pretrain tiny --engine deepspeed --parallel.dp 2 --zero one": "--parallel.zero: saw 'one', expected an integer",
    "pretrain tiny --engine deepspeed --parallel.dp 2 --parallel.ep 2": "parallel.ep: saw 2 with engine deepspeed",
    "pretrain tiny --parallel.dp 2 --zero 1": "parallel.zero: saw 1 with engine fsdp, where it would change nothing",
    "audit-optimizer tiny --engine zero": "invalid choice: 'zero'",
    "audit-optimizer tiny --engine deepspeed --processes 5": "--processes: saw 5",
    "audit-optimizer tiny --processes 0": "--processes: saw it without --engine",
    "audit-optimizer tiny --data.path x": "saw --data.path, expected settings of model and optim",
    "pretrain k2_1t": "saw 1,026,408,232,448 parameters",
    "speedrun smok": "invalid choice: 'smok'",
    "speedrun smoke --rl.group_size 1": "rl.group_size: saw 1, expected at least 2",
    "speedrun smoke --bogus": "--bogus: saw an unknown option",
    "synth --attempts 0": "expected at least 1",
    "rl nowhere --data d.jsonl --ptx_weight 0 --ptx_examples 3": "would change nothing while ptx_weight is 0",
    "sft nowhere": "required: --data",
    "sft nowhere --data nothing.jsonl": "nothing.jsonl: No such file or directory",
    "rl nowhere --data nothing.jsonl": "nothing.jsonl: No such file or directory",
    "evaluate nowhere": "nowhere/config.json: saw no file",
    "chat nowhere": "nowhere/config.json: saw no file",
    "chat nowhere --tools calculater": "--tools: saw 'calculater', expected names from calculator",
    "chat nowhere --temperature -1": "expected --temperature of 0 or more",
    "show-sample nothing.jsonl --tokenizer nowhere": "nothing.jsonl: No such file or directory",
    "pretrain tiny --data nowhere": "data.path: saw nowhere, which does not exist",
    "evaluate nowhere --seed -5": "--seed: saw -5",
    "evaluate nowhere --out a_file": "saw the file a_file, expected a folder",
}  # fmt: skip


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_in_one_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    complaints = [text for text in said.err.splitlines() if text.startswith("error: ")]
    assert len(complaints) == 1 and said.err.endswith(complaints[0] + "\n")
    assert complaints == said.err.splitlines()
    assert MISTAKES[line] in complaints[0]


@pytest.mark.parametrize(
    ("prompt", "said"), [("", "nothing but blanks"), (" \n", "nothing but"), ("a " * 3000, "too long")]
)
def test_a_prompt_that_cannot_be_answered_is_refused(
    checkpoint: Path, prompt: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(checkpoint), "--prompt", prompt]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: --prompt: ") and said in error


def test_a_refused_first_run_leaves_its_folder_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too little text: refused once the folder has its record, but before anything is made in it."""
    (tmp_path / "short.txt").write_text("A few words.\n")
    out = ["--out", str(tmp_path / "run"), *SHORT.split()]
    assert main(["pretrain", "tiny", "--data", str(tmp_path / "short.txt"), *out]) == 2
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "run.json"]
    capsys.readouterr()
    assert main(["pretrain", "tiny", "--data", str(own_text(tmp_path / "t")), *out]) == 0


def test_an_index_outside_the_file_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "d.jsonl", talk_line())
    assert main(["show-sample", str(data), "--tokenizer", str(checkpoint), "--index", "1"]) == 2
    assert capsys.readouterr().err == f"error: {data}: saw 1 dialogues, expected one of index 1\n"


@pytest.mark.parametrize("kept", [0, 5, 2000])
@pytest.mark.parametrize("command", ["chat", "evaluate", "sft"])
def test_a_truncated_checkpoint_is_refused(
    command: str, kept: int, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    data = write_lines(tmp_path / "d.jsonl", talk_line())
    more = {"chat": ["--prompt", "hi"], "evaluate": [], "sft": ["--data", str(data), "--out", str(tmp_path / "run")]}
    assert main([command, str(broken), *more[command]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(weights) in error and "saw broken weights" in error


SHORT = """--train.steps 2 --train.warmup_steps 1 --train.decay_steps 1 --train.batch_tokens 512 --train.dtype fp32
    --train.micro_batch_tokens 512 --train.sequence_length 256 --train.eval_every 2 --train.checkpoint_every 1
    --data.val_bytes 500 --model.vocab_size 640 --model.hidden_size 32 --model.num_hidden_layers 2"""


def own_text(folder: Path) -> Path:
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"The {number}th text speaks of the number {number}. " * 30)
    return folder


@pytest.mark.parametrize("content", [b"[]", b"{", bytes(range(128, 140))])
def test_a_broken_generation_config_is_named(
    content: bytes, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (folder / "generation_config.json").write_bytes(content)
    assert main(["serve", str(folder), "--port", "0"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {folder / 'generation_config.json'}: saw ")


def test_a_folder_in_use_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_lines(tmp_path / "d.jsonl", talk_line())
    with RunLock(tmp_path / "run"):
        assert main(["sft", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"in use by process {os.getpid()}" in error


def test_another_config_in_a_begun_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "pretrain",
        "tiny",
        "--data",
        str(own_text(tmp_path / "t")),
        "--out",
        str(tmp_path / "r"),
        *SHORT.split(),
    ]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--optim.lr", "1.23e-3"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "saw optim.lr = 0.00123, expected 0.0" in error


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a real small file system where one can be mounted; the room runs out while the run is writing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        command = ["pretrain", "tiny", "--data", str(own_text(tmp_path / "t")), "--out", str(disk / "run")]
        assert main([*command, *SHORT.split()]) == 2
        complaint = capsys.readouterr().err.splitlines()[-1]
        assert complaint.startswith("error: ") and "saw a full disk" in complaint and "free some space" in complaint
        left = [path.name for path in disk.rglob("*") if ".tmp" in path.name]
        assert not left, "what could not be finished is cleared away"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt("pretrain: stopped at step 3, saved")

    monkeypatch.setattr(checks, "_params", pressed)
    assert main(["params", "tiny"]) == 130
    assert capsys.readouterr().err == "\npretrain: stopped at step 3, saved\n"


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "openk2", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"openk2 {openk2.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "openk2", "params", "tinny"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_output_that_nobody_reads_to_its_end_is_no_error():
    command = f"set -o pipefail; {sys.executable} -m openk2 audit-optimizer k2_1t | head -1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ended.stderr == "" and ended.returncode in (0, 141) and ended.stdout.count("\n") == 1
