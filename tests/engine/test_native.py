"""Decoding in C++ against the torch path, its slow twin, and what happens where it cannot be compiled."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import SMALL

from openk2.config.model import YarnConfig
from openk2.engine import Engine, EngineSettings, Request, Sequence
from openk2.engine import engine as engine_module
from openk2.engine.native import MAX_ROWS
from openk2.engine.runner import run
from openk2.engine.scheduler import Piece
from openk2.model.model import Model
from openk2.ops import cpp
from openk2.protocols import SamplingParams

# Widths that are no multiples of what fits a register, and some that are.
CONFIG = dataclasses.replace(SMALL, max_position_embeddings=400, initializer_range=0.15)
VARIANTS = {
    "plain": {},
    "no_q_lora": {"q_lora_rank": None},
    "no_shared_expert": {"n_shared_experts": 0},
    "two_shared_experts": {"n_shared_experts": 2},
    "all_dense": {"first_k_dense_replace": 3},
    "no_dense": {"first_k_dense_replace": 0},
    "weights_not_normalised": {"norm_topk_prob": False},
    "yarn": {"rope_scaling": YarnConfig(factor=4.0, original_max_position_embeddings=64)},
    "wide": {
        "hidden_size": 96,
        "kv_lora_rank": 64,
        "qk_rope_head_dim": 16,
        "num_attention_heads": 6,
        "vocab_size": 999,
    },
}

needs_compiler = pytest.mark.skipif(cpp.shared_object().get(wait=True) is None, reason=cpp.shared_object().problem)


def build(**changes: object) -> Model:
    model = Model(dataclasses.replace(CONFIG, **changes), compute_dtype=torch.bfloat16).init_weights(1).eval()
    generator = torch.Generator().manual_seed(2)
    for router in model.routers():
        router.e_score_correction_bias.normal_(0.0, 0.05, generator=generator)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model


def begun(engine: Engine, lengths: list[int], seed: int = 0) -> list[Sequence]:
    """Sequences with a prompt of each length read and a token sampled."""
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(300) for _ in range(length)) for length in lengths]
    sequences = [engine.submit(Request(p, SamplingParams(max_new_tokens=40))) for p in prompts]
    while any(sequence.num_sampled == 0 for sequence in sequences):
        engine.step()
    return sequences


def next_pieces(engine: Engine, sequences: list[Sequence]) -> list[Piece]:
    pieces = [Piece(s, s.num_computed, len(s.tokens)) for s in sequences]
    for piece in pieces:
        assert engine.scheduler._cover(piece.sequence, piece.last)
    return pieces


@needs_compiler
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_experts_and_cache_are_those_of_the_torch_path(variant):
    engine = Engine(build(**VARIANTS[variant]))
    assert engine.native is not None
    pieces = next_pieces(engine, begun(engine, [1, 5, 64, 130, 200]))
    want = run(engine.model, engine.store, pieces)
    cache = engine.store.values.clone()
    logits, experts = engine.native.decode(pieces)
    spread = want.logits.float().std(dim=1, keepdim=True)
    # bf16 keeps 8 bits: sums in another order differ by a rounding here and there, and then by what follows from it.
    assert float(((logits.float() - want.logits.float()) / spread).abs().max()) < 0.12
    assert float((logits.float() - want.logits.float()).square().mean().sqrt() / spread.mean()) < 0.03
    assert torch.equal(experts.sort(-1).values, want.experts.sort(-1).values)
    torch.testing.assert_close(engine.store.values, cache, rtol=0.02, atol=0.02)
    written = [p.sequence.blocks[p.first // 64] * 64 + p.first % 64 for p in pieces]
    others = torch.ones(cache.shape[1], dtype=torch.bool)
    others[written] = False
    assert torch.equal(engine.store.values[:, others], cache[:, others])


@needs_compiler
@torch.no_grad()
def test_it_is_as_near_to_fp32_as_the_torch_path_is():
    model = build(hidden_size=96, num_hidden_layers=4)
    engine = Engine(model)
    pieces = next_pieces(engine, begun(engine, [3, 40, 100, 64, 9, 150]))
    exact = Model(model.config).eval()
    exact.load_state_dict(engine.model.state_dict())
    assert engine.native is not None
    errors = []
    for logits in (run(engine.model, engine.store, pieces).logits, engine.native.decode(pieces)[0]):
        wanted = torch.stack([exact(torch.tensor([p.sequence.tokens]))[0, -1] for p in pieces])
        errors.append(float((logits.float() - wanted).square().mean().sqrt()))
    assert errors[1] < errors[0] * 1.2


@needs_compiler
@torch.no_grad()
def test_a_row_has_the_same_bits_in_any_company():
    engine = Engine(build())
    assert engine.native is not None
    pieces = next_pieces(engine, begun(engine, [1, 5, 64, 130, 200, 7, 80, 33, 12]))
    together, experts = engine.native.decode(pieces)
    for row, piece in enumerate(pieces):
        alone, chosen = engine.native.decode([piece])
        assert torch.equal(alone[0], together[row]) and torch.equal(chosen[:, 0], experts[:, row])


@needs_compiler
@pytest.mark.parametrize("limits", [{"beside_tokens": 1}, {"step_tokens": 2}])
def test_a_token_of_a_prompt_after_which_more_are_to_be_read_predicts_nothing(limits):
    """Rooms so small that a piece of a prompt is a single token."""
    model, params = build(), SamplingParams(max_new_tokens=12)
    engine = Engine(model, EngineSettings(**limits))
    first = engine.submit(Request((1, 2, 3), params))
    while first.num_sampled < 3:
        engine.step()
    second = engine.submit(Request(tuple(range(10, 30)), params))
    while engine.has_work:
        engine.step()
    assert [first.num_sampled, second.num_sampled] == [12, 12]


@needs_compiler
def test_it_decodes_and_the_torch_path_reads_prompts(monkeypatch):
    engine = Engine(build())
    assert engine.native is not None
    seen: list[tuple[str, int]] = []
    decode = engine.native.decode

    def read(model, store, pieces):
        seen.append(("torch", sum(piece.last - piece.first for piece in pieces)))
        return run(model, store, pieces)

    monkeypatch.setattr(engine.native, "decode", lambda pieces: seen.append(("native", len(pieces))) or decode(pieces))
    monkeypatch.setattr(engine_module, "run", read)
    engine([[1, 2, 3], [4]], SamplingParams(max_new_tokens=3))
    assert seen == [("torch", 4), ("native", 2), ("native", 2)]
    seen.clear()
    engine([[n] for n in range(MAX_ROWS + 1)], SamplingParams(max_new_tokens=2))
    assert seen[-1] == ("torch", MAX_ROWS + 1)


@needs_compiler
def test_new_weights_are_seen():
    engine = Engine(build())
    params = SamplingParams(max_new_tokens=8)
    before = engine([[1, 2, 3]], params)[0]
    other = build(initializer_range=0.2)
    engine.sync(other)
    after = engine([[1, 2, 3]], params)[0]
    assert after.logprobs == Engine(other)([[1, 2, 3]], params)[0].logprobs != before.logprobs


@pytest.mark.parametrize(
    "settings",
    [EngineSettings(native="off"), EngineSettings(attention="invariant"), EngineSettings(eight_bit_cache=True)],
)
def test_who_cannot_use_it_goes_without(settings):
    engine = Engine(build(kv_lora_rank=64), settings)
    assert engine.native is None and len(engine([[1, 2]], SamplingParams(max_new_tokens=3))[0].ids) == 3
    assert Engine(Model(CONFIG).init_weights(0)).native is None  # fp32


def test_settings_are_named():
    with pytest.raises(ValueError, match="saw native 'yes', expected wait, background or off"):
        EngineSettings(native="yes")


def test_without_a_compiler_decoding_goes_on_in_torch(tmp_path):
    """In a process of its own, for it is loaded once."""
    code = """
import torch
from openk2.config.presets import TINY
from openk2.engine import Engine
from openk2.model.model import Model
from openk2.ops.cpp import shared_object
from openk2.protocols import SamplingParams
engine = Engine(Model(TINY, compute_dtype=torch.bfloat16).init_weights(0))
print(engine.native, len(engine([[1]], SamplingParams(max_new_tokens=2))[0].ids), shared_object().problem)
"""
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100)
    assert done.stdout.startswith("None 2 decode.cpp: saw no compiled code (saw no C++ compiler, expected"), done


@needs_compiler
def test_a_second_process_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cpp._compiled()
    assert first.parent == tmp_path / "openk2" and [path.name for path in first.parent.iterdir()] == [first.name]
    monkeypatch.setattr(cpp.tempfile, "TemporaryDirectory", lambda **_: pytest.fail("compiled again"))
    assert cpp._compiled() == first
    source = Path(tmp_path / "other.cpp")
    source.write_text("this is no C++")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpp, "SOURCE", source)
    broken = cpp.SharedObject()
    assert broken.get(wait=True) is None and "decoding goes on in torch" in broken.problem
    assert [path.name for path in first.parent.iterdir()] == [first.name]  # nothing half made
