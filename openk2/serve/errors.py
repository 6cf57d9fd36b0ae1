"""Refusals and failures as clients of either API expect them.

Invariants: one line, what came from outside is clipped, and never a traceback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from openk2.serve.wire import JsonResponse

SEEN_CHARS = 80
MESSAGE_CHARS = 500
ANTHROPIC_PATH = "/v1/messages"

# The type in OpenAI's shape and in Anthropic's: of most of what can be wrong, and of some statuses.
_INVALID = ("invalid_request_error", "invalid_request_error")
_TYPES = {
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("invalid_request_error", "not_found_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
    504: ("server_error", "timeout_error"),
}


class ApiError(Exception):
    """An answer other than 200. `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.message = clip(" ".join(message.split()), MESSAGE_CHARS)
        self.headers = dict(headers or {})

    def openai(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, _INVALID)[0]
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        return {"type": "error", "error": {"type": _TYPES.get(self.status, _INVALID)[1], "message": self.message}}

    def response(self, path: str) -> JsonResponse:
        """In the shape of the API that `path` belongs to."""
        body = self.anthropic() if path.startswith(ANTHROPIC_PATH) else self.openai()
        return JsonResponse(body, self.status, headers=self.headers)


def late(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"the answer took longer than {seconds:g} seconds; ask for less",
        code="timeout",
        headers={"x-should-retry": "false"},  # official clients ask again otherwise
    )


def clip(text: str, limit: int = SEEN_CHARS) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: Any) -> str:
    """What was seen, as JSON and not longer than it takes to find it."""
    if isinstance(value, str):
        value = clip(value)
    elif isinstance(value, (list, dict)) and len(value) > SEEN_CHARS:
        return f"{len(value)} entries"
    try:
        return clip(json.dumps(value, ensure_ascii=False, default=repr))
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"


def validation_error(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """The most telling of pydantic's complaints: of the branches of a union, the one that got furthest."""
    error = max(errors, key=lambda error: (len(_places(error, body)), _telling(error["type"])))
    if error["type"] == "json_invalid":
        return ApiError(400, f"body: saw text that is not JSON ({error['ctx']['error']}), expected a JSON object")
    path, seen = _path(_places(error, body)), shown(error["input"])
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        field = error["ctx"]["discriminator"].strip("'")
        path, seen = f"{path}.{field}", shown(error["ctx"].get("tag"))
        expected = error["ctx"].get("expected_tags", "a value")
    elif error["type"] == "missing":
        seen, expected = "nothing", "a value; add it"
    elif error["type"] == "extra_forbidden":
        seen, expected = "a field that this server does not support", "it absent; leave it out"
    else:
        expected = re.sub(r"^(Input|String|List|Value|Dictionary) should (be |have )?", "", error["msg"])
    return ApiError(400, f"{path or 'body'}: saw {seen}, expected {expected}", param=path or None)


def _telling(kind: str) -> int:
    if kind.endswith("_type"):  # of another branch of a union, as a rule
        return 0
    return {"missing": 1, "extra_forbidden": 1, "literal_error": 3}.get(kind, 2)


def _places(error: Mapping[str, Any], body: Any) -> list[str | int]:
    """The part of pydantic's location that is in the body, which leaves out its names for branches of a union."""
    found: list[str | int] = []
    at, location = body, error["loc"]
    for number, place in enumerate(location[1:], 2):
        missing = error["type"] == "missing" and number == len(location)
        if isinstance(at, dict) and isinstance(place, str) and (place in at or missing):
            at = at.get(place)
        elif isinstance(at, list) and isinstance(place, int) and place < len(at):
            at = at[place]
        else:
            continue
        found.append(place)
    return found


def _path(places: Sequence[str | int]) -> str:
    """`messages[0].content`"""
    return clip("".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places).lstrip("."))
