"""Bits per byte: windows that count every token once, and figures that can be worked out by hand."""

from __future__ import annotations

import json
import lzma
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from openk2.chat import Codec, Tokenizer
from openk2.evaluate.records import Result
from openk2.evaluate.tasks.bits_per_byte import BitsPerByte, windows, xz_bytes

Run = Callable[..., Result]

TEXTS = {"prose": ["Once upon a time. " * 9, "A short one."], "code": ["def f(x):\n    return x\n" * 20, "π = 3\n"]}


@given(some.integers(0, 200), some.integers(2, 40), some.data())
def test_windows_count_every_token_once_with_context(length: int, context: int, data: some.DataObject) -> None:
    stride = data.draw(some.integers(1, context - 1))
    ids = list(range(length))
    counted: list[int] = []
    for index, window in enumerate(windows(ids, context, stride)):
        assert len(window.ids) <= context
        assert window.ids == tuple(range(window.ids[0], window.ids[-1] + 1)), "a run of the document"
        assert index == 0 or len(window.ids) - window.num_counted >= context - stride
        counted += window.ids[-window.num_counted :]
    assert counted == ids[1:]


def test_uniform_model_costs_log2_of_its_vocabulary(codec: Codec, run: Run, uniform: Any) -> None:
    score = uniform(512)
    task = BitsPerByte(TEXTS)
    result = run(task, task.load(None, None, 0), score=score, context_length=64, batch_size=3)
    num_bytes = sum(len(text.encode()) for texts in TEXTS.values() for text in texts)
    assert result.details["bytes"] == num_bytes
    # One token a byte and 9 bits a token, however the documents were cut.
    assert result.estimate.value == pytest.approx(9.0, rel=1e-12)
    assert result.details["domains"]["code"]["bpb"] == pytest.approx(9.0, rel=1e-12)
    assert result.details["domains"]["code"]["tokens"] == len("".join(TEXTS["code"]).encode())
    assert {sequence[0] for sequence in score.sequences} >= {codec.tokenizer.bos_id}
    assert max(map(len, score.sequences)) == 64


def test_a_longer_vocabulary_does_not_change_what_is_divided_by(run: Run, uniform: Any) -> None:
    words = "the cat sat on the mat and the dog sat on the cat "
    codec = Codec(Tokenizer.train([words * 8], 1024))
    text = words * 8
    task = BitsPerByte({"prose": [text]})
    result = run(task, task.load(None, None, 0), score=uniform(1024), codec=codec)
    tokens = len(codec.tokenizer.encode(text))
    assert tokens < len(text)
    assert result.estimate.value == pytest.approx(10.0 * tokens / len(text))


def test_windowing_does_not_change_a_model_with_short_memory(run: Run) -> None:
    """A model that looks back two tokens gives the same figure for every window that leaves it them."""

    def score(sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.array([-1.0 - (sum(ids[max(0, t - 2) : t]) % 7) for t in range(1, len(ids))]) for ids in sequences]

    items = BitsPerByte(TEXTS).load(None, None, 0)
    figures = {
        run(BitsPerByte(TEXTS, stride=stride), items, score=score, context_length=context).estimate.value
        for context, stride in ((2048, 1024), (50, 20), (33, 31), (16, 1))
    }
    assert max(figures) - min(figures) < 1e-9


def test_a_miscounting_score_is_refused(run: Run) -> None:
    task = BitsPerByte({"x": ["abc"]})
    items = task.load(None, None, 0)
    with pytest.raises(ValueError, match="saw 4 log-probabilities for 4 ids, expected n - 1"):
        run(task, items, score=lambda s: [np.zeros(len(ids)) for ids in s])


def test_xz_is_the_command_line_tool() -> None:
    text = TEXTS["prose"][0] * 50
    assert xz_bytes([text[:100], text[100:]]) == xz_bytes([text])
    data = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    assert xz_bytes([text]) == len(data)
    if shutil.which("xz"):
        out = subprocess.run(["xz", "-9e", "-c"], input=text.encode(), capture_output=True, check=True).stdout
        assert abs(len(out) - len(data)) <= 8, "the two may differ in how the index is padded"


def test_texts_come_from_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "validation"
    folder.mkdir()
    (folder / "poem.txt").write_text("one document")
    (folder / "talk.jsonl").write_text("\n".join(json.dumps({"text": f"document {n}"}) for n in range(5)))
    items = BitsPerByte().load(tmp_path, 3, 0)
    assert [item.domain for item in items] == ["poem", "talk", "talk", "talk"]
    assert items == BitsPerByte().load(tmp_path, 3, 0)
    (folder / "talk.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(ValueError, match=r"talk.jsonl:2: field 'text': saw nothing, expected text"):
        BitsPerByte().load(tmp_path, None, 0)
    with pytest.raises(ValueError, match="expected held-out text"):
        BitsPerByte().load(tmp_path / "absent", None, 0)


def test_stderr_is_over_documents(codec: Codec, run: Run) -> None:
    def score(sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.full(len(ids) - 1, -math.log(2) * (1 if ids[1] == cheap else 3)) for ids in sequences]

    cheap = codec.tokenizer.encode("a")[0]
    task = BitsPerByte({"x": ["aaaa", "bbbb"]})
    result = run(task, task.load(None, None, 0), score=score)
    assert (result.estimate.value, result.estimate.n) == (pytest.approx(2.0), 2)
    assert result.estimate.stderr == pytest.approx(1.0)  # two documents at 1 and 3 bits: s / sqrt(2) = 1
