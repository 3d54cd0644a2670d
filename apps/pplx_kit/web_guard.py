"""The guard in front of our servers: who may ask, how much, and how slowly.

A page in the user's browser can send requests to any port of the machine, so being reachable from this machine alone
protects nothing. The guard checks on every request that the host is one of ours (a rebound domain name is not), that it
was not sent by another site's page, and the secret if there is one. It reads the body itself, within limits of size and
time, and hands it on whole.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any

from pplx_kit.web_errors import WebError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 8 << 20
MAX_HEADERS, MAX_HEADER_BYTES = 64, 32 << 10
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = frozenset({"/health", "/ready"})
_BODIES_AT_ONCE = 8  # bodies of the maximum size that are held at once, all clients together
_METHODS_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
_UNIQUE_HEADERS = (b"host", b"origin", b"authorization", b"content-type")
_OWN_SITE = (b"same-origin", b"none")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_CSP = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """The limits of a guard.

    `hosts` are the names in a Host header that are accepted, without ports. `secret` is the bearer token, or None if
    none is needed. With `cookie`, a cookie of that name may hold the secret as well. `open_paths` need no secret.
    """

    hosts: tuple[str, ...] = LOCAL_NAMES
    secret: str | None = None
    cookie: str = ""
    open_paths: frozenset[str] = OPEN_PATHS
    max_body_bytes: int = MAX_BODY_BYTES
    body_seconds: float = 30.0
    reply_seconds: float = 60.0


def same_secret(given: str, expected: str) -> bool:
    """Return whether two secrets are equal, in a time that depends on neither."""
    digests = [hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest() for secret in (given, expected)]
    return hmac.compare_digest(*digests)


def host_name(host: str) -> str:
    """Return the name in a Host header without its port and brackets, in lower case."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit() or (":" in name and not name.endswith("]")):
        name = host
    return name.removeprefix("[").removesuffix("]").lower()


@dataclass(slots=True)
class Guard:
    """An application that passes on what may be asked, and refuses everything else."""

    app: Application
    settings: GuardSettings
    body_bytes: int = field(default=0, init=False)  # of all requests that are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection as ASGI describes it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(self, receive)
        reply = _Reply(send, self.settings.reply_seconds)
        try:
            headers = _headers_of(scope)
            self._require_own_page(headers)
            if scope.get("client") is not None:  # the file system says who may connect to a Unix socket
                self._require_secret(scope["path"], headers)
            if scope["method"] in _METHODS_WITH_BODY:
                self._require_plain_json(headers)
                await body.read(headers)
            await self.app(scope, body.receive, reply.send)
        except WebError as error:
            await reply.refuse(error)
        except TimeoutError:
            if not reply.timed_out:
                raise
        finally:
            self.body_bytes -= body.held

    def _require_own_page(self, headers: Mapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if host_name(host) not in self.settings.hosts:
            raise WebError(403, f"the host {host!r} is not one of this server's names", code="foreign_host")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() != f"http://{host.lower()}":
            raise WebError(403, "requests from pages of other sites are refused", code="foreign_origin")
        if headers.get(b"sec-fetch-site", b"none") not in _OWN_SITE:
            raise WebError(403, "requests from pages of other sites are refused", code="foreign_site")

    def _require_secret(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        secret = self.settings.secret
        if secret is None or path in self.settings.open_paths:
            return
        kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        given = [token.strip()] if kind.lower() == "bearer" else []
        if self.settings.cookie:
            given.append(cookie_value(headers.get(b"cookie", b"").decode("latin-1"), self.settings.cookie))
        same = [same_secret(each, secret) for each in given]  # compares all, whichever is right
        if True not in same:
            raise WebError(401, "the key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key")

    def _require_plain_json(self, headers: Mapping[bytes, bytes]) -> None:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        empty = headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers
        if kind != b"application/json" and not (empty and not kind):
            raise WebError(415, "the body must be application/json", code="unsupported_media_type")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise WebError(415, "compressed bodies are not accepted", code="unsupported_encoding")


@dataclass(slots=True)
class _Body:
    """The body of a request: read whole, and then handed on in one message."""

    guard: Guard
    receive_next: Receive
    held: int = 0
    content: bytes | None = None

    async def read(self, headers: Mapping[bytes, bytes]) -> None:
        """Read the body. Raises WebError if it is too large or too slow, or if all bodies together are too large."""
        limit = self.guard.settings.max_body_bytes
        self._require_size(int(length) if (length := headers.get(b"content-length", b"0")).isdigit() else 0, limit)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.guard.settings.body_seconds):
                while True:
                    message = await self.receive_next()
                    if message["type"] == "http.disconnect":
                        raise WebError(400, "the client left before its request was complete", code="disconnected")
                    parts.append(message.get("body", b""))
                    self.held += len(parts[-1])
                    self.guard.body_bytes += len(parts[-1])
                    self._require_size(self.held, limit)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise WebError(408, "the body did not arrive in time", code="slow_body") from None
        self.content = b"".join(parts)

    def _require_size(self, n_bytes: int, limit: int) -> None:
        if n_bytes > limit:
            raise WebError(413, f"the body is larger than the limit of {limit:,} bytes", code="body_too_large")
        if self.guard.body_bytes > _BODIES_AT_ONCE * limit:
            raise WebError(429, "too many requests at once; try again", code="too_many_bodies", retry_after=1)

    async def receive(self) -> Message:
        """Return the whole body once; after that, what the connection says."""
        if self.content is None:
            return await self.receive_next()
        message = {"type": "http.request", "body": self.content, "more_body": False}
        self.content = None
        return message


@dataclass(slots=True)
class _Reply:
    """The reply: with the headers that every reply has, and given up if the client does not read it."""

    send_next: Send
    seconds: float
    started: bool = False
    timed_out: bool = False

    async def send(self, message: Message) -> None:
        """Send a part of the reply. Raises TimeoutError if the client does not take it."""
        if message["type"] == "http.response.start":
            self.started = True
            present = {name for name, _ in message.get("headers", ())}
            added = [each for each in (*_HEADERS, _CSP) if each[0] not in present]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        try:
            async with asyncio.timeout(self.seconds):
                await self.send_next(message)
        except TimeoutError:
            self.timed_out = True
            raise

    async def refuse(self, error: WebError) -> None:
        """Reply with an error, and close the connection: the rest of the request is not read."""
        if self.started:
            return
        headers = [*error.headers(), (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": error.body()})


def cookie_value(header: str, name: str) -> str:
    """Return the value of a cookie in a Cookie header, or ""."""
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers of a request by name. Raises WebError for too many, and for names that must be unique."""
    pairs: list[tuple[bytes, bytes]] = scope["headers"]
    headers = dict(pairs)
    n_bytes = sum(len(name) + len(value) for name, value in pairs) + len(scope.get("raw_path") or b"")
    if len(pairs) > MAX_HEADERS or n_bytes > MAX_HEADER_BYTES:
        message = f"more than {MAX_HEADERS} headers, or {MAX_HEADER_BYTES:,} bytes of them"
        raise WebError(431, message, code="too_many_headers")
    for name in _UNIQUE_HEADERS if len(headers) < len(pairs) else ():
        if sum(each == name for each, _ in pairs) > 1:
            raise WebError(400, f"more than one {name.decode()} header", code="repeated_header")
    return headers
