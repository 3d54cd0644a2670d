"""The handlers of the API."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from pplx_edge.embedder import Embedder
from pplx_edge.errors import EdgeError, InputError, NumericalError
from pplx_edge.types import TokenRow
from pplx_edge.vectors.codes import BITS_PER_BYTE, MIN_DIM
from pplx_kit.web_errors import WebError
from pplx_serve import wire
from pplx_serve.bell import Bell
from pplx_serve.messages import (
    HOSTED_FORMATS,
    MAX_HOSTED_TOKENS,
    MAX_TOKENS,
    ContextualizedEmbeddingsRequest,
    EmbeddingsRequest,
    RerankRequest,
    parse,
)
from pplx_serve.metrics import CONTENT_TYPE, Metrics
from pplx_serve.pool import Loaded, Pool, Slot, key
from pplx_serve.scheduler import Job

Handler = Callable[[Request], Awaitable[Response]]
_SMALL_BYTES = 16_384  # bodies and replies up to this size are handled without another thread
_UNWATCHED_SECONDS = 0.2  # before the connection of a request is watched; most requests are answered by then
_PERPLEXITY_AGENTS = ("perplexity/", "asyncperplexity/")
_JSON = "application/json"


class ClientLeft(Exception):
    """The client of a request closed its connection."""


@dataclass(slots=True)
class Service:
    """The handlers over a pool of models. `stopping` is set when the server drains."""

    pool: Pool
    metrics: Metrics
    stopping: bool = False
    started: int = field(default_factory=lambda: int(time.time()))
    bell: Bell = field(default_factory=Bell)

    async def embeddings(self, request: Request) -> Response:
        """Embed strings or token ids, each on its own."""
        body = await _parsed(EmbeddingsRequest, request)
        encoding = body.encoding_format or _default_format(request)
        hosted = encoding in HOSTED_FORMATS
        if hosted:
            body.require_hosted(encoding)

        def rows(embedder: Embedder) -> list[TokenRow]:
            return _rows(embedder, body.input)

        return await self._answer(
            request, body, encoding, rows, MAX_HOSTED_TOKENS if hosted else MAX_TOKENS, lambda _: wire.embeddings
        )

    async def contextualized_embeddings(self, request: Request) -> Response:
        """Embed the chunks of documents, each chunk in the context of its document."""
        body = await _parsed(ContextualizedEmbeddingsRequest, request)

        def data_of(counts: Sequence[int]) -> Callable[[np.ndarray, str], list[dict]]:
            return lambda codes, encoding: wire.documents(codes, counts, encoding)

        return await self._answer(
            request,
            body,
            body.encoding_format,
            lambda embedder: embedder.tokenizer.document_rows(body.input),
            MAX_HOSTED_TOKENS,
            data_of,
        )

    async def rerank(self, request: Request) -> Response:
        """Refuse: there is no model that re-ranks."""
        await _parsed(RerankRequest, request)
        raise WebError(
            404, "no model of this server re-ranks; compare embeddings by cosine instead", code="no_reranking_model"
        )

    async def models(self, request: Request) -> Response:
        """List the models, and which of them are loaded."""
        return _json({"object": "list", "data": [self._entry(slot) for slot in self.pool.slots.values()]})

    async def load(self, request: Request) -> Response:
        """Load a model before the first request needs it."""
        async with self._model(request.path_params["model"]):
            return _json({"status": "loaded"})

    async def unload(self, request: Request) -> Response:
        """Unload a model when its current requests are answered."""
        slot = self.pool.slot(request.path_params["model"])
        await self.pool.unload(slot, patient=True)
        return _json({"status": "unloaded"})

    async def health(self, request: Request) -> Response:
        """Say that the process answers."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Say whether requests are accepted."""
        if self.stopping:
            raise WebError(503, "the server is stopping", code="stopping")
        return _json({"status": "ready"})

    async def figures(self, request: Request) -> Response:
        """Return the figures of the server for Prometheus."""
        return Response(self.metrics.text(self.pool), media_type=CONTENT_TYPE)

    def counted(self, route: str, handler: Handler) -> Handler:
        """Return a handler that counts its requests and translates errors."""

        async def handle(request: Request) -> Response:
            started, status = time.perf_counter(), 499
            try:
                response = await _refusing(handler, request)
                status = response.status_code
                return response
            finally:
                self.metrics.answered(route, status, time.perf_counter() - started)

        return handle

    def _model(self, name: str):  # the context manager of `Pool.use`, which refuses requests while stopping
        if self.stopping:
            raise WebError(503, "the server is stopping", code="stopping", retry_after=5)
        return self.pool.use(name)

    async def _answer(
        self,
        request: Request,
        body: EmbeddingsRequest | ContextualizedEmbeddingsRequest,
        encoding: str,
        rows_of: Callable[[Embedder], list[TokenRow]],
        max_tokens: int,
        data_of: Callable[[Sequence[int]], Callable[[np.ndarray, str], list[dict]]],
    ) -> Response:
        slot = self.pool.slot(body.model)
        await self.pool.require_memory()
        async with self._model(body.model) as loaded:
            loaded.scheduler.require_room()
            dim = _dim(body.dimensions, loaded.embedder.dim, encoding)
            rows = await _in_thread_if(_size(request) > _SMALL_BYTES, rows_of, loaded.embedder)
            self._require_fit(rows, loaded, body.truncate)
            limit = loaded.embedder.max_tokens
            n_truncated = sum(len(row) > limit for row in rows)
            rows = [row.cut(limit) if len(row) > limit else row for row in rows]
            job = Job(rows, dim)
            if job.n_tokens > max_tokens:
                message = f"the inputs have {job.n_tokens:,} tokens in all, limit {max_tokens:,}; send fewer at once"
                raise WebError(422, message, code="too_many_tokens", where=("input",))
            means = await self._result(loaded, job, request)
        convert, make = wire.converter(encoding, body.normalize), data_of([len(row.bounds) for row in rows])

        def write() -> bytes:
            return wire.reply(make(convert(means), encoding), body.model, job.n_tokens, n_truncated)

        content = await _in_thread_if(means.size > _SMALL_BYTES, write)
        self.metrics.read(slot.source.name, job.n_tokens, n_truncated)
        headers = {"X-Truncated-Inputs": str(n_truncated)} if body.truncate else None
        return Response(content, media_type=_JSON, headers=headers)

    async def _result(self, loaded: Loaded, job: Job, request: Request) -> np.ndarray:
        """Return the means of a job. If the client leaves before that, drop the job and raise ClientLeft."""
        future = loaded.scheduler.submit(job)
        if future.done():
            return future.result()
        done = self.bell.wrap(future)
        try:
            if not (await asyncio.wait([done], timeout=_UNWATCHED_SECONDS))[0]:
                left = asyncio.ensure_future(_left(request))
                try:
                    await asyncio.wait([done, left], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    left.cancel()
            if done.done():
                return done.result()
            raise ClientLeft
        finally:
            done.cancel()

    def _require_fit(self, rows: Sequence[TokenRow], loaded: Loaded, truncate: bool) -> None:
        """Raise WebError 422 for an input that the model cannot read, or that does not fit into the memory."""
        spec, limit = loaded.embedder.session.spec, loaded.embedder.max_tokens
        room = limit
        if self.pool.settings.memory_bytes is not None:
            room = max(0, self.pool.settings.memory_bytes - loaded.n_bytes) // spec.activation_bytes
        for index, row in enumerate(rows):
            if len(row) and row.ids.max() >= spec.vocab_size:
                message = (
                    f"input {index} has the token id {row.ids.max():,}, but this model has {spec.vocab_size:,} tokens; "
                    "send text, or ids of this model's tokenizer"
                )
                raise WebError(422, message, code="unknown_token", where=("input", index))
            if len(row) > limit and not truncate:
                message = f'input {index} has {len(row):,} tokens, limit {limit:,}; split it, or send "truncate": true'
                more = {"index": index, "n_tokens": len(row), "limit": limit}
                raise WebError(422, message, code="input_too_long", where=("input", index), more=more)
            if min(len(row), limit) > room:
                message = f"input {index} has {len(row):,} tokens, and the memory of this server allows {room:,}"
                raise WebError(422, message, code="input_too_large", where=("input", index))

    def _entry(self, slot: Slot) -> dict:
        return {
            "id": slot.source.name,
            "object": "model",
            "created": self.started,
            "owned_by": "pplx-edge",
            "aliases": list(slot.source.aliases),
            "loaded": slot.loaded is not None,
            "bytes": slot.n_bytes,
            "last_used": slot.last_used,
            "key": key(slot.resolved) if slot.resolved else None,
            "dimensions": slot.spec.dim if slot.spec else None,
            "max_tokens": slot.spec.max_tokens if slot.spec else None,
        }


async def _refusing(handler: Handler, request: Request) -> Response:
    """Return the response of a handler, or that of the error it raises."""
    try:
        return await handler(request)
    except WebError as error:
        return error_response(error)
    except ClientLeft:
        return Response(status_code=499)
    except NumericalError as error:
        return error_response(WebError(500, str(error), code="numerical"))
    except InputError as error:
        return error_response(WebError(422, str(error)))
    except MemoryError:
        return error_response(WebError(503, "out of memory; send less at once", code="memory_full", retry_after=5))
    except EdgeError as error:
        return error_response(WebError(503, str(error), code="model_unavailable"))


def error_response(error: WebError) -> Response:
    """Return an error as a response."""
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers=headers)


async def _parsed(kind: type, request: Request):
    body = await request.body()
    return await _in_thread_if(len(body) > _SMALL_BYTES, parse, kind, body)


async def _in_thread_if(large: bool, function: Callable, *args: object):
    """Return the result of a function, computed in another thread if it takes long."""
    return await asyncio.to_thread(function, *args) if large else function(*args)


def _size(request: Request) -> int:
    return int(request.headers.get("content-length") or 0)


def _default_format(request: Request) -> str:
    """Return the format for a request that names none. Perplexity's client expects the default of its own API."""
    agent = request.headers.get("user-agent", "").lower()
    return "base64_int8" if agent.startswith(_PERPLEXITY_AGENTS) else "float"


def _rows(embedder: Embedder, inputs: str | list) -> list[TokenRow]:
    if isinstance(inputs, str):
        return embedder.tokenizer.text_rows([inputs])
    if isinstance(inputs[0], str):
        return embedder.tokenizer.text_rows(inputs)
    many = inputs if isinstance(inputs[0], list) else [inputs]
    return [TokenRow(np.array(ids, np.int64), ((0, len(ids)),)) for ids in many]


def _dim(wanted: int | None, native: int, encoding: str) -> int:
    """Return the number of components to send. Raises WebError 422 if the model does not have it."""
    dim, low = wanted or native, min(MIN_DIM, native)
    where = ("dimensions",)
    if not low <= dim <= native:
        message = f"dimensions {dim:,} is out of range: this model allows {low} to {native}"
        raise WebError(422, message, code="dimensions", where=where)
    if encoding == "base64_binary" and dim % BITS_PER_BYTE:
        message = f"dimensions {dim:,} does not fill whole bytes: base64_binary needs a multiple of {BITS_PER_BYTE}"
        raise WebError(422, message, code="dimensions", where=where)
    return dim


async def _left(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type=_JSON)
