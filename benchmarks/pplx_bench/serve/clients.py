"""Clients of a server on loopback: plain HTTP/1.1 over connections that stay open."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_PATH = "/v1/embeddings"


@dataclass(slots=True)
class Replies:
    """What came back: seconds of each accepted request, tokens in them, and the number of each status."""

    seconds: list[float] = field(default_factory=list)
    n_tokens: int = 0
    statuses: dict[int, int] = field(default_factory=dict)


class Client:
    """One connection."""

    def __init__(self, port: int):
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def embed(self, inputs: Sequence[Sequence[int]], replies: Replies) -> int:
        """Send token ids, add what came back to the replies, and return the status."""
        body = json.dumps({"model": "bench", "input": inputs, "encoding_format": "base64_int8"})
        started = time.perf_counter()
        status, _ = await self.ask("POST", _PATH, body.encode())
        replies.statuses[status] = replies.statuses.get(status, 0) + 1
        if status == 200:
            replies.seconds.append(time.perf_counter() - started)
            replies.n_tokens += sum(map(len, inputs))
        return status

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request and return status and body. A closed connection is opened again."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if method == "POST" else ""
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n".encode() + body)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
        content = await reader.readexactly(length)
        if "connection: close" in head:
            self.close()
        return int(head.split()[1]), content

    async def models(self) -> list[dict[str, Any]]:
        """Return the models of the server."""
        return json.loads((await self.ask("GET", "/v1/models"))[1])["data"]

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
