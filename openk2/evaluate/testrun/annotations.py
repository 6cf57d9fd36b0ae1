"""Thumbs and notes that readers gave answers in the page, brought back as `annotations.json` beside the report.

The page keeps them in the browser and exports this file; the report reads it
where it is there. Of two marks of one answer the later counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openk2.evaluate.testrun import fields

ANNOTATIONS_FILE = "annotations.json"
_THUMBS = ("up", "down", "")
_MARK = ("thumb", "note", "at")


def read_annotations(folder: Path, run: str) -> dict[str, dict[str, str]]:
    """The marks by answer, none where there is no file. ValueError for a file that the page did not write for `run`."""
    path = folder / ANNOTATIONS_FILE
    if not path.is_file():
        return {}
    content = fields.read_json(fields.read_text(path), str(path))
    fields.an_object(content, str(path), ("run", "annotations"), ("run", "annotations"))
    if content["run"] != run:
        fields.refuse(f"{path}: run", content["run"], f"{run}, which this folder holds; take the file away")
    marks = fields.an_object(content["annotations"], f"{path}: annotations")
    return {key: _mark(mark, f"{path}: annotations.{key}") for key, mark in marks.items()}


def _mark(mark: Any, where: str) -> dict[str, str]:
    fields.an_object(mark, where, _MARK, _MARK)
    if mark["thumb"] not in _THUMBS:
        fields.refuse(f"{where}.thumb", mark["thumb"], '"up", "down" or ""')
    for name in ("note", "at"):
        if not isinstance(mark[name], str):
            fields.refuse(f"{where}.{name}", mark[name], "text")
    return dict(mark)
