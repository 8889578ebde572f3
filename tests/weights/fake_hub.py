"""The parts of the Hugging Face and ModelScope APIs that a download needs, over loopback."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from loopback import LoopbackServer

SHA = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(LoopbackServer):
    """Serves `files` of the model `name`; `gate` answers everything with that HTTP status."""

    protocol_version = "HTTP/1.1"

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.name, self.files = name, files
        self.gate: int | None = None
        self.token: str | None = None
        self.asked: list[str] = []
        self.sent_bytes = 0
        self.ranges = True
        self.tokens: set[str | None] = set()
        super().__init__()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        parts = urlsplit(request.path)
        self.asked.append(parts.path)
        self.tokens.add(request.headers.get("Authorization"))
        status, headers, content = self._reply(parts.path, parse_qs(parts.query), request.headers)
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            self.sent_bytes += len(content)
            request.wfile.write(content)

    def _reply(
        self, path: str, query: dict[str, list[str]], headers: Any
    ) -> tuple[int, dict[str, str], bytes]:
        if self.gate is not None:
            code = {401: "GatedRepo", 403: "GatedRepo"}.get(self.gate)
            return self.gate, {"X-Error-Code": code} if code else {}, b"{}"
        if self.token is not None and headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "GatedRepo"}, b"{}"
        if path.startswith("/api/v1/models/"):
            return self._modelscope(path, query)
        return self._ranged(*self._huggingface(path), headers.get("Range"))

    def _ranged(
        self, status: int, headers: dict[str, str], content: bytes, wanted: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        if status != 200 or wanted is None or not self.ranges:
            return status, headers, content
        first, last = (int(word) for word in wanted.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        span = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return 206, {**headers, "Content-Range": span}, part

    def _huggingface(self, path: str) -> tuple[int, dict[str, str], bytes]:
        api = f"/api/models/{self.name}"
        if path in (f"{api}/revision/main", f"{api}/revision/{SHA}", api):
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {}, as_json({"id": self.name, "sha": SHA, "siblings": siblings})
        if path.startswith(f"{api}/revision/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if path == f"{api}/tree/{SHA}":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            return 200, {}, as_json(entries)
        for revision in ("main", SHA):
            name = path.removeprefix(f"/{self.name}/resolve/{revision}/")
            if name in self.files:
                tag = hashlib.sha1(self.files[name]).hexdigest()
                return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": SHA}, self.files[name]
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _modelscope(self, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        api = f"/api/v1/models/{self.name}"
        if path == f"{api}/repo/files":
            entries = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(data)} | {"Sha256": sha256(data)}
                for name, data in self.files.items()
            ]
            return 200, {}, as_json({"Code": 200, "Success": True, "Data": {"Files": entries}})
        if path == f"{api}/revisions":
            return (
                200,
                {},
                as_json({"Code": 200, "Data": {"RevisionMap": {"Branches": [{"Revision": "master"}]}}}),
            )
        if path == f"{api}/repo" and (query.get("FilePath") or [""])[0] in self.files:
            return 200, {}, self.files[query["FilePath"][0]]
        return 404, {}, as_json({"Code": 10010205001, "Success": False, "Message": "not found"})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()
