"""The prompt pool: a function of seed, step and rates; hard tasks come more often; nothing comes twice."""

from __future__ import annotations

from rl_kit import FixedSampler, talk_task, trainer

from openk2.posttrain.rl.prompts import PromptPool


def pool(count: int = 20, seed: int = 0) -> PromptPool:
    return PromptPool([talk_task(number) for number in range(count)], seed)


def test_a_draw_depends_on_seed_step_and_rates_alone() -> None:
    assert pool().draw(3, 5) == pool().draw(3, 5)
    assert pool().draw(3, 5) != pool().draw(4, 5) or pool().draw(5, 5) != pool().draw(4, 5)
    assert any(pool(seed=1).draw(step, 5) != pool().draw(step, 5) for step in range(3))
    one = pool()
    one.draw(0, 5)
    assert one.draw(1, 5) == pool().draw(1, 5), "earlier draws must not matter: a resumed run skips them"


def test_no_task_comes_twice_in_a_draw_and_a_small_pool_gives_what_it_has() -> None:
    for step in range(20):
        assert len(set(pool().draw(step, 8))) == 8
    assert sorted(pool(3).draw(0, 8)) == [0, 1, 2]


def test_hard_tasks_come_more_often_and_easy_ones_still_come() -> None:
    drawn = pool()
    for _ in range(12):
        for index in range(20):
            drawn.record(index, 1.0 if index < 10 else 0.0)
    counts = [0, 0]
    for step in range(300):
        for index in drawn.draw(step, 4):
            counts[index >= 10] += 1
    # weights 0.05 and 1.05, without replacement: about 1 in 20
    assert 0 < counts[0] < 0.12 * sum(counts)


def test_the_rate_is_a_running_one() -> None:
    one = pool(1)
    one.record(0, 1.0)
    one.record(0, 0.0)
    assert one.rates == [0.375]


def test_rates_and_trust_survive_a_checkpoint() -> None:
    before = trainer(FixedSampler(lambda k: "yes" if k % 2 else "no"), critic_weight=0.1, critic_pairs=2)
    before.source(0)
    after = trainer(FixedSampler(lambda _: ""), critic_weight=0.1, critic_pairs=2)
    after.restore(before.cursor())
    assert after.pool.rates == before.pool.rates != [0.5] * 6
    assert after.trust == before.trust and after.trust.asked > 0
    assert after.pool.draw(1, 2) == before.pool.draw(1, 2)
