"""The routes of the page. Only `pplx_search.commands.serve` puts them behind a guard, so they check no secrets."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from pplx_edge import Embedder
from pplx_edge.errors import EdgeError, InputError
from pplx_kit.web_errors import WebError
from pplx_kit.web_guard import same_secret
from pplx_search.access import WeightsChanged
from pplx_search.commands.open import open_file
from pplx_search.ingest.parsers import PARSERS
from pplx_search.page.drawing import draw_page
from pplx_search.page.indexing import Indexing
from pplx_search.page.library import MAX_HITS, Library, filter_of
from pplx_search.page.preview import preview_of

_PAGE_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
_STATIC = {
    "/": ("page.html", "text/html"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_MAX_QUERY_CHARS = 2000
_OPENING = {"done": 0, "total": 0, "share": 0.0, "text": "opening the model"}
_COOKIE_SECONDS = 30 * 24 * 3600
_MAX_ID = (1 << 63) - 1

UseModel = Callable[[], Any]  # returns a context manager of the embedder, opened if necessary
Encode = Callable[[str], Awaitable[np.ndarray]]
Handler = Callable[[Request], Awaitable[Response]]


class Folder(BaseModel):
    """A folder to add."""

    path: str = Field(min_length=1, max_length=4096)


class FolderId(BaseModel):
    """An added folder."""

    id: int = Field(ge=1, le=_MAX_ID)


class DocumentToOpen(BaseModel):
    """A document to open in its application, or to show in its folder."""

    document: int = Field(ge=1, le=_MAX_ID)
    reveal: bool = False


class Nothing(BaseModel):
    """An empty request."""

    model_config = ConfigDict(extra="forbid")


@dataclass(slots=True, eq=False)
class SearchPage:
    """The handlers. `encode` returns the vector of a query, and `use_model` provides the model that indexes."""

    library: Library
    indexing: Indexing
    encode: Encode
    use_model: UseModel
    secret: str
    cookie: str
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def routes(self) -> list[Route]:
        """Return the routes of the page."""
        read = {
            "/api/search": self.search,
            "/api/similar": self.similar,
            "/api/status": self.status,
            "/api/preview": self.preview,
            "/api/page.png": self.page_image,
        }
        write = {
            "/api/folders": self.add_folder,
            "/api/folders/remove": self.remove_folder,
            "/api/update": self.update,
            "/api/retry": self.retry,
            "/api/open": self.open,
        }
        found = [Route(path, refusing(handler), methods=["GET"]) for path, handler in read.items()]
        found += [Route(path, refusing(handler), methods=["POST"]) for path, handler in write.items()]
        found += [Route(path, partial(_static, *each), methods=["GET"]) for path, each in _STATIC.items()]
        return [*found, Route("/enter", refusing(self.enter), methods=["GET"])]

    async def enter(self, request: Request) -> Response:
        """Exchange the secret of the printed address for a cookie, and show the page."""
        if not same_secret(request.query_params.get("key", ""), self.secret):
            raise WebError(401, "the key is wrong: open the address that pplx-search serve prints", code="invalid_key")
        query = request.query_params.get("q", "")
        response = RedirectResponse(f"/?q={quote(query)}" if query else "/", status_code=303)
        response.set_cookie(self.cookie, self.secret, max_age=_COOKIE_SECONDS, httponly=True, samesite="strict")
        return response

    async def search(self, request: Request) -> Response:
        """Search by words, and with `mode=all` by vectors too."""
        words = request.query_params.get("q", "")[:_MAX_QUERY_CHARS]
        if not words.strip():
            raise InputError("the query is empty")
        names = ("type", "in", "collection", "since", "until")
        wanted = filter_of({name: request.query_params.getlist(name) for name in names})
        codes, note = None, ""
        if request.query_params.get("mode") == "all" and await asyncio.to_thread(self.library.settings) is not None:
            try:
                codes = await self.encode(words)
            except WeightsChanged as error:
                note = str(error)
        k = _number(request, "k", 20, MAX_HITS)
        return _json(await asyncio.to_thread(self.library.search, words, codes, k, wanted) | {"note": note})

    async def similar(self, request: Request) -> Response:
        """Return the passages that are most similar to one."""
        document, start = _number(request, "document"), _number(request, "start")
        return _json(await asyncio.to_thread(self.library.similar, document, start, 10))

    async def status(self, request: Request) -> Response:
        """Return the state of the index and of the running update."""
        found = await asyncio.to_thread(self.library.status)
        working = self.indexing.state() or (_OPENING if self._tasks else None)
        return _json(found | {"working": working, "error": self.indexing.error, "kinds": sorted(PARSERS)})

    async def preview(self, request: Request) -> Response:
        """Return a passage in its document."""
        place = [_number(request, name) for name in ("document", "start", "stop", "line")]
        return _json(await asyncio.to_thread(preview_of, self.library, *place))

    async def page_image(self, request: Request) -> Response:
        """Return a page of a PDF as an image."""
        document, page = _number(request, "document"), _number(request, "page", 1, 100_000)
        if (await asyncio.to_thread(self.library.document, document))["kind"] != "pdf":
            raise InputError("only pages of PDFs can be drawn")
        path = await asyncio.to_thread(self.library.path, document)
        return Response(await asyncio.to_thread(draw_page, path, page), media_type="image/png")

    async def add_folder(self, request: Request) -> Response:
        """Add a folder and index it."""
        folder = await _body(request, Folder)
        await self._start(lambda model: self.indexing.add_folder(folder.path, model))
        return _json({"status": "started"})

    async def remove_folder(self, request: Request) -> Response:
        """Remove an added folder from the index."""
        folder = await _body(request, FolderId)
        await asyncio.to_thread(self.indexing.remove_folder, folder.id)
        return _json({"status": "removed"})

    async def update(self, request: Request) -> Response:
        """Index what is new or changed."""
        await _body(request, Nothing)
        await self._start(lambda model: self.indexing.update(model))
        return _json({"status": "started"})

    async def retry(self, request: Request) -> Response:
        """Read the files again that failed."""
        await _body(request, Nothing)
        await self._start(lambda model: self.indexing.update(model, retry=True))
        return _json({"status": "started"})

    async def open(self, request: Request) -> Response:
        """Open a document in its application."""
        wanted = await _body(request, DocumentToOpen)
        path = await asyncio.to_thread(self.library.path, wanted.document)
        await asyncio.to_thread(open_file, path, reveal=wanted.reveal)
        return _json({"status": "opened"})

    async def _start(self, task: Callable[[Embedder], None]) -> None:
        """Run a task in the background. An error within the first moment is that of the request."""
        if self.indexing.busy or self._tasks:
            raise InputError("an update is running already; try again when it is done")

        async def run() -> None:
            async with self.use_model() as model:
                await asyncio.to_thread(task, model)

        running = asyncio.ensure_future(run())
        self._tasks.add(running)
        running.add_done_callback(self._ended)
        done, _ = await asyncio.wait([running], timeout=0.3)
        if done:
            running.result()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # `Indexing.error` has it

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Stop the update and close the index at the end of the block."""
        try:
            yield
        finally:
            await asyncio.to_thread(self.indexing.stop)
            self.library.close()


def refusing(handler: Handler) -> Handler:
    """Return a handler whose errors become replies."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except WebError as error:
            return _refusal(error)
        except InputError as error:
            return _refusal(WebError(422, str(error)))
        except subprocess.SubprocessError as error:
            return _refusal(WebError(503, f"the program could not be started ({type(error).__name__})"))
        except (EdgeError, OSError) as error:
            return _refusal(WebError(503, str(error), code="unavailable"))

    return handle


async def _static(name: str, kind: str, request: Request) -> Response:
    content = (files("pplx_search.page") / "static" / name).read_bytes()
    return Response(content, media_type=kind, headers={"content-security-policy": _PAGE_CSP})


async def _body(request: Request, kind: type[BaseModel]) -> Any:
    try:
        return kind.model_validate_json(await request.body() or b"{}")
    except ValueError as error:
        raise InputError(f"the request is not valid: {str(error).splitlines()[-1].strip()}") from None


def _number(request: Request, name: str, default: int | None = None, limit: int = _MAX_ID) -> int:
    """Return a parameter that is a whole number. Raises InputError for anything else."""
    text = request.query_params.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= limit):
        raise InputError(f"{name} must be a whole number")
    return int(text)


def _json(value: object) -> Response:
    content = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, media_type="application/json")


def _refusal(error: WebError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers=headers)
