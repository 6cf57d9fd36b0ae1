"""The shared step: accumulation, packing, the router's bias, and validation that leaves no trace."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_training import batch, build, documents, make_muonclip, same_tensors, snapshot, take_step
from torch import Tensor

from openk2.data.batch import Batch
from openk2.data.packing import Piece, fill_rows, pack_documents
from openk2.model import norm
from openk2.model.mla import MultiHeadLatentAttention
from openk2.model.model import Model
from openk2.train.batch import MicroBatch, cross_entropy, supervised, to_tensors
from openk2.train.step import StepResult, train_step
from openk2.train.validation import copy_loss, mean_loss


def gradients(given: Batch, micro_rows: int, **changes: float) -> tuple[Model, StepResult, dict[str, Tensor]]:
    """A fresh model after one step that moves nothing, and the gradients of that step, unclipped."""
    model = build()
    settings = {"lr": 0.0, "bias_update_rate": 0.0} | changes
    result = take_step(model, make_muonclip(model, adam_grad_clip=1e9, qk_clip_tau=1e9), given, micro_rows, **settings)
    return model, result, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_step(left: tuple, right: tuple) -> None:
    _, first, grads = left
    _, second, other = right
    assert first.tokens == second.tokens and torch.equal(first.expert_counts, second.expert_counts)
    assert first.loss == pytest.approx(second.loss, rel=1e-6)
    assert first.balance_loss == pytest.approx(second.balance_loss, rel=1e-6)
    torch.testing.assert_close(first.max_scores, second.max_scores, rtol=1e-5, atol=1e-6)
    for name in grads:
        assert float((grads[name] - other[name]).norm() / grads[name].norm()) < 1e-5, name


def uneven() -> Batch:
    """Four rows, the last of them mostly padding: micro-batches differ in tokens and in counted targets."""
    return pack_documents(documents(3, (30, 7, 20, 31, 12)), 32)


@pytest.mark.parametrize("micro_rows", [1, 2, 3])
def test_accumulation_is_the_big_batch(micro_rows):
    assert_same_step(gradients(uneven(), 4), gradients(uneven(), micro_rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}, {"first_k_dense_replace": 3}], ids=str)
def test_recompute_changes_no_bit_and_counts_nothing_twice(dtype, changes):
    """Over packed micro-batches: gradients, loss, maxima and experts' tokens, and the parameters after the step."""
    found = []
    for recompute in (False, True):
        model = build(dtype=dtype, **changes)
        model.recompute = recompute
        result = take_step(model, make_muonclip(model), uneven(), micro_rows=2)
        found.append((result, {name: p.grad for name, p in model.named_parameters()}, snapshot(model)))
    (kept, *tensors), (again, *others) = found
    assert kept.loss == again.loss and kept.balance_loss == again.balance_loss
    assert torch.equal(kept.expert_counts, again.expert_counts) and torch.equal(kept.max_scores, again.max_scores)
    assert all(same_tensors(left, right) for left, right in zip(tensors, others, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
def test_norms_and_projections_run_twice_with_recompute_and_once_without(recompute, monkeypatch):
    runs = {"norm": 0, "keys and values": 0}

    def counted(function, name):
        def run(*given):
            runs[name] += 1
            return function(*given)

        return run

    monkeypatch.setattr(norm, "rms_norm", counted(norm.rms_norm, "norm"))
    attention = MultiHeadLatentAttention
    monkeypatch.setattr(attention, "keys_values", counted(attention.keys_values, "keys and values"))
    model = build()
    model.recompute = recompute
    take_step(model, make_muonclip(model), uneven(), 4)
    # Four norms a layer; the last one, whose result the head reads, is kept.
    assert runs == {"norm": 12 * (1 + recompute) + 1, "keys and values": 3 * (1 + recompute)}


@pytest.mark.parametrize("attention", ["tiled", "sdpa"])
def test_padding_has_no_part_in_the_largest_scores(attention):
    """Whatever stands there, though padding attends to itself."""
    model = build(initializer_range=0.5)
    model.attention = attention
    (micro,) = supervised(uneven(), 4)
    padding = micro.layout.documents < 0
    assert bool(padding.any())
    found = []
    for token in range(0, 300, 10):
        with torch.no_grad():
            found.append(model.hidden_states(micro.input_ids.masked_fill(padding, token), micro.layout)[1])
    assert all(torch.equal(found[0].max_scores, stats.max_scores) for stats in found)
    assert all(torch.equal(found[0].score_bounds, stats.score_bounds) for stats in found)


def test_parameters_after_an_accumulated_step():
    """With Newton-Schulz in fp32 too: in bf16 a last-bit difference of a gradient becomes 2^-8 of an update."""
    start, whole, parts = build(), build(), build()
    take_step(whole, make_muonclip(whole, ns_dtype="fp32"), uneven(), 4, lr=1e-3)
    take_step(parts, make_muonclip(parts, ns_dtype="fp32"), uneven(), 1, lr=1e-3)
    with torch.no_grad():
        for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
            assert float((one - start.get_parameter(name)).norm()) > 1e-4 * float(one.norm())
            assert float((one - other).norm()) < 1e-6 * float(one.norm()), name
    for left, right in zip(whole.routers(), parts.routers(), strict=True):
        assert torch.equal(left.e_score_correction_bias, right.e_score_correction_bias)
        assert left.e_score_correction_bias.any()


def test_packed_is_separate():
    """One row of many documents against a row each with padding: loss, balance loss, gradients, loads, maxima."""
    docs = documents(5, (14, 3, 22, 9))
    packed = pack_documents(docs, 48)
    rows = [[Piece(doc, None)] for doc in docs]
    separate = fill_rows(rows, 24)
    assert packed.num_rows == 1 and separate.num_rows == 4 and packed.num_loss_tokens == 44
    left, right = gradients(packed, 1, balance_loss_alpha=1.0), gradients(separate, 4, balance_loss_alpha=1.0)
    assert_same_step(left, right)
    assert left[1].balance_loss > 0.5
    assert_same_step(left, gradients(separate, 1, balance_loss_alpha=1.0))


def test_the_loss_is_the_mean_over_counted_targets():
    model, result, _ = gradients(uneven(), 2)
    given = supervised(uneven(), 4)[0]
    with torch.no_grad():
        log_probs, _ = model.log_probs(given.input_ids, given.targets, given.layout)
    assert result.loss == pytest.approx(-float(log_probs.sum()) / uneven().num_loss_tokens, rel=1e-6)
    assert result.tokens == int((uneven().document_ids >= 0).sum())


def test_the_balance_loss_is_part_of_the_gradient_as_weighted():
    _, _, without = gradients(batch(), 2, balance_loss_alpha=0.0)
    _, _, once = gradients(batch(), 2, balance_loss_alpha=1.0)
    _, _, twice = gradients(batch(), 2, balance_loss_alpha=2.0)
    name = "layers.2.mlp.gate.weight"
    assert float((once[name] - without[name]).norm()) > 0
    torch.testing.assert_close(twice[name] - without[name], 2 * (once[name] - without[name]), rtol=1e-3, atol=1e-6)


def test_the_routers_bias_moves_by_the_steps_counts_and_only_when_the_step_is_taken():
    model = build()
    optimizer = make_muonclip(model)
    result = take_step(model, optimizer, batch(), 1, bias_update_rate=0.25)
    for router, counts in zip(model.routers(), result.expert_counts.float(), strict=True):
        direction = torch.sign(counts.mean() - counts)
        torch.testing.assert_close(router.e_score_correction_bias, 0.25 * (direction - direction.mean()))
    loss_tokens = int((batch().targets >= 0).sum())
    # two experts a token: every real token's in the first MoE layer, in the last one those that the loss reads
    assert result.expert_counts.sum(-1).tolist() == [128 * 2, loss_tokens * 2]

    before = snapshot(model)
    whole = supervised(batch(1), 4)[0]
    broken = MicroBatch(
        whole.input_ids, whole.targets, whole.weights, whole.example_ids, whole.layout, lambda p: p.sum() * float("nan")
    )
    settings = {"lr": 1e-2, "balance_loss_alpha": 0.0, "bias_update_rate": 0.25}
    assert train_step(model, optimizer, [broken], **settings).report.skipped
    assert same_tensors(before, snapshot(model))
    assert not train_step(model, optimizer, [whole], **settings | {"bias_update_rate": 0.0}).report.skipped
    for index, router in enumerate(model.routers()):
        assert torch.equal(
            router.e_score_correction_bias, before[f"layers.{index + 1}.mlp.gate.e_score_correction_bias"]
        )


def test_the_next_step_starts_from_no_gradient():
    """The same step twice at rate 0 has the same gradients: nothing is carried over."""
    model = build()
    optimizer = make_muonclip(model, adam_grad_clip=1e9, qk_clip_tau=1e9)
    found = []
    for _ in range(2):
        take_step(model, optimizer, batch(), 2, lr=0.0, bias_update_rate=0.0)
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_validation_is_the_mean_loss_and_leaves_no_trace(training):
    model = build().train(training)
    batches = [batch(1), uneven()]
    before = snapshot(model)
    found = mean_loss(model, batches)
    assert model.training is training and same_tensors(before, snapshot(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    total = sum(gradients(part, 4)[1].loss * part.num_loss_tokens for part in batches)
    assert found == pytest.approx(total / sum(part.num_loss_tokens for part in batches), rel=1e-6)


def test_validation_without_a_counted_target_says_so():
    nothing = dataclasses.replace(uneven(), weights=np.zeros_like(uneven().weights))
    with pytest.raises(ValueError, match="saw no target that counts"):
        mean_loss(build(), [nothing])


class Copier(torch.nn.Module):
    """Is sure of whatever followed this token `period` tokens ago, and of nothing else."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period

    def log_probs(self, input_ids: Tensor, targets: Tensor) -> tuple[Tensor, None]:
        said = torch.nn.functional.pad(targets, (self.period, 0), value=-1)[:, : targets.shape[1]]
        return torch.where(said == targets, 0.0, -9.0), None


def test_the_copy_probe_tells_a_model_that_copies_from_one_that_does_not():
    fresh = build()
    assert copy_loss(fresh, 300) == pytest.approx(np.log(300), rel=0.1) and fresh.training
    assert copy_loss(Copier(16), 31, length=16) == 0.0
    assert copy_loss(Copier(15), 31, length=16) > 7.0


def test_a_micro_batch_of_padding_alone_adds_nothing():
    padded, empty = uneven(), next(iter(uneven().chunks(1)))
    empty = dataclasses.replace(
        empty,
        weights=np.zeros_like(empty.weights),
        document_ids=np.full_like(empty.document_ids, -1),
        targets=np.full_like(empty.targets, -1),
    )
    model = build()
    total = float(padded.weights.sum())
    parts = [to_tensors(part, lambda weights: cross_entropy(weights, total)) for part in (padded, empty)]
    result = train_step(model, make_muonclip(model), parts, lr=0.0, balance_loss_alpha=1e-2, bias_update_rate=0.0)
    assert result.loss == pytest.approx(gradients(padded, 4)[1].loss, rel=1e-6)
    assert result.balance_loss == pytest.approx(gradients(padded, 4)[1].balance_loss, rel=1e-6)


def test_validation_between_steps_changes_no_step():
    """Counts, maxima and weights of training are the same whether or not the model was evaluated in between."""
    plain, watched = build(), build()
    first, second = make_muonclip(plain), make_muonclip(watched)
    for step in range(2):
        one = take_step(plain, first, batch(step), 2)
        mean_loss(watched, [batch(7)])
        other = take_step(watched, second, batch(step), 2)
        mean_loss(watched, [batch(8)])
        assert torch.equal(one.expert_counts, other.expert_counts) and torch.equal(one.max_scores, other.max_scores)
    assert same_tensors(snapshot(plain), snapshot(watched))


def test_weights_of_targets_count_in_proportion():
    given = batch()
    weights = given.weights * np.where(np.arange(32) % 2, 0.5, 1.0).astype(np.float32)
    weighted = Batch(given.input_ids, given.targets, given.document_ids, given.positions, weights, given.example_ids)
    model = build()
    micro = to_tensors(weighted, lambda w: cross_entropy(w, float(w.sum())))
    with torch.no_grad():
        log_probs, _ = model.log_probs(micro.input_ids, micro.targets, micro.layout)
    expected = -(log_probs.double() * torch.from_numpy(weights)).sum() / weights.sum()
    assert float(micro.objective(log_probs)) == pytest.approx(float(expected), rel=1e-5)
    assert take_step(model, make_muonclip(model), weighted, 1).loss == pytest.approx(float(expected), rel=1e-5)
