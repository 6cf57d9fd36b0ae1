"""Resumable training state: one folder a step, whole or absent.

`step-000123/` holds `state.json` (numbers exact), `tensors.safetensors` and
`manifest.json` with the size and SHA-256 of both. How a step is written so
that no kill can leave half of it is in `folder.py`; older steps go only once
the new one stands.

Invariants: nothing is pickled; no file is parsed before its hash has matched;
one process writes a folder at a time (the run folder's lock sees to it), while
others may read. Left out: states sharded over several processes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from openk2.checkpoint.folder import clean_asides, remove_folder, whole_folder
from openk2.checkpoint.state_tree import flatten_state, unflatten_state

FORMAT = "openk2-state"
VERSION = 1
MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "tensors.safetensors"
_STEP = re.compile(r"step-(\d{6,})")


class DamagedCheckpoint(ValueError):
    """One step's folder is not what was written; the text names the file and what is wrong with it."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write `state` as `folder/step-NNNNNN` and keep the newest `keep` steps; returns the step's folder.

    `state` nests dicts, lists and tuples of tensors, numeric arrays, numbers,
    strings, bools and None. Steps beyond `step` belong to a continuation that
    was given up, and are removed too. Raises `ValueError` for a value that
    cannot be saved and for a full disk; whatever fails, older steps stay.
    """
    if keep < 1:
        raise ValueError(f"keep: saw {keep}, expected at least 1 checkpoint")
    if step < 0:
        raise ValueError(f"step: saw {step}, expected 0 or more")
    encoded, tensors = flatten_state(state)
    text = json.dumps(encoded, allow_nan=False, separators=(",", ":")).encode()
    target = _step_folder(folder, step)
    with whole_folder(target, len(text) + sum(tensor.nbytes for tensor in tensors.values())) as aside:
        (aside / STATE).write_bytes(text)
        save_file(tensors, aside / TENSORS)
        files = {
            name: {"bytes": (aside / name).stat().st_size, "sha256": _sha256(aside / name)} for name in (STATE, TENSORS)
        }
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    clean_asides(folder, own=True)
    kept = [other for other in _steps(folder) if other <= step][:keep]
    for other in set(_steps(folder)).difference(kept):
        remove_folder(_step_folder(folder, other))
    return target


def load_latest(folder: Path, *, warn: Callable[[str], None] | None = None) -> tuple[int, dict[str, Any]] | None:
    """(step, state) of the newest step that is whole; None where there is no step at all.

    Each damaged step that is passed over is told in one line to `warn` (stderr
    by default). Raises `ValueError` if there are steps and none is whole.
    """
    if not folder.is_dir():
        return None
    clean_asides(folder)
    problems: list[DamagedCheckpoint] = []
    for step in _steps(folder):
        try:
            state = load_step(folder, step)
        except DamagedCheckpoint as error:
            problems.append(error)
            continue
        for problem in problems:
            (warn or _print_warning)(f"{problem}; going on from step {step} instead")
        return step, state
    if problems:
        raise ValueError(f"{folder}: saw {len(problems)} checkpoint(s), none of them whole; the newest: {problems[0]}")
    return None


def load_step(folder: Path, step: int) -> dict[str, Any]:
    """The state of one step. Raises `DamagedCheckpoint`, a `ValueError`, if it is missing or not what was written."""
    source = _step_folder(folder, step)
    if not source.is_dir():
        present = ", ".join(map(str, _steps(folder))) or "none"
        raise DamagedCheckpoint(f"{source}: saw no such checkpoint, expected one of the steps there: {present}")
    _verify(source, step)
    try:
        encoded = json.loads((source / STATE).read_bytes())
        state: dict[str, Any] = unflatten_state(encoded, load_file(source / TENSORS))
    except (ValueError, KeyError, SafetensorError) as error:
        saw = " ".join(str(error).split())
        raise DamagedCheckpoint(f"{source}: saw {saw}, expected a state of format version {VERSION}") from None
    return state


def _verify(source: Path, step: int) -> None:
    """Compare every file with the manifest's size and hash."""
    path = source / MANIFEST
    manifest = _read_manifest(path)
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        found = f"{manifest.get('format')!r} version {manifest.get('version')!r}"
        raise DamagedCheckpoint(f"{path}: saw format {found}, expected {FORMAT!r} version {VERSION}")
    if manifest.get("step") != step:
        raise DamagedCheckpoint(f"{path}: saw step {manifest.get('step')!r}, expected {step}")
    files = manifest.get("files")
    for name in (STATE, TENSORS):
        expected = files.get(name) if isinstance(files, dict) else None
        if not isinstance(expected, dict):
            raise DamagedCheckpoint(f"{path}: saw no entry for {name}, expected its size and hash")
        _verify_file(source / name, expected)


def _verify_file(path: Path, expected: dict[str, Any]) -> None:
    num_bytes = expected.get("bytes")
    if not path.is_file():
        raise DamagedCheckpoint(f"{path}: saw no file, expected {num_bytes} bytes")
    if path.stat().st_size != num_bytes:
        raise DamagedCheckpoint(
            f"{path}: saw {path.stat().st_size} bytes, expected {num_bytes} (truncated or replaced)"
        )
    if _sha256(path) != expected.get("sha256"):
        raise DamagedCheckpoint(f"{path}: saw a SHA-256 that differs from the manifest's, expected the same (corrupt)")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path}: saw no file, expected a manifest in every checkpoint") from None
    except ValueError as error:
        raise DamagedCheckpoint(f"{path}: saw broken JSON ({error}), expected a manifest") from None
    if not isinstance(manifest, dict):
        raise DamagedCheckpoint(f"{path}: saw a {type(manifest).__name__}, expected a manifest object")
    return manifest


def _steps(folder: Path) -> list[int]:
    """The steps present, newest first."""
    matches = (_STEP.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def _step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _print_warning(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
