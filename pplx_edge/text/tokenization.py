"""Tokenize inputs and documents to token rows. No BOS, EOS or prefix is added, so an empty string has no tokens.

Spans are computed together with the ids. They cannot be recovered from the ids later, because in these models the
separator, padding and end tokens share one id, and an input may contain the text of that token.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from unicodedata import is_normalized

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.normalizers import NFC

from pplx_edge import layout
from pplx_edge.errors import CheckpointError, InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.types import TokenRow


class Tokenizer:
    """The model's own tokenizer. Safe to call from several threads."""

    def __init__(self, bpe: BpeTokenizer, sep_id: int):
        bpe.no_padding()
        bpe.no_truncation()
        self._bpe, self.sep_id = bpe, sep_id

    @classmethod
    def open(cls, directory: str | Path, spec: ModelSpec) -> "Tokenizer":
        """Load the tokenizer of a model directory.

        Raises CheckpointError if it is missing, corrupt, or has ids outside the model's vocabulary.
        """
        path = Path(directory) / layout.TOKENIZER
        if not path.is_file():
            raise CheckpointError(f"{path}: not found; the model needs its tokenizer: download the model again")
        try:
            bpe = BpeTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every kind of malformed file
            raise CheckpointError(f"{path}: not a valid tokenizer file ({error})") from error
        largest = max(bpe.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= spec.vocab_size:
            raise CheckpointError(
                f"{path}: token id {largest:,} is outside the model's vocabulary of {spec.vocab_size:,}"
            )
        return cls(bpe, spec.sep_id)

    def text_rows(self, texts: Sequence[str]) -> list[TokenRow]:
        """Return one row per string, with one span that covers it. Raises InputError for anything but strings."""
        require_texts(texts, "texts")
        return [TokenRow(ids, ((0, len(ids)),)) for ids in self._encode(texts)]

    def document_rows(self, documents: Sequence[Sequence[str]]) -> list[TokenRow]:
        """Return one row per document: its chunks joined by the separator, with one span per chunk.

        Separators belong to no span. Raises InputError unless `documents` is a list of lists of strings.
        """
        require_sequence(documents, "documents", "a list of lists of strings")
        for i, chunks in enumerate(documents):
            require_texts(chunks, f"document {i}")
        encoded = iter(self._encode([chunk for chunks in documents for chunk in chunks]))
        return [TokenRow.of_chunks([next(encoded) for _ in chunks], self.sep_id) for chunks in documents]

    def count(self, text: str) -> int:
        """Return the number of tokens in a string."""
        return len(self._encode([text])[0])

    def encode_with_offsets(self, text: str) -> Encoding:
        """Return the tokenizer library's encoding of a string, which includes character offsets."""
        require_texts([text], "texts")
        return self._bpe.encode(text, add_special_tokens=False)

    def offsets(self, text: str) -> np.ndarray:
        """Return the characters `[start, stop)` that each token touches, int64 `[T, 2]`; both columns are ascending.

        With a byte-level vocabulary, the offsets are computed from the length of each token in bytes, which is much
        faster than the library's offsets. Those are used if normalization changes the text.
        """
        require_texts([text], "texts")
        if self._token_bytes is not None and is_normalized("NFC", text):
            ids = self._encode([text])[0]
            stops = np.cumsum(self._token_bytes[ids])
            begins = _character_begins(text)
            if len(ids) and stops[-1] == len(begins) and self._keeps_lengths(text, begins):
                character = np.cumsum(begins) - 1
                starts = np.concatenate([[0], stops[:-1]])
                return np.stack([character[starts], character[stops - 1] + 1], axis=1)
        offsets = np.array(self.encode_with_offsets(text).offsets, np.int64).reshape(-1, 2)
        # With normalization, an offset can be one character before the previous one.
        return np.maximum.accumulate(offsets, axis=0)

    def _keeps_lengths(self, text: str, begins: np.ndarray) -> bool:
        """Return True if normalization, such as to lower case, keeps the length in bytes of every character."""
        if isinstance(self._bpe.normalizer, NFC | None):
            return True
        return np.array_equal(_character_begins(self._bpe.normalizer.normalize_str(text)), begins)

    @cached_property
    def _token_bytes(self) -> np.ndarray | None:
        """The length of each token in bytes, int64 `[vocabulary]`; None if the vocabulary is not byte-level."""
        if not isinstance(self._bpe.decoder, ByteLevel):
            return None
        vocabulary = self._bpe.get_vocab(with_added_tokens=True)
        n_bytes = np.zeros(max(vocabulary.values(), default=-1) + 1, np.int64)
        n_bytes[list(vocabulary.values())] = [len(token) for token in vocabulary]  # one character per byte
        for token, added in self._bpe.get_added_tokens_decoder().items():
            n_bytes[token] = len(added.content.encode())
        return n_bytes

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]


def _character_begins(text: str) -> np.ndarray:
    """Return bool `[bytes]`: True for the first byte of each character in UTF-8."""
    return (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80


def require_sequence(values: object, name: str, wanted: str) -> None:
    """Raise InputError unless `values` is a list, tuple or other one-dimensional sequence, and not a string."""
    other = isinstance(values, str | bytes | Mapping | type) or getattr(values, "ndim", 1) != 1
    if other or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
        raise InputError(f"{name} must be {wanted}, got {type(values).__name__}")


def require_texts(texts: object, name: str) -> None:
    """Raise InputError, naming the invalid item, unless `texts` is a sequence of strings of valid Unicode."""
    require_sequence(texts, name, "a list of strings")
    for i, text in enumerate(texts):  # type: ignore[arg-type]
        if not isinstance(text, str):
            raise InputError(f"{name}[{i}] must be a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{name}[{i}] has a lone surrogate at character {error.start}, which is not valid Unicode; "
                "decode the source with errors='replace'"
            ) from None
