"""Several processes take the steps that one takes: parameters, maxima, experts' tokens, exchange of whole matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_training import SMALL
from worlds import ENGINES, agree, audited, exchange, exchange_runs, in_world, needs_deepspeed, recompute, resume, spoil

from openk2 import cli
from openk2.commands import sharded_audit
from openk2.commands.sharded_audit import SteppedModel, compare, describe, judge, run_steps, small_enough
from openk2.config import MODEL_PRESETS
from openk2.config.run import OptimConfig, ParallelConfig
from openk2.model.model import Model
from openk2.parallel.world import ALONE, join_world

MODEL = replace(SMALL, vocab_size=61)
CLIPPING = OptimConfig(lr=3e-3, qk_clip_tau=0.05)  # low enough for most heads to be clipped at every step


FSDP, EP = ParallelConfig(dp=2), ParallelConfig(dp=2, ep=2)
ZERO = ParallelConfig(dp=2, engine="deepspeed")


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_end_where_one_does(engine):
    found = compare(MODEL, CLIPPING, engine, steps=10)
    assert found["passed"], describe(found)
    assert {row["name"] for row in found["rows"]} == set(Model(MODEL).state_dict())
    assert all(row["moved"] > 0 for row in found["rows"] if "bias" not in row["name"])


@pytest.mark.parametrize("engine", ENGINES)
def test_three_processes_and_odd_sizes(engine):
    """Rows that do not divide by the processes: the last one holds less, or nothing."""
    odd = replace(MODEL, hidden_size=26, moe_intermediate_size=10, intermediate_size=22, n_routed_experts=4)
    found = compare(odd, replace(CLIPPING, muon_split=True), engine, processes=3, steps=3)
    assert found["passed"], describe(found)


@pytest.fixture(scope="module")
def dense():
    return run_steps(MODEL, CLIPPING, ParallelConfig(), ALONE, 2)


def judged(dense, *sharded):
    run = {"num_hidden_layers": MODEL.num_hidden_layers, "vocab_size": MODEL.vocab_size}
    head = {"engine": "x", "processes": len(sharded), "steps": 2, "model": run}
    return head | judge(Model(MODEL).init_weights(0), dense, sharded)


def changed(stepped, name, change):
    return replace(stepped, parameters=stepped.parameters | {name: change(stepped.parameters[name])})


def test_one_process_is_as_one_process(dense):
    found = judged(dense, dense, dense)
    assert found["passed"] and not describe(found).count("RED")


@pytest.mark.parametrize("change", [lambda t: t * (1 + 2e-5), lambda t: t * float("nan"), torch.zeros_like])
def test_one_parameter_of_one_process_is_seen_and_told(dense, change):
    name = "layers.1.self_attn.kv_b_proj.weight"
    found = judged(dense, dense, changed(dense, name, change))
    assert [row["name"] for row in found["rows"] if not row["passed"]] == [name] and not found["passed"]
    assert f"RED    {name} " in describe(found) and describe(found).splitlines()[-1].startswith("RED: ")


def test_a_parameter_that_no_one_trains_is_seen(dense):
    name = "lm_head.weight"
    still = changed(dense, name, lambda _: Model(MODEL).init_weights(0).state_dict()[name])
    assert [row["name"] for row in judged(still, still)["rows"] if not row["passed"]] == [name]


@pytest.mark.parametrize("what", ["max_scores", "grad_norms", "expert_counts"])
def test_what_was_gathered_is_compared(dense, what):
    other = getattr(dense, what).clone()
    other[-1] += 1
    assert not judged(dense, dense, replace(dense, **{what: other}))["passed"]
    if what != "expert_counts":
        assert not judged(dense, replace(dense, **{what: other * float("nan")}), dense)["passed"]


# Which change to the code, in which engine, and where the audit must see it.
WRONG = [
    pytest.param(FSDP, "averaged gradients", "grad_norms", id="fsdp averages"),
    pytest.param(ZERO, "DeepSpeed's averaged gradients", "grad_norms", marks=needs_deepspeed, id="deepspeed averages"),
    pytest.param(FSDP, "maxima of the own process", "max_scores", id="fsdp's own maxima"),
    pytest.param(FSDP, "counts of the own process", "counts_differ", id="fsdp's own counts"),
    pytest.param(FSDP, "clipped rows counted from the part's begin", "rows", id="fsdp clips other rows"),
]


@pytest.mark.parametrize(("parallel", "how", "where"), WRONG)
def test_the_audit_turns_red(dense, parallel, how, where, tmp_path):
    in_world(2, tmp_path, audited, MODEL, CLIPPING, parallel, 2, tmp_path, how)
    found = judged(dense, *(SteppedModel.load(tmp_path / f"{rank}.safetensors") for rank in range(2)))
    assert not found["passed"]
    if where == "rows":
        red = [row["name"] for row in found["rows"] if not row["passed"]]
        assert any("q_b_proj" in name for name in red), describe(found)
    else:
        assert found[where] > sharded_audit.TOLERANCE, describe(found)


def test_a_red_audit_ends_with_1(dense, monkeypatch, capsys):
    found = judged(dense, changed(dense, "norm.weight", torch.zeros_like))
    monkeypatch.setattr(sharded_audit, "compare", lambda *_, **__: found)
    assert cli.main(["audit-optimizer", "tiny", "--engine", "fsdp"]) == 1
    assert "RED    norm.weight" in capsys.readouterr().out


@pytest.mark.parametrize("size", [2, 3])
def test_muonclip_on_runs_of_elements_ends_where_one_process_does(dense, size, tmp_path):
    """Without DeepSpeed: what it does is a few lines here, and the placement is the same."""
    in_world(size, tmp_path, audited, MODEL, CLIPPING, ParallelConfig(dp=size), 2, tmp_path, "plain ZeRO")
    found = judged(dense, *(SteppedModel.load(tmp_path / f"{rank}.safetensors") for rank in range(size)))
    assert found["passed"], describe(found)


@pytest.mark.parametrize("size", [2, 3])
def test_whole_matrices_come_together_from_runs_of_elements(size, tmp_path):
    """Runs cut the parameters wherever the equal pieces of a flat buffer end: within rows, or none of a parameter."""
    shapes = [(3, 6, 4), (6, 4), (6, 4), (2, 6, 4), (12, 4)]  # 216 elements and a padding of up to two
    in_world(size, tmp_path, exchange_runs, shapes, (6, 4))


@pytest.mark.parametrize("size", [2, 3])
def test_whole_matrices_come_together_once_and_go_back(size, tmp_path):
    """Cut matrices, stacks of whole ones, a pair in one parameter, and one of fewer rows than processes."""
    shapes = [(6, 4), (6, 6, 4), (12, 4), (6, 4), (5, 6, 4)]
    # Six experts divide by two and by three; twelve rows are two matrices, one for each of two processes.
    whole = [(6, 6, 4), (12, 4), (5, 6, 4)] if size == 2 else [(6, 6, 4), (5, 6, 4)]
    in_world(size, tmp_path, exchange, shapes, (6, 4), whole)


def test_a_matrix_of_fewer_rows_than_processes(tmp_path):
    in_world(3, tmp_path, exchange, [(2, 4), (2, 4)], (2, 4), [])


@pytest.mark.parametrize("parallel", [FSDP, EP, pytest.param(ZERO, marks=needs_deepspeed)])
def test_a_saved_state_goes_on_bit_for_bit(parallel, tmp_path):
    in_world(2, tmp_path, resume, SMALL, parallel, parallel)


@pytest.mark.parametrize(
    ("before", "after"), [(ZERO, FSDP), (ZERO, ParallelConfig()), (EP, ZERO), (ParallelConfig(), ZERO)]
)
@needs_deepspeed
def test_a_saved_state_goes_on_under_another_engine(before, after, tmp_path):
    in_world(2, tmp_path, resume, SMALL, before, after)


@pytest.mark.parametrize("parallel", [FSDP, EP, pytest.param(ZERO, marks=needs_deepspeed)])
def test_a_step_that_one_process_spoils_is_skipped_by_all(parallel, tmp_path):
    in_world(2, tmp_path, spoil, SMALL, parallel)


@pytest.mark.parametrize("parallel", [FSDP, EP, pytest.param(ZERO, marks=needs_deepspeed)])
def test_recompute_of_a_sharded_model(parallel, tmp_path):
    in_world(2, tmp_path, recompute, SMALL, parallel)


def test_processes_agree_and_end_together(tmp_path):
    in_world(2, tmp_path, agree, tmp_path)


def test_a_world_of_one_changes_nothing():
    values = torch.arange(3.0)
    assert ALONE.sum(values) is values and ALONE.agree(lambda: 7) == 7 and ALONE.one_by_one(lambda: 8) == 8


def test_a_wrong_number_of_processes_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"saw 2 with 1 process running.*torchrun --nproc-per-node 2"):
        join_world(2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"saw 1 with 4 processes running.*--parallel\.dp 4"):
        join_world(1)
    with pytest.raises(ValueError, match=r"parallel\.ep: saw 2, expected 1 or parallel\.dp \(4\)"):
        ParallelConfig(dp=4, ep=2)


def test_the_audit_refuses_what_is_too_large_even_with_few_layers():
    assert small_enough(MODEL_PRESETS["small"]).num_hidden_layers == 3
    with pytest.raises(ValueError, match=r"saw a model that has .* even with 3 layers .* expected at most"):
        small_enough(MODEL_PRESETS["k2_1t"])
