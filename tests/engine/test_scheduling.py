"""Sequences that come, go, wait and are thrown out: the same answers, and no block is lost."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from test_engine import assert_same, make_model, step_by_step

from openk2.engine import Engine, EngineSettings, Request, Sequence, Status
from openk2.protocols import SamplingParams

CONTEXT = 400


@pytest.fixture(scope="module")
def model():
    return make_model(max_position_embeddings=CONTEXT)


def prompt(rng: random.Random, common: list[int]) -> list[int]:
    own = [rng.randrange(300) for _ in range(rng.choice([1, 2, 30, 64, 65, 130]))]
    return common[: rng.choice([0, 0, 63, 64, 100, 150])] + own


def finish(engine: Engine, sequences: list[Sequence]) -> None:
    while engine.has_work:
        engine.step()
        engine.check()
    assert all(sequence.status is Status.FINISHED for sequence in sequences)
    assert engine.usage().running == engine.usage().waiting == 0


@pytest.mark.parametrize(
    "settings",
    [
        EngineSettings(),
        EngineSettings(step_tokens=37),
        EngineSettings(cache_tokens=448, step_tokens=100),
        EngineSettings(cache_tokens=1024, max_running=3),
    ],
    ids=["plenty", "small_steps", "tight", "few_at_once"],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_storm_of_requests_gets_the_answers_of_each_alone(model, settings, seed):
    """They come at any time, share beginnings, and some are cancelled at any time."""
    rng, engine = random.Random(seed), Engine(model, settings)
    common = [rng.randrange(300) for _ in range(150)]
    sequences: list[Sequence] = []
    cancelled: list[Sequence] = []
    for number in range(24):
        params = SamplingParams(max_new_tokens=rng.choice([1, 5, 40, 90]), temperature=1.0, seed=seed)
        sequences.append(engine.submit(Request(tuple(prompt(rng, common)), params, number)))
        for _ in range(rng.choice([0, 0, 1, 9])):
            engine.step()
            engine.check()
        if rng.random() < 0.3:
            cancelled.append(rng.choice(sequences))
            engine.cancel(cancelled[-1])
    finish(engine, sequences)
    if settings.cache_tokens == 448:
        assert sum(sequence.num_preempted for sequence in sequences) >= 3
    for sequence in rng.sample(sequences, 8):
        request = sequence.request
        expected = step_by_step(model, request.prompt, request.params, request.stream)
        if sequence.finish_reason == "cancelled":
            assert sequence in cancelled and sequence.ids == list(expected.ids[: sequence.num_sampled])
        else:
            assert_same(sequence.completion(), expected)


def test_no_step_reads_more_than_it_may_and_sampling_goes_on_beside_a_long_prompt(model):
    engine = Engine(model, EngineSettings(step_tokens=32))
    talking = engine.submit(Request((1, 2, 3), SamplingParams(max_new_tokens=30)))
    engine.step()
    long = engine.submit(Request(tuple(range(20, 220)), SamplingParams(max_new_tokens=2)))
    for step in range(1, 7):
        engine.step()
        assert talking.num_sampled == 1 + step  # one each step, however long the other prompt
        assert long.num_computed == 31 * step
    finish(engine, [talking, long])
    assert_same(long.completion(), step_by_step(model, long.request.prompt, long.request.params))


def test_prompts_come_in_small_pieces_while_more_sequences_wait_for_their_next_token(model):
    engine = Engine(model, EngineSettings(beside_tokens=40))
    talking = [engine.submit(Request((number, 2, 3), SamplingParams(max_new_tokens=30))) for number in range(3)]
    engine.step()
    params = SamplingParams(max_new_tokens=2)
    long = [engine.submit(Request((number, *range(20, 169)), params)) for number in (200, 201, 202)]
    engine.step()
    assert [sequence.num_sampled for sequence in talking] == [2, 2, 2]
    assert [sequence.num_computed for sequence in long] == [40, 0, 0]  # three wait for each
    long.append(engine.submit(Request((203, *range(20, 169)), params)))
    engine.step()  # four wait for their first
    assert [sequence.num_sampled for sequence in (*talking, *long)] == [3, 3, 3, 1, 1, 1, 1]
    finish(engine, [*talking, *long])
    assert_same(long[0].completion(), step_by_step(model, long[0].request.prompt, long[0].request.params))


def test_who_came_first_is_read_first(model):
    engine = Engine(model, EngineSettings(max_running=2, step_tokens=16))
    ended: list[Sequence] = []
    sequences = [engine.submit(Request((number, *range(20)), SamplingParams(max_new_tokens=2))) for number in range(5)]
    while engine.has_work:
        ended += engine.step()
    assert [sequences.index(sequence) for sequence in ended] == [0, 1, 2, 3, 4]


def test_a_cancelled_sequence_gives_its_blocks_back_at_once(model):
    engine = Engine(model, EngineSettings(cache_tokens=448))
    running = engine.submit(Request(tuple(range(250)), SamplingParams(max_new_tokens=50)))
    waiting = engine.submit(Request(tuple(range(1, 251)), SamplingParams(max_new_tokens=50)))
    engine.step()
    assert (running.status, waiting.status) == (Status.RUNNING, Status.WAITING)
    engine.cancel(running)
    engine.cancel(waiting)
    engine.cancel(waiting)  # twice is once
    assert engine.step() == [running, waiting] and not engine.has_work
    assert {running.finish_reason, waiting.finish_reason} == {"cancelled"}
    engine.check()
    engine.cancel(running)
    assert engine.step() == []
    assert engine.usage().free + engine.usage().kept == engine.usage().blocks


def test_a_callback_ends_its_sequence(model):
    engine = Engine(model)
    request = Request((5, 6), SamplingParams(max_new_tokens=20), on_token=lambda sequence: sequence.num_sampled == 4)
    sequence = engine.submit(request)
    finish(engine, [sequence])
    assert sequence.num_sampled == 4 and sequence.finish_reason == "stop"


def test_a_callback_that_raises_leaves_nothing_behind(model):
    engine = Engine(model)

    def refuse(_index, _token):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine([[1, 2], [3]], SamplingParams(max_new_tokens=9), on_token=refuse)
    assert not engine.has_work
    engine.check()
    assert len(engine([[1, 2]], SamplingParams(max_new_tokens=3))[0].ids) == 3


def test_prompt_tokens_found_in_the_tree_are_counted(model):
    engine = Engine(model)
    first = engine.submit(Request(tuple(range(150)), SamplingParams(max_new_tokens=5)))
    finish(engine, [first])
    follow = engine.submit(Request((*first.tokens, 9, 9), SamplingParams(max_new_tokens=2)))
    other = engine.submit(Request((*range(100), 299), SamplingParams(max_new_tokens=2)))
    finish(engine, [follow, other])
    assert (first.num_cached, follow.num_cached, other.num_cached) == (0, 154, 100)


def test_alternatives_are_reported_with_each_token(model):
    engine = Engine(model)
    sequence = engine.submit(Request((5, 6), SamplingParams(max_new_tokens=3, top_log_probs=4)))
    finish(engine, [sequence])
    assert [len(row) for row in sequence.top] == [4, 4, 4]
    for token, log_prob, row in zip(sequence.ids, sequence.log_probs, sequence.top, strict=True):
        assert row[0] == (token, pytest.approx(log_prob)) and [p for _, p in row] == sorted((p for _, p in row))[::-1]


def test_what_does_not_fit_is_refused_in_one_line(model):
    engine = Engine(model, EngineSettings(cache_tokens=256))
    with pytest.raises(ValueError, match="saw a prompt of 200 tokens and up to 100 new ones, expected at most 256"):
        engine.submit(Request((1,) * 200, SamplingParams(max_new_tokens=100)))
    with pytest.raises(ValueError, match="saw the token 300, expected 0 to 299"):
        engine.submit(Request((1, 300), SamplingParams(max_new_tokens=1)))
    engine.submit(Request((1,), SamplingParams(max_new_tokens=2)))
    with pytest.raises(RuntimeError, match="new weights while sequences run"):
        engine.sync(model)
    for settings, saw in (({"max_running": 0}, "max_running 0"), ({"cache_tokens": 5}, "cache_tokens 5")):
        with pytest.raises(ValueError, match=f"saw {saw}"):
            EngineSettings(**settings)
    with pytest.raises(ValueError, match="saw an 8-bit cache with invariant attention"):
        EngineSettings(eight_bit_cache=True, attention="invariant")


class Faulty:
    """A grammar, and its constraint, that fails at the third token where it is asked `where`."""

    hopeless = False

    def __init__(self, where: str) -> None:
        self.where, self.taken = where, 0

    def start(self, budget: int) -> Faulty:
        return self

    def mask(self) -> np.ndarray:
        self._maybe("mask")
        return np.full(300, self.where != "nothing" or self.taken < 3)

    def accept(self, token: int) -> int:
        self.taken += 1
        self._maybe("accept")
        return token

    @property
    def done(self) -> bool:
        self._maybe("done")
        return False

    def _maybe(self, where: str) -> None:
        if self.where == where and self.taken == 3:
            raise LookupError(where)


@pytest.mark.parametrize("where", ["mask", "nothing", "accept", "done", "on_token"])
def test_what_fails_for_one_sequence_ends_no_other(model, where):
    params = SamplingParams(max_new_tokens=12, temperature=1.0)
    expected = [step_by_step(model, [5, 6], params, 0), step_by_step(model, [7], params, 2)]
    engine = Engine(model)

    def listen(sequence: Sequence) -> None:
        if where == "on_token" and sequence.num_sampled == 3:
            raise LookupError(where)

    faulty = engine.submit(Request((8, 9), params, 1, Faulty(where), listen))
    others = [engine.submit(Request((5, 6), params, 0)), engine.submit(Request((7,), params, 2))]
    finish(engine, [faulty, *others])
    assert faulty.finish_reason == "error" and 3 <= faulty.num_sampled <= 4
    assert isinstance(faulty.error, RuntimeError if where == "nothing" else LookupError)
    assert where in ("nothing", *faulty.error.args)
    for sequence, wanted in zip(others, expected, strict=True):
        assert_same(sequence.completion(), wanted)


@pytest.mark.parametrize(("before", "after"), [(70, 70), (70, 90), (100, 128)])
def test_a_prompt_that_takes_the_whole_cache_gives_up_the_block_it_would_copy(before, after):
    """Its beginning is known up to the middle of a block, which is wanted for its own end."""
    model = make_model(max_position_embeddings=192)
    engine = Engine(model, EngineSettings(cache_tokens=128))
    ids, params = [i * 7 % 250 for i in range(after)], SamplingParams(max_new_tokens=1)
    finish(engine, [engine.submit(Request(tuple(ids[:before]), params))])
    late = [engine.submit(Request(tuple(ids[: after - 1]), params)), engine.submit(Request((1, 2, 3), params))]
    for _ in range(20):
        engine.step()
        engine.check()
    for sequence in late:
        assert_same(sequence.completion(), step_by_step(model, list(sequence.request.prompt), params))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_no_numbers_end_answers_and_not_the_engine(temperature):
    good, bad = make_model(), make_model()
    with torch.no_grad():
        bad.norm.weight.fill_(float("nan"))
    engine = Engine(bad)
    params = SamplingParams(max_new_tokens=5, temperature=temperature)
    broken = engine.submit(Request((1, 2), params))
    finish(engine, [broken])
    assert broken.finish_reason == "error" and isinstance(broken.error, FloatingPointError)
    engine.sync(good)
    assert len(engine([[1, 2]], params)[0].ids) == 5


def test_a_token_keeps_its_own_experts_only(model):
    engine = Engine(model)
    [first, _] = [engine.submit(Request((5, at), SamplingParams(max_new_tokens=2))) for at in range(2)]
    finish(engine, [first])
    assert all(chosen.base is None for chosen in first.experts)


def test_who_calls_for_many_is_told_what_one_raised(model):
    engine = Engine(model)
    with pytest.raises(LookupError, match="accept"):
        engine([[1, 2], [3]], SamplingParams(max_new_tokens=9), grammars=[Faulty("accept"), None])
    assert not engine.has_work
    engine.check()
