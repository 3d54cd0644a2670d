"""The API: every route, what it accepts, and what it says when it refuses."""

import base64
from typing import Any

import numpy as np
import pytest
from live_server import LiveServer

from pplx_edge import Embedder

URL = "/v1/embeddings"
WHOLE = {"model": "nano", "input": "x"}


def test_string_and_list_give_the_same_vectors(server: LiveServer) -> None:
    one = server.post(URL, {"model": "nano", "input": "a question"})[1]
    many = server.post(URL, {"model": "nano", "input": ["a question", "a question"]})[1]
    assert [each["embedding"] for each in many["data"]] == [one["data"][0]["embedding"]] * 2
    assert [each["index"] for each in many["data"]] == [0, 1]


def test_formats_hold_the_same_vector(server: LiveServer, nano: Embedder) -> None:
    found: dict[str, Any] = {}
    for encoding in ("float", "base64", "base64_int8", "base64_binary"):
        body = WHOLE | {"encoding_format": encoding, "normalize": False}
        found[encoding] = server.post(URL, body)[1]["data"][0]["embedding"]
    (means,) = nano.encode(["x"], "float32", show_progress=False)
    np.testing.assert_array_equal(np.array(found["float"], np.float32), means)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(found["base64"]), "<f4"), means)
    codes = np.frombuffer(base64.b64decode(found["base64_int8"]), np.int8)
    np.testing.assert_array_equal(codes, np.rint(127 * np.tanh(means)).astype(np.int8))
    bits = np.frombuffer(base64.b64decode(found["base64_binary"]), np.uint8)
    np.testing.assert_array_equal(bits, np.packbits(means >= 0, bitorder="little"))


def test_an_empty_string_has_a_zero_vector(server: LiveServer) -> None:
    status, found = server.post(URL, WHOLE | {"input": ["", "x"]})
    assert status == 200
    assert set(found["data"][0]["embedding"]) == {0.0}


def test_long_inputs_are_cut_when_asked_and_counted(server: LiveServer, nano: Embedder) -> None:
    words = "word " * (nano.max_tokens + 50)
    body = WHOLE | {"input": ["short", words], "truncate": True, "encoding_format": "base64_int8"}
    status, headers, found = server.ask("POST", URL, body)
    assert (status, headers["x-truncated-inputs"], found["truncated_inputs"]) == (200, "1", 1)
    with pytest.warns(UserWarning, match="were cut"):
        expected = nano.encode(["short", words], truncate=True, show_progress=False)
    codes = np.frombuffer(base64.b64decode(found["data"][1]["embedding"]), np.int8)
    np.testing.assert_array_equal(codes, expected[1])
    status, found = server.post("/v1/contextualizedembeddings", {"model": "nano", "input": [["a", words]]})
    assert status == 422
    assert "input 0 has" in found["error"]["message"]


REFUSED = {
    "not JSON": (b"{", 400, "Invalid JSON"),
    "not UTF-8": (b'{"model": "nano", "input": "\xff"}', 400, "Invalid JSON"),
    "a lone surrogate": (b'{"model": "nano", "input": "\\ud800"}', 400, "Invalid JSON"),
    "deep": (b'{"model": "nano", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "recursion"),
    "an unknown format": (WHOLE | {"encoding_format": "int4"}, 400, "encoding_format: Input should be 'float'"),
    "no input": ({"model": "nano"}, 422, "input: Field required"),
    "no model": ({"input": "x"}, 422, "model: Field required"),
    "an empty list": (WHOLE | {"input": []}, 422, "at least 1 item"),
    "null": (WHOLE | {"input": None}, 422, "input: must be a string"),
    "a number": (WHOLE | {"input": 3}, 422, "input: must be a string"),
    "mixed": (WHOLE | {"input": ["x", 3]}, 422, "input.1: Input should be a valid string"),
    "too many": (WHOLE | {"input": ["x"] * 2049}, 422, "at most 2048 items"),
    "too many hosted": (WHOLE | {"input": ["x"] * 513, "encoding_format": "base64_int8"}, 422, "at most 512 inputs"),
    "empty hosted": (
        WHOLE | {"input": ["x", ""], "encoding_format": "base64_binary"},
        422,
        "input 1 must not be empty",
    ),
    "too many tokens": (WHOLE | {"input": ["word " * 8000] * 38}, 422, "tokens in all, limit 300,000"),
    "a negative id": (WHOLE | {"input": [-1]}, 422, "greater than or equal to 0"),
    "an unknown id": (WHOLE | {"input": [[5], [900_000]]}, 422, "input 1 has the token id 900,000"),
    "a small dimension": (
        WHOLE | {"dimensions": 64},
        422,
        "dimensions 64 is out of range: this model allows 128 to 512",
    ),
    "a large dimension": (WHOLE | {"dimensions": 513}, 422, "this model allows 128 to 512"),
    "half a byte": (WHOLE | {"dimensions": 130, "encoding_format": "base64_binary"}, 422, "a multiple of 8"),
    "a dimension as text": (WHOLE | {"dimensions": "256"}, 422, "dimensions: Input should be a valid integer"),
    "a path as model": (
        WHOLE | {"model": "/etc/passwd"},
        404,
        "there is no model '/etc/passwd'; this server has: nano",
    ),
    "too long": (WHOLE | {"input": ["x", "word " * 9000]}, 422, "input 1 has 9,0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_reason_for_both_dialects(case: str, server: LiveServer) -> None:
    body, status, message = REFUSED[case]
    found, reply = server.post(URL, body)
    assert found == status
    assert message in reply["error"]["message"]
    assert message in reply["detail"][0]["msg"]
    assert reply["detail"][0]["loc"][0] == "body"
    assert server.post(URL, WHOLE)[0] == 200


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "at least 1 item"),
        ([[]], "at least 1 item"),
        ([["x"]] * 513, "at most 512 items"),
        ([["x"] * 9000] * 2, "at most 16,000 chunks"),
        (["x"], "valid array"),
    ],
)
def test_contextualized_refusals(documents: Any, message: str, server: LiveServer) -> None:
    status, reply = server.post("/v1/contextualizedembeddings", {"model": "nano", "input": documents})
    assert status == 422
    assert message in reply["error"]["message"]


def test_empty_chunks_have_zero_vectors(server: LiveServer, nano: Embedder) -> None:
    documents = [["one", "", "two"], [""]]
    body = {"model": "nano", "input": documents}
    status, found = server.post("/v1/contextualizedembeddings", body)
    assert status == 200
    for document, expected in zip(found["data"], nano.encode_chunks(documents, show_progress=False), strict=True):
        rows = [np.frombuffer(base64.b64decode(each["embedding"]), np.int8) for each in document["data"]]
        np.testing.assert_array_equal(rows, expected)


def test_rerank_is_not_there_yet(server: LiveServer) -> None:
    status, found = server.post("/v1/rerank", {"model": "nano", "query": "q", "documents": ["d"]})
    assert status == 404
    assert "no model of this server re-ranks" in found["error"]["message"]


def test_models_are_listed_loaded_and_unloaded(server: LiveServer) -> None:
    name = "text-embedding-3-small"

    def entry() -> dict[str, Any]:
        return next(each for each in server.ask("GET", "/v1/models")[2]["data"] if each["id"] == name)

    assert server.post(f"/v1/models/{name}/load", {}) == (200, {"status": "loaded"})
    loaded = entry()
    assert loaded["loaded"]
    assert loaded["bytes"] > 1_000_000
    assert (loaded["dimensions"], loaded["max_tokens"]) == (512, 8192)
    assert server.post(f"/v1/models/{name}/unload", None) == (200, {"status": "unloaded"})
    assert not entry()["loaded"]
    assert server.post(URL, WHOLE | {"model": name})[0] == 200
    assert entry()["loaded"]
    assert server.post("/v1/models/../../etc/passwd/unload", {})[0] == 404


def test_metrics_count(server: LiveServer) -> None:
    def figure(name: str) -> float:
        text = server.ask("GET", "/metrics")[2]
        return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1])

    before = figure('pplx_tokens_total{model="nano"}')
    server.post(URL, {"model": "nano", "input": [9, 9, 9]})
    assert figure('pplx_tokens_total{model="nano"}') == before + 3
    assert figure('pplx_queue_tokens{model="nano"}') == 0
    assert figure('pplx_model_resident_bytes{model="nano"}') > 1_000_000
    assert figure('pplx_requests_total{route="/v1/embeddings",status="200"}') >= 1
    assert figure('pplx_request_seconds_count{route="/v1/embeddings"}') >= 1


def test_health_docs_and_document(server: LiveServer) -> None:
    assert server.ask("GET", "/health")[2] == {"status": "ok"}
    assert server.ask("GET", "/ready")[2] == {"status": "ready"}
    described = server.ask("GET", "/openapi.json")[2]
    assert set(described["paths"]["/v1/embeddings"]["post"]["responses"]) >= {"200", "400", "404", "413", "422", "429"}
    status, headers, page = server.ask("GET", "/docs")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    for path in described["paths"]:
        assert path in page
    assert "http:" not in page.replace("http://127", "")
    assert "<script" not in page


def test_unknown_routes_and_methods_are_refused_as_json(server: LiveServer) -> None:
    status, _, found = server.ask("GET", "/v2/nothing")
    assert (status, found["error"]["message"]) == (404, "there is no /v2/nothing")
    status, headers, found = server.ask("GET", URL)
    assert (status, found["error"]["message"], headers["allow"]) == (405, "GET is not allowed here", "POST")
