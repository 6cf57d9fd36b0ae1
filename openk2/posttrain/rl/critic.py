"""Self-critique: the policy ranks pairs of its own samples, and the ranking is held against the truth.

Each pair is asked in both orders, so that a liking for the first place cancels
out. Where one sample of a pair succeeded and the other failed, the critic's
choice is counted against that truth; its rewards weigh only as much as it has
so far beaten chance, a few lucky pairs being held to be chance. K2 states neither the
map from ranks to rewards nor a gate; both are ours. Source: K2 report (arXiv
2507.20534), section 3.2.2. Left out: going on training the critic on rollouts
of verifiable prompts, and the report's prescriptive rubrics (appendix F).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from openk2.chat.codec import Codec
from openk2.environments.critique import CHOICES, critique_messages, last_exchange
from openk2.protocols import Rollout, Score

PRIOR_PAIRS = 20  # decided pairs below which agreement is taken for luck


@dataclass
class Trust:
    """Running counts of what the critic said. `decided` pairs have a known winner; `agreed` of them were right;
    `first` of `asked` questions were answered with the first place."""

    decided: int = 0
    agreed: float = 0.0
    asked: int = 0
    first: int = 0

    @property
    def agreement(self) -> float:
        return self.agreed / self.decided if self.decided else 0.5

    @property
    def stderr(self) -> float:
        """Standard error of the agreement; a coin's while nothing was decided."""
        if not self.decided:
            return 0.5
        return max(math.sqrt(self.agreement * (1 - self.agreement) / self.decided), 0.5 / self.decided)

    @property
    def weight(self) -> float:
        """0 at chance, towards 1 at perfect agreement: as if a coin had decided PRIOR_PAIRS before."""
        return max(0.0, (2 * self.agreed - self.decided) / (self.decided + PRIOR_PAIRS))

    @property
    def position_bias(self) -> float:
        """Share of answers for the first place; 0.5 is fair, since every pair is asked both ways."""
        return self.first / self.asked if self.asked else 0.5

    def verdict(self) -> str:
        """How far the critic can be trusted, in one sentence."""
        if self.decided < PRIOR_PAIRS:
            return f"too few decided pairs ({self.decided}) to say whether the critic can be trusted"
        low = self.agreement - 2 * self.stderr
        said = f"agrees with the verified outcome in {self.agreement:.0%} of {self.decided} decided pairs"
        return f"{said}: {'better than chance' if low > 0.5 else 'not distinguishable from chance'} at this size"


def rank_rewards(
    groups: Sequence[Sequence[Rollout]],
    *,
    pairs_per_group: int,
    rubrics: Sequence[str],
    score: Score,
    codec: Codec,
    trust: Trust,
    rng: random.Random,
) -> list[list[float]]:
    """Each sample's mean win over the pairs it was in, from -1 to 1 (0: in none); `trust` is brought up to date."""
    questions: list[tuple[int, int, int]] = []  # group, sample, sample
    prompts: list[list[int]] = []
    for index, group in enumerate(groups):
        every = list(itertools.combinations(range(len(group)), 2))
        for a, b in rng.sample(every, min(pairs_per_group, len(every))):
            questions.append((index, a, b))
            rubric = rng.choice(list(rubrics))
            prompts += [_ask(group[a], group[b], rubric, codec), _ask(group[b], group[a], rubric, codec)]
    preferences = _first_place_margins(prompts, score, codec)
    wins: list[list[list[float]]] = [[[] for _ in group] for group in groups]
    for (index, a, b), margin, swapped in zip(questions, preferences[0::2], preferences[1::2], strict=True):
        trust.asked += 2
        trust.first += (margin > 0) + (swapped > 0)
        verdict = math.copysign(1.0, margin - swapped) if margin != swapped else 0.0
        wins[index][a].append(verdict)
        wins[index][b].append(-verdict)
        truth = float(groups[index][a].outcome.success) - float(groups[index][b].outcome.success)
        if truth:
            trust.decided += 1
            trust.agreed += 0.5 * (1 + truth * verdict)
    return [[sum(sample) / len(sample) if sample else 0.0 for sample in group] for group in wins]


def _ask(first: Rollout, second: Rollout, rubric: str, codec: Codec) -> list[int]:
    question = first.task.turns[-1].user
    messages = critique_messages(rubric, question, last_exchange(first.messages), last_exchange(second.messages))
    return list(codec.encode(messages, add_generation_prompt=True).ids)


def _first_place_margins(prompts: Sequence[list[int]], score: Score, codec: Codec) -> list[float]:
    """log p("A") - log p("B") as the next token of each prompt."""
    letters = [codec.tokenizer.encode(choice)[0] for choice in CHOICES]
    found = score([[*prompt, letter] for prompt in prompts for letter in letters])
    last = [float(log_probs[-1]) for log_probs in found]
    return [a - b for a, b in zip(last[0::2], last[1::2], strict=True)]
