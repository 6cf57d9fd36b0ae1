"""Messages and tools <-> token ids with a loss mask, in Kimi K2's chat layout.

One object serves SFT masks, RL rollouts, evaluation and the server, so that
what is trained is what is sampled. Invariants: only the codec places control
ids, text from messages never becomes one; the mask is true exactly on what
the model is to produce, the closing `<|im_end|>` included and the turn's
header not; encoding is append-only: `encode(a + b)` is `encode(a)` followed
by `encode_turns(b)` where b's call ids are canonical. Left out: images,
reasoning contents (K2 does not think aloud), and truncation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from openk2.chat import template as layout
from openk2.chat.parser import StreamParser
from openk2.chat.template import JINJA, TEMPLATE_FILE, VERSIONS, Segment
from openk2.chat.tokenizer import Tokenizer
from openk2.protocols import Encoded, Message, ToolSpec


class Codec:
    """Kimi K2's chat layout over one tokenizer; implements `openk2.protocols.ChatCodec`."""

    def __init__(self, tokenizer: Tokenizer, template: str = "revised") -> None:
        """`template` is "revised" or "first-release" (which cannot express tool calls)."""
        if template not in VERSIONS:
            raise ValueError(f"template: saw {template!r}, expected one of {', '.join(VERSIONS)}")
        self.tokenizer = tokenizer
        self.template = template

    @classmethod
    def load(cls, folder: Path | str) -> Codec:
        """The codec of a checkpoint folder: its tokenizer, and the template version that `save` wrote there."""
        path = Path(folder) / TEMPLATE_FILE
        written = path.read_text(encoding="utf-8") if path.is_file() else ""
        version = next((version for version in VERSIONS if JINJA[version] == written), "revised")
        return cls(Tokenizer.load(folder), version)

    def save(self, folder: Path | str) -> None:
        """Write tokenizer and chat template as `AutoTokenizer` and `load` read them."""
        self.tokenizer.save(folder, template=self.template)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a turn: `<|im_end|>`, and `[EOS]`, which a base model may write instead."""
        return (self.tokenizer.im_end_id, self.tokenizer.eos_id)

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> Encoded:
        """A whole dialogue: tool declaration, system turn (K2's default if there is none), turns.

        Call ids are rewritten to `functions.{name}:{idx}`, idx counting the
        calls of the dialogue from 0. A message with `"train": false` or
        `"weight": 0` is masked out. Raises `ValueError` for an unknown role or
        a content part that is not text.
        """
        return self._encode(self._dialogue(messages, tools, add_generation_prompt))

    def encode_turns(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, first_call_index: int = 0
    ) -> Encoded:
        """Turns to append to tokens that exist: no declaration, no default system turn.

        Call ids that are canonical are kept; others are numbered from `first_call_index`.
        """
        ready = layout.canonical_calls(messages, first_index=first_call_index, keep=True)
        return self._encode(chain(layout.turns(self.template, ready), _prompt(add_generation_prompt)))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The dialogue as text, for eyes and tests only: control tokens cannot be told from text that spells them."""
        return "".join(segment.text for segment in self._dialogue(messages, tools, add_generation_prompt))

    def decode_message(self, ids: Sequence[int]) -> Message:
        """The assistant message that sampled ids spell: `role`, `content`, `tool_calls` if any.

        Never raises for what a model wrote: arguments stay the string they
        are, and what breaks the grammar is told in one line under `malformed`.
        """
        parser = StreamParser(self)
        parser.feed(ids)
        return parser.finish()

    def _dialogue(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] | None, add_generation_prompt: bool
    ) -> Iterator[Segment]:
        return chain(
            layout.prelude(self.template, messages, tools),
            layout.turns(self.template, layout.canonical_calls(messages)),
            _prompt(add_generation_prompt),
        )

    def _encode(self, segments: Iterable[Segment]) -> Encoded:
        ids: list[int] = []
        mask: list[bool] = []
        for segment in segments:
            if segment.control:
                new = [self.tokenizer.special[segment.text]]
            else:
                new = self.tokenizer.encode(segment.text)
            ids += new
            mask += [segment.train] * len(new)
        return Encoded(tuple(ids), tuple(mask))


def _prompt(wanted: bool) -> Iterable[Segment]:
    return layout.generation_prompt() if wanted else ()
