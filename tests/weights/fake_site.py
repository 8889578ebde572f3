"""A server of plain files over loopback: ranges, redirects and refusals."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from loopback import LoopbackServer


class FakeSite(LoopbackServer):
    """Serves `pages`: path -> content, or a status, or the URL that it redirects to."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | int | str] = {}
        self.ranges = True
        self.headers: dict[str, str] = {}
        """Sent with every answer, instead of what would be."""
        self.asked: list[tuple[str, dict[str, str]]] = []
        """(path with query, headers) of each request."""
        self.sent_bytes = 0
        super().__init__()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        self.asked.append((request.path, dict(request.headers)))
        page = self.pages.get(unquote(urlsplit(request.path).path), 404)
        status, headers, content = 200, {}, b""
        if isinstance(page, str):
            status, headers = 302, {"Location": page}
        elif isinstance(page, int):
            status = page
        else:
            content = page
            wanted = request.headers.get("Range")
            if wanted and self.ranges:
                first, last = (int(word) for word in wanted.removeprefix("bytes=").split("-"))
                content, whole = page[first : last + 1], len(page)
                status, headers = 206, {"Content-Range": f"bytes {first}-{last}/{whole}"}
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers | self.headers).items():
            request.send_header(name, value)
        request.end_headers()
        if not body:
            return
        try:
            request.wfile.write(content)
            self.sent_bytes += len(content)
        except OSError:  # the other end has read enough
            pass
