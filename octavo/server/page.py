"""The page that browsers get at / and /docs: a chat with the model, and every route with its fields.

The page itself is the same for every server and holds nothing of this one; what it shows it asks for, with
the key that a person enters. So it also is the body of the 401 that a browser gets.
"""

from __future__ import annotations

import importlib.resources

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response

_PATHS = frozenset({"/", "/docs", "/docs/"})
_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def page(status: int = 200) -> Response:
    """The page."""
    text = importlib.resources.files("octavo.server").joinpath("static/docs.html").read_text("utf-8")
    asks = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return HTMLResponse(text, status, headers={"Content-Security-Policy": _CSP, **asks})


def wants_page(method: str, path: str, headers: Headers) -> bool:
    """Whether a person's browser asks, not a program."""
    return method == "GET" and path in _PATHS and "text/html" in headers.get("accept", "")
