"""Saved states come back bit for bit, and no kill, damage or full disk costs more than the step being written."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from openk2.checkpoint import folder as folder_module
from openk2.checkpoint import native
from openk2.checkpoint.native import DamagedCheckpoint, load_latest, load_step, save_checkpoint


def small(value: float) -> dict:
    return {"weight": torch.full((64,), value), "step": int(value), "nested": {"lr": value / 3}}


def same(a, b) -> bool:
    """Equal in type, dtype and bits, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return a == b


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what comes back ---


def test_everything_comes_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(6, 4)
    state = {
        "model": {"w": weight, "tied": weight, "view": weight[2:], "transposed": weight.t()},
        "dtypes": [torch.randn(3).to(d) for d in (torch.bfloat16, torch.float16, torch.float64)],
        "integers": [torch.tensor([2**62, -1]), torch.tensor([True, False]), torch.arange(4, dtype=torch.uint8)],
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "bits": torch.tensor([math.nan, -0.0, math.inf, 1e-45]),
        "rng": torch.get_rng_state(),
        "numpy": {"key": np.random.default_rng(0).integers(0, 2**32, 9, dtype=np.uint32), "zero_dim": np.array(2.5)},
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "floats": [0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308],
        "not_finite": (math.inf, -math.inf),
        "numbers": [0, -1, 2**130, True, False, None],
        "text": "\n\u2028 \U0001f680 $tensor",
        "optimizer": {0: {"betas": (0.9, 0.95)}, 1: {}},
        "looks_like_a_tag": {"$tensor": "model.w"},
        "keys": {"1": torch.zeros(1), 1: torch.ones(1), None: 2.0, ("a", 3): []},
        "nothing": [{}, [], ()],
    }
    save_checkpoint(tmp_path, 12, state)
    step, back = load_latest(tmp_path)
    assert step == 12
    for key in state:
        assert same(back[key], state[key]), key
    assert names(tmp_path / "step-000012") == ["manifest.json", "state.json", "tensors.safetensors"]


def test_loaded_tensors_outlive_the_files_and_may_be_written(tmp_path):
    save_checkpoint(tmp_path, 1, small(1.0))
    state = load_step(tmp_path, 1)
    shutil.rmtree(tmp_path)
    state["weight"].add_(1)
    assert float(state["weight"].sum()) == 128


def test_nan_survives(tmp_path):
    save_checkpoint(tmp_path, 0, {"loss": math.nan})
    assert math.isnan(load_step(tmp_path, 0)["loss"])


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["a"]), np.int64(3), b"raw", torch.float32])
def test_other_types_are_refused_by_path_and_nothing_is_written(tmp_path, value):
    with pytest.raises(ValueError, match=r"^state\.a\.1: saw a \w+, expected") as caught:
        save_checkpoint(tmp_path, 1, {"a": [0, value]})
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_nothing_there_is_none(tmp_path):
    assert load_latest(tmp_path / "missing") is None
    assert load_latest(tmp_path) is None


def test_old_steps_go_and_a_given_up_continuation_too(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, small(step))
    assert names(tmp_path) == ["step-000002", "step-000003"]
    save_checkpoint(tmp_path, 1_000_000, small(5), keep=3)
    assert names(tmp_path) == ["step-000002", "step-000003", "step-1000000"]
    assert load_latest(tmp_path)[0] == 1_000_000
    save_checkpoint(tmp_path, 4, small(4), keep=3)
    assert names(tmp_path) == ["step-000002", "step-000003", "step-000004"]


def test_a_step_is_replaced_whole(tmp_path):
    save_checkpoint(tmp_path, 1, small(1))
    save_checkpoint(tmp_path, 1, small(2), keep=1)
    assert names(tmp_path) == ["step-000001"] and same(load_step(tmp_path, 1), small(2))


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (1, 0)])
def test_bad_arguments(tmp_path, step, keep):
    with pytest.raises(ValueError, match="expected"):
        save_checkpoint(tmp_path, step, {}, keep=keep)


# --- damage ---


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x10
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip, remove])
def test_damage_falls_back_with_one_line_that_names_the_file(tmp_path, capsys, file, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, small(step))
    damage(tmp_path / "step-000002" / file)
    if (file, damage) == ("manifest.json", truncate):
        truncate(tmp_path / "step-000002" / file)  # the first byte cut is only the last newline
    step, state = load_latest(tmp_path)
    assert step == 1 and same(state, small(1))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("warning: ") and file in lines[0]
    assert "step-000002" in lines[0] and "step 1" in lines[0]
    # Training goes on from the good step; the damaged one does not stay in its way.
    save_checkpoint(tmp_path, 2, small(2))
    assert load_latest(tmp_path)[0] == 2 and capsys.readouterr().err == ""


def test_warnings_can_be_taken_elsewhere(tmp_path, capsys):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, small(step))
    flip(tmp_path / "step-000002" / "tensors.safetensors")
    heard: list[str] = []
    assert load_latest(tmp_path, warn=heard.append)[0] == 1
    assert len(heard) == 1 and capsys.readouterr().err == ""


def test_none_whole_is_one_error(tmp_path, capsys):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, small(step))
        truncate(tmp_path / f"step-{step:06d}" / "tensors.safetensors")
    with pytest.raises(
        ValueError, match=r"none of them whole.*step-000002.tensors\.safetensors: saw \d+ bytes"
    ) as caught:
        load_latest(tmp_path)
    assert "\n" not in str(caught.value) and capsys.readouterr().err == ""


def test_a_step_asked_for_by_number(tmp_path):
    save_checkpoint(tmp_path, 1, small(1))
    with pytest.raises(DamagedCheckpoint, match="saw no such checkpoint, expected one of the steps there: 1"):
        load_step(tmp_path, 7)
    os.rename(tmp_path / "step-000001", tmp_path / "step-000007")
    with pytest.raises(DamagedCheckpoint, match="saw step 1, expected 7"):
        load_step(tmp_path, 7)


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"format": "openk2-state", "version": 99}', "{"])
def test_manifests_that_are_none(tmp_path, manifest):
    save_checkpoint(tmp_path, 1, small(1))
    (tmp_path / "step-000001" / "manifest.json").write_text(manifest)
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json: saw .*, expected"):
        load_step(tmp_path, 1)


def test_a_manifest_entry_that_is_missing(tmp_path):
    save_checkpoint(tmp_path, 1, small(1))
    path = tmp_path / "step-000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["state.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpoint, match=r"saw no entry for state\.json"):
        load_step(tmp_path, 1)


# --- interrupted and failed writes ---

POINTS = ("fsync", "rename", "save_file", "mkdir", "rmtree", "unlink")


def break_at(monkeypatch, point: str, nth: int, failure) -> None:
    """Call `failure` instead of the nth call of one of the system's functions."""
    module, name = {
        "fsync": (os, "fsync"),
        "rename": (os, "rename"),
        "save_file": (native, "save_file"),
        "mkdir": (Path, "mkdir"),
        "rmtree": (shutil, "rmtree"),
        "unlink": (os, "unlink"),  # in the middle of a removal
    }[point]
    original, calls = getattr(module, name), [0]

    def replacement(*arguments, **options):
        calls[0] += 1
        if calls[0] == nth:
            failure()
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, replacement)


@pytest.mark.parametrize("point", ["fsync", "rename", "save_file", "mkdir"])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_earlier_steps(tmp_path, monkeypatch, point, nth, error):
    save_checkpoint(tmp_path, 1, small(1))
    save_checkpoint(tmp_path, 2, small(2))

    def fail():
        raise error

    with monkeypatch.context() as patch:
        break_at(patch, point, nth, fail)
        try:
            save_checkpoint(tmp_path, 2, small(3))  # replaces a step, the harder case
            failed = False
        except type(error):
            failed = True
    assert failed or (point, nth) == ("save_file", 2)
    step, state = load_latest(tmp_path)
    assert step == 2 and same(state, small(2) if failed else small(3))
    assert names(tmp_path) == ["step-000001", "step-000002"]


@pytest.mark.parametrize("point", POINTS)
def test_kill_at_every_point_of_saving(tmp_path, monkeypatch, point):
    """The process is killed at the nth call, for every n there is; what loads is the old state or the new one."""
    for nth in range(1, 16):
        shutil.rmtree(tmp_path)
        for step in (1, 2):
            save_checkpoint(tmp_path, step, small(step))
        child = os.fork()
        if child == 0:
            try:
                break_at(monkeypatch, point, nth, lambda: os.kill(os.getpid(), signal.SIGKILL))
                save_checkpoint(tmp_path, 2, small(22), keep=1)
                save_checkpoint(tmp_path, 3, small(3), keep=1)
            finally:
                os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        step, state = load_latest(tmp_path)
        assert any(same(state, small(value)) for value in ((2, 22) if step == 2 else (3,))), (point, nth)
        assert not [name for name in names(tmp_path) if name.endswith(".tmp")], (point, nth)
        for name in names(tmp_path):
            load_step(tmp_path, int(name.removeprefix("step-")))  # older ones too are whole or gone
        save_checkpoint(tmp_path, 4, small(4), keep=1)
        assert names(tmp_path) == ["step-000004"]
        if not killed:
            assert step == 3 and nth > 1
            return
    raise AssertionError(f"{point}: still killed at call {nth}")


def test_kill_minus_9_from_outside_while_saving(tmp_path):
    """A real process that saves without pause, killed while it does."""
    program = """
        import sys, torch
        from pathlib import Path
        from openk2.checkpoint.native import save_checkpoint
        torch.set_num_threads(1)
        for step in range(1, 10**6):
            save_checkpoint(Path(sys.argv[1]), step, {"weight": torch.full((50_000,), float(step)), "step": step})
            print(step, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        while int(process.stdout.readline()) < 5:
            pass
    finally:
        process.kill()
        process.wait()
        printed = [int(line) for line in process.stdout.read().split()]
        process.stdout.close()
    step, state = load_latest(tmp_path, warn=pytest.fail)
    assert step >= max(printed, default=5)
    assert state["step"] == step and bool((state["weight"] == step).all())
    save_checkpoint(tmp_path, step + 1, small(1))
    assert names(tmp_path) == [f"step-{step:06d}", f"step-{step + 1:06d}"]


def test_another_living_process_keeps_its_aside_folder(tmp_path):
    """Somebody who only reads must not pull the folder from under the writer."""
    save_checkpoint(tmp_path, 1, small(1))
    aside = tmp_path / f".step-000002.{os.getppid()}.new.tmp"
    aside.mkdir()
    assert load_latest(tmp_path)[0] == 1 and aside.exists()


def test_full_disk_is_one_line_and_costs_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, small(1))

    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for point in ("save_file", "fsync", "mkdir"):
        with monkeypatch.context() as patch:
            break_at(patch, point, 2 if point == "mkdir" else 1, full)
            with pytest.raises(ValueError, match=r"saw a full disk .* expected room for \d+ bytes") as caught:
                save_checkpoint(tmp_path, 2, {"weight": torch.zeros(1000)})
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        assert int(str(caught.value).split("room for ")[1].split()[0]) >= 4000
        assert names(tmp_path) == ["step-000001"] and load_latest(tmp_path)[0] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk_for_real(tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip("this root may not mount a file system")
    try:
        save_checkpoint(tmp_path / "checkpoints", 1, small(1))
        with pytest.raises(ValueError, match="saw a full disk"):
            save_checkpoint(tmp_path / "checkpoints", 2, {"weight": torch.zeros(100_000)})
        assert names(tmp_path / "checkpoints") == ["step-000001"]
        assert same(load_latest(tmp_path / "checkpoints")[1], small(1))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_the_folder_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    """Every file and the aside folder, then the rename, then the folder above."""
    order: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def spy_rename(source, target):
        order.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(folder_module.os, "fsync", spy_fsync)
    monkeypatch.setattr(folder_module.os, "rename", spy_rename)
    save_checkpoint(tmp_path, 1, small(1))
    aside = f".step-000001.{os.getpid()}.new.tmp"
    assert sorted(order[:3]) == ["manifest.json", "state.json", "tensors.safetensors"]
    assert order[3:] == [aside, "rename to step-000001", tmp_path.name]
