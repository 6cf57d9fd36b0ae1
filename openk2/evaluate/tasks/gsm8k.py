"""GSM8K (Cobbe et al. 2021): grade-school word problems, 8 shots from the train part, answer after `####`.

Reads gsm8k/train.jsonl and gsm8k/test.jsonl with fields question and answer.
An answer in \\boxed{} counts too, since dialogue models write it unasked.
Chance is 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openk2.evaluate.answers import boxed_answer, hash_answer, same_number
from openk2.evaluate.dataset_files import read_jsonl, require_file, subset, text_field
from openk2.evaluate.generated import GeneratedSpec, Question, Verdict, run_generated
from openk2.evaluate.prompting import Shot, Template
from openk2.evaluate.records import Advance, EvalSettings, Result, TextCodec
from openk2.protocols import Generate, Score

NUM_SHOTS = 8  # as in the K2 report
CALCULATION_NOTE = re.compile(r"<<[^<>]*>>")  # the data's own calculator marks, which no reader would write
TEMPLATE = Template("gsm8k-1", "Question: {question}\nAnswer:", stop=("\n\nQuestion:",))


@dataclass(frozen=True)
class GSM8K:
    name: str = "gsm8k"

    def load(self, data: Path | None, limit: int | None, seed: int) -> list[Question]:
        shots = tuple(
            Shot(question.text, question.reference)
            for question in self._read(require_file(data, "gsm8k/train.jsonl", self.name), NUM_SHOTS)
        )
        questions = self._read(require_file(data, "gsm8k/test.jsonl", self.name), None, shots)
        return subset(questions, limit, seed, self.name)

    def _read(self, path: Path, count: int | None, shots: tuple[Shot, ...] = ()) -> list[Question]:
        questions: list[Question] = []
        for number, line in read_jsonl(path):
            if len(questions) == count:
                break
            answer = CALCULATION_NOTE.sub("", text_field(path, number, line, "answer"))
            expected = hash_answer(answer)
            if expected is None:
                raise ValueError(f"{path}:{number}: field 'answer': saw no '#### number', expected one at its end")
            text = text_field(path, number, line, "question").strip()
            questions.append(Question(f"{path.stem}-{number}", "gsm8k", text, expected, answer, shots=shots))
        return questions

    def judge(self, question: Question, output: str) -> Verdict:
        """Right if the number after the first `####`, or else in the last box, equals the expected one."""
        answer = hash_answer(output) or boxed_answer(output)
        return answer, answer is not None and same_number(answer, question.expected)

    def run(
        self,
        items: Sequence[Question],
        generate: Generate,
        score: Score,
        codec: TextCodec,
        settings: EvalSettings,
        advance: Advance,
    ) -> Result:
        spec = GeneratedSpec(
            self.name, TEMPLATE, self.judge, max_new_tokens=256, card={"comparison": "decimal numbers"}
        )
        return run_generated(spec, items, generate, codec, settings, advance)
