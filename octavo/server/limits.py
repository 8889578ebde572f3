"""Checks that several doors share, made before any work is queued (HARDENING S9)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from octavo.errors import BadRequest, OctavoError
from octavo.server.settings import ServerSettings

INT32_MAX = 2**31 - 1
_SALT_FORBIDS = "@/\\\0"
_MAX_SALT_CHARS = 128
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}")


def at_most(name: str, got: int, limit: int, what: str) -> None:
    """Raises BadRequest when there are more than `limit` of them."""
    if got > limit:
        raise BadRequest(f"{name} has {got} {what}, but at most {limit} are allowed.", param=name)


@contextlib.contextmanager
def named_as(sent: str, here: str) -> Iterator[None]:
    """What is refused inside under the name `here` is told under the name that the client sent."""
    try:
        yield
    except OctavoError as error:
        if error.param == here:
            error.param, error.message = sent, error.message.replace(here, sent, 1)
        raise


def good_id(name: str | None) -> bool:
    """Whether a client's name for its request may travel into headers, logs and URLs."""
    return name is not None and _ID.fullmatch(name) is not None


def check_ids(name: str, ids: Iterable[int]) -> None:
    """Raises BadRequest for a token id outside int32; the vocabulary is checked where it is known."""
    for token in ids:
        if not 0 <= token <= INT32_MAX:
            raise BadRequest(f"{name} has the token id {token}, which no vocabulary has.", param=name)


def check_messages(messages: list[dict[str, Any]], settings: ServerSettings) -> None:
    """Each needs a role and a content that is a string, null or a list of text parts."""
    if not messages:
        raise BadRequest("messages is empty.", hint="Send at least one message.", param="messages")
    at_most("messages", len(messages), settings.max_messages, "messages")
    for i, message in enumerate(messages):
        where = f"messages.{i}"
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise BadRequest(f"{where} has no role.", hint="Give it one, e.g. 'user'.", param=f"{where}.role")
        content = message.get("content")
        if isinstance(content, list):
            for j, part in enumerate(content):
                _check_part(part, f"{where}.content.{j}")
        elif content is not None and not isinstance(content, str):
            raise BadRequest(
                f"{where}.content must be a string or a list of parts.", param=f"{where}.content"
            )


def _check_part(part: Any, where: str) -> None:
    """A text part; other kinds need a model that sees or hears."""
    if isinstance(part, str):
        return
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise BadRequest(f"{where} must be an object with a type, e.g. 'text'.", param=where)
    if kind not in ("text", "input_text", "output_text", "refusal"):
        raise BadRequest(f"{where} is of type {kind[:40]!r}, but this model takes text only.", param=where)
    if not isinstance(part.get("text", part.get("refusal")), str):
        raise BadRequest(f"{where} has no text.", param=f"{where}.text")


def check_order(priority: int | None, cache_salt: str | None) -> None:
    """When a request has its turn, and with whom it shares cached prompts. Raises BadRequest."""
    if priority is not None and abs(priority) > INT32_MAX:
        raise BadRequest("priority must be in -2^31+1..2^31-1.", param="priority")
    if cache_salt is None:
        return
    if not 0 < len(cache_salt) <= _MAX_SALT_CHARS or any(char in _SALT_FORBIDS for char in cache_salt):
        raise BadRequest(
            "cache_salt must have 1 to 128 characters, none of them @, /, \\ or NUL.", param="cache_salt"
        )


def check_effort(name: str, effort: str | None) -> None:
    """How hard to think. Raises BadRequest for a word that no template knows."""
    if effort is not None and effort not in EFFORTS:
        raise BadRequest(f"{name} must be one of {', '.join(EFFORTS)}.", param=name)


def check_template(template: str | None, settings: ServerSettings) -> None:
    """A template of the client's own runs only where the server trusts its clients. Raises BadRequest."""
    if template is not None and not settings.trust_request_chat_template:
        raise BadRequest(
            "This server does not take a chat_template with the request.",
            hint="Start it with --trust-request-chat-template.",
            param="chat_template",
        )
