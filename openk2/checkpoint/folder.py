"""A folder that is whole or absent: written aside, flushed to disk, renamed.

The aside folder stands beside the target as `.NAME.PID.new.tmp`; a target that
is replaced is first moved to `.NAME.PID.old.tmp`. What killed processes left
under these names is removed by `clean_asides`, and an old target whose
replacement never arrived is put back. Invariant: one process writes a target
at a time; others may read it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from openk2.observe.console import byte_size
from openk2.observe.files import sync_folder

_ASIDE = re.compile(r"\.(.+)\.(\d+)\.(new|old)\.tmp")


@contextmanager
def whole_folder(target: Path, num_bytes: int) -> Iterator[Path]:
    """Gives an empty folder to fill; at the end of the `with` it becomes `target`, replacing what was there.

    Whatever fails inside, the aside folder goes and the target stays as it
    was. A full disk becomes a `ValueError` naming the folder and `num_bytes`,
    the size of what was to be written.
    """
    aside = _aside(target, "new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clean_asides(target.parent, own=True, name=target.name)
        aside.mkdir()
        yield aside
        _flush(aside)
        _replace(aside, target)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if _disk_full(error):
            free = byte_size(shutil.disk_usage(_existing(target)).free)
            raise ValueError(
                f"{target.parent}: saw a full disk ({free} free), expected room for {num_bytes} bytes "
                f"({byte_size(num_bytes)}) of {target.name}; free some space and run again, older files are untouched"
            ) from None
        raise


def remove_folder(target: Path) -> None:
    """Move `target` aside, then delete it: a process killed between leaves an aside folder, not half a target."""
    aside = _aside(target, "new")
    os.rename(target, aside)
    shutil.rmtree(aside)


def clean_asides(parent: Path, *, own: bool = False, name: str | None = None) -> None:
    """Remove what dead processes (with `own`, this one too) left in `parent`, for the target `name` or for all."""
    for leftover in list(parent.iterdir()):
        match = _ASIDE.fullmatch(leftover.name)
        if match is None or name not in (None, match[1]):
            continue
        process = int(match[2])
        if _alive(process) and not (own and process == os.getpid()):
            continue
        if match[3] == "old" and not (parent / match[1]).exists():
            os.rename(leftover, parent / match[1])
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _replace(aside: Path, target: Path) -> None:
    """Rename `aside` to `target`; what stood there is moved away first and deleted last."""
    old = _aside(target, "old")
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(aside, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _aside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{kind}.tmp")


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, under another user
        return True
    return True


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that is there."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # Safetensors words the system's error in an exception of its own.
    return isinstance(error, SafetensorError) and os.strerror(errno.ENOSPC) in str(error)
