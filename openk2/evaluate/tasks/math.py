"""MATH (Hendrycks et al. 2021): competition problems, 4 shots, answer in \\boxed{}.

Reads math/test.json: one object a line (or one JSON array) with problem,
solution and type. There is no train part in that layout, so the shots are the
first four problems, and those four are never scored. Chance is 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openk2.evaluate.answers import boxed_answer, same_math, symbolic_library
from openk2.evaluate.dataset_files import read_jsonl, require_file, subset, text_field
from openk2.evaluate.generated import GeneratedSpec, Question, Verdict, run_generated
from openk2.evaluate.prompting import Shot, Template
from openk2.evaluate.records import Advance, EvalSettings, Result, TextCodec
from openk2.protocols import Generate, Score

NUM_SHOTS = 4  # as in the K2 report
TEMPLATE = Template("math-1", "Problem: {question}\nSolution:", stop=("\n\nProblem:",))


@dataclass(frozen=True)
class Math:
    name: str = "math"

    def load(self, data: Path | None, limit: int | None, seed: int) -> list[Question]:
        path = require_file(data, "math/test.json", self.name)
        questions = [_question(path, number, line) for number, line in _lines(path)]
        shots = tuple(Shot(question.text, question.reference) for question in questions[:NUM_SHOTS])
        scored = [Question(q.id, q.group, q.text, q.expected, q.reference, shots=shots) for q in questions[NUM_SHOTS:]]
        return subset(scored, limit, seed, self.name)

    def judge(self, question: Question, output: str) -> Verdict:
        """Right if the last box agrees with the expected one."""
        answer = boxed_answer(output)
        symbolic = symbolic_library() is not None
        return answer, answer is not None and same_math(answer, question.expected, symbolic=symbolic)

    def run(
        self,
        items: Sequence[Question],
        generate: Generate,
        score: Score,
        codec: TextCodec,
        settings: EvalSettings,
        advance: Advance,
    ) -> Result:
        comparison = symbolic_library() or "normalised strings (math-verify is not in use)"
        spec = GeneratedSpec(self.name, TEMPLATE, self.judge, max_new_tokens=512, card={"comparison": comparison})
        return run_generated(spec, items, generate, codec, settings, advance)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        is_array = file.read(1) == "["
    if is_array:
        yield from enumerate(json.loads(path.read_text(encoding="utf-8")), start=1)
    else:
        yield from read_jsonl(path)


def _question(path: Path, number: int, line: dict[str, Any]) -> Question:
    solution = text_field(path, number, line, "solution")
    expected = boxed_answer(solution)
    if expected is None:
        raise ValueError(f"{path}:{number}: field 'solution': saw no \\boxed{{...}}, expected the answer in one")
    group = text_field(path, number, line, "type") if "type" in line else "math"
    return Question(f"test-{number}", group, text_field(path, number, line, "problem").strip(), expected, solution)
