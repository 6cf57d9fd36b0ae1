"""Pairs that teach the policy to judge: a right and a wrong reply to one task, in either order.

K2 bootstraps its critic in supervised fine-tuning on preference data. Here the
teacher plays a task twice, once with a deliberate error, and the judge must
confirm both; the question is the one that RL's self-critique will ask.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from openk2.environments.critique import CHOICES, critique_messages, last_exchange, load_rubrics
from openk2.posttrain.synth.judge import judge
from openk2.posttrain.synth.simulate import simulate
from openk2.posttrain.synth.tasks import Made
from openk2.posttrain.synth.teacher import Teacher
from openk2.protocols import Message


def make_preference(made: Made, rubrics: Sequence[str] | None = None) -> list[Message] | None:
    """The critic's dialogue about `made` with its one-letter reply; None where the judge cannot tell the two apart."""
    task, rng = made.task, random.Random(f"preference/{made.task.id}")
    good = simulate(task, Teacher(task, made.replies, rng, error_rate=0.0).reply)
    bad = simulate(task, Teacher(task, made.replies, rng, error_rate=1.0).reply)
    if judge(task, good).reason or not judge(task, bad).reason:
        return None
    rubric = rng.choice(list(rubrics or load_rubrics().values()))
    place = rng.randrange(2)
    shown = [last_exchange(bad.messages), last_exchange(good.messages)]
    first, second = (shown[1], shown[0]) if place == 0 else (shown[0], shown[1])
    question = critique_messages(rubric, task.turns[-1].user, first, second)
    return [*question, {"role": "assistant", "content": CHOICES[place]}]
