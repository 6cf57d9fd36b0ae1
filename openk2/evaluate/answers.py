"""Finding the answer in generated text and comparing it with the expected one.

Numbers are compared as decimals, mathematics as normalised LaTeX and, where
the `math-verify` library is installed, as expressions. That library can also
evaluate plain text as Python; only its LaTeX parser is used here, since model
output must never be evaluated.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import threading
from decimal import Decimal

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"  # commas only between thousands
NUMBER = re.compile(rf"-?\$?-?(?:{_DIGITS})")
HASH_ANSWER = re.compile(rf"####\s*([-+]?\$?\s*[-+]?(?:{_DIGITS}))")
BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
# What a symbolic comparison could take minutes or gigabytes for: towers of powers, large exponents, factorials.
COSTLY = re.compile(r"\^\s*\{[^{}]*\^|\^\s*\w\s*\^|\^\s*\{?\s*-?\d{4,}|\d{3,}\s*!")
MAX_SYMBOLIC_LENGTH = 200  # characters; the longest answer in MATH's test part has about 160
SYMBOLIC_SECONDS = 5


def parse_number(text: str) -> Decimal | None:
    """A number with optional thousands commas, $ and %; None if the text is anything else."""
    bare = re.sub(r"\s|\$", "", text).rstrip("%").rstrip(".")
    if not re.fullmatch(rf"[+-]?(?:{_DIGITS})", bare):
        return None
    return Decimal(bare.replace(",", ""))


def last_number(text: str) -> str | None:
    """The last number in the text as written, None if there is none."""
    found = NUMBER.findall(text)
    return found[-1] if found else None


def hash_answer(text: str) -> str | None:
    """The number after the first `####`, the form that GSM8K's own solutions end with."""
    match = HASH_ANSWER.search(text)
    return match.group(1) if match else None


def boxed_answer(text: str) -> str | None:
    r"""The content of the last \boxed{...} (or \fbox) with its braces balanced."""
    matches = list(BOXED.finditer(text))
    if not matches:
        return None
    start = matches[-1].end()
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + 1 : position].strip()
    return None


def same_number(answer: str, expected: str) -> bool:
    """Equal as decimals; false where either is not a number."""
    left, right = parse_number(answer), parse_number(expected)
    return left is not None and left == right


_DROPPED = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\\quad|\\displaystyle|\\\$|\$|\\%|%|~|\s+")
_DEGREES = re.compile(r"\^\{?\\circ\}?")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d}])\s*\\(?:text|mbox|mathrm)\{[^{}]*\}(?:\^\{?\d\}?)?$")
_BARE_FRACTION = re.compile(r"\\frac(?:\{([^{}]*)\}|(\w))(?:\{([^{}]*)\}|(\w))")
_BARE_ROOT = re.compile(r"\\sqrt(\w)")
_NAMED = re.compile(r"^[a-zA-Z]\w?=(?=[^=]+$)")
_THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")


def normalise_math(latex: str) -> str:
    """LaTeX without differences that are only visual: spacing, sizes, units, \\frac12 for \\frac{1}{2}, x= in front."""
    text = latex.strip().rstrip(".")
    text = _UNIT.sub("", text.replace("{,}", ",").replace("\\!", ""))
    text = _TEXT.sub(lambda match: match.group(1), text)
    text = _DEGREES.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    text = _DROPPED.sub("", text)
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    text = _BARE_FRACTION.sub(
        lambda match: (
            f"\\frac{{{match[1] if match[1] is not None else match[2]}}}"
            f"{{{match[3] if match[3] is not None else match[4]}}}"
        ),
        text,
    )
    text = _NAMED.sub("", _BARE_ROOT.sub(r"\\sqrt{\1}", text))
    number = parse_number(text)
    return text if number is None else format(number.normalize(), "f")


def symbolic_library() -> str | None:
    """Name and version of math-verify where it can be used: its time limit is a signal, so in the main thread only."""
    if importlib.util.find_spec("math_verify") is None or threading.current_thread() is not threading.main_thread():
        return None
    return f"math-verify {importlib.metadata.version('math-verify')}"


def same_math(answer: str, expected: str, *, symbolic: bool) -> bool:
    """Whether two LaTeX answers agree, as normalised strings or (`symbolic`) as mathematics."""
    left, right = normalise_math(answer), normalise_math(expected)
    if left == right:
        return True
    if not symbolic or not left or max(len(left), len(right)) > MAX_SYMBOLIC_LENGTH or COSTLY.search(left):
        return False
    return _same_expression(left, right)


def _same_expression(answer: str, expected: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify  # type: ignore[import-untyped,import-not-found]

    def read(latex: str) -> list[object]:
        return list(
            parse(
                f"$\\boxed{{{latex}}}$",
                extraction_config=[LatexExtractionConfig()],
                fallback_mode="no_fallback",
                parsing_timeout=SYMBOLIC_SECONDS,
            )
        )

    return bool(verify(read(expected), read(answer), timeout_seconds=SYMBOLIC_SECONDS))
