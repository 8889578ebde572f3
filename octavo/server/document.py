"""/openapi.json, made from the very structs that the doors use, /docs, which needs no other host, and /."""

from __future__ import annotations

import re
import types
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import octavo
from octavo.server.anthropic.replies import MessageEvent, MessageReply, TokenCount
from octavo.server.anthropic.requests import CountRequest, MessagesRequest
from octavo.server.batch.bodies import BatchList, BatchObject, BatchRequest, Deleted, FileList, FileObject
from octavo.server.errors import ErrorInfo, shape_of
from octavo.server.legacy import GenerateReply, GenerateRequest
from octavo.server.ollama import bodies as ollama
from octavo.server.ollama.render import NDJSON
from octavo.server.openai.replies import (
    ChatChunk,
    ChatReply,
    CompletionChunk,
    CompletionReply,
    ModelCard,
    ModelList,
)
from octavo.server.openai.requests import ChatRequest, ChatsRequest, CompletionRequest
from octavo.server.openai.responses.replies import (
    DeletedReply,
    InputTokensReply,
    ItemList,
    ResponseEvent,
    ResponseReply,
)
from octavo.server.openai.responses.requests import ResponsesRequest
from octavo.server.openai.scoring import ScoringReply, ScoringRequest
from octavo.server.page import page, wants_page
from octavo.server.pooling.bodies import (
    ClassifyReply,
    ClassifyRequest,
    CohereEmbedReply,
    CohereEmbedRequest,
    EmbeddingReply,
    EmbeddingRequest,
    PoolingReply,
    PoolingRequest,
    RerankReply,
    RerankRequest,
    ScoreReply,
    ScoreRequest,
)
from octavo.server.state import State
from octavo.server.tokens import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from octavo.server.wire import reply

_REF = "#/components/schemas/{name}"


class Entry(msgspec.Struct, frozen=True):
    """What the document says of one route and method."""

    method: str
    path: str
    summary: str
    request: type | None = None
    reply: type | None = None
    chunk: Any = None
    """The data lines of its stream, where it has one."""
    lines: str = "text/event-stream"
    """The type of the stream."""
    form: bool = False
    """Whether it takes a form with a file, not JSON."""


ENTRIES = (
    Entry("post", "/v1/chat/completions", "Answer a chat", ChatRequest, ChatReply, ChatChunk),
    Entry("post", "/v1/chat/completions/batch", "Answer several chats", ChatsRequest, ChatReply),
    Entry("post", "/v1/completions", "Continue text", CompletionRequest, CompletionReply, CompletionChunk),
    Entry("post", "/v1/responses", "Answer items", ResponsesRequest, ResponseReply, ResponseEvent),
    Entry("get", "/v1/responses/{response_id}", "A kept response", None, ResponseReply),
    Entry("delete", "/v1/responses/{response_id}", "Forget a response", None, DeletedReply),
    Entry("post", "/v1/responses/{response_id}/cancel", "End a background response", None, ResponseReply),
    Entry("get", "/v1/responses/{response_id}/input_items", "What it was asked", None, ItemList),
    Entry(
        "post",
        "/v1/responses/input_tokens",
        "How many tokens a request would have",
        ResponsesRequest,
        InputTokensReply,
    ),
    Entry(
        "post",
        "/v1/messages",
        "Answer a chat, as Anthropic does",
        MessagesRequest,
        MessageReply,
        MessageEvent,
    ),
    Entry(
        "post",
        "/v1/messages/count_tokens",
        "How many tokens a chat would have",
        CountRequest,
        TokenCount,
    ),
    Entry("get", "/v1/files", "The files of batches", None, FileList),
    Entry("post", "/v1/files", "Upload a file for a batch (a form)", None, FileObject, form=True),
    Entry("get", "/v1/files/{name}", "One file", None, FileObject),
    Entry("delete", "/v1/files/{name}", "Delete a file", None, Deleted),
    Entry("get", "/v1/files/{name}/content", "What is in a file"),
    Entry("get", "/v1/batches", "The batches", None, BatchList),
    Entry("post", "/v1/batches", "Start a batch", BatchRequest, BatchObject),
    Entry("get", "/v1/batches/{name}", "One batch", None, BatchObject),
    Entry("post", "/v1/batches/{name}/cancel", "Cancel a batch", None, BatchObject),
    Entry("post", "/v1/embeddings", "Texts to vectors", EmbeddingRequest, EmbeddingReply),
    Entry("post", "/v2/embed", "Cohere: texts to vectors", CohereEmbedRequest, CohereEmbedReply),
    Entry("post", "/pooling", "Texts to what the model makes of them", PoolingRequest, PoolingReply),
    Entry("post", "/classify", "Texts to labels", ClassifyRequest, ClassifyReply),
    *(
        Entry("post", f"{version}/score", "How well texts go together", ScoreRequest, ScoreReply)
        for version in ("", "/v1")
    ),
    *(
        Entry("post", f"{version}/rerank", "Documents, the best first", RerankRequest, RerankReply)
        for version in ("", "/v1", "/v2")
    ),
    Entry(
        "post",
        "/generative_scoring",
        "How likely items make a model answer with one token of several",
        ScoringRequest,
        ScoringReply,
    ),
    Entry("get", "/v1/models", "The served names", None, ModelList),
    Entry("get", "/v1/models/{name}", "One served name", None, ModelCard),
    Entry("post", "/tokenize", "Text or messages to token ids", TokenizeRequest, TokenizeReply),
    Entry("post", "/detokenize", "Token ids to text", DetokenizeRequest, DetokenizeReply),
    Entry(
        "post",
        "/generate",
        "Legacy completion, SamplingParams fields in the body",
        GenerateRequest,
        GenerateReply,
        GenerateReply,
        "text/plain",
    ),
    Entry(
        "post",
        "/api/generate",
        "Ollama: answer a prompt",
        ollama.OllamaGenerateRequest,
        ollama.OllamaGenerateReply,
        ollama.OllamaGenerateReply,
        NDJSON,
    ),
    Entry(
        "post",
        "/api/chat",
        "Ollama: answer a chat",
        ollama.OllamaChatRequest,
        ollama.OllamaChatReply,
        ollama.OllamaChatReply,
        NDJSON,
    ),
    Entry("post", "/api/embed", "Ollama: texts to vectors", ollama.EmbedRequest, ollama.EmbedReply),
    Entry(
        "post", "/api/embeddings", "Ollama: a text to a vector", ollama.OneEmbedRequest, ollama.OneEmbedReply
    ),
    Entry("get", "/api/tags", "Ollama: the served names", None, ollama.TagsReply),
    Entry("post", "/api/show", "Ollama: what a model is", ollama.NamedRequest, ollama.ShowReply),
    Entry("get", "/api/ps", "Ollama: what is loaded", None, ollama.PsReply),
    Entry("get", "/api/version", "Ollama: the release whose API this is"),
    Entry(
        "post",
        "/api/pull",
        "Ollama: download a model",
        ollama.NamedRequest,
        ollama.Status,
        ollama.Status,
        NDJSON,
    ),
    Entry("delete", "/api/delete", "Ollama: refused", ollama.NamedRequest),
    Entry("post", "/api/copy", "Ollama: refused"),
    Entry("post", "/api/create", "Ollama: refused"),
    Entry("post", "/api/push", "Ollama: refused"),
    Entry("get", "/api/blobs/{name}", "Ollama: 404"),
    Entry("post", "/api/blobs/{name}", "Ollama: refused"),
    Entry("get", "/health", "200 when requests are taken, else 503"),
    Entry("get", "/ping", "The same as /health"),
    Entry("post", "/ping", "The same as /health"),
    Entry("post", "/invocations", "SageMaker's route: takes the body of any route that answers prompts"),
    Entry("get", "/version", "The version of Octavo"),
    Entry("get", "/load", "How many requests are at work"),
    Entry("get", "/metrics", "Prometheus metrics"),
    Entry("get", "/openapi.json", "This document"),
    Entry("get", "/docs", "This document as a page"),
    Entry("get", "/", "What this server is"),
)


def openapi(root_path: str = "") -> dict[str, Any]:
    """The whole OpenAPI 3.1 document; `root_path` is where a proxy mounts the server."""
    named = [kind for e in ENTRIES for kind in (e.request, e.reply, e.chunk, _error(e)) if kind is not None]
    kinds = [part for kind in named for part in getattr(kind, "__args__", (kind,))]
    _, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for entry in ENTRIES:
        paths.setdefault(entry.path, {})[entry.method] = _operation(entry)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": octavo.__version__, "description": _ABOUT},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


_OLLAMA = "Ollama is running"
"""What Ollama's own root says; its clients look for these words."""
_ABOUT = "A language-model server with OpenAI's API and vLLM's extensions."


def _operation(entry: Entry) -> dict[str, Any]:
    """One route and method."""
    good: dict[str, Any] = {"description": "OK"}
    content: dict[str, Any] = {}
    if entry.reply is not None:
        content["application/json"] = {"schema": _ref(entry.reply)}
    if entry.chunk is not None:
        content[entry.lines] = {"schema": _ref(entry.chunk)}
    if content:
        good["content"] = content
    if links := _links(entry):
        good["links"] = links
    bad = {"description": "Error", "content": {"application/json": {"schema": _ref(_error(entry))}}}
    made: dict[str, Any] = {
        "summary": entry.summary,
        "operationId": _name(entry),
        "responses": {"200": good, "default": bad},
    }
    if entry.request is not None:
        body = {"application/json": {"schema": _ref(entry.request)}}
        made["requestBody"] = {"required": True, "content": body}
    if entry.form:
        made["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    if names := re.findall(r"{(\w+)}", entry.path):
        made["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return made


_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"const": "batch"},
        "expires_after[seconds]": {"type": "integer"},
    },
}


def _name(entry: Entry) -> str:
    """The operation's id."""
    path = entry.path.strip("/").translate(str.maketrans("/.", "__", "{}"))
    return f"{entry.method}_{path or 'root'}"


def _links(entry: Entry) -> dict[str, Any]:
    """What can be done with that which a route has made: the routes below it that take an id."""
    below = re.compile(re.escape(entry.path) + r"/{(\w+)}(/\w+)?")
    found = {_name(other): below.fullmatch(other.path) for other in ENTRIES} if entry.reply else {}
    return {
        name: {"operationId": name, "parameters": {match[1]: "$response.body#/id"}}
        for name, match in found.items()
        if match is not None and entry.method == "post"
    }


def _error(entry: Entry) -> type:
    """What errors of a route look like."""
    return type(shape_of(entry.path)(ErrorInfo("", "", None, 400))[1])


def _ref(kind: Any) -> dict[str, Any]:
    """A reference to a struct's schema, or to those of a union of structs."""
    if isinstance(kind, types.UnionType):
        return {"anyOf": [_ref(part) for part in kind.__args__]}
    return {"$ref": _REF.format(name=kind.__name__)}


def routes(state: State) -> list[Route]:
    """The document's routes, none of them when `disable_docs` is set but /."""

    async def document(request: Request) -> Response:
        return reply(openapi(state.settings.prefix))

    async def docs(request: Request) -> Response:
        return page()

    async def root(request: Request) -> Response:
        if not state.settings.disable_docs and wants_page(request.method, "/", request.headers):
            return page()
        if request.headers.get("accept", "").startswith("text/plain"):
            return PlainTextResponse(_OLLAMA)
        where = None if state.settings.disable_docs else f"{state.settings.prefix}/docs"
        about = {"name": "Octavo", "version": octavo.__version__, "about": _ABOUT, "ready": state.ready}
        models = f"{state.settings.prefix}/v1/models"
        return reply({**about, "docs": where, "models": models, "ollama": _OLLAMA})

    found = [Route("/", root, methods=["GET"])]
    if not state.settings.disable_docs:
        found.append(Route("/openapi.json", document, methods=["GET"]))
        found.append(Route("/docs", docs, methods=["GET"]))
    return found
