"""Several processes take the steps that one takes: parameters, maxima, experts' tokens, exchange of whole matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_training import SMALL
from worlds import agree, exchange, exchange_runs, in_world, resume

from openk2.commands import sharded_audit
from openk2.commands.sharded_audit import compare, describe
from openk2.config.run import OptimConfig, ParallelConfig
from openk2.model.model import Model
from openk2.parallel.world import ALONE, join_world

MODEL = replace(SMALL, vocab_size=61)
CLIPPING = OptimConfig(lr=3e-3, qk_clip_tau=0.05)  # low enough for most heads to be clipped at every step


@pytest.mark.parametrize("engine", sharded_audit.ENGINES)
def test_two_processes_end_where_one_does(engine):
    found = compare(MODEL, CLIPPING, engine, steps=10)
    assert found["passed"], describe(found)
    assert {row["name"] for row in found["rows"]} == set(Model(MODEL).state_dict())
    assert all(row["moved"] > 0 for row in found["rows"] if "bias" not in row["name"])


def test_three_processes_and_odd_sizes():
    """Rows that do not divide by the processes: the last one holds less, or nothing."""
    odd = replace(MODEL, hidden_size=26, moe_intermediate_size=10, intermediate_size=22, n_routed_experts=4)
    for engine in sharded_audit.ENGINES:
        found = compare(odd, replace(CLIPPING, muon_split=True), engine, processes=3, steps=3)
        assert found["passed"], describe(found)


def test_a_difference_is_seen_and_told():
    found = compare(MODEL, CLIPPING, "fsdp", steps=1)
    row = found["rows"][3]
    row |= {"distance": 1e-3, "passed": False}
    assert f"RED    {row['name']} " in describe(found)


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


@pytest.mark.parametrize("ep", [1, 2])
def test_a_saved_state_goes_on_bit_for_bit(ep, tmp_path):
    in_world(2, tmp_path, resume, SMALL, ep)


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
