"""A model hub on localhost: the few calls that huggingface_hub makes to fetch a repository, with byte ranges."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories to serve (`id -> {file: bytes}`), and what went wrong on purpose and was asked for.

    `answers` gives an id another status and error code than "found"; `break_once` closes the connection once, after
    so many bytes of a file; a file in `fails` is answered with 500; `requests` lists what was asked for.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.answers: dict[str, tuple[int, str]] = {}
        self.break_once: dict[str, int] = {}
        self.fails: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.commit = COMMIT
        self.url = ""

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were sent."""
        return {
            path.split("/resolve/")[1].split("/", 1)[1]
            for method, path, _ in self.requests
            if "/resolve/" in path and method == "GET"
        }


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers on a port of its own until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if path.startswith("api/models/"):
            self.answer_api(path.removeprefix("api/models/").split("/"))
        elif "/resolve/" in path:
            repository, _, rest = path.partition("/resolve/")
            self.answer_file(repository, rest.split("/", 1)[1])
        else:
            self.refuse(404, "EntryNotFound")

    def answer_api(self, parts: list[str]) -> None:
        repository, rest = "/".join(parts[:2]), parts[2:]
        if not self.exists(repository):
            return
        files = self.hub.repositories[repository]
        if rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": n, "size": len(b), "oid": _digest(b)} for n, b in files.items()]
            self.send(200, json.dumps(entries).encode())
        elif rest and rest[1] not in ("main", self.hub.commit):
            self.refuse(404, "RevisionNotFound")
        else:
            siblings = [{"rfilename": name} for name in files]
            info = {"_id": "1", "id": repository, "sha": self.hub.commit, "siblings": siblings}
            self.send(200, json.dumps(info).encode())

    def answer_file(self, repository: str, name: str) -> None:
        if not self.exists(repository):
            return None
        body = self.hub.repositories[repository].get(name)
        if body is None:
            return self.refuse(404, "EntryNotFound")
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{_digest(body)}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if name in self.hub.fails:
            return self.refuse(500, "")
        stop = self.hub.break_once.pop(name, None) if self.command == "GET" else None
        return self.send(206 if "Range" in self.headers else 200, body[start:], headers, stop)

    def exists(self, repository: str) -> bool:
        status, code = self.hub.answers.get(repository, (200, ""))
        if repository not in self.hub.repositories and status == 200:
            status, code = 404, "RepoNotFound"
        if status != 200:
            self.refuse(status, code)
        return status == 200

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, break_after: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:break_after])
            if break_after is not None:
                self.close_connection = True


def _digest(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
