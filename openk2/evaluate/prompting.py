"""Few-shot prompts as token ids, plain for a base model and as a dialogue for an instruct model.

Invariant: prompt and answer fit in the context together. Shots are dropped
from the front until they do; the number left is recorded with each item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openk2.evaluate.records import TextCodec
from openk2.protocols import Message


@dataclass(frozen=True, slots=True)
class Shot:
    """A question and how it should be answered, both as shown."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Template:
    """How a question becomes plain text: `intro`, then `question_form` and the answer, blocks apart by a blank line.

    In a dialogue the intro leads the first user turn and the question stands without its form.
    """

    name: str
    question_form: str  # with {question}; the answer follows after one space
    stop: tuple[str, ...]  # a plain answer ends before the first of these

    def cut(self, output: str) -> str:
        """The answer proper: what stands before the model goes on to ask itself the next question."""
        ends = [position for mark in self.stop if (position := output.find(mark)) >= 0]
        return output[: min(ends)] if ends else output


@dataclass(frozen=True, slots=True)
class Prompt:
    """`fits` is false where the bare question is too long for the context: then it is not asked."""

    ids: tuple[int, ...]
    num_shots: int
    fits: bool


def build_prompt(
    codec: TextCodec,
    template: Template,
    shots: Sequence[Shot],
    question: str,
    *,
    variant: str,
    room: int,
    intro: str = "",
) -> Prompt:
    """The prompt with as many of the last shots as fit in `room` tokens."""
    render = _dialogue if variant == "instruct" else _plain
    ids: tuple[int, ...] = ()
    for count in range(len(shots), -1, -1):
        ids = render(codec, template, shots[len(shots) - count :], question, intro)
        if len(ids) <= room:
            return Prompt(ids, count, True)
    return Prompt(ids, 0, False)


def _plain(codec: TextCodec, template: Template, shots: Sequence[Shot], question: str, intro: str) -> tuple[int, ...]:
    blocks = [intro] if intro else []
    blocks += [f"{template.question_form.format(question=shot.question)} {shot.answer}" for shot in shots]
    blocks.append(template.question_form.format(question=question))
    return (codec.tokenizer.bos_id, *codec.tokenizer.encode("\n\n".join(blocks)))


def _dialogue(
    codec: TextCodec, template: Template, shots: Sequence[Shot], question: str, intro: str
) -> tuple[int, ...]:
    messages: list[Message] = []
    for shot in shots:
        messages.append({"role": "user", "content": shot.question})
        messages.append({"role": "assistant", "content": shot.answer})
    messages.append({"role": "user", "content": question})
    if intro:
        messages[0]["content"] = f"{intro}\n\n{messages[0]['content']}"
    return codec.encode(messages, add_generation_prompt=True).ids
