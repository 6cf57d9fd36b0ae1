"""MMLU (Hendrycks et al. 2021): four choices, 5 shots of the same subject, scored by the letters' probability.

Reads mmlu/{dev,test}/SUBJECT_{dev,test}.csv with the columns of `COLUMNS`,
`answer` counting from 0. The figure is the mean over questions (not over
subjects). Chance is 25%; letters of exactly equal probability share the point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openk2.evaluate.dataset_files import read_csv, subset
from openk2.evaluate.prompting import Prompt, Shot, Template, build_prompt
from openk2.evaluate.records import (
    Advance,
    EvalSettings,
    Record,
    Result,
    TextCodec,
    by_group,
    failures,
    prompts_sha256,
    rate,
)
from openk2.protocols import Generate, Score

LETTERS = "ABCD"
NUM_SHOTS = 5  # as in the K2 report
COLUMNS = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
TEMPLATE = Template("mmlu-1", "{question}\nAnswer:", stop=())


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with its choices as shown; `answer` is 0..3."""

    id: str
    subject: str
    text: str
    answer: int
    shots: tuple[Shot, ...]


@dataclass(frozen=True)
class MMLU:
    name: str = "mmlu"

    def load(self, data: Path | None, limit: int | None, seed: int) -> list[Choice]:
        if data is None or not (paths := sorted(Path(data).glob("mmlu/test/*_test.csv"))):
            raise ValueError(f"mmlu: saw no mmlu/test/SUBJECT_test.csv under {data}, expected them there; check --data")
        choices = [choice for path in paths for choice in _read_subject(path)]
        return subset(choices, limit, seed, self.name)

    def run(
        self,
        items: Sequence[Choice],
        generate: Generate,
        score: Score,
        codec: TextCodec,
        settings: EvalSettings,
        advance: Advance,
    ) -> Result:
        lead = "" if settings.variant == "instruct" else " "
        letters = [codec.tokenizer.encode(lead + letter) for letter in LETTERS]
        room = settings.context_length - max(map(len, letters))
        per_call = max(1, settings.batch_size // len(LETTERS))
        records: list[Record] = []
        for start in range(0, len(items), per_call):
            batch = items[start : start + per_call]
            prompts = [_prompt(item, codec, settings.variant, room) for item in batch]
            asked = [(*prompt.ids, *letter) for prompt in prompts if prompt.fits for letter in letters]
            scored = iter(score(asked) if asked else [])
            for item, prompt in zip(batch, prompts, strict=True):
                logprobs = [float(np.sum(next(scored)[-len(letter) :])) for letter in letters] if prompt.fits else []
                records.append(_record(self.name, item, prompt, logprobs, codec))
            advance(len(records), len(items))
        return _result(self.name, records, settings)


def _read_subject(path: Path) -> list[Choice]:
    subject = path.name.removesuffix("_test.csv")
    dev = path.parent.parent / "dev" / f"{subject}_dev.csv"
    if not dev.is_file():
        raise ValueError(f"mmlu: saw no {dev}, expected the shots of {subject} there; check --data")
    shots = tuple(
        Shot(_question_text(row), LETTERS[_answer(dev, number, row)])
        for number, row in enumerate(read_csv(dev, COLUMNS)[:NUM_SHOTS], start=2)
    )
    return [
        Choice(f"{subject}-{number}", subject, _question_text(row), _answer(path, number, row), shots)
        for number, row in enumerate(read_csv(path, COLUMNS), start=2)
    ]


def _question_text(row: dict[str, str]) -> str:
    choices = [f"{letter}. {row[f'choice{index}']}" for index, letter in enumerate(LETTERS)]
    return "\n".join([row["question"].strip(), *choices])


def _answer(path: Path, number: int, row: dict[str, str]) -> int:
    if row["answer"] not in ("0", "1", "2", "3"):
        raise ValueError(f"{path}: row {number}: field 'answer': saw {row['answer']!r:.20}, expected 0, 1, 2 or 3")
    return int(row["answer"])


def _prompt(item: Choice, codec: TextCodec, variant: str, room: int) -> Prompt:
    intro = f"Questions on {item.subject.replace('_', ' ')}. Each has one right answer: give its letter."
    return build_prompt(codec, TEMPLATE, item.shots, item.text, variant=variant, room=room, intro=intro)


def _record(task: str, item: Choice, prompt: Prompt, logprobs: Sequence[float], codec: TextCodec) -> Record:
    best = [index for index, value in enumerate(logprobs) if value == max(logprobs)]
    points = 1.0 / len(best) if item.answer in best else 0.0
    failure = "" if points else ("wrong_answer" if prompt.fits else "prompt_too_long")
    return Record(
        task=task,
        id=item.id,
        group=item.subject,
        prompt=codec.tokenizer.decode(prompt.ids),
        output="".join(LETTERS[index] for index in best),
        expected=LETTERS[item.answer],
        score=points,
        failure=failure,
        details={"logprobs": list(logprobs), "num_shots": prompt.num_shots},
    )


def _result(task: str, records: Sequence[Record], settings: EvalSettings) -> Result:
    shots = [record.details["num_shots"] for record in records]
    return Result(
        task=task,
        metric="accuracy",
        estimate=rate(records),
        chance=1.0 / len(LETTERS),
        card={
            "template": f"{TEMPLATE.name}/{settings.variant}",
            "prompts_sha256": prompts_sha256(records),
            "decoding": "most probable letter",
            "context_length": settings.context_length,
            "seed": settings.seed,
            "num_shots": {"min": min(shots, default=0), "max": max(shots, default=0)},
        },
        records=records,
        groups=by_group(records),
        details={"failures": failures(records)},
    )
