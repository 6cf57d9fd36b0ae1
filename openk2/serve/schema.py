"""What the wire schemas of both APIs share.

Rules: a field that is null counts as absent; a field that is not declared is
refused by name, since it might have been meant to change the answer; types are
not converted. Fields declared as `Ignored` are accepted and have no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Bookkeeping of other services, caching hints, echoes of earlier answers: nothing that could change this one.
Ignored = Any

MAX_TOOLS = 512

StopString = Annotated[str, Field(min_length=1, max_length=256)]
ToolName = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Probability = Annotated[float, Field(ge=0, le=1)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=2**31 - 1)]  # 0: off


Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True)]  # the first wrong one is told, and no other is looked for


class Wire(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        """Of the fields that are not declared one is enough to refuse: an error for each of many takes gigabytes."""
        if not isinstance(value, dict):
            return value
        given = {key: item for key, item in value.items() if item is not None}
        declared = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [key for key in given if key not in declared]
        for key in unknown[1:]:
            del given[key]
        return given


class TextPart(Wire):
    type: Literal["text"]
    text: str
    cache_control: Ignored = None
    citations: Ignored = None


Content = str | Many[TextPart]


def content_text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)
