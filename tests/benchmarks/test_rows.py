"""The file of a benchmark's rows: what is in it stays, and what is no such file is refused at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import _rows


def rows_of(path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> _rows.Rows:
    monkeypatch.setattr("sys.argv", ["benchmark", "--quick", "--json", str(path), *more])
    return _rows.Rows("A benchmark.")


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    """Nothing is compiled, and the allocator stays as it is for other tests."""
    monkeypatch.setattr(_rows, "fuse", lambda: None)
    monkeypatch.setattr(_rows, "keep_freed_memory", lambda: None)


def test_it_goes_on_from_its_own_rows_and_keeps_others(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.json"
    other = {"name": "a", "commit": "of another", "quick": False}
    path.write_text(json.dumps([other]))
    first = rows_of(path, monkeypatch)
    assert first.missing("a")
    first.times("a", {"ours": [1.0] * 5, "peer": [2.0] * 5}, "a peer", unit="tokens/s", amount=10)
    second = rows_of(path, monkeypatch)
    assert not second.missing("a") and second.missing("b")
    second.add("b", unit="bytes")
    found = json.loads(path.read_text())
    assert found[0] == other and [row["name"] for row in found] == ["a", "a", "b"]
    assert found[1]["ratio"] == 2 and found[1]["interval"] == [2, 2] and found[1]["ours"] == 10


def test_only_the_rows_asked_for_are_made(tmp_path, monkeypatch, capsys):
    rows = rows_of(tmp_path / "rows.json", monkeypatch, "--only", "decode/1b")
    assert rows.missing("decode/1b/b1") and not rows.missing("decode/tiny/b1")
    with pytest.raises(SystemExit) as ended:
        rows.find("decode/tiny/b1")  # which a summary of several rows needs
    assert ended.value.code == 2 and "left out decode/tiny/b1" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{bad", b"[1, 2]", b"{}", b"[{}]", b"\xff\xfe"])
def test_another_file_is_refused_and_left_alone(content, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        rows_of(path, monkeypatch)
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert path.read_bytes() == content


def test_what_cannot_be_written_is_told_first(tmp_path, monkeypatch, capsys):
    for path in (tmp_path, tmp_path / "no folder" / "rows.json"):
        with pytest.raises(SystemExit) as ended:
            rows_of(path, monkeypatch)
        assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
