"""The application: its routes, and the OpenAPI document that is generated from them."""

import asyncio
import contextlib
import html
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pplx_edge import __version__
from pplx_kit.web_errors import WebError
from pplx_serve import messages
from pplx_serve.metrics import Metrics
from pplx_serve.pool import Pool, PoolSettings, Source
from pplx_serve.service import Handler, Service, error_response

_BODY_ERRORS = {
    400: "The body is not JSON, or the encoding format is unknown.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    422: "The request is not valid; the message says which part.",
}
_EMPTY_BODY_ERRORS = {status: _BODY_ERRORS[status] for status in (408, 413, 415)}
_MODEL_ERRORS = {404: "There is no such model."}
_LOAD_ERRORS = {
    429: "Too much is waiting; try again after the time in Retry-After.",
    500: "The model gave no finite numbers.",
    503: "There is no memory for the model, or the server is stopping.",
}
_EVERY_ERROR = {
    401: "The key is missing or wrong.",
    403: "The request comes from another site.",
    431: "Too many headers.",
}
_PAGE_CSP = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A route of the API with what its document says. The summary is the docstring of the handler."""

    method: str
    path: str
    handler: Handler
    reply: type[BaseModel] | str
    body: type[BaseModel] | None = None
    errors: Mapping[int, str] = field(default_factory=dict)
    replies: bool = True  # False: the route always refuses


def operations(service: Service) -> list[Operation]:
    """Return the routes of the API."""
    embedding = _BODY_ERRORS | _MODEL_ERRORS | _LOAD_ERRORS
    return [
        Operation(
            method="POST",
            path="/v1/embeddings",
            handler=service.embeddings,
            body=messages.EmbeddingsRequest,
            reply=messages.EmbeddingsReply,
            errors=embedding,
        ),
        Operation(
            method="POST",
            path="/v1/contextualizedembeddings",
            handler=service.contextualized_embeddings,
            body=messages.ContextualizedEmbeddingsRequest,
            reply=messages.ContextualizedEmbeddingsReply,
            errors=embedding,
        ),
        Operation(
            method="POST",
            path="/v1/rerank",
            handler=service.rerank,
            body=messages.RerankRequest,
            reply=messages.ErrorReply,
            errors=_BODY_ERRORS | {404: "No model re-ranks."},
            replies=False,
        ),
        Operation(method="GET", path="/v1/models", handler=service.models, reply=messages.ModelsReply),
        Operation(
            method="POST",
            path="/v1/models/{model}/load",
            handler=service.load,
            reply=messages.State,
            errors=_MODEL_ERRORS | _LOAD_ERRORS | _EMPTY_BODY_ERRORS,
        ),
        Operation(
            method="POST",
            path="/v1/models/{model}/unload",
            handler=service.unload,
            reply=messages.State,
            errors=_MODEL_ERRORS | _EMPTY_BODY_ERRORS,
        ),
        Operation(method="GET", path="/health", handler=service.health, reply=messages.State),
        Operation(
            method="GET",
            path="/ready",
            handler=service.ready,
            reply=messages.State,
            errors={503: "The server is stopping."},
        ),
        Operation(method="GET", path="/metrics", handler=service.figures, reply="text/plain"),
    ]


def document(found: Sequence[Operation], models: Sequence[str]) -> dict[str, Any]:
    """Return the OpenAPI document of some operations. `models` are the names that requests may use."""
    kinds = {kind for each in found for kind in (each.body, each.reply) if isinstance(kind, type)}
    kinds |= {messages.ErrorReply}
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in sorted(kinds, key=lambda kind: kind.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    for kind in kinds:
        named = schemas["$defs"][kind.__name__]["properties"].get("model", {})
        if kind.__name__.endswith("Request"):
            named["enum"] = list(models)
    paths: dict[str, Any] = {}
    for each in found:
        paths.setdefault(each.path, {})[each.method.lower()] = _described(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pplx-edge",
            "version": __version__,
            "description": "Embeddings of the models on this machine, in the API of OpenAI and of Perplexity.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _described(each: Operation) -> dict[str, Any]:
    if isinstance(each.reply, str):
        content = {each.reply: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": _reference(each.reply)}}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": content}} if each.replies else {}
    for status, text in sorted((_EVERY_ERROR | dict(each.errors)).items()):
        refusal = {"application/json": {"schema": _reference(messages.ErrorReply)}}
        responses[str(status)] = {"description": text, "content": refusal}
    said = (each.handler.__doc__ or "").strip()
    described: dict[str, Any] = {"operationId": each.handler.__name__, "summary": said, "responses": responses}
    if each.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(each.body)}},
        }
    if "{model}" in each.path:
        schema = {"type": "string", "minLength": 1}
        described["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": schema}]
    return described


def _reference(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def page(described: Mapping[str, Any]) -> str:
    """Return the OpenAPI document as an HTML page without scripts or remote assets."""
    parts = []
    for path, methods in described["paths"].items():
        for method, each in methods.items():
            body = each.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(each['summary'])}</p>"
            )
            if body:
                parts.append(_fields(described["components"]["schemas"][body["$ref"].rpartition("/")[2]]))
            rows = "".join(
                f"<tr><td>{status}</td><td>{html.escape(reply['description'])}</td></tr>"
                for status, reply in each["responses"].items()
            )
            parts.append(f"<table><tr><th>Status</th><th>Meaning</th></tr>{rows}</table>")
    info = described["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(info['title'])} API</title>"
        '<link rel="stylesheet" href="/docs.css"></head><body><main>'
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1><p>{html.escape(info['description'])} "
        f'For programs: <a href="/openapi.json">openapi.json</a>.</p>{"".join(parts)}</main></body></html>'
    )


def _fields(schema: Mapping[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code>{' (required)' if name in needed else ''}</td>"
        f"<td>{html.escape(about.get('description', ''))}</td></tr>"
        for name, about in schema["properties"].items()
    )
    return f"<table><tr><th>Field</th><th>Meaning</th></tr>{rows}</table>"


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1.5rem; }
th, td { border-bottom: 1px solid #8886; text-align: left; padding: 0.3rem 0.6rem 0.3rem 0; vertical-align: top; }
td:first-child { white-space: nowrap; }
h2 { margin-top: 2.5rem; font-size: 1.1rem; }
"""


def embeddings_service(sources: Sequence[Source], settings: PoolSettings) -> Service:
    """Return the handlers over a new pool of models."""
    metrics = Metrics()
    return Service(Pool(sources, settings, lambda name, fill: metrics.fill.labels(name).observe(fill)), metrics)


def embeddings_routes(service: Service) -> list[Route]:
    """Return the routes of the API, its document, and the page about it."""
    found = operations(service)
    described = document(found, service.pool.names)
    as_json, as_page = orjson.dumps(described), page(described).encode()

    async def openapi(request: Request) -> Response:
        return Response(as_json, media_type="application/json")

    async def docs(request: Request) -> Response:
        return Response(as_page, media_type="text/html", headers={"content-security-policy": _PAGE_CSP})

    async def style(request: Request) -> Response:
        return Response(STYLE, media_type="text/css")

    routes = [
        Route(
            each.path.replace("{model}", "{model:path}"),
            service.counted(each.path, each.handler),
            methods=[each.method],
        )
        for each in found
    ]
    return [*routes, Route("/openapi.json", openapi), Route("/docs", docs), Route("/docs.css", style)]


@asynccontextmanager
async def running(service: Service, prepared: Sequence[str] = (), warm: Sequence[str] = ()) -> AsyncIterator[None]:
    """Keep the models of a service for the time of the block, and unload idle ones.

    `prepared` are the models to locate first, so that other programs can tell which they are, and `warm` those to load.
    """
    for name in prepared:
        await service.pool.resolve(service.pool.slot(name))
    for name in warm:
        async with service.pool.use(name):
            pass
    watcher = asyncio.ensure_future(service.pool.unload_idle_models())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        await service.pool.close()


def build(
    service: Service, prepared: Sequence[str] = (), warm: Sequence[str] = (), more_routes: Sequence[Route] = ()
) -> Starlette:
    """Return the application. `prepared` and `warm` are those of `running`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with running(service, prepared, warm):
            yield

    async def refuse(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = {404: f"there is no {request.url.path[:200]}", 405: f"{request.method} is not allowed here"}
        response = error_response(WebError(status, text.get(status, "internal error"), code="no_such_route"))
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    return Starlette(
        routes=[*embeddings_routes(service), *more_routes],
        lifespan=lifespan,
        exception_handlers={404: refuse, 405: refuse, 500: refuse},
    )
