"""QK-Clip: the step's own batch, scored again, has its clipped heads at tau; nothing else has moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_training import SMALL, batch, build, make_muonclip, snapshot, take_step
from torch import Tensor, nn

from openk2.data.batch import Batch
from openk2.model import mla
from openk2.model.model import Model
from openk2.ops.attention import reference_attention
from openk2.ops.attention_backends import BACKENDS
from openk2.optim.muonclip import MuonClip
from openk2.optim.qk_clip import qk_clip_
from openk2.parallel.placement import Flattened
from openk2.parallel.world import World
from openk2.protocols import ParameterSpec, QKGroup
from openk2.train.batch import supervised

NOPE, ROPE, VALUE, HEADS = SMALL.qk_nope_head_dim, SMALL.qk_rope_head_dim, SMALL.v_head_dim, SMALL.num_attention_heads


def attention_inputs(model: Model, given: Batch) -> list[tuple[Any, ...]]:
    """What each layer's attention is called with on this batch."""
    seen: list[tuple[Any, ...]] = []
    hooks = [
        block.self_attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs)) for block in model.layers
    ]
    micro = supervised(given, 100)[0]
    with torch.no_grad():
        model.log_probs(micro.input_ids, micro.targets, micro.layout)
    for hook in hooks:
        hook.remove()
    return seen


def maxima(model: Model, inputs: list[tuple[Any, ...]]) -> Tensor:
    """Each layer's maxima [L, H] on the same inputs: clipping a layer changes what the next ones are given."""
    with torch.no_grad():
        return torch.stack(
            [block.self_attn(*given)[1].max_scores for block, given in zip(model.layers, inputs, strict=True)]
        )


@pytest.mark.parametrize("q_lora_rank", [16, None], ids=["q_lora", "no_q_lora"])
def test_clipped_heads_come_to_tau_and_the_rest_stays(q_lora_rank):
    model = build(q_lora_rank=q_lora_rank, initializer_range=0.3)
    given = batch()
    inputs = attention_inputs(model, given)
    before, weights = maxima(model, inputs), snapshot(model)
    tau = float(before.flatten().sort().values[2:4].mean())  # four of six heads lie above
    clipped = before > tau
    assert 0 < int(clipped.sum()) < clipped.numel() and tau > 0
    result = take_step(model, make_muonclip(model, qk_clip_tau=tau), given, lr=0.0, bias_update_rate=0.0)
    torch.testing.assert_close(result.max_scores, before)
    gamma = result.report.gamma
    torch.testing.assert_close(gamma, torch.where(clipped, tau / before, 1.0))
    after = maxima(model, inputs)
    torch.testing.assert_close(after[clipped], torch.full_like(after[clipped], tau), rtol=1e-5, atol=1e-5)
    assert torch.equal(after[~clipped], before[~clipped])

    expected = dict(weights)
    for layer in range(SMALL.num_hidden_layers):
        prefix = f"layers.{layer}.self_attn."
        name = prefix + ("q_b_proj.weight" if q_lora_rank else "q_proj.weight")
        query = weights[name].clone().view(HEADS, NOPE + ROPE, -1)
        key_value = weights[prefix + "kv_b_proj.weight"].clone().view(HEADS, NOPE + VALUE, -1)
        for head in range(HEADS):
            query[head, :NOPE] *= gamma[layer, head].sqrt()
            query[head, NOPE:] *= gamma[layer, head]
            key_value[head, :NOPE] *= gamma[layer, head].sqrt()
        expected[name], expected[prefix + "kv_b_proj.weight"] = query.flatten(0, 1), key_value.flatten(0, 1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "q_b_proj.weight", "kv_b_proj.weight")):
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=0)
        else:  # the shared rotary key's rows in kv_a_proj_with_mqa among them
            assert torch.equal(tensor, weights[name]), name
    values = [
        model.layers[i].self_attn.kv_b_proj.weight.view(HEADS, -1, SMALL.kv_lora_rank)[:, NOPE:] for i in range(3)
    ]
    for layer, rows in enumerate(values):
        original = weights[f"layers.{layer}.self_attn.kv_b_proj.weight"].view(HEADS, -1, SMALL.kv_lora_rank)[:, NOPE:]
        assert torch.equal(rows, original)


def test_the_maximum_is_over_all_micro_batches():
    """The largest score of each head over four micro-batches decides, wherever it stands."""
    model = build(initializer_range=0.3)
    given = batch()
    single = [maxima(model, attention_inputs(model, part)) for part in given.chunks(1)]
    holders = torch.stack(single).argmax(0)
    assert len(holders.unique()) > 1  # no one micro-batch holds them all
    largest = torch.stack(single).amax(0)
    tau = float(largest.min()) * 0.9
    inputs = attention_inputs(model, given)
    result = take_step(model, make_muonclip(model, qk_clip_tau=tau), given, micro_rows=1, lr=0.0, bias_update_rate=0.0)
    torch.testing.assert_close(result.max_scores, largest, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.report.gamma, tau / largest, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maxima(model, inputs), torch.full_like(largest, tau), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("attention", ["tiled", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_scored_exactly_where_a_bound_exceeds_tau_and_nowhere_else(dtype, attention, recompute, monkeypatch):
    """Packed and accumulated: explicit fp64 scores decide alike, bounds lie above them, exact passes are as few."""
    exact_passes: list[Tensor] = []
    real = mla.exact_peaks
    monkeypatch.setattr(mla, "exact_peaks", lambda *given: exact_passes.append(given[0]) or real(*given))
    model, given = build(dtype=dtype, initializer_range=0.3), batch()
    model.attention, model.recompute = attention, recompute
    scored: list[tuple[Tensor, ...]] = []
    backend = BACKENDS[attention]
    attend = backend.attend

    def watched(q: Tensor, k: Tensor, v: Tensor, prepared: Any, scale: float) -> tuple[Tensor, Tensor]:
        scored.append((q.detach().double(), k.detach().double(), torch.tensor(scale)))
        return attend(q, k, v, prepared, scale)

    monkeypatch.setattr(backend, "attend", watched)
    micros = supervised(given, 1)
    model.qk_clip_tau = None
    take_step(model, make_muonclip(model, qk_clip_tau=None), given, micro_rows=1, lr=0.0, bias_update_rate=0.0)
    assert not exact_passes and len(scored) == 4 * SMALL.num_hidden_layers
    explicit = torch.stack([
        reference_attention(q, k, k, micros[index // 3].layout.starts, float(scale))[1]
        .masked_fill((micros[index // 3].layout.documents < 0)[:, None], -torch.inf)
        .amax((0, 2))
        for index, (q, k, scale) in enumerate(scored)
    ]).view(4, 3, HEADS)  # fmt: skip
    largest = explicit.amax(0).float()
    model.qk_clip_tau = tau = float(largest.flatten().sort().values[2:4].mean())
    result = take_step(model, make_muonclip(model, qk_clip_tau=tau), given, micro_rows=1, lr=0.0, bias_update_rate=0.0)
    margin = 0.01 * largest.abs() + (torch.log(torch.tensor(32.0)) if attention == "sdpa" else 1e-4)
    assert bool((result.score_bounds >= largest - 1e-4).all())
    assert bool((result.score_bounds <= largest + margin).all())
    assert torch.equal(result.report.gamma < 1, largest > tau)
    torch.testing.assert_close(result.report.gamma, (tau / largest).clamp(max=1), rtol=1e-4, atol=0)
    needed = int((explicit > tau).any(-1).sum())
    assert needed <= len(exact_passes) < 4 * SMALL.num_hidden_layers


def test_bf16_maxima_come_to_tau_as_near_as_bf16_is():
    model = build(dtype=torch.bfloat16, initializer_range=0.3)
    given = batch()
    inputs = attention_inputs(model, given)
    tau = float(maxima(model, inputs).min()) * 0.8
    model.qk_clip_tau = tau
    take_step(model, make_muonclip(model, qk_clip_tau=tau), given, lr=0.0, bias_update_rate=0.0)
    after = maxima(model, inputs)
    torch.testing.assert_close(after, torch.full_like(after, tau), rtol=0.02, atol=0.0)


def test_no_head_above_tau_and_no_tau_leave_the_weights_alone():
    model = build()
    before = snapshot(model)
    result = take_step(model, make_muonclip(model, qk_clip_tau=100.0), batch(), lr=0.0, bias_update_rate=0.0)
    assert bool((result.report.gamma == 1).all())
    result = take_step(model, make_muonclip(model, qk_clip_tau=None), batch(), lr=0.0, bias_update_rate=0.0)
    assert result.report.gamma is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_unusable_maxima_are_refused_in_one_line():
    groups = build().qk_groups()
    with pytest.raises(ValueError, match="maxima for 2 layers, expected 3"):
        qk_clip_(groups, torch.ones(2, HEADS), 100.0)
    with pytest.raises(ValueError, match="non-finite"):
        qk_clip_(groups, torch.full((3, HEADS), float("inf")), 100.0)


@pytest.mark.parametrize("shared", [False, True], ids=["multi-head", "shared key"])
def test_plain_attention_is_clipped_too(shared):
    """Half of the correction to query and key each, or all of it to the query where heads share keys."""
    generator = torch.Generator().manual_seed(0)
    heads, width = 3, 4
    query = torch.randn(heads * width, 8, generator=generator)
    key = torch.randn(width if shared else heads * width, 8, generator=generator)
    x = torch.randn(10, 8, generator=generator)

    def largest() -> Tensor:
        q, k = (x @ query.T).unflatten(1, (heads, width)), (x @ key.T).unflatten(1, (-1, width))
        return torch.einsum("qhd,khd->hqk", q, k.expand(-1, heads, -1)).amax((1, 2))

    before = largest()
    tau = float(before.sort().values[:2].mean())
    group = (
        QKGroup.shared_key("a", query, num_heads=heads)
        if shared
        else QKGroup.multi_head("a", query, key, num_heads=heads)
    )
    gamma = qk_clip_([group], before[None], tau)
    assert int((gamma < 1).sum()) == 2
    torch.testing.assert_close(largest(), before.clamp(max=tau))


def test_maxima_of_other_heads_and_keys_of_other_heads_are_refused():
    model = build()
    optimizer = make_muonclip(model)
    with pytest.raises(ValueError, match=r"max_scores of shape \(1, 8\), expected \[layers, heads\] \(3, 2\)"):
        optimizer.step(max_scores=torch.ones(1, 8))
    for given in ([[1.0]], 3.0):
        with pytest.raises(ValueError, match="expected a tensor"):
            optimizer.step(max_scores=given)
    query, key = (nn.Parameter(torch.randn(8, 3)) for _ in range(2))
    for make, said in (
        (lambda: QKGroup.multi_head("a", query, torch.randn(4, 3), num_heads=4), "8 query rows and 4 key rows"),
        (lambda: QKGroup.shared_key("a", query, num_heads=3), "8 rows, expected 3 heads of 2"),
        (lambda: QKGroup.shared_key("a", query, num_heads=0), "saw num_heads 0"),
        (lambda: QKGroup.multi_head("a", query, key, num_heads="4"), "saw num_heads '4'"),
        (
            lambda: QKGroup.latent("a", query, key, num_heads=5, nope_dim=4, rope_dim=4, value_dim=4),
            "8 rows, expected 5 heads of 8",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            make()
    specs = [ParameterSpec(name, p, "muon", "attention", (1, 8, 3)) for name, p in (("q", query), ("k", key))]
    four = QKGroup.multi_head("four", query, key, num_heads=4)
    for groups, said in (
        ([four, QKGroup.shared_key("eight", query, num_heads=8)], "eight: saw 8 heads, expected 4 as in four"),
        ([QKGroup.multi_head("twice", query, query, num_heads=4)], "twice: saw rows that are clipped twice"),
        ([QKGroup.shared_key("other", torch.randn(8, 3), num_heads=4)], "other: saw a weight that no spec declares"),
    ):
        with pytest.raises(ValueError, match=said):
            MuonClip(specs, groups)


@pytest.mark.parametrize("processes", [2, 3, 5, 40])
def test_runs_of_elements_are_scaled_as_the_whole_weight(processes):
    """A flat buffer cut within rows, within one row twice, and between weights; each process scales its own piece."""
    generator = torch.Generator().manual_seed(0)
    norm, query, key_value = (torch.randn(shape, generator=generator) for shape in ((5,), (12, 7), (10, 4)))
    group = QKGroup.latent("layer", query, key_value, num_heads=2, nope_dim=4, rope_dim=2, value_dim=1)
    weights, scores, before = [norm, query, key_value], torch.tensor([[50.0, 7.0]]), query.clone()
    flat = torch.cat([weight.flatten() for weight in weights])
    size = -(-len(flat) // processes)
    flat = torch.cat([flat, flat.new_zeros(size * processes - len(flat))])
    for rank, piece in enumerate(flat.split(size)):
        qk_clip_([group], scores, 10.0, Flattened(World(rank, processes), weights, piece))
    qk_clip_([group], scores, 10.0)  # the whole ones
    assert torch.equal(flat[: 5 + 84 + 40], torch.cat([weight.flatten() for weight in weights]))
    assert not torch.equal(query, before)
