"""Which routes ask for which right: an explicit rule for each, checked on the very route that was matched.

A route without a rule cannot be mounted. Inference is what clients do all day; management changes what is
loaded or stored on this machine; admin stops, empties and looks inside. Each right holds those before it.
"""

from __future__ import annotations

from enum import IntEnum

from starlette.types import Scope

from octavo.server.errors import Forbidden
from octavo.server.settings import ServerSettings


class Right(IntEnum):
    """What a client may do; a higher one holds the lower ones."""

    OPEN = 0
    """Nothing: liveness, that no key guards."""
    INFERENCE = 1
    MANAGEMENT = 2
    ADMIN = 3


RIGHT = "octavo.right"
"""Where the ASGI scope says what its client may do; absent in requests of this process to itself."""

_OPEN = "/health /ping"
_INFERENCE = """
/ /version /load /metrics /openapi.json /docs
/v1/models /v1/models/{name:path} /tokenize /detokenize /tokenizer_info /generate /invocations
/v1/completions /v1/chat/completions /v1/chat/completions/batch /v1/messages /v1/messages/count_tokens
/v1/responses /v1/responses/input_tokens /v1/responses/{response_id} /v1/responses/{response_id}/cancel
/v1/responses/{response_id}/input_items
/v1/files /v1/files/{name} /v1/files/{name}/content
/v1/batches /v1/batches/{name} /v1/batches/{name}/cancel
/generative_scoring /v1/embeddings /v2/embed /pooling /classify /score /v1/score /rerank /v1/rerank /v2/rerank
/api/generate /api/chat /api/embed /api/embeddings /api/tags /api/show /api/ps /api/version /api/pull
"""
"""/api/pull is here for the served model, which clients pull before they ask; the rest it checks itself."""
_MANAGEMENT = """
/v1/load_lora_adapter /v1/unload_lora_adapter
/api/delete /api/copy /api/create /api/push /api/blobs/{name}
"""
_ADMIN = "/sleep /wake_up /is_sleeping /reset_prefix_cache /pause /resume /is_paused /abort_requests"

RIGHTS: dict[str, Right] = {
    path: right
    for right, paths in zip(Right, (_OPEN, _INFERENCE, _MANAGEMENT, _ADMIN), strict=True)
    for path in paths.split()
}
"""By the path of the route as it is mounted."""

OPEN_PATHS = frozenset(path for path, right in RIGHTS.items() if right == Right.OPEN)
"""The only routes that no key guards. Everything else is closed, whatever it is called."""


def right_without_keys(settings: ServerSettings) -> Right:
    """What anybody may do on a server without keys: all of it where only this machine reaches it."""
    return Right.ADMIN if settings.on_loopback or settings.uds is not None else Right.INFERENCE


def demand(scope: Scope, wanted: Right) -> None:
    """Raises Forbidden when the client of a request may not do that."""
    if scope.get(RIGHT, Right.INFERENCE) >= wanted:
        return
    raise Forbidden(
        f"This needs the right to {'manage models' if wanted == Right.MANAGEMENT else 'administer'}.",
        hint="Use a key of --management-api-key or --admin-api-key; a server that other machines reach "
        "gives it to nobody without a key.",
    )
