"""The self-critique earns its weight against the truth, and gains nothing by its place or by empty words."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from rl_kit import CODEC, FixedSampler, rollout, trainer

from openk2.environments.critique import load_rubrics
from openk2.posttrain.rl.critic import Trust, rank_rewards
from openk2.protocols import Rollout

GROUP = [rollout("good one", True), rollout("bad one", False), rollout("good two", True), rollout("bad two", False)]


def first_is_good(text: str) -> bool:
    """Whether the reply shown as A is a good one, read from the critic's prompt."""
    return text.partition("A:\n")[2].startswith("answer good")


def second_is_good(text: str) -> bool:
    return text.partition("\nB:\n")[2].startswith("answer good")


def perfect(text: str) -> float:
    return float(first_is_good(text)) - float(second_is_good(text))


def rank(
    margin: Callable[[str], float], groups: list[list[Rollout]] | None = None, pairs: int = 6
) -> tuple[list[list[float]], Trust, FixedSampler]:
    sampler, trust = FixedSampler(lambda _: "", margin=margin), Trust()
    rewards = rank_rewards(
        groups or [GROUP],
        pairs_per_group=pairs,
        rubrics=list(load_rubrics().values()),
        score=sampler.score,
        codec=CODEC,
        trust=trust,
        rng=random.Random(0),
    )
    return rewards, trust, sampler


def test_a_perfect_critic_is_trusted_and_ranks_good_above_bad() -> None:
    rewards, trust, _ = rank(perfect)
    assert trust.decided == 4 and trust.agreement == 1.0 and trust.weight == 4 / 24 and trust.asked == 12
    assert rewards == [pytest.approx([2 / 3, -2 / 3, 2 / 3, -2 / 3])]


def test_an_adversarial_critic_has_no_weight() -> None:
    _, trust, _ = rank(lambda text: -perfect(text))
    assert trust.agreement == 0.0 and trust.weight == 0.0


def test_a_liking_for_the_first_place_ranks_nothing_and_is_told() -> None:
    rewards, trust, _ = rank(lambda _: 3.0)
    assert trust.position_bias == 1.0
    assert rewards == [[0.0] * 4]
    assert trust.agreement == 0.5 and trust.weight == 0.0
    assert rank(lambda _: -3.0)[1].position_bias == 0.0


def test_every_pair_is_asked_in_both_orders_under_one_rubric() -> None:
    _, _, sampler = rank(perfect, pairs=3)
    asked = sampler.asked[::2]  # each prompt is scored for A and for B
    assert len(asked) == 6 and sampler.asked[1::2] == asked

    def parts(text: str) -> tuple[str, str, str]:
        before, _, rest = text.partition("A:\n")
        first, _, second = rest.partition("\nB:\n")
        return before, first, second.partition("\nWhich is better")[0]

    for one, other in zip(asked[::2], asked[1::2], strict=True):
        (rubric, a, b), (same, c, d) = parts(one), parts(other)
        assert (rubric, a, b) == (same, d, c)


def test_pairs_of_one_kind_say_nothing_about_trust_and_small_groups_pass() -> None:
    rewards, trust, _ = rank(perfect, [[GROUP[0], GROUP[2]], [GROUP[1]], []])
    assert trust.asked == 2 and trust.decided == 0 and trust.weight == 0.0
    assert rewards == [[0.0, 0.0], [0.0], []]


def test_the_verdict_asks_for_numbers_before_it_trusts() -> None:
    assert "too few" in Trust(decided=19, agreed=19).verdict()
    assert "better than chance" in Trust(decided=100, agreed=75).verdict()
    assert "not distinguishable from chance" in Trust(decided=100, agreed=55).verdict()


@pytest.mark.parametrize("probe", ["", ":", "Thought process:", "Great question! This is a fine answer."])
def test_empty_and_boilerplate_answers_gain_nothing_from_a_critic_without_trust(probe: str) -> None:
    """The attack that broke reward models: one-symbol answers that a judge likes. A critic that falls for it
    disagrees with the verified outcome, so its weight stays 0 and the verified reward alone counts."""

    def fooled(text: str) -> float:
        shown = probe or "nothing"
        first = text.partition("A:\n")[2]
        second = text.partition("\nB:\n")[2]
        return float(first.startswith(f"answer {shown}") or first.startswith(shown)) - float(
            second.startswith(f"answer {shown}") or second.startswith(shown)
        )

    run = trainer(FixedSampler(lambda _: "", margin=fooled), critic_weight=1.0, critic_pairs=6)
    group = [rollout(probe, False), rollout("yes", True), rollout(probe, False), rollout("yes", True)]
    for step in range(4):
        rewards, wins = run._rewards(step, [group])
        assert wins[0][0] > wins[0][1], "the critic must be fooled, else this shows nothing"
        assert rewards == [[0.0, 1.0, 0.0, 1.0]]
    assert run.trust.agreement == 0.0


def test_the_weight_is_what_was_known_before_the_step() -> None:
    run = trainer(FixedSampler(lambda _: "", margin=perfect), critic_weight=0.5, critic_pairs=6)
    assert run._rewards(0, [GROUP])[0] == [[1.0, 0.0, 1.0, 0.0]]
    share = 0.5 * 4 / 24 * 2 / 3  # four pairs agreed, and each sample won (or lost) two of its three
    assert run._rewards(1, [GROUP])[0] == [pytest.approx([1 + share, -share, 1 + share, -share])]


def test_a_lucky_pair_is_not_yet_trust() -> None:
    assert Trust(decided=1, agreed=1).weight < 0.05 and Trust(decided=20, agreed=20).weight == 0.5
    assert Trust(decided=980, agreed=980).weight == 0.98 and Trust(decided=100, agreed=45).weight == 0.0
