"""Vectors as a reply holds them: JSON numbers, or bytes in base64."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson

from pplx_edge.vectors.codes import hosted_signs, int8_codes

Convert = Callable[[np.ndarray], np.ndarray]
_COST = {"currency": "USD", "input_cost": 0.0, "total_cost": 0.0}


def converter(encoding_format: str, normalize: bool) -> Convert:
    """Return the function that turns means, float32 `[N, D]`, into what is sent."""
    if encoding_format == "base64_int8":
        return int8_codes
    if encoding_format == "base64_binary":
        return hosted_signs
    return unit_length if normalize else lambda means: means


def unit_length(means: np.ndarray) -> np.ndarray:
    """Return rows scaled to unit length, float32; zeros stay zeros."""
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return (means / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def as_json(rows: np.ndarray, encoding_format: str) -> list[Any]:
    """Return rows as values that `orjson` writes: arrays of float32, or base64 strings of little-endian bytes."""
    if encoding_format == "float":
        return list(np.ascontiguousarray(rows, np.float32))
    plain = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in plain]


def embeddings(rows: np.ndarray, encoding_format: str) -> list[dict[str, Any]]:
    """Return the `data` of a reply: one object per row."""
    return [
        {"object": "embedding", "index": index, "embedding": value}
        for index, value in enumerate(as_json(rows, encoding_format))
    ]


def documents(rows: np.ndarray, counts: Sequence[int], encoding_format: str) -> list[dict[str, Any]]:
    """Return the `data` of a reply with the rows of each document, of which `counts` says how many there are."""
    parts = np.split(rows, np.cumsum(counts)[:-1])
    return [
        {"object": "list", "index": index, "data": embeddings(part, encoding_format)}
        for index, part in enumerate(parts)
    ]


def reply(data: list[dict[str, Any]], model: str, n_tokens: int, n_truncated: int) -> bytes:
    """Return the body of a reply."""
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens, "cost": _COST}
    body = {"object": "list", "data": data, "model": model, "usage": usage, "truncated_inputs": n_truncated}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
