"""Client packages that others wrote work unchanged, and get the vectors that the library computes."""

import asyncio
import base64
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer

from pplx_edge import Embedder

TEXTS = ["when does the lease end?", "Der Mietvertrag endet im Juni.", "cats sleep most of the day"]
LONG = "word " * 9000
MODEL, CONTEXTUAL = "pplx-embed-v1-0.6b", "pplx-embed-context-v1-0.6b"  # names under which the test server has nano


def units(model: Embedder, texts: list[str], dim: int | None = None) -> np.ndarray:
    """Return the means of the oracle, scaled to unit length."""
    means = model.encode(texts, "float32", dim=dim, show_progress=False)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def origin(server: LiveServer) -> str:
    return server.url.removesuffix("/v1")


def test_openai(server: LiveServer, nano: Embedder) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        reply = client.embeddings.create(model="nano", input=TEXTS, dimensions=256)
        as_numbers = client.embeddings.create(model="nano", input=TEXTS[0], encoding_format="float")
        ids = nano.tokenizer.text_rows(TEXTS[:1])[0].ids.tolist()
        of_ids = client.embeddings.create(model="nano", input=ids)
        assert "nano" in [model.id for model in client.models.list()]
        with pytest.raises(openai.UnprocessableEntityError, match=r"input 1 has 9,00. tokens, limit 8,192"):
            client.embeddings.create(model="nano", input=["short", LONG])
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'; this server has: nano"):
            client.embeddings.create(model="gpt", input="x")
    vectors = np.array([each.embedding for each in reply.data], np.float32)
    np.testing.assert_allclose(vectors, units(nano, TEXTS, 256), rtol=0, atol=1e-6)
    np.testing.assert_allclose(as_numbers.data[0].embedding, units(nano, TEXTS[:1])[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(of_ids.data[0].embedding, as_numbers.data[0].embedding, rtol=0, atol=1e-6)
    assert reply.usage.prompt_tokens == sum(len(row) for row in nano.tokenizer.text_rows(TEXTS))


def test_openai_in_parallel(server: LiveServer, nano: Embedder) -> None:
    openai = pytest.importorskip("openai")
    texts = [f"{TEXTS[i % 3]} {i}" for i in range(32)]

    async def all_at_once() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
            replies = await asyncio.gather(*(client.embeddings.create(model="nano", input=text) for text in texts))
            return [reply.data[0].embedding for reply in replies]

    np.testing.assert_allclose(asyncio.run(all_at_once()), units(nano, texts), rtol=0, atol=1e-6)


def test_perplexity(server: LiveServer, nano: Embedder) -> None:
    perplexity = pytest.importorskip("perplexity")
    with perplexity.Perplexity(base_url=origin(server), api_key="unused", max_retries=0) as client:
        reply = client.embeddings.create(model=MODEL, input=TEXTS)
        bits = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="base64_binary", dimensions=128)
        chunks = client.contextualized_embeddings.create(model=CONTEXTUAL, input=[TEXTS, TEXTS[:1]], dimensions=256)
        with pytest.raises(perplexity.UnprocessableEntityError, match="must not be empty"):
            client.embeddings.create(model=MODEL, input=["", "x"])
    codes = np.stack([np.frombuffer(base64.b64decode(each.embedding), np.int8) for each in reply.data])
    np.testing.assert_array_equal(codes, nano.encode(TEXTS, show_progress=False))
    packed = np.stack([np.frombuffer(base64.b64decode(each.embedding), np.uint8) for each in bits.data])
    signs = np.unpackbits(packed, axis=1, bitorder="little").astype(np.int8) * 2 - 1
    np.testing.assert_array_equal(signs, nano.encode(TEXTS, "binary", dim=128, show_progress=False))
    expected = nano.encode_chunks([TEXTS, TEXTS[:1]], dim=256, show_progress=False)
    for document, rows in zip(chunks.data, expected, strict=True):
        found = [np.frombuffer(base64.b64decode(each.embedding), np.int8) for each in document.data]
        np.testing.assert_array_equal(found, rows)
    assert (reply.usage.cost.total_cost, reply.usage.cost.currency) == (0.0, "USD")


@pytest.mark.parametrize(
    ("package", "call", "n_queries"),
    [
        ("litellm", "litellm", 0),
        ("langchain_openai", "langchain_openai", 1),
        ("langchain_perplexity", "langchain_perplexity", 1),
        ("llama_index.embeddings.openai_like", "llama_index", 1),
    ],
)
def test_other_clients(package: str, call: str, n_queries: int, server: LiveServer, nano: Embedder) -> None:
    try:
        if find_spec(package) is None:
            raise ModuleNotFoundError(package)
    except ModuleNotFoundError:
        pytest.skip(f"{package} is not installed")
    command = [sys.executable, Path(__file__).parent / "client_calls.py", call, server.url, *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = np.array(json.loads(done.stdout.splitlines()[-1]))
    asked = TEXTS + TEXTS[:n_queries]
    if call == "langchain_perplexity":
        np.testing.assert_array_equal(found, nano.encode(asked, show_progress=False))
    else:
        np.testing.assert_allclose(found, units(nano, asked), rtol=0, atol=1e-6)
