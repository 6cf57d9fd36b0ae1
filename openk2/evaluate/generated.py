"""Tasks whose answer is generated and then compared: the loop that GSM8K, MATH and a user's own questions share.

Decoding is greedy, so a repeat with the same engine gives the same answers.
Chance is 0: a random answer is practically never right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openk2.evaluate.prompting import Prompt, Shot, Template, build_prompt
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
from openk2.protocols import Completion, Generate, SamplingParams

# The extracted answer (None if there is none) and whether it is right.
Verdict = tuple[str | None, bool]


@dataclass(frozen=True, slots=True)
class Question:
    """`expected` is compared; `reference` is a whole answer that must be judged right (the task's own proof)."""

    id: str
    group: str
    text: str
    expected: str
    reference: str
    kind: str = ""  # how to compare, where one task knows several ways
    shots: tuple[Shot, ...] = ()


@dataclass(frozen=True)
class GeneratedSpec:
    """What differs between generated tasks."""

    name: str
    template: Template
    judge: Callable[[Question, str], Verdict]
    max_new_tokens: int
    card: dict[str, Any] = field(default_factory=dict)


def run_generated(
    spec: GeneratedSpec,
    questions: Sequence[Question],
    generate: Generate,
    codec: TextCodec,
    settings: EvalSettings,
    advance: Advance,
) -> Result:
    """Ask every question, judge every answer; a question too long for the context counts as wrong."""
    limit = settings.max_new_tokens or spec.max_new_tokens
    params = SamplingParams(max_new_tokens=limit, seed=settings.seed, stop_ids=tuple(codec.stop_ids))
    room = settings.context_length - limit
    records: list[Record] = []
    for start in range(0, len(questions), settings.batch_size):
        batch = questions[start : start + settings.batch_size]
        prompts = [
            build_prompt(codec, spec.template, q.shots, q.text, variant=settings.variant, room=room) for q in batch
        ]
        asked = [prompt.ids for prompt in prompts if prompt.fits]
        answers = iter(generate(asked, params) if asked else [])
        for question, prompt in zip(batch, prompts, strict=True):
            completion = next(answers) if prompt.fits else None
            records.append(_record(spec, question, prompt, completion, codec))
        advance(len(records), len(questions))
    return _result(spec, records, limit, settings)


def _record(
    spec: GeneratedSpec, question: Question, prompt: Prompt, completion: Completion | None, codec: TextCodec
) -> Record:
    if completion is None:
        output, extracted, right, failure = "", None, False, "prompt_too_long"
    else:
        output = codec.tokenizer.decode(_without_stop(completion.ids, codec))
        extracted, right = spec.judge(question, spec.template.cut(output))
        failure = "" if right else _failure(extracted, completion.finish_reason)
    return Record(
        task=spec.name,
        id=question.id,
        group=question.group,
        prompt=codec.tokenizer.decode(prompt.ids),
        output=output,
        expected=question.expected,
        score=float(right),
        failure=failure,
        num_tokens=len(completion.ids) if completion else 0,
        details={"extracted": extracted, "num_shots": prompt.num_shots},
    )


def _without_stop(ids: Sequence[int], codec: TextCodec) -> Sequence[int]:
    return ids[:-1] if ids and ids[-1] in codec.stop_ids else ids


def _failure(extracted: str | None, finish_reason: str) -> str:
    if extracted is not None:
        return "wrong_answer"
    return "length" if finish_reason == "length" else "no_answer"


def _result(spec: GeneratedSpec, records: Sequence[Record], limit: int, settings: EvalSettings) -> Result:
    shots = [record.details["num_shots"] for record in records]
    return Result(
        task=spec.name,
        metric="accuracy",
        estimate=rate(records),
        chance=0.0,
        card={
            "template": f"{spec.template.name}/{settings.variant}",
            "prompts_sha256": prompts_sha256(records),
            "decoding": "greedy",
            "max_new_tokens": limit,
            "context_length": settings.context_length,
            "seed": settings.seed,
            "num_shots": {"min": min(shots, default=0), "max": max(shots, default=0)},
            **spec.card,
        },
        records=records,
        groups=by_group(records),
        details={"failures": failures(records), "answer_tokens": length_details(records)},
    )
