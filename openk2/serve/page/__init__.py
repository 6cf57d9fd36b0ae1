"""The chat page: files that a browser gets as they are.

Invariants: only the files of this folder that are named here, read once; the
content policy lets them load from and speak to this server alone, lets no
other page frame them, and lets no text become markup (trusted types, where the
browser has them). They are given without a key: a browser has none until the
page asks for it, and they hold no secrets.
"""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

_FOLDER = Path(__file__).parent
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = {
    "/": "index.html",
    **{f"/page/{path.name}": path.name for path in sorted(_FOLDER.iterdir()) if path.suffix in (".css", ".js", ".svg")},
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Page:
    """ASGI middleware that answers for the page's own paths."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._files = {
            path: Response((_FOLDER / name).read_bytes(), media_type=_KINDS[Path(name).suffix], headers=_HEADERS)
            for path, name in FILES.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        file = self._files.get(scope["path"]) if scope["type"] == "http" else None
        if file is not None and scope["method"] in ("GET", "HEAD"):
            await file(scope, receive, send)
        else:
            await self._app(scope, receive, send)
