"""Attacks on the server: each is refused as stated, and the next client is served."""

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer, read_all, running_server

from pplx_edge.errors import InputError
from pplx_kit import web_guard, web_server

KEY = "correct horse battery staple"
URL = "/v1/embeddings"
BODY = {"model": "nano", "input": "x"}
HEAD = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
WITH_KEY = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with a key, short timeouts and a limit of 1 MB for bodies."""
    directory: Path = tmp_path_factory.mktemp("guarded")
    key = directory / "key"
    key.write_text(KEY + "\n", encoding="utf-8")
    directory.chmod(0o700)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    options = ("--model", "nano", "--backend", "onnx", "--port", 0, "--api-key-file", key, "--max-body", 1)
    with running_server(*options, run_directory=directory, module="short_timeouts", PYTHONPATH=paths) as running:
        yield running


@pytest.fixture(autouse=True)
def still_serving(guarded: LiveServer) -> Iterator[None]:
    """After every attack the server answers another client."""
    yield
    assert guarded.ask("POST", URL, BODY, WITH_KEY)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "localhost.evil.example", "", "[::2]:{port}"])
def test_rebound_host_names_are_refused(host: str, guarded: LiveServer) -> None:
    status, _, found = guarded.ask("GET", "/health", None, {"host": host.format(port=guarded.port)})
    assert (status, found["error"]["code"]) == (403, "foreign_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}"])
def test_own_host_names_are_accepted(host: str, guarded: LiveServer) -> None:
    assert guarded.ask("GET", "/health", None, {"host": host.format(port=guarded.port)})[0] == 200


def test_two_hosts_are_refused(guarded: LiveServer) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert guarded.raw(request).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost"},  # another port is another site
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_requests_of_other_sites_are_refused_with_the_right_key_too(
    headers: dict[str, str], guarded: LiveServer
) -> None:
    status, answered, found = guarded.ask("POST", URL, BODY, WITH_KEY | headers)
    assert status == 403
    assert found["error"]["code"] in ("foreign_origin", "foreign_site")
    assert not [name for name in answered if name.startswith("access-control")]


def test_a_preflight_gets_no_permission(guarded: LiveServer) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    status, answered, _ = guarded.ask("OPTIONS", URL, None, headers)
    assert status == 403
    assert not [name for name in answered if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_can_send_is_refused(kind: str, guarded: LiveServer) -> None:
    status, _, found = guarded.ask("POST", URL, BODY, WITH_KEY | {"content-type": kind})
    assert (status, found["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer ÿ"]
)
def test_missing_and_wrong_keys_are_refused(header: str, guarded: LiveServer) -> None:
    for path in (URL, "/v1/models", "/metrics", "/docs"):
        method = "POST" if path == URL else "GET"
        status, _, found = guarded.ask(method, path, BODY if path == URL else None, {"authorization": header})
        assert (status, found["error"]["code"]) == (401, "invalid_api_key")


def test_health_needs_no_key(guarded: LiveServer) -> None:
    assert [guarded.ask("GET", path)[0] for path in ("/health", "/ready")] == [200, 200]


def test_secrets_are_compared_by_their_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(web_guard.hmac, "compare_digest", compare)
    assert web_guard.same_secret("secret", "secret")
    assert not web_guard.same_secret("s", "secret")
    assert not web_guard.same_secret("\udcff", "secret")
    assert {len(each) for pair in compared for each in pair} == {32}


def test_a_gigabyte_is_refused_before_it_is_sent(guarded: LiveServer) -> None:
    answer = guarded.raw(f"{HEAD}Content-Length: {1 << 30}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_without_length_is_counted(guarded: LiveServer) -> None:
    before = guarded.rss()
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as client:
        client.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(16_000):
                client.sendall(chunk)
        except OSError:
            pass  # the server closed the connection
        else:
            pytest.fail("a gigabyte was read")
        answer = read_all(client)
    assert not answer or answer.startswith(b"HTTP/1.1 413 ")
    assert guarded.rss() - before < 50 << 20


def test_compressed_bodies_are_refused(guarded: LiveServer) -> None:
    status, _, found = guarded.ask("POST", URL, b"\x1f\x8b\x08", WITH_KEY | {"content-encoding": "gzip"})
    assert (status, found["error"]["code"]) == (415, "unsupported_encoding")


def test_deep_json_is_refused(guarded: LiveServer) -> None:
    deep = b'{"model": "nano", "input": ' + b"[" * 400_000 + b"]" * 400_000 + b"}"
    status, _, found = guarded.ask("POST", URL, deep, WITH_KEY)
    assert status == 400
    assert "recursion" in found["error"]["message"]


def test_floods_of_headers_are_refused(guarded: LiveServer) -> None:
    many = "".join(f"X-{i}: y\r\n" for i in range(100))
    assert guarded.raw(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{many}\r\n".encode()).startswith(b"HTTP/1.1 431 ")
    large = f"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: {'y' * 100_000}\r\n\r\n"
    assert re.match(rb"HTTP/1.1 (431|400) ", guarded.raw(large.encode()))


def test_slow_headers_end_the_connection(guarded: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as client:
        started = time.monotonic()
        try:
            for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1000:
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            pass
        else:
            pytest.fail("the server waited for 20 seconds")
        assert time.monotonic() - started < 10


def test_silent_connections_do_not_keep_others_out(guarded: LiveServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", guarded.port), timeout=10) for _ in range(100)]
    try:
        assert guarded.ask("GET", "/health")[0] == 200
        for client in silent:
            assert read_all(client) == b""  # closed by the server
    finally:
        for client in silent:
            client.close()


def test_slow_bodies_are_given_up(guarded: LiveServer) -> None:
    answer = guarded.raw(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd/load", "//etc/passwd"]
)
def test_paths_lead_nowhere(path: str, guarded: LiveServer) -> None:
    for method in ("GET", "POST"):
        status, _, found = guarded.ask(method, path, None, WITH_KEY)
        assert status in (404, 405)
        assert "root:" not in str(found)


@pytest.mark.parametrize("request_line", ["\x00\x01", "GET /\r\nX", "G" * 40_000])
def test_what_is_not_http_is_refused(request_line: str, guarded: LiveServer) -> None:
    answer = guarded.raw(f"{request_line}\r\nHost: localhost\r\n\r\n".encode("latin-1"))
    assert re.match(rb"HTTP/1.1 400 |$", answer)


def test_headers_can_not_be_injected(guarded: LiveServer) -> None:
    status, headers, _ = guarded.ask("GET", "/x%0d%0aSet-Cookie:%20a=b", None, WITH_KEY)
    assert status == 404
    assert "set-cookie" not in headers


def test_a_path_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    target = tmp_path / "precious"
    target.write_text("precious", encoding="utf-8")
    link = tmp_path / "link.sock"
    link.symlink_to(target)
    for path in (target, link):
        with pytest.raises(InputError, match="not a socket of yours"), web_server.bound_unix(path):
            pass
    assert target.read_text(encoding="utf-8") == "precious"


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(InputError, match="other users can write to it"), web_server.bound_unix(shared / "a.sock"):
        pass


def test_a_socket_in_use_is_not_taken_over_and_a_dead_one_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "a.sock"
    with web_server.bound_unix(path):
        assert path.stat().st_mode & 0o077 == 0
        with pytest.raises(InputError, match="another server listens there"), web_server.bound_unix(path):
            pass
        assert web_server.is_listening(path)
    assert not path.exists()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with web_server.bound_unix(path):
        assert web_server.is_listening(path)


def test_an_address_that_others_reach_needs_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pplx_cli

    assert pplx_cli.main(["serve", "--model", "nano", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "can be reached by others" in capsys.readouterr().err


def test_a_port_in_use_is_one_line(guarded: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    import pplx_cli

    assert pplx_cli.main(["serve", "--model", "nano", "--backend", "onnx", "--port", str(guarded.port)]) == 2
    assert capsys.readouterr().err == (
        f"pplx-edge: error: port {guarded.port} is in use; choose another one with --port\n"
    )
