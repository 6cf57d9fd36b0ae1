"""A user's own questions: `{"prompt", "answer", "match"}` lines, generated greedily and compared.

Match `exact`: the whole answer, but for space around it; `numeric`: the last
number in it; `contains`: the expected text somewhere in it, whatever the case.
Chance is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openk2.evaluate.answers import last_number, same_number
from openk2.evaluate.dataset_files import subset
from openk2.evaluate.generated import GeneratedSpec, Question, Verdict, run_generated
from openk2.evaluate.prompting import Template
from openk2.evaluate.records import Advance, EvalSettings, Result, TextCodec
from openk2.protocols import Generate, Score

TEMPLATE = Template("own-1", "{question}", stop=("\n\n",))


@dataclass(frozen=True)
class OwnQuestions:
    name: str
    questions: Sequence[Question]

    def load(self, data: Path | None, limit: int | None, seed: int) -> list[Question]:
        """`data` is not read: the questions came with the file."""
        return subset(self.questions, limit, seed, self.name)

    def judge(self, question: Question, output: str) -> Verdict:
        """Compare as the question's `match` says."""
        if question.kind == "numeric":
            number = last_number(output)
            return number, number is not None and same_number(number, question.expected)
        answer, expected = output.strip(), question.expected.strip()
        if question.kind == "contains":
            return answer, expected.casefold() in answer.casefold()
        return answer, answer == expected

    def run(
        self,
        items: Sequence[Question],
        generate: Generate,
        score: Score,
        codec: TextCodec,
        settings: EvalSettings,
        advance: Advance,
    ) -> Result:
        spec = GeneratedSpec(self.name, TEMPLATE, self.judge, max_new_tokens=128, card={"comparison": "by item"})
        return run_generated(spec, items, generate, codec, settings, advance)
