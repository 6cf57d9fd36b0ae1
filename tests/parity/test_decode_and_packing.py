"""One model, several ways to run it: token by token from latents, packed rows, padding, replayed routing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from openk2.config.model import ModelConfig, YarnConfig
from openk2.engine import Request, Sequence, runner
from openk2.engine.block_pool import BLOCK
from openk2.engine.latent_store import PlainStore
from openk2.engine.runner import run
from openk2.engine.scheduler import Piece
from openk2.model.layout import Layout
from openk2.model.model import Model
from openk2.protocols import SamplingParams

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=40,
    intermediate_size=64,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=3,
    n_routed_experts=8,
    num_experts_per_tok=2,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=6,
    v_head_dim=10,
    q_lora_rank=24,
    max_position_embeddings=64,
    initializer_range=0.15,
)
VARIANTS = {
    "plain": {},
    "yarn": {"rope_scaling": YarnConfig(factor=4.0, original_max_position_embeddings=8)},
    "no_q_lora": {"q_lora_rank": None},
    "groups": {"n_group": 4, "topk_group": 2},
}
LENGTHS = (9, 1, 14, 5)


def build(variant: str = "plain") -> Model:
    model = Model(dataclasses.replace(CONFIG, **VARIANTS[variant])).init_weights(3)
    generator = torch.Generator().manual_seed(4)
    for router in model.routers():
        router.e_score_correction_bias.normal_(0.0, 0.1, generator=generator)
    return model


def documents(seed: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(CONFIG.vocab_size, (n,), generator=generator) for n in LENGTHS]


def packed(docs: list[torch.Tensor], padding: int = 0) -> tuple[torch.Tensor, torch.Tensor, Layout]:
    """All documents in one row, `padding` unused places after them: ids, targets (-1: none) and layout."""
    pad = torch.zeros(padding, dtype=torch.int64)
    ids = torch.cat((*docs, pad))[None]
    positions = torch.cat((*(torch.arange(len(d)) for d in docs), torch.arange(padding)))[None]
    targets = torch.cat((*(torch.cat((d[1:], torch.tensor([-1]))) for d in docs), pad - 1))[None]
    unused = torch.arange(ids.shape[1])[None] >= ids.shape[1] - padding
    return ids, targets, Layout.from_positions(positions, unused)


def read_in_pieces(model: Model, docs: list[torch.Tensor], ends: list[list[int]]) -> list[list[torch.Tensor]]:
    """Logits after each document's piece that ends at `ends[step][row]`, step by step, and experts, by row."""
    store = PlainStore(model.config, len(docs) * BLOCK, model.compute_dtype)
    store.write(0, torch.arange(len(docs) * BLOCK), torch.full((len(docs) * BLOCK, CONFIG.latent_dim), 50.0))  # stale
    sequences = [
        Sequence(Request((), SamplingParams()), 0, None, np.random.default_rng(0), blocks=[row])
        for row in range(len(docs))
    ]
    found: list[list[torch.Tensor]] = []
    for step in ends:
        pieces = []
        for sequence, doc, end in zip(sequences, docs, step, strict=True):
            first, sequence.tokens = len(sequence.tokens), doc[:end].tolist()
            pieces.append(Piece(sequence, first, end))
        logits, chosen = run(model, store, pieces)
        found += [[*logits], [*chosen.transpose(0, 1)]]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_reading_in_pieces_equals_the_full_forward(variant, monkeypatch):
    """Beginnings, further pieces and single tokens, of sequences of different lengths together; further pieces with
    their latents unfolded and without."""
    model = build(variant).eval()
    docs = [d for d in documents() if len(d) > 4]
    full = [model(doc[None])[0] for doc in docs]
    full_chosen = [model.hidden_states(doc[None])[1].chosen for doc in docs]
    for short in (0, 64):
        monkeypatch.setattr(runner, "SHORT", short)
        for ends in ([[3, 3, 3], [4, 4, 4], [5, 5, 5]], [[1, 6, 2], [5, 9, 3], [9, 14, 5]], [[9, 14, 5]]):
            steps = read_in_pieces(model, docs, ends)
            for at, step in enumerate(ends):
                for row, end in enumerate(step):
                    torch.testing.assert_close(steps[2 * at][row], full[row][end - 1], rtol=2e-5, atol=2e-5)
                    assert torch.equal(
                        steps[2 * at + 1][row].sort(-1).values, full_chosen[row][:, end - 1].sort(-1).values
                    )


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_equals_separate(variant, padding):
    """Log-probabilities, balance loss, counts, largest scores and gradients."""
    together, apart = build(variant), build(variant)
    docs = documents()
    ids, targets, layout = packed(docs, padding)
    log_probs, stats = together.log_probs(ids, targets, layout)
    (-log_probs.sum() + 0.3 * stats.balance_loss).backward()

    total, counts, largest, pieces = sum(LENGTHS), 0, torch.full((3, 3), -torch.inf), []
    balance = torch.zeros(())
    for doc in docs:
        wanted = torch.cat((doc[1:], torch.tensor([-1])))[None]
        alone, seen = apart.log_probs(doc[None], wanted)
        (-alone.sum() + 0.3 * seen.balance_loss * len(doc) / total).backward()
        pieces.append(alone[0].detach())
        counts = counts + seen.expert_counts
        largest = torch.maximum(largest, seen.max_scores)
        balance = balance + seen.balance_loss.detach() * len(doc) / total

    torch.testing.assert_close(log_probs[0, :total].detach(), torch.cat(pieces), rtol=1e-5, atol=1e-5)
    assert not log_probs[0, total:].any()
    torch.testing.assert_close(stats.balance_loss.detach(), balance, rtol=1e-5, atol=1e-6)
    assert torch.equal(stats.expert_counts, counts)
    met = [total] * (CONFIG.num_moe_layers - 1) + [total - len(docs)]  # nothing is read from a document's last token
    assert stats.expert_counts.sum(1).tolist() == [tokens * CONFIG.num_experts_per_tok for tokens in met]
    if not padding:  # padding's own scores may be the largest, which only makes QK-Clip look twice
        torch.testing.assert_close(stats.max_scores, largest, rtol=1e-5, atol=1e-5)
    for (name, a), b in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert float((a.grad - b.grad).norm()) <= 1e-5 * float(b.grad.norm()), name


@pytest.mark.parametrize("wanted", [[3, 4, 11, 28], []])
def test_states_that_are_read_equal_those_of_the_whole_pass(wanted):
    """Values, experts, replayed routing and gradients, where the last feed-forward runs on a few tokens or on none."""
    whole, few = build("plain"), build("plain")
    ids, _, layout = packed(documents(), 0)
    read = torch.tensor(wanted, dtype=torch.int64)
    hidden, stats = whole.hidden_states(ids, layout)
    some, seen = few.hidden_states(ids, layout, read=read)
    torch.testing.assert_close(some, hidden[read], rtol=1e-6, atol=1e-6)
    rest = torch.ones(ids.numel(), dtype=torch.bool)
    rest[read] = False
    assert torch.equal(seen.chosen[:-1], stats.chosen[:-1])
    assert torch.equal(seen.chosen[-1, read].sort(-1).values, stats.chosen[-1, read].sort(-1).values)
    assert bool((seen.chosen[-1, rest] == -1).all())
    assert torch.equal(seen.max_scores, stats.max_scores)
    replayed, _ = few.hidden_states(ids, layout, read=read, chosen=stats.chosen.flip(2))
    torch.testing.assert_close(replayed, hidden[read], rtol=1e-5, atol=1e-5)
    towards = torch.randn(some.shape, generator=torch.Generator().manual_seed(8))
    (hidden[read] * towards).sum().backward()
    (some * towards).sum().backward()
    for (name, a), b in zip(whole.named_parameters(), few.parameters(), strict=True):
        expected = torch.zeros_like(a) if a.grad is None else a.grad
        found = torch.zeros_like(a) if b.grad is None else b.grad
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm()), name


def test_rows_of_a_batch_do_not_mix():
    model = build().eval()
    ids = torch.randint(CONFIG.vocab_size, (3, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[1], model(ids[1:2])[0], rtol=1e-5, atol=1e-5)


def test_replayed_routing_is_used_and_equal_when_it_is_the_models_own():
    model = build().eval()
    ids = documents()[2][None]
    with torch.no_grad():
        hidden, stats = model.hidden_states(ids)
        again, same = model.hidden_states(ids, chosen=stats.chosen)
        other, moved = model.hidden_states(ids, chosen=(stats.chosen + 1) % CONFIG.n_routed_experts)
    assert torch.equal(hidden, again) and torch.equal(stats.expert_counts, same.expert_counts)
    assert not torch.allclose(hidden, other)
    assert torch.equal(moved.chosen, (stats.chosen + 1) % CONFIG.n_routed_experts)


def test_layout_from_positions():
    layout = Layout.from_positions(
        torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 0, 1]]), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    )
    assert layout.starts.tolist() == [[0, 0, 0, 3, 3], [0, 1, 1, 3, 3]]
    assert layout.documents.tolist() == [[0, 0, 0, 1, 1], [2, 3, 3, -1, -1]]
    whole = Layout.whole_rows(2, 3)
    again = Layout.from_positions(whole.positions)
    assert torch.equal(whole.starts, again.starts) and torch.equal(whole.documents, again.documents)
