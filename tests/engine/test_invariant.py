"""The deterministic mode: a request's tokens and log-probabilities, bit for bit, in any company and in training."""

from __future__ import annotations

import random

import pytest
import torch
from small_training import batch, build, make_muonclip, take_step
from test_engine import make_model

from openk2.engine import Engine, EngineSettings, Request
from openk2.model.model import Model
from openk2.protocols import Completion, SamplingParams

PARAMS = SamplingParams(max_new_tokens=24, temperature=1.0, seed=3)


def invariant(**changes: int) -> EngineSettings:
    return EngineSettings(attention="invariant", **changes)


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(dtype=torch.bfloat16, max_position_embeddings=400)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(0)
    made = [[rng.randrange(300) for _ in range(n)] for n in (1, 5, 63, 64, 65, 130, 300, 17)]
    return [*made, [*made[5], 7, 8], [*made[6][:100], *([3] * 30)]]


@pytest.fixture(scope="module")
def alone(model, prompts) -> list[Completion]:
    """Each by itself, in an engine of its own."""
    found = []
    for index, prompt in enumerate(prompts):
        engine = Engine(model, invariant())
        sequence = engine.submit(Request(tuple(prompt), PARAMS, index))
        while engine.has_work:
            engine.step()
        found.append(sequence.completion())
    return found


def assert_bits(found: list[Completion], expected: list[Completion]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert one.logprobs == other.logprobs  # floats, compared exactly
        assert (one.experts == other.experts).all()


@pytest.mark.parametrize(
    "settings",
    [invariant(), invariant(step_tokens=23), invariant(max_running=2), invariant(cache_tokens=448, step_tokens=90)],
    ids=["together", "small_pieces", "two_at_once", "preempted"],
)
def test_bits_do_not_depend_on_company_pieces_or_preemption(model, prompts, alone, settings):
    engine = Engine(model, settings)
    sequences = [engine.submit(Request(tuple(p), PARAMS, index)) for index, p in enumerate(prompts)]
    while engine.has_work:
        engine.step()
    engine.check()
    assert_bits([sequence.completion() for sequence in sequences], alone)
    if settings.cache_tokens:
        assert any(sequence.num_preempted for sequence in sequences)


def test_bits_do_not_depend_on_prefix_hits(model, prompts, alone):
    engine = Engine(model, invariant())
    for _ in range(2):
        assert_bits(engine(prompts, PARAMS), alone)
    again = engine.submit(Request(tuple(prompts[6]), PARAMS, 6))
    engine.step()
    assert again.num_cached == len(prompts[6]) - 1


def test_the_trainers_forward_gives_the_same_bits(model, prompts, alone):
    """Packed with others in a row, in evaluation and in training mode, with gradients and recompute."""
    trainer = Model(model.config, compute_dtype=torch.bfloat16)
    trainer.load_state_dict(model.state_dict())
    trainer.attention, trainer.recompute = "invariant", True
    whole = [[*prompt, *c.ids] for prompt, c in zip(prompts, alone, strict=True)]
    scores = Engine(model, invariant()).score(whole)
    for prompt, completion, found in zip(prompts, alone, scores, strict=True):
        assert tuple(map(float, found[len(prompt) - 1 :])) == completion.logprobs
    from openk2.model.layout import Layout

    ids = torch.tensor([id for sequence in whole for id in sequence])[None]
    positions = torch.cat([torch.arange(len(sequence)) for sequence in whole])[None]
    targets = torch.cat([torch.tensor([*sequence[1:], -1]) for sequence in whole])[None]
    found, _ = trainer.train().log_probs(ids, targets, Layout.from_positions(positions))
    place = 0
    for sequence, score in zip(whole, scores, strict=True):
        assert found[0, place : place + len(sequence) - 1].tolist() == score.tolist()
        place += len(sequence)
    found.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in trainer.parameters() if p.grad is not None)


def test_training_in_this_mode_takes_nearly_the_same_step():
    """Its gradients are those of the tiled attention but for the forward pass's rounding."""
    steps = {}
    for attention in ("tiled", "invariant"):
        model = build(0, torch.bfloat16)
        model.attention = attention
        steps[attention] = take_step(model, make_muonclip(model), batch())
    assert steps["invariant"].loss == pytest.approx(steps["tiled"].loss, rel=2e-3)
    norms = [step.report.grad_norm for step in steps.values()]
    assert norms[1] == pytest.approx(norms[0], rel=3e-2)


def test_the_fast_mode_does_not_keep_that_promise(model, prompts, alone):
    """Or this file would prove nothing."""
    found = Engine(model)(prompts, PARAMS)
    assert any(one.logprobs != other.logprobs for one, other in zip(found, alone, strict=True))


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="saw invariant attention for a model that does not compute in bf16"):
        Engine(make_model(), invariant())
    model = make_model()
    model.attention = "invariant"
    with pytest.raises(ValueError, match="saw invariant for a model that computes in float32, expected bfloat16"):
        model(torch.tensor([[1, 2]]))
