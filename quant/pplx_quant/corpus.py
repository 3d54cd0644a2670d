"""The packed file that a run reads: token ids of texts, pairs of texts, documents in chunks, and teacher vectors.

A packed file is an `.npz` of plain arrays. It contains each distinct text once, identified by its text id:

| array | type, shape | meaning |
|---|---|---|
| `ids` | uint16 (uint32 for vocabularies over 65,536) `[total]` | token ids of all texts, concatenated |
| `lengths` | uint16 `[T]` | tokens of each text |
| `lang` | int16 `[T]` | language, an index into `info["languages"]` |
| `pairs` | int32 `[N, 2]` | text ids of query and positive |
| `group` | int16 `[N]` | group of each pair, an index into `info["groups"]` |
| `held_out` | bool `[N]` | held out from training, for validation |
| `place` | int32 `[N, 2]` | document and chunk that contain the positive, -1 if there is none |
| `chunks` | int32 `[C]` | text ids of the chunks of all documents, concatenated |
| `n_chunks` | uint16 `[M]` | chunks of each document |
| `titles` | int32 `[M]` | text id of the title of each document, -1 if it has none |
| `negatives` | int32 `[N, n]` | text ids of the negatives that came with pairs, -1 for none (if any pair has some) |
| `scores` | float32 `[N, 1 + n]` | a teacher's scores of the positive and of these negatives, NaN for none |
| `taught` | int32 `[T]` | row of `teacher` for each text, -1 for none (this and the next are added by `teach`) |
| `teacher` | uint8 `[V, W/2]` | teacher vectors of width W, 4 bits per component |
| `teacher_grid` | float32 `[2, W]` | mean and code step of each component |
| `word` | int32 `[L]` | token ids of single words that the teacher encoded |
| `word_teacher`, `word_grid` | as `teacher`, `teacher_grid` | their vectors |
| `utf8` | uint8 `[bytes]` | the texts themselves, concatenated (this and the next with `pack --keep-text`) |
| `utf8_lengths` | uint32 `[T]` | bytes of each text |
| `info` | uint8 | JSON: groups, languages, dropped rows, limits, tokenizer hash, teacher |
"""

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pplx_edge.errors import StorageError
from pplx_edge.files import replacing_file
from pplx_quant.errors import ConfigError, DataError

NEEDED = ("ids", "lengths", "lang", "pairs", "group", "held_out", "place", "chunks", "n_chunks", "titles", "info")
TAUGHT = ("taught", "teacher", "teacher_grid", "word", "word_teacher", "word_grid")
KEPT_TEXT = ("utf8", "utf8_lengths")
# Teacher codes do not compress, and texts would take minutes with LZMA.
COMPRESSION = {
    "teacher": zipfile.ZIP_STORED,
    "word_teacher": zipfile.ZIP_STORED,
    "utf8": zipfile.ZIP_DEFLATED,
}
CODE_RANGE = 7  # 4-bit teacher codes run from -7 to 7


@dataclass(frozen=True)
class PackedCorpus:
    """An opened packed file. The arrays are those of the table above."""

    arrays: Mapping[str, np.ndarray]
    info: dict

    @classmethod
    def open(cls, path: Path) -> "PackedCorpus":
        """Read a packed file. Raises DataError if it is missing or damaged, or its arrays do not fit together."""
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            info = json.loads(arrays.pop("info").tobytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"{path}: not a packed file ({error}); create it with the pack command") from error
        missing = [name for name in NEEDED if name != "info" and name not in arrays]
        if missing:
            raise DataError(f"{path}: array {missing[0]!r} is missing; pack again")
        packed = cls(arrays, info)
        packed._require_consistent(path)
        return packed

    def _require_consistent(self, path: Path) -> None:
        n_texts = len(self.lengths)
        refers = [self.pairs, self.arrays["chunks"], self.arrays["titles"]]
        if (
            int(self.lengths.sum(dtype=np.int64)) != len(self.ids)
            or any(len(array) and int(array.max()) >= n_texts for array in refers)
            or int(self.arrays["n_chunks"].sum(dtype=np.int64)) != len(self.arrays["chunks"])
            or not len(self.pairs) == len(self.group) == len(self.held_out)
        ):
            raise DataError(f"{path}: its arrays do not fit together; pack again")

    ids = property(lambda self: self.arrays["ids"])
    lengths = property(lambda self: self.arrays["lengths"])
    lang = property(lambda self: self.arrays["lang"])
    pairs = property(lambda self: self.arrays["pairs"])
    group = property(lambda self: self.arrays["group"])
    held_out = property(lambda self: self.arrays["held_out"])
    place = property(lambda self: self.arrays["place"])

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the values of `group`."""
        return tuple(self.info["groups"])

    @property
    def n_documents(self) -> int:
        """The number of documents in chunks."""
        return len(self.arrays["n_chunks"])

    @property
    def has_teacher(self) -> bool:
        """True if the file contains teacher vectors."""
        return all(name in self.arrays for name in TAUGHT)

    @property
    def has_text(self) -> bool:
        """True if the file contains the texts themselves."""
        return all(name in self.arrays for name in KEPT_TEXT)

    @cached_property
    def _utf8_starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.arrays["utf8_lengths"], dtype=np.int64)])

    def string(self, number: int) -> str:
        """Return a text as it was before tokenization, cut at the end of its last token."""
        start, stop = self._utf8_starts[number], self._utf8_starts[number + 1]
        return self.arrays["utf8"][start:stop].tobytes().decode()

    @cached_property
    def starts(self) -> np.ndarray:
        """The offset of each text in `ids`, int64 `[T + 1]`."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @cached_property
    def chunk_starts(self) -> np.ndarray:
        """The offset of each document in `chunks`, int64 `[M + 1]`."""
        return np.concatenate([[0], np.cumsum(self.arrays["n_chunks"], dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.pairs)

    def require_lengths(self, max_query: int, max_positive: int) -> None:
        """Raise ConfigError for a limit above the one that the texts were cut to when they were packed."""
        for option, given, packed in (("query", max_query, "max_query"), ("positive", max_positive, "max_text")):
            if given > self.info[packed]:
                raise ConfigError(
                    f"--max-{option} {given}: the packed file has no more than {self.info[packed]} tokens of a text; "
                    f"lower it, or pack again with --{packed.replace('_', '-')} {given}"
                )

    def text(self, number: int, max_tokens: int | None = None) -> np.ndarray:
        """Return the token ids of a text, cut to `max_tokens`."""
        start, stop = int(self.starts[number]), int(self.starts[number + 1])
        return self.ids[start : stop if max_tokens is None else min(stop, start + max_tokens)]

    def texts(self, numbers: Iterable[int], max_tokens: int) -> list[np.ndarray]:
        """Return the token ids of several texts, each cut to `max_tokens`."""
        return [self.text(int(number), max_tokens) for number in numbers]

    def document(self, number: int) -> np.ndarray:
        """Return the text ids of the chunks of a document, in order."""
        return self.arrays["chunks"][self.chunk_starts[number] : self.chunk_starts[number + 1]]

    def title(self, document: int) -> int:
        """Return the text id of the title of a document, or -1."""
        return int(self.arrays["titles"][document])

    def teacher_vectors(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the unit teacher vectors of the texts that have one, float32 `[K, W]`, and their rows in `numbers`.

        A negative number is a text without teacher vector.
        """
        rows = np.where(numbers >= 0, self.arrays["taught"][np.maximum(numbers, 0)], -1)
        known = np.flatnonzero(rows >= 0)
        return decode_teacher(self.arrays["teacher"][rows[known]], self.arrays["teacher_grid"]), known

    def word_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids of single words, int32 `[L]`, and their unit teacher vectors, float32 `[L, W]`."""
        return self.arrays["word"], decode_teacher(self.arrays["word_teacher"], self.arrays["word_grid"])


def encode_teacher(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 4-bit codes uint8 `[V, W/2]` of vectors float32 `[V, W]`, and their grid float32 `[2, W]`.

    A byte contains two components. The grid is the mean and the step of each component. The step is a third of the
    standard deviation, which is near the optimum of a uniform quantizer with 15 levels for a normal variable (Max,
    "Quantizing for minimum distortion", 1960).
    """
    mean, step = vectors.mean(axis=0), np.maximum(vectors.std(axis=0) * np.float32(0.335), np.float32(1e-6))
    codes = (np.clip(np.rint((vectors - mean) / step), -CODE_RANGE, CODE_RANGE) + CODE_RANGE + 1).astype(np.uint8)
    return codes[:, 0::2] << 4 | codes[:, 1::2], np.stack([mean, step]).astype(np.float32)


def decode_teacher(codes: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the unit vectors float32 `[V, W]` of 4-bit codes."""
    values = np.empty((len(codes), 2 * codes.shape[1]), np.float32)
    values[:, 0::2], values[:, 1::2] = codes >> 4, codes & 15
    values = grid[0] + (values - (CODE_RANGE + 1)) * grid[1]
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Provide a path for a new file that replaces `path` when the block ends. Raises StorageError."""
    try:
        with replacing_file(path) as partial:
            yield partial
    except OSError as error:
        raise StorageError(f"{path}: not written ({error.strerror or error})") from error


def write_packed(path: Path, arrays: Mapping[str, np.ndarray], info: dict) -> int:
    """Write a packed file atomically; return its size in bytes. Raises StorageError."""
    content = {**arrays, "info": np.frombuffer(json.dumps(info).encode(), np.uint8)}
    with writing_file(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in content.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # with a fixed date, so that equal corpora give equal bytes
            entry.compress_type = COMPRESSION.get(name, zipfile.ZIP_LZMA)
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return path.stat().st_size
