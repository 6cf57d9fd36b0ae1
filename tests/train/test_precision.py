"""Which dtype a run uses, and that the run's folder keeps to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_training import silent_console

from openk2.train import precision, session
from openk2.train.precision import choose_dtype, matmul_flops_per_s
from openk2.train.session import open_run


@pytest.mark.parametrize("asked", ["bf16", "fp32"])
def test_what_is_asked_for_is_taken_without_timing(asked: str, monkeypatch):
    monkeypatch.setattr(precision, "matmul_flops_per_s", lambda dtype: pytest.fail("timed"))
    assert choose_dtype(asked, pytest.fail) == asked


@pytest.mark.parametrize(("bf16", "chosen"), [(3e9, "bf16"), (1e9, "fp32")])
def test_auto_takes_the_faster_and_says_so(bf16: float, chosen: str, monkeypatch):
    monkeypatch.setattr(precision, "matmul_flops_per_s", lambda dtype: bf16 if dtype == torch.bfloat16 else 2e9)
    heard: list[str] = []
    assert choose_dtype("auto", heard.append) == chosen
    assert heard == [f"dtype auto: bf16 {bf16 / 1e9:.0f} GFLOP/s, fp32 2 GFLOP/s on this CPU; chose {chosen}"]


def test_the_matrix_product_is_timed():
    assert matmul_flops_per_s(torch.float32, repeats=1) > 1e6


def test_a_resumed_run_keeps_what_was_chosen_at_first(tmp_path: Path, monkeypatch):
    """Timing may come out otherwise next time; the folder's first answer stands."""
    monkeypatch.setattr(session, "fusion_available", lambda: (False, "switched off in tests"))
    found = []
    for answer in ("bf16", "fp32"):
        monkeypatch.setattr(session, "choose_dtype", lambda asked, say, answer=answer: answer)
        console, _ = silent_console()
        folder, dtype = open_run(tmp_path / "run", {"a": 1}, stage="s", seed=0, dtype="auto", console=console)
        found.append(dtype)
        folder.close()
    assert found == [torch.bfloat16, torch.bfloat16]
    (tmp_path / "run" / "metrics.jsonl").touch()
    console, heard = silent_console()
    with pytest.raises(ValueError, match="saw a = 2, expected 1") as caught:
        open_run(tmp_path / "run", {"a": 2}, stage="s", seed=0, dtype="auto", console=console)
    assert "\n" not in str(caught.value) and heard.getvalue() == ""
