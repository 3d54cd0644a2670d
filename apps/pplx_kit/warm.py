"""Use a model that a running server has loaded already, instead of opening it again.

A server listens on a Unix socket in `socket_directory()`, which only this user can enter. A client asks each server for
its models and uses one whose files and backend are the same as its own; otherwise it opens the model itself. Vectors
that a server returns equal those of the model opened here.
"""

import base64
import contextlib
import http.client
import json
import os
import socket
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge.errors import EdgeError, InputError, NumericalError, TextTooLong
from pplx_edge.preparation import ResolvedModel, resolve_model
from pplx_edge.types import Precision
from pplx_edge.vectors.codes import quantize, require_dim, require_precision, truncate_dims
from pplx_edge.weights.hub import cache_directory

DIRECTORY_VARIABLE = "PPLX_EDGE_RUN"
OFF_VARIABLE = "PPLX_EDGE_WARM"  # "0" opens every model in the process that needs it
_SUFFIX = ".sock"
_PROBE_SECONDS = 1.0
_REPLY_SECONDS = 600.0
_MAX_INPUTS = 256  # texts of one request
_MAX_CHARS = 30_000  # characters of one request, which have at most four tokens each
_MAX_REPLY_BYTES = 1 << 28


def socket_directory() -> Path:
    """Return the directory of the sockets of this user's servers: $PPLX_EDGE_RUN, or a folder of the cache."""
    named = os.environ.get(DIRECTORY_VARIABLE)
    return Path(named).expanduser() if named else cache_directory() / "run"


def make_socket_directory() -> Path:
    """Return `socket_directory()`, which is made if it does not exist, readable by this user alone."""
    directory = socket_directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    return directory


def key_of(model: ResolvedModel) -> str:
    """Return what identifies the files of a model and the backend that opens them."""
    return f"{model.backend.name}:{model.fingerprint or model.directory.resolve()}"


def find_warm(name_or_path: str | Path, **resolving: Any) -> "WarmEmbedder | None":
    """Return an embedder over a running server that has this model, or None.

    `resolving` are the arguments of `resolve_model`; a model that they do not find is in no server either.
    """
    if os.environ.get(OFF_VARIABLE) == "0" or not (paths := sorted(socket_directory().glob(f"*{_SUFFIX}"))):
        return None
    with contextlib.suppress(EdgeError, OSError):
        model = resolve_model(name_or_path, **resolving)
        for path in paths:
            if found := _model_of(path, key_of(model)):
                return WarmEmbedder(path, found, model.fingerprint)
    return None


def _model_of(path: Path, key: str) -> dict[str, Any] | None:
    """Return the entry of the model with a key on the server at a path, or None."""
    info = path.lstat()
    if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.getuid():
        return None
    try:
        models = _ask(path, "GET", "/v1/models", None, _PROBE_SECONDS)["data"]
        return next((each for each in models if each["key"] == key and each["dimensions"]), None)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, EdgeError):
        return None


class WarmEmbedder:
    """An embedder whose model is in another process. It encodes like `Embedder`, and has no streams."""

    def __init__(self, path: Path, entry: dict[str, Any], fingerprint: str):
        self._path, self._name = path, entry["id"]
        self.dim, self.max_tokens, self.fingerprint = int(entry["dimensions"]), int(entry["max_tokens"]), fingerprint

    def encode(
        self,
        texts: Sequence[str],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        truncate: bool = False,
        show_progress: bool | None = None,
    ) -> np.ndarray:
        """Encode a list of strings; see `Embedder.encode`."""
        rows = [
            row for block in _blocks(texts, len) for row in self._rows("/v1/embeddings", block, precision, truncate)
        ]
        return self._codes(rows, precision, dim)

    encode_query = encode_document = encode

    def encode_chunks(
        self,
        documents: Sequence[Sequence[str]],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        truncate: bool = False,
        show_progress: bool | None = None,
    ) -> list[np.ndarray]:
        """Encode documents that are split into chunks; see `Embedder.encode_chunks`."""
        full = [index for index, chunks in enumerate(documents) if chunks]
        found = {index: self._codes([], precision, dim) for index in range(len(documents))}
        rows = [
            document
            for block in _blocks([documents[index] for index in full], lambda chunks: sum(map(len, chunks)))
            for document in self._rows("/v1/contextualizedembeddings", block, precision, truncate)
        ]
        return list((found | {i: self._codes(row, precision, dim) for i, row in zip(full, rows, strict=True)}).values())

    def close(self) -> None:
        """Do nothing: the model stays with its server."""

    def __enter__(self) -> "WarmEmbedder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _codes(self, rows: list[Any], precision: Precision, dim: int | None) -> np.ndarray:
        """Return rows of codes from what the server sent: int8 codes, or the means for every other precision."""
        width = require_dim(dim, self.dim, require_precision(precision))
        of_server = np.int8 if precision == "int8" else np.dtype("<f4")
        received = np.stack(rows) if rows else np.empty((0, self.dim), of_server)
        cut = truncate_dims(received, width)
        return cut if precision == "int8" else quantize(cut.astype(np.float32, copy=False), precision)

    def _rows(self, route: str, block: tuple[int, list[Any]], precision: Precision, truncate: bool) -> list[Any]:
        """Return what the server sends for a block of inputs, as one array for each, or one list for each document."""
        first, inputs = block
        encoding, kind = ("base64_int8", np.dtype(np.int8)) if precision == "int8" else ("base64", np.dtype("<f4"))
        wanted = [item for item in inputs if item]  # empty inputs have zero means, and the API refuses them
        request = {"model": self._name, "encoding_format": encoding, "normalize": False, "truncate": truncate}
        data = []
        if wanted:
            try:
                reply = _ask(self._path, "POST", route, request | {"input": wanted}, _REPLY_SECONDS)
            except TextTooLong as error:
                error.index = first + [index for index, item in enumerate(inputs) if item][error.index]
                raise
            data = reply["data"]
            if reply["truncated_inputs"]:
                warnings.warn(f"{reply['truncated_inputs']} of {len(inputs)} inputs were cut", stacklevel=4)
        if route != "/v1/embeddings":
            return [[_array(each, kind) for each in document["data"]] for document in data]
        arrays = iter([_array(each, kind) for each in data])
        return [next(arrays) if item else np.zeros(self.dim, kind) for item in inputs]


def _array(entry: dict[str, Any], kind: np.dtype) -> np.ndarray:
    return np.frombuffer(base64.b64decode(entry["embedding"]), kind)


def _blocks(items: Sequence[Any], size: Any) -> list[tuple[int, list[Any]]]:
    """Return lists that fit into a request, each with the index of its first item."""
    blocks: list[tuple[int, list[Any]]] = []
    n_chars = 0
    for index, item in enumerate(items):
        if not blocks or len(blocks[-1][1]) == _MAX_INPUTS or n_chars + size(item) > _MAX_CHARS:
            blocks.append((index, []))
            n_chars = 0
        blocks[-1][1].append(item)
        n_chars += size(item)
    return blocks


class _Connection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path, seconds: float):
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _ask(path: Path, method: str, route: str, body: Any, seconds: float) -> dict[str, Any]:
    """Return the reply of a server. Raises TextTooLong, NumericalError or EdgeError for what it refuses."""
    connection = _Connection(path, seconds)
    try:
        payload = None if body is None else json.dumps(body).encode()
        connection.request(method, route, payload, {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read(_MAX_REPLY_BYTES)
    finally:
        connection.close()
    parsed = json.loads(content)
    if response.status == http.client.OK:
        return parsed
    error = parsed["error"]
    if error["code"] == "input_too_long":
        places = {name: int(error[name]) for name in ("index", "n_tokens", "limit")}
        raise TextTooLong(error["message"], **places)
    if error["code"] == "numerical":
        raise NumericalError(error["message"])
    kind = InputError if response.status < http.client.INTERNAL_SERVER_ERROR else EdgeError
    raise kind(f"{path.name}: {error['message']}")
