"""Tool-call success, free-running: the policy's own tokens go back to it, and the tools really run.

A task succeeds if the right tool was called, its arguments are valid, the
final answer is right and the dialogue came to an end; each part is reported by
itself. What failed in the environment rather than in the policy is excluded
from the rate and counted. Decoding is greedy. Chance is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openk2.environments.episode import run_episodes
from openk2.evaluate.dataset_files import subset
from openk2.evaluate.records import (
    Advance,
    EvalSettings,
    Record,
    Result,
    TextCodec,
    by_group,
    failures,
    length_details,
    prompts_sha256,
    rate,
)
from openk2.evaluate.statistics import proportion
from openk2.evaluate.task_files import load_set
from openk2.protocols import Completion, Generate, Grammar, Rollout, SamplingParams, Score, Task

ENVIRONMENT_FAILURE = "environment"  # the failure that says nothing about the policy
PARTS = ("tool_correct", "arguments_valid", "answer_correct", "finished")
MAX_NEW_TOKENS = 96  # per assistant message


@dataclass(frozen=True)
class ToolCalls:
    """`tasks` are the items; without them, the hand-written set of the same name."""

    name: str = "tools"
    tasks: Sequence[Task] = ()

    def load(self, data: Path | None, limit: int | None, seed: int) -> list[Task]:
        """`data` is not read: these sets ship with the package or come from the caller."""
        return subset(self.tasks or load_set(self.name), limit, seed, self.name)

    def run(
        self,
        items: Sequence[Task],
        generate: Generate,
        score: Score,
        codec: TextCodec,
        settings: EvalSettings,
        advance: Advance,
    ) -> Result:
        limit = settings.max_new_tokens or MAX_NEW_TOKENS
        records: list[Record] = []
        for start in range(0, len(items), settings.batch_size):
            batch = items[start : start + settings.batch_size]
            rollouts = run_episodes(
                batch,
                within_context(generate, settings.context_length),
                codec,
                max_new_tokens=limit,
                max_turns=settings.max_turns,
                temperature=0.0,
                seed=settings.seed + start,
            )
            records += [_record(self.name, rollout, codec) for rollout in rollouts]
            advance(len(records), len(items))
        return _result(self.name, records, limit, settings)


def within_context(generate: Generate, context_length: int) -> Generate:
    """`generate` for dialogues that may outgrow the context: one with no room left is cut, not sent."""

    def bounded(
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        on_token: Callable[[int, int], None] | None = None,
        grammars: Sequence[Grammar | None] | None = None,
    ) -> list[Completion]:
        fits = [len(prompt) + params.max_new_tokens <= context_length for prompt in prompts]
        sent = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        kept = None if grammars is None else [grammar for grammar, fit in zip(grammars, fits, strict=True) if fit]
        answers = iter(generate(sent, params, on_token=on_token, grammars=kept) if sent else [])
        return [next(answers) if fit else Completion((), (), "length") for fit in fits]

    return bounded


def _record(task: str, rollout: Rollout, codec: TextCodec) -> Record:
    outcome = rollout.outcome
    excluded = outcome.failure == ENVIRONMENT_FAILURE
    start = rollout.sampled.index(True) if any(rollout.sampled) else len(rollout.ids)
    turns = rollout.task.turns
    return Record(
        task=task,
        id=rollout.task.id,
        group=rollout.task.domain,
        prompt=codec.tokenizer.decode(rollout.ids[:start]),
        output=codec.tokenizer.decode(rollout.ids[start:]),
        expected=" | ".join(turn.answer for turn in turns),
        score=None if excluded else float(outcome.success),
        failure=outcome.failure,
        num_tokens=rollout.num_sampled,
        details={
            **{part: getattr(outcome, part) for part in PARTS},
            "truncated": rollout.truncated,
            "calls": [{"name": call.name, "arguments": dict(call.arguments)} for turn in turns for call in turn.calls],
            "messages": rollout.messages,
        },
    )


def _result(task: str, records: Sequence[Record], limit: int, settings: EvalSettings) -> Result:
    counted = [record for record in records if record.score is not None]
    parts: Mapping[str, Any] = {
        part: proportion(sum(bool(record.details[part]) for record in counted), len(counted)).as_dict()
        for part in PARTS
    }
    return Result(
        task=task,
        metric="success",
        estimate=rate(records),
        chance=0.0,
        card={
            "template": "chat with tools",
            "prompts_sha256": prompts_sha256(records),
            "decoding": "greedy, free-running",
            "max_new_tokens": limit,
            "max_turns": settings.max_turns,
            "context_length": settings.context_length,
            "seed": settings.seed,
        },
        records=records,
        groups=by_group(records),
        details={
            "parts": parts,
            "failures": failures(records),
            "excluded_environment_failures": len(records) - len(counted),
            "truncated": sum(bool(record.details["truncated"]) for record in counted),
            "answer_tokens": length_details(records),
        },
    )
