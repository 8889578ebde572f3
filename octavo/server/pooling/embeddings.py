"""POST /v1/embeddings, /pooling and /classify: texts, token ids or a chat in, vectors or labels out."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.errors import BadRequest
from octavo.server.misspelt import misspelt, warning_headers
from octavo.server.pooling.bodies import (
    ClassifyData,
    ClassifyReply,
    ClassifyRequest,
    EmbeddingData,
    EmbeddingReply,
    EmbeddingRequest,
    PoolingData,
    PoolingReply,
    PoolingRequest,
)
from octavo.server.pooling.work import Work
from octavo.server.state import State
from octavo.server.wire import convert, read_object, reply, unless_gone

_FORMATS = ("float", "base64", "bytes", "bytes_only")
_DTYPES = ("float32", "float16", "bfloat16")
_ORDERS = ("native", "little", "big")


def routes(state: State) -> list[Route]:
    """The three routes."""

    async def embeddings(request: Request) -> Response:
        return await unless_gone(request, _embeddings(request, state))

    async def pooling(request: Request) -> Response:
        return await unless_gone(request, _pooling(request, state))

    async def classify(request: Request) -> Response:
        return await unless_gone(request, _classify(request, state))

    return [
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/pooling", pooling, methods=["POST"]),
        Route("/classify", classify, methods=["POST"]),
    ]


async def _embeddings(request: Request, state: State) -> Response:
    raw = await read_object(request, state.settings)
    body = convert(raw, EmbeddingRequest)
    encoder = Encoder(body)
    work = Work(request, body, state, "embd")
    vectors = await work.run(work.jobs(body, work.params("embed", body.dimensions)))
    if encoder.binary:
        return encoder.response(vectors, work)
    data = [EmbeddingData(i, encoder.written(vector)) for i, vector in enumerate(vectors)]
    answer = EmbeddingReply(
        id=work.id, created=work.created, model=work.model, data=data, usage=work.counts()
    )
    return _with_warning(reply(answer), raw, EmbeddingRequest)


async def _pooling(request: Request, state: State) -> Response:
    raw = await read_object(request, state.settings)
    body = convert(raw, PoolingRequest)
    encoder = Encoder(body)
    work = Work(request, body, state, "pool")
    found = await work.run(work.jobs(body, work.params(body.task, body.dimensions)))
    if encoder.binary:
        return encoder.response(found, work)
    data = [PoolingData(i, encoder.written(one)) for i, one in enumerate(found)]
    answer = PoolingReply(id=work.id, created=work.created, model=work.model, data=data, usage=work.counts())
    return _with_warning(reply(answer), raw, PoolingRequest)


async def _classify(request: Request, state: State) -> Response:
    raw = await read_object(request, state.settings)
    body = convert(raw, ClassifyRequest)
    work = Work(request, body, state, "classify")
    found = await work.run(work.jobs(body, work.params("classify")))
    labels = work.pooler.labels
    data = [
        ClassifyData(i, labels[int(probs.argmax())], probs.tolist(), len(labels))
        for i, probs in enumerate(found)
    ]
    answer = ClassifyReply(id=work.id, created=work.created, model=work.model, data=data, usage=work.counts())
    return _with_warning(reply(answer), raw, ClassifyRequest)


def _with_warning(response: Response, raw: dict[str, Any], kind: type[msgspec.Struct]) -> Response:
    response.headers.update(warning_headers(misspelt(raw, kind)))
    return response


class Encoder:
    """How a request wants its numbers written."""

    def __init__(self, body: EmbeddingRequest) -> None:
        """Raises BadRequest for a format, dtype or order that is none."""
        self.format = _one_of("encoding_format", body.encoding_format, _FORMATS)
        self.dtype = _one_of("embed_dtype", body.embed_dtype, _DTYPES)
        self.order = _one_of("endianness", body.endianness, _ORDERS)

    @property
    def binary(self) -> bool:
        """Whether the reply is bytes instead of JSON."""
        return self.format in ("bytes", "bytes_only")

    def written(self, numbers: Any) -> Any:
        """An array as JSON holds it."""
        if self.format == "float":
            return numbers.tolist()
        return base64.b64encode(self._bytes(numbers)).decode("ascii")

    def response(self, arrays: Sequence[Any], work: Work) -> Response:
        """All arrays one behind the other; with `bytes` the header `metadata` says where each stands."""
        parts = [self._bytes(one) for one in arrays]
        headers = {}
        if self.format == "bytes":
            starts = np.cumsum([0, *map(len, parts)]).tolist()
            data = [
                {
                    "index": i,
                    "embed_dtype": self.dtype,
                    "endianness": self.order,
                    "start": start,
                    "end": start + len(part),
                    "shape": list(array.shape),
                }
                for i, (start, part, array) in enumerate(zip(starts, parts, arrays, strict=False))
            ]
            told = {
                "id": work.id,
                "created": work.created,
                "model": work.model,
                "data": data,
                "usage": msgspec.to_builtins(work.counts()),
            }
            headers["metadata"] = json.dumps(told)  # ASCII, whatever the model is called
        return Response(b"".join(parts), media_type="application/octet-stream", headers=headers)

    def _bytes(self, numbers: Any) -> bytes:
        if self.dtype == "bfloat16":
            # The upper half of a float32, rounded to nearest even; results are finite.
            bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
            stored: Any = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        else:
            stored = np.ascontiguousarray(numbers, self.dtype)
        swap = self.order != "native" and self.order != sys.byteorder
        written: bytes = (stored.byteswap() if swap else stored).tobytes()
        return written


def _one_of(name: str, given: str | None, allowed: tuple[str, ...]) -> str:
    if given is None:
        return allowed[0]
    if given not in allowed:
        raise BadRequest(f"{name} is {given[:40]!r}.", hint=f"Use {', '.join(allowed)}.", param=name)
    return given
