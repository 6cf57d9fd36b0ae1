"""Generation and scoring from the latent cache against the plain forward, token by token."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from small_checkpoint import small_codec
from small_training import SMALL, batch, build, make_muonclip, same_tensors, snapshot, take_step

from openk2.chat.grammar import Lexicon, TurnGrammar
from openk2.engine import Engine, scoring
from openk2.engine import engine as engine_module
from openk2.model.model import Model
from openk2.protocols import Completion, SamplingParams

LIMIT = SMALL.max_position_embeddings
PROMPTS = [[5, 9, 200, 31], [7], [5, 9, 200, 31], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [299, 0]]


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: int) -> Model:
    """Weights large enough that the next token is not nearly the same for every prefix, and a bias that routes."""
    model = build(seed, dtype, initializer_range=0.4, **changes)
    for router in model.routers():
        router.e_score_correction_bias.copy_(torch.tensor([0.1, -0.1, 0.05, -0.05]))
    return model.eval()


@torch.no_grad()
def step_by_step(model: Model, prompt: Sequence[int], params: SamplingParams, stream: int = 0) -> Completion:
    """The slow twin: the whole sequence through the model for each token, and one draw of numpy's own."""
    ids, found, log_probs, experts = list(prompt), [], [], []
    uniform = np.random.Generator(np.random.Philox(key=[params.seed, stream])).random(params.max_new_tokens)
    while True:
        hidden, stats = model.hidden_states(torch.tensor([ids]))
        row = model.logits(hidden[-1:])[0].log_softmax(-1)
        if params.temperature == 0:
            token = int(row.argmax())
        else:
            tempered = (row / params.temperature).softmax(-1).double().numpy()
            order = np.argsort(-tempered, kind="stable")
            kept = int(np.searchsorted(np.cumsum(tempered[order]), params.top_p)) + 1  # the first to reach top_p
            tempered[order[kept:]] = 0
            mass = np.cumsum(tempered)
            token = int(np.searchsorted(mass, uniform[len(found)] * mass[-1], side="right"))
        found.append(token)
        log_probs.append(float(row[token]))
        experts.append(stats.chosen[:, -1].numpy())
        ids.append(token)
        if token in params.stop_ids:
            return Completion(tuple(found), tuple(log_probs), "stop", np.stack(experts))
        if len(found) == params.max_new_tokens or len(ids) == model.config.max_position_embeddings:
            return Completion(tuple(found), tuple(log_probs), "length", np.stack(experts))


def assert_same(found: Completion, expected: Completion) -> None:
    assert found.ids == expected.ids and found.finish_reason == expected.finish_reason
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=1e-4, atol=1e-4)
    assert found.experts is not None and expected.experts is not None
    assert found.experts.shape == (len(found.ids), SMALL.num_moe_layers, SMALL.num_experts_per_tok)
    # Which experts, not in which order the top-k gives them.
    assert np.array_equal(np.sort(found.experts, -1), np.sort(expected.experts, -1))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_new_tokens=12),
        SamplingParams(max_new_tokens=12, temperature=1.0, seed=3),
        SamplingParams(max_new_tokens=12, temperature=0.7, top_p=0.9, seed=4),
    ],
    ids=["greedy", "sampled", "top_p"],
)
def test_generation_is_the_full_forward_step_by_step(params):
    model = make_model()
    found = Engine(model)(PROMPTS, params)
    for index, prompt in enumerate(PROMPTS):
        assert_same(found[index], step_by_step(model, prompt, params, index))
    assert len({completion.ids for completion in found}) == (4 if params.temperature == 0 else 5)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each step reads, as they come."""
    read: list[int] = []
    run = engine_module.run

    def seen(model, store, pieces):
        read.append(sum(piece.last - piece.first for piece in pieces))
        return run(model, store, pieces)

    monkeypatch.setattr(engine_module, "run", seen)
    return read


def test_equal_prompts_are_read_once(monkeypatch):
    engine = Engine(make_model())
    read = watched(monkeypatch)
    prompt = [*range(1, 41)]
    found = engine([prompt] * 6 + [[4, 5, 6]], SamplingParams(max_new_tokens=3, temperature=1.0))
    # Both prompts; then the others' last token, after a copy of what stands before it, while those two go on.
    assert read[:3] == [40 + 3, 5 + 2, 7]
    assert len({completion.ids for completion in found[:6]}) > 1  # equal prompts draw from streams of their own
    read.clear()
    again = engine([prompt] * 6 + [[4, 5, 6]], SamplingParams(max_new_tokens=3, temperature=1.0))
    assert read == [7, 7, 7] and [c.ids for c in again] == [c.ids for c in found]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_next_turn_is_read_from_where_the_last_one_stopped(temperature, monkeypatch):
    """Continued and fresh prompts in one call, with rests of different lengths, two of them from one sequence."""
    model = make_model()
    engine, params = Engine(model), SamplingParams(max_new_tokens=6, temperature=temperature, seed=1)
    stop = engine(PROMPTS, params)[4].ids[2]  # so that one sequence ends before the others
    engine.sync(model)
    first = engine(PROMPTS, dataclasses.replace(params, stop_ids=(stop,)))
    so_far = [[*prompt, *completion.ids] for prompt, completion in zip(PROMPTS, first, strict=True)]
    prompts = [
        [50, 51],  # fresh
        [*so_far[1], 60, 61, 62],
        so_far[3],  # its last token alone is unread
        [*so_far[4], 70],
        [*so_far[3], 80, 81, 82, 83],
        so_far[1][:-1],  # read to its end already, so that no logits are kept of it
    ]
    read = watched(monkeypatch)
    for rests in (2 + 4 + 1 + 2 + 5 + 1, 6):  # what was sampled last is unread; the second time round all was read
        read.clear()
        found = engine(prompts, params)
        for index, prompt in enumerate(prompts):
            assert_same(found[index], step_by_step(model, prompt, params, index))
        assert read[0] == rests
    engine.check()


def test_nothing_read_before_new_weights_is_used_after_them():
    model = make_model()
    engine, params = Engine(model), SamplingParams(max_new_tokens=4)
    first = engine(PROMPTS[:1], params)[0]
    longer = [*PROMPTS[0], *first.ids, 17]
    other = make_model(seed=5)
    engine.sync(other)
    assert_same(engine([longer], params)[0], step_by_step(other, longer, params))


def test_what_a_sequence_draws_does_not_depend_on_its_company():
    """Sequence i of a call: the same tokens alone, in other company, and when others end early."""
    engine = Engine(make_model())
    params = SamplingParams(max_new_tokens=10, temperature=1.0, seed=11)
    together = engine(PROMPTS, params)
    assert [c.ids for c in engine(PROMPTS[:1], params)] == [together[0].ids]
    other = engine([[8, 8, 8], [3] * 20, PROMPTS[2], [6]], params)
    assert other[2].ids == together[2].ids and other[1].ids != together[1].ids
    stop = together[0].ids[2]
    ended = engine(PROMPTS, SamplingParams(max_new_tokens=10, temperature=1.0, seed=11, stop_ids=(stop,)))
    for before, after in zip(together, ended, strict=True):
        cut = before.ids.index(stop) + 1 if stop in before.ids else 10
        assert after.ids == before.ids[:cut]
    # A longer limit only continues; another seed is another sample.
    longer = engine(PROMPTS, SamplingParams(max_new_tokens=20, temperature=1.0, seed=11))
    assert [c.ids[:10] for c in longer] == [c.ids for c in together]
    assert engine(PROMPTS, SamplingParams(max_new_tokens=10, temperature=1.0, seed=12)) != together


def test_a_sequence_ends_at_its_stop_id_or_its_limit():
    engine = Engine(make_model())
    free = engine(PROMPTS, SamplingParams(max_new_tokens=8))
    assert all(c.finish_reason == "length" and len(c.ids) == len(c.logprobs) == 8 for c in free)
    stop = free[1].ids[3]
    stopped = engine(PROMPTS, SamplingParams(max_new_tokens=8, stop_ids=(stop, 10_000)))
    cut = free[1].ids.index(stop) + 1
    assert stopped[1].ids == free[1].ids[:cut] and stopped[1].finish_reason == "stop"
    one = engine(PROMPTS, SamplingParams(max_new_tokens=1))
    assert [c.ids for c in one] == [c.ids[:1] for c in free]
    # The last token allowed may be the stop token: then it was a stop.
    last = engine([PROMPTS[1]], SamplingParams(max_new_tokens=cut, stop_ids=(stop,)))
    assert last[0].finish_reason == "stop"


def test_tokens_are_told_as_they_are_sampled():
    heard: list[tuple[int, int]] = []
    params = SamplingParams(max_new_tokens=5, temperature=1.0)
    found = Engine(make_model())(PROMPTS[:3], params, on_token=lambda index, token: heard.append((index, token)))
    assert sorted(heard[:3]) == [(index, found[index].ids[0]) for index in range(3)]  # one of each before the next
    for index, completion in enumerate(found):
        assert tuple(token for owner, token in heard if owner == index) == completion.ids


def test_prompts_up_to_the_context_limit():
    model = make_model()
    engine, params = Engine(model), SamplingParams(max_new_tokens=5)
    prompts = [[3] * (LIMIT - 1), [4] * (LIMIT - 3), [5, 6]]
    found = engine(prompts, params)
    assert [len(c.ids) for c in found] == [1, 3, 5] and {c.finish_reason for c in found} == {"length"}
    for completion, prompt in zip(found, prompts, strict=True):
        assert_same(completion, step_by_step(model, prompt, params))
    assert len(engine.score([[3] * LIMIT])[0]) == LIMIT - 1


def test_what_cannot_be_run_is_refused_in_one_line():
    engine, params = Engine(make_model()), SamplingParams(max_new_tokens=5)
    assert engine([], params) == [] and engine.score([]) == []
    for prompts, saw in (([[1], [2] * LIMIT], LIMIT), ([[1], []], 0), ([[2] * (LIMIT + 9)], LIMIT + 9)):
        with pytest.raises(ValueError, match=f"saw a prompt of {saw} tokens, expected 1 to {LIMIT - 1}") as caught:
            engine(prompts, params)
        assert "\n" not in str(caught.value)
    for sequence in ([3] * (LIMIT + 1), []):
        with pytest.raises(ValueError, match=f"expected 1 to {LIMIT}"):
            engine.score([sequence])
    with pytest.raises(ValueError, match="saw max_new_tokens 0, expected at least 1"):
        engine([[1]], SamplingParams(max_new_tokens=0))


@pytest.mark.parametrize("limit", [8192, 12], ids=["one_pass", "many_passes"])
def test_scores_are_the_full_forwards_log_softmax(limit, monkeypatch):
    monkeypatch.setattr(scoring, "SCORING_TOKENS", limit)
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(300, (n,), generator=generator).tolist() for n in (9, 1, 33, 2, 33, 12)]
    found = Engine(model).score(sequences)
    assert [len(scores) for scores in found] == [8, 0, 32, 1, 32, 11]
    for scores, ids in zip(found, sequences, strict=True):
        with torch.no_grad():
            rows = model(torch.tensor([ids]))[0].log_softmax(-1)
        expected = rows[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_scoring_what_was_sampled_gives_its_log_probabilities():
    engine = Engine(make_model())
    sampled = engine(PROMPTS, SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=2))
    scores = engine.score([[*prompt, *c.ids] for prompt, c in zip(PROMPTS, sampled, strict=True)])
    for prompt, completion, found in zip(PROMPTS, sampled, scores, strict=True):
        np.testing.assert_allclose(found[len(prompt) - 1 :], completion.logprobs, rtol=1e-4, atol=1e-4)


def test_the_engine_owns_its_weights_until_it_is_told():
    model = make_model()
    engine, params = Engine(model), SamplingParams(max_new_tokens=6)
    held, first = snapshot(engine.model), engine(PROMPTS, params)
    take_step(model, make_muonclip(model), batch(), lr=0.05, bias_update_rate=0.5)
    assert same_tensors(held, snapshot(engine.model)) and engine.score(PROMPTS)[0].shape == (3,)
    assert [c.ids for c in engine(PROMPTS, params)] == [c.ids for c in first]
    engine.sync(model)
    assert same_tensors(snapshot(model), snapshot(engine.model))  # the routers' biases among them
    renewed = engine(PROMPTS, params)
    assert_same(renewed[0], step_by_step(model.eval(), PROMPTS[0], params))
    assert [c.logprobs for c in renewed] != [c.logprobs for c in first]
    engine.model.lm_head.weight.data.zero_()
    assert model.lm_head.weight.any()
    take_step(model, make_muonclip(model), batch())  # what the engine does in inference mode never reaches training


def test_a_bf16_engine_keeps_its_routers_in_fp32():
    model = make_model(dtype=torch.bfloat16)
    model.routers()[0].weight.data += 1e-4  # no bf16 numbers
    engine = Engine(model)
    for ours, theirs in zip(engine.model.routers(), model.routers(), strict=True):
        assert ours.weight.dtype == ours.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.e_score_correction_bias, theirs.e_score_correction_bias)
    assert engine.model.lm_head.weight.dtype == engine.model.embed_tokens.weight.dtype == torch.bfloat16
    ids = torch.tensor([PROMPTS[3]])
    with torch.no_grad():
        assert torch.equal(engine.model(ids), model(ids))  # stored in bf16 or cast to it: one arithmetic
    model.routers()[0].weight.data += 0.01
    engine.sync(model)
    assert torch.equal(engine.model.routers()[0].weight, model.routers()[0].weight)
    found = engine(PROMPTS, SamplingParams(max_new_tokens=4))
    scores = engine.score([[*prompt, *c.ids] for prompt, c in zip(PROMPTS, found, strict=True)])
    for prompt, completion, row in zip(PROMPTS, found, scores, strict=True):
        np.testing.assert_allclose(row[len(prompt) - 1 :], completion.logprobs, atol=0.3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_is_kept_by_a_model_that_knows_nothing(temperature):
    """Beside sequences that may be anything, and one for which nothing legal fits."""
    codec = small_codec()
    engine = Engine(build(0, vocab_size=codec.tokenizer.vocab_size, initializer_range=0.4).eval())
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = [{"type": "function", "function": {"name": "count", "parameters": parameters}}]
    lexicon = Lexicon(codec.tokenizer)
    required, far_too_long = (
        TurnGrammar(lexicon, [dict(tool, function=dict(tool["function"], name=name)) for tool in tools], choice=name)
        for name in ("count", "count" * 60)
    )
    params = SamplingParams(max_new_tokens=60, temperature=temperature, stop_ids=codec.stop_ids)
    prompts = PROMPTS[:4]
    grammars = [None, required, far_too_long, required]
    found = engine(prompts, params, grammars=grammars)
    unstopped = engine(prompts, dataclasses.replace(params, stop_ids=()), grammars=grammars)
    for index in (1, 3):
        assert_same(unstopped[index], found[index])  # what is whole ends, stop id or not
    for completion in (found[1], found[3]):
        message = codec.decode_message(completion.ids)
        assert completion.finish_reason == "stop" and "malformed" not in message
        [call] = message["tool_calls"]
        assert call["id"] == "functions.count:0" and set(json.loads(call["function"]["arguments"])) >= {"n"}
    assert (found[2].ids, found[2].finish_reason, found[2].experts) == ((), "length", None)
    alone = engine(prompts, params)
    assert_same(found[0], alone[0])
    for index in (1, 3):  # the log-probabilities are the model's own
        scored = engine.score([(*prompts[index], *found[index].ids)])[0][len(prompts[index]) - 1 :]
        np.testing.assert_allclose(found[index].logprobs, scored, rtol=1e-3, atol=1e-3)
