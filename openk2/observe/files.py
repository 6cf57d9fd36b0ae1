"""Files that are whole or absent: written aside, flushed to disk, renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never a part."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # the system names no file where a write fails
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path | str) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
