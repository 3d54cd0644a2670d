"""Errors of our servers as JSON, in a body that clients of both dialects understand."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
SERVER_ERROR = 500


class WebError(Exception):
    """A request that is refused, with the status and the body of the reply.

    `code` identifies the kind of problem for programs, `where` is the place in the request, and `more` are further
    fields. `retry_after` is the number of seconds after which the request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "invalid_request",
        where: Sequence[str | int] = (),
        retry_after: int | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.where = status, message, code, tuple(where)
        self.retry_after, self.more = retry_after, dict(more or {})

    def body(self) -> bytes:
        """Return the body: `error` as OpenAI's clients read it, and `detail` as Perplexity's do."""
        kind = TYPES.get(self.status, "server_error" if self.status >= SERVER_ERROR else "invalid_request_error")
        param = ".".join(map(str, self.where)) or None
        error = {"message": self.message, "type": kind, "param": param, "code": self.code} | self.more
        detail = [{"loc": ["body", *self.where], "msg": self.message, "type": self.code}]
        return json.dumps({"error": error, "detail": detail}, ensure_ascii=False).encode("utf-8", "replace")

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the reply."""
        body = str(len(self.body())).encode()
        found = [(b"content-type", b"application/json"), (b"content-length", body)]
        if self.retry_after is not None:
            found.append((b"retry-after", str(max(1, self.retry_after)).encode()))
        return found
