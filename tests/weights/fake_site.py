"""A server of plain files over loopback: ranges, redirects and refusals."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class FakeSite:
    """Serves `pages`: path -> content, or a status, or the URL that it redirects to."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | int | str] = {}
        self.ranges = True
        self.headers: dict[str, str] = {}
        """Sent with every answer, instead of what would be."""
        self.asked: list[tuple[str, dict[str, str]]] = []
        """(path with query, headers) of each request."""
        self.sent_bytes = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
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
        try:
            request.wfile.write(content)
            self.sent_bytes += len(content)
        except OSError:  # the other end has read enough
            pass
