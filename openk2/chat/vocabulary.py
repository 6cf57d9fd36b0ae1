"""What every K2-layout vocabulary shares: the split rule, the control tokens, the byte alphabet.

Layout: rows [0, n) are byte-level BPE ranks, rows [n, n + 256) are control
tokens at fixed offsets, so a vocabulary of V rows has n = V - 256 ranks. K2's
own V is 163,840; its published tokenizer code names two rows more than the
embedding has, and we do not.
Left out: the media tokens of later Kimi models, which have no row in K2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

NUM_SPECIAL = 256
NUM_BYTES = 256

IM_END = "<|im_end|>"
IM_USER = "<|im_user|>"
IM_ASSISTANT = "<|im_assistant|>"
IM_SYSTEM = "<|im_system|>"
IM_MIDDLE = "<|im_middle|>"
SECTION_BEGIN = "<|tool_calls_section_begin|>"
SECTION_END = "<|tool_calls_section_end|>"
CALL_BEGIN = "<|tool_call_begin|>"
ARGUMENT_BEGIN = "<|tool_call_argument_begin|>"
CALL_END = "<|tool_call_end|>"
BOS, EOS, UNK, PAD = "[BOS]", "[EOS]", "[UNK]", "[PAD]"

# Offset from the first control row -> name. The gaps are K2's (163589, 163592, ... are reserved).
SPECIAL_OFFSETS: Mapping[int, str] = {
    0: BOS,
    1: EOS,
    2: IM_END,
    3: IM_USER,
    4: IM_ASSISTANT,
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "[EOT]",
    10: IM_SYSTEM,
    11: SECTION_BEGIN,
    12: SECTION_END,
    13: CALL_BEGIN,
    14: ARGUMENT_BEGIN,
    15: CALL_END,
    17: IM_MIDDLE,
    254: UNK,
    255: PAD,
}

# K2 flags these `special: false`: `skip_special_tokens` keeps them, so that servers can parse calls from text.
TOOL_TOKENS = frozenset({SECTION_BEGIN, SECTION_END, CALL_BEGIN, ARGUMENT_BEGIN, CALL_END})

_LETTER_HEAD = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_LETTER_TAIL = r"\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def split_pattern(max_digits: int = 3, lead: bool = True) -> str:
    """K2's pre-split: first matching alternative wins.

    Only training departs from K2's `max_digits` of 3, and from leaving a word the character before it (`lead`).
    """
    before = _LEAD if lead else ""
    return "|".join(
        (
            r"[\p{Han}]+",
            f"{before}[{_LETTER_HEAD}]*[{_LETTER_TAIL}]+{_CONTRACTION}",
            f"{before}[{_LETTER_HEAD}]+[{_LETTER_TAIL}]*{_CONTRACTION}",
            rf"\p{{N}}{{1,{max_digits}}}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


@dataclass(frozen=True)
class Special:
    """One control token; `special` is the flag that `skip_special_tokens` obeys."""

    name: str
    id: int
    special: bool


def specials_at(first_id: int, names: Mapping[int, tuple[str, bool]] | None = None) -> tuple[Special, ...]:
    """The 256 control tokens that start at row `first_id`.

    `names` (row -> name and flag, as a checkpoint declares them) replaces K2's own names.
    """
    if names is None:
        names = {first_id + at: (name, name not in TOOL_TOKENS) for at, name in SPECIAL_OFFSETS.items()}
    rows = range(first_id, first_id + NUM_SPECIAL)
    default = {row: names.get(row, (f"<|reserved_token_{row}|>", True)) for row in rows}
    return tuple(Special(name, row, flag) for row, (name, flag) in default.items())


@cache
def byte_of_char() -> Mapping[str, int]:
    """The printable stand-in of each byte in `tokenizer.json` -> the byte.

    Printable Latin-1 stands for itself, the other bytes for the code points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(NUM_BYTES) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
