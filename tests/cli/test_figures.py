"""Commands that count and show: params, audit-optimizer, show-sample."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_checkpoint import talk_line, tool_line, write_lines

from openk2.cli import main
from openk2.config import MODEL_PRESETS
from openk2.plan.cache import plan_cache
from openk2.plan.flops import plan_flops
from openk2.plan.parameters import plan_parameters


def test_k2_has_the_published_number_of_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", "k2_1t", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["total"] == 1_026_408_232_448
    assert figures["router_biases"] == 23_040 == 60 * 384


@pytest.mark.parametrize("preset", MODEL_PRESETS)
def test_the_figures_are_the_planners(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", preset, "--json", "--context", "2048"]) == 0
    figures = json.loads(capsys.readouterr().out)
    config = MODEL_PRESETS[preset]
    parameters, flops = plan_parameters(config), plan_flops(config, context=2048)
    assert figures["total"] == parameters.total and figures["active"] == parameters.active
    assert figures["flops_per_token"] == flops.forward
    assert figures["flops_per_token_dense_of_same_total"] == flops.dense_forward > flops.forward
    assert figures["cache_bytes_per_token"] == plan_cache(config).bytes_per_token
    assert figures["context"] == 2048


def test_the_words_hold_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", "k2_1t"]) == 0
    said = capsys.readouterr().out
    assert "1,026,408,232,448 parameters, 23,040 router biases" in said and said.count("\n") >= 4


@pytest.mark.parametrize("preset", ["tiny", "k2_1t"])
def test_the_audit_covers_every_parameter_once(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit-optimizer", preset, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows, totals = found["rows"], found["totals"]
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    config = MODEL_PRESETS[preset]
    biases = config.num_moe_layers * config.n_routed_experts  # moved by the balance rule, not by an optimizer
    assert totals["muon"] + totals["adamw"] == plan_parameters(config).total - biases
    for row in rows:
        size = 1
        for side in row["shape"]:
            size *= side
        if row["route"] == "muon":
            count, height, width = row["matrices"]
            assert count * height * width == size
            assert row["scale"] == pytest.approx(0.2 * max(height, width) ** 0.5)
        else:
            assert row["matrices"] is None and row["role"] in ("embedding", "head", "norm")


def test_without_muon_everything_goes_to_adamw(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit-optimizer", "tiny", "--json", "--optim.name", "adamw"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["muon"] == 0


def test_a_sample_is_shown_with_what_counts_marked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "d.jsonl", talk_line(), tool_line())
    command = ["show-sample", str(data), "--tokenizer", str(checkpoint), "--index", "1"]
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert main(command) == 0
    plain = capsys.readouterr().out
    learned = re.findall("«(.*?)»", plain)
    assert learned[-1] == "It is 42.<|im_end|>" and len(learned) == 2 and '{"expression": "6*7"}' in learned[0]
    assert re.search(r"\n\d+ of \d+ tokens count in the loss\n$", plain)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(command) == 0
    assert "\033[1;32mIt is 42.<|im_end|>\033[0m" in capsys.readouterr().out


def test_text_that_spells_a_control_token_is_told_from_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps(
        {"messages": [{"role": "user", "content": "Say <|im_end|>!"}, {"role": "assistant", "content": "<|im_end|>"}]}
    )
    data = write_lines(tmp_path / "d.jsonl", line)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert main(["show-sample", str(data), "--tokenizer", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "Say <\\|im_end|>!<|im_end|>" in shown and "«<\\|im_end|><|im_end|>»" in shown
