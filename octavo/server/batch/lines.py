"""One line of a batch: read, answered by the application's own routes, written; also for run-batch."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from starlette.types import ASGIApp

from octavo.server.batch.bodies import BatchProblem
from octavo.server.inside import post

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""What a batch may ask of the server."""
OFFLINE_ENDPOINTS = (
    *ENDPOINTS,
    *("/v1/messages", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    *("/classify", "/pooling", "/tokenize"),
)
"""What `octavo run-batch` takes."""
MOST_LINES = 50_000
"""OpenAI's bound."""
MOST_ID_CHARS = 512
MOST_PROBLEMS = 50
_RETRIED = (429, 503)
"""The engine is full or not there: no answer to the request itself."""


class Line(msgspec.Struct, frozen=True):
    """One request of a batch."""

    number: int
    """From 0."""
    custom_id: str
    url: str
    body: dict[str, Any]


class Answered(msgspec.Struct, frozen=True):
    """What came of it, as a line of the output or, where it is not `good`, of the error file."""

    good: bool
    text: bytes


class Refused(Exception):
    """A line that cannot be read; holds a BatchProblem."""

    def __init__(self, code: str, message: str, param: str | None, number: int) -> None:
        super().__init__(message)
        self.problem = BatchProblem(code=code, message=message, param=param, line=number + 1)


def numbered(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, numbered from 0."""
    start = number = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        text = content[start:end].strip()
        if text:
            yield number, text
        number += 1
        start = end + 1


def read_line(number: int, text: bytes, endpoints: Iterable[str]) -> Line:
    """One line of an input file. Raises Refused."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused("invalid_json_line", "This line is not valid JSON.", None, number) from None
    if not isinstance(value, dict):
        raise Refused("invalid_json_line", "This line is not a JSON object.", None, number)
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MOST_ID_CHARS:
        raise Refused("missing_required_parameter", "custom_id must be a string.", "custom_id", number)
    if value.get("method", "POST") != "POST":
        raise Refused("invalid_method", "method must be POST.", "method", number)
    url = value.get("url")
    if not isinstance(url, str) or url not in endpoints:
        wanted = ", ".join(endpoints)
        raise Refused("invalid_url", f"url must be one of {wanted}.", "url", number)
    body = value.get("body")
    if not isinstance(body, dict):
        raise Refused("missing_required_parameter", "body must be an object.", "body", number)
    return Line(number, custom_id, url, body)


def read_all(content: bytes, endpoint: str) -> tuple[list[Line], list[BatchProblem]]:
    """Every line of an input file, or what is wrong with it (the first few problems)."""
    lines: list[Line] = []
    problems: list[BatchProblem] = []
    seen: set[str] = set()
    for number, text in numbered(content):
        try:
            line = read_line(number, text, (endpoint,))
            if line.custom_id in seen:
                message = f"The custom_id {line.custom_id[:80]!r} stands on two lines."
                raise Refused("duplicate_custom_id", message, "custom_id", number)
            seen.add(line.custom_id)
            lines.append(line)
        except Refused as refused:
            problems.append(refused.problem)
        if len(lines) > MOST_LINES:
            message = f"The file has more than {MOST_LINES} lines."
            problems.append(BatchProblem(code="too_many_lines", message=message))
        if len(problems) >= MOST_PROBLEMS or len(lines) > MOST_LINES:
            break
    if not lines and not problems:
        problems.append(BatchProblem(code="empty_file", message="The input file has no lines."))
    return lines, problems


async def answer(inner: ASGIApp, line: Line, tenant: str = "") -> Answered | float:
    """Answer a line; a float is how many seconds to wait before asking again, as the engine is full."""
    name = f"batch-{uuid.uuid4().hex}"
    if line.body.get("stream"):
        body: Any = {"error": {"message": "stream is not for batches.", "code": 400, "param": "stream"}}
        return written(line, 400, body, name)
    status, retry_s, text = await post(inner, line.url, msgspec.json.encode(line.body), name, tenant)
    if status in _RETRIED:
        return min(max(retry_s, 0.05), 5.0)
    try:
        body = msgspec.Raw(text) if text else None
        msgspec.json.decode(text or b"null")
    except msgspec.DecodeError:
        body = text.decode("utf-8", "replace")
    return written(line, status, body, name)


def written(line: Line, status: int, body: Any, request_id: str) -> Answered:
    """A line of output."""
    told = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": body},
        "error": None,
    }
    return Answered(status == 200, msgspec.json.encode(told))


def unanswered(custom_id: str, code: str, message: str) -> Answered:
    """A line of the error file for what was never asked."""
    told = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return Answered(False, msgspec.json.encode(told))
