"""Tasks: an agent, one or two user turns, the calls they need, the answers, and a rubric.

Every gold call is run when the task is made and the answer is read from what
the tool returned, so a task whose gold dialogue fails cannot exist. A task is a
pure function of (part, seed, index). `held_out_tasks` draws the same agents,
kinds and phrasings with values of the held-out part only (`split.py`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openk2.environments import open_environment
from openk2.observe.files import write_atomic
from openk2.posttrain.synth import kinds, talk
from openk2.posttrain.synth.agents import Agent, agents_with, plain_prompt
from openk2.posttrain.synth.kinds import KINDS, TOOL_WEIGHTS, TRAINING_FACTORS, Ask, World
from openk2.posttrain.synth.phrases import GRAMMAR
from openk2.posttrain.synth.phrases.given import SHARED_ASK, SHARED_GIVEN
from openk2.posttrain.synth.phrasing import fill, style
from openk2.posttrain.synth.rubric import rubric_of
from openk2.posttrain.synth.split import Draw
from openk2.protocols import Environment, Task, Turn, task_to_dict

Planned = tuple[str, Ask | talk.Talk]  # a template and what it asks

TWO_TURN_SHARE = 0.27  # of held-out tasks and plain dialogues
# Training dialogues go on for longer: the declarations, two thirds of a short dialogue, are read once for all turns.
NEXT_TURN_SHARE = 0.8
MAX_TURNS = 8
TALK_SHARE = 0.08  # of the tasks that open with a turn that needs no tool
_FORMS = {"q": 3.0, "imp": 3.0, "emb": 1.5, "np": 3.0, "full": 2.0, "tele": 0.5}
_GIVEN_WEIGHT = 1.5
# Requests in several sentences, of which there are most, weigh so much more in training.
_TRAINING_STORIES = 1.75
_COLUMN_SHARE = 0.35


@dataclass(frozen=True)
class Made:
    """A task, the templates of its user turns, and what to say in the turns that need no tool ("" elsewhere)."""

    task: Task
    templates: tuple[str, ...]
    replies: tuple[str, ...]


def make_task(seed: int, index: int, *, held_out: bool = False) -> Made:
    """Task `index` of a stream: an agent's task with tools, or small talk beside them."""
    part = "held_out" if held_out else "train"
    rng = random.Random(f"task/{part}/{seed}/{index}")
    draw = Draw(rng, held_out)
    tool = rng.choices(list(TOOL_WEIGHTS), [w * _factor(t, draw) for t, w in TOOL_WEIGHTS.items()])[0]
    agent = rng.choice(agents_with(tool))
    world = World(table=kinds.make_table(draw) if "sql_query" in agent.tools else None)
    planned = _plan(draw, world, agent, tool)
    domain = tool if isinstance(planned[0][1], Ask) else "talk"
    agent = replace(agent, system=system_with_table(agent.system, world))
    return _made(f"{part}-{seed}-{index}", domain, agent, planned, world)


def make_plain(seed: int, index: int) -> Made:
    """Plain dialogue `index` of a stream: one or two turns, no tools."""
    rng = random.Random(f"plain/{seed}/{index}")
    draw = Draw(rng, held_out=False)
    kinds_of_turn = rng.choices(list(talk.PLAIN_WEIGHTS), list(talk.PLAIN_WEIGHTS.values()), k=2)
    planned: list[Planned] = [_say(talk.plain_turn(draw, kinds_of_turn[0]), rng)]
    if rng.random() < TWO_TURN_SHARE and kinds_of_turn[0] != kinds_of_turn[1]:
        planned.append(_say(talk.plain_turn(draw, kinds_of_turn[1]), rng))
    return _made(f"plain-{seed}-{index}", "plain", Agent(plain_prompt(rng), ()), planned, World())


def _made(name: str, domain: str, agent: Agent, planned: Sequence[Planned], world: World) -> Made:
    """Fill the words in, run the gold calls for the answers, write the rubric."""
    task = Task(
        id=name,
        domain=domain,
        system=agent.system,
        tools=agent.tools,
        turns=tuple(
            Turn(fill(template, ask.slots), ask.calls if isinstance(ask, Ask) else (), "") for template, ask in planned
        ),
        setup=world.setup(),
    )
    task = replace(task, turns=_with_answers(task, [ask for _, ask in planned]))
    replies = tuple(ask.reply if isinstance(ask, talk.Talk) else "" for _, ask in planned)
    return Made(replace(task, rubric=rubric_of(task, replies)), tuple(template for template, _ in planned), replies)


def held_out_tasks(n: int, seed: int) -> list[Task]:
    """`n` tasks in training phrasings whose names, dates and number combinations are all held out."""
    return [make_task(seed, index, held_out=True).task for index in range(n)]


def write_held_out(path: Path, n: int, seed: int) -> None:
    """Write `held_out_tasks` as JSONL, one `task_to_dict` a line."""
    lines = [json.dumps(task_to_dict(task), ensure_ascii=False) + "\n" for task in held_out_tasks(n, seed)]
    write_atomic(path, "".join(lines))


def system_with_table(system: str, world: World) -> str:
    """The system prompt, with the table's columns where there is a table."""
    if world.table is None:
        return system
    return f"{system} Table {world.table['name']}: {', '.join(world.table['columns'])}.".strip()


def phrase(kind: str, slots: Sequence[str], rng: random.Random, *, again: str = "", stories: float = 1.0) -> str:
    """A template for this kind of request. `again` is "" in a first turn, "next" later on, "same" for an ellipsis.

    `stories` is how much more often than by default the request comes in several sentences.
    """
    if again == "same" and f"{kind}.again" in GRAMMAR:
        return style(GRAMMAR.expand("frame.again", rng, {"core": f"{kind}.again"}), rng)
    forms = {form: weight for form, weight in _FORMS.items() if f"{kind}.{form}" in GRAMMAR}
    bind = {"given": SHARED_GIVEN.get(kind, f"{kind}.given"), "ask": SHARED_ASK.get(kind, f"{kind}.ask")}
    if bind["given"] in GRAMMAR and bind["ask"] in GRAMMAR:
        forms["given"] = _GIVEN_WEIGHT
    for form in {"full", "given"} & set(forms):
        forms[form] *= stories
    form = rng.choices(list(forms), list(forms.values()))[0]
    own = f"cell_{slots[0]}.full" if kind == "cell" and slots else ""
    if own in GRAMMAR and rng.random() < _COLUMN_SHARE:  # what people say for this column only
        form, bind["core"] = "full", own
    else:
        bind["core"] = f"{kind}.{form}"
    if again:
        bind["open"] = "open_again"
    return style(GRAMMAR.expand(f"frame.{form}", rng, bind), rng)


def _plan(draw: Draw, world: World, agent: Agent, tool: str) -> list[Planned]:
    rng = draw.rng
    if rng.random() < TALK_SHARE:
        planned: list[Planned] = [_say(talk.small_talk(draw, agent.tools), rng)]
        tool = rng.choice([name for name in agent.tools])
        return [*planned, _ask(draw, world, tool, "next")] if rng.random() < 0.4 else planned
    planned = [_ask(draw, world, tool, "")]
    share, limit = (TWO_TURN_SHARE, 2) if draw.held_out else (NEXT_TURN_SHARE, MAX_TURNS)
    while len(planned) < limit and rng.random() < share:
        planned.append(_later(draw, world, agent, planned[-1][1]))
    return planned


def _later(draw: Draw, world: World, agent: Agent, before: Ask | talk.Talk) -> Planned:
    """A later turn: the note read back, the same again with new values, another request, or talk."""
    rng = draw.rng
    kind = before.kind if isinstance(before, Ask) else ""
    if isinstance(before, Ask) and kind == "set" and "get_note" in agent.tools and rng.random() < 0.7:
        return phrase("recall", (), rng, again="next"), kinds.recall(before)
    choice = rng.random()
    if choice < 0.15:
        return _say(talk.small_talk(draw, agent.tools, later=True), rng)
    if isinstance(before, Ask) and choice < 0.45 and f"{kind}.again" in GRAMMAR:
        same = next(maker for tool in agent.tools for maker in KINDS[tool] if _named(maker) == kind)
        ask = same(draw, world)
        return phrase(ask.kind, _about(ask), rng, again="same"), ask
    if draw.held_out:  # as ever: another draw would be another held-out set
        return _ask(draw, world, rng.choice(agent.tools), "next")
    return _ask(draw, world, rng.choices(agent.tools, [_factor(tool, draw) for tool in agent.tools])[0], "next")


def _factor(tool: str, draw: Draw) -> float:
    return 1.0 if draw.held_out else TRAINING_FACTORS.get(tool, 1.0)


def _named(maker: kinds.Maker) -> str:
    return {"set_note": "set", "get_note": "get", "total": "sum"}.get(maker.__name__, maker.__name__)


def _ask(draw: Draw, world: World, tool: str, again: str) -> tuple[str, Ask]:
    makers = KINDS[tool]
    ask = draw.rng.choices(list(makers), list(makers.values()))[0](draw, world)
    stories = 1.0 if draw.held_out else _TRAINING_STORIES
    return phrase(ask.kind, _about(ask), draw.rng, again=again, stories=stories), ask


def _about(ask: Ask) -> Sequence[str]:
    return (ask.slots["col"],) if "col" in ask.slots else ()


def _say(said: talk.Talk, rng: random.Random) -> tuple[str, talk.Talk]:
    return style(GRAMMAR.expand(said.table, rng), rng), said


def _with_answers(task: Task, asks: Sequence[Ask | talk.Talk]) -> tuple[Turn, ...]:
    """The turns with their answers: what the tools return, or what small talk is answered with."""
    environment = open_environment(task)
    try:
        return tuple(
            replace(turn, answer=ask.answer if isinstance(ask, talk.Talk) else ask.read(_run(environment, ask)))
            for turn, ask in zip(task.turns, asks, strict=True)
        )
    finally:
        environment.close()


def _run(environment: Environment, ask: Ask) -> list[str]:
    return [environment.call(call.name, call.arguments) for call in ask.calls]
