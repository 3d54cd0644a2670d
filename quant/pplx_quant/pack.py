"""Tokenize a data folder into one packed file, which is all that a run needs.

python -m pplx_quant pack [--data DIR] [--more FILE …] --tokenizer DIR --out FILE [--cap GROUP=N …]

The folder must contain pairs.<source>.jsonl.gz files, and may contain chunks.<source>.jsonl.gz, text.<lang>.jsonl.gz,
text2.<lang>.jsonl.gz and text3.<lang>.jsonl.gz files. Files of `--more` can also be JSON Lines, Parquet or saved
Hugging Face datasets, in the columns of sentence-transformers or in the layout of BGE, with negatives and scores.
`--keep-text` keeps the texts too, which `distill` needs.
"""

import hashlib
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from pplx_edge import layout
from pplx_quant.corpus import write_packed
from pplx_quant.data import Document, Pair, ReadReport, file_key, list_files, pair_group, read_documents, read_pairs
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.options import option, required
from pplx_quant.sampling import matches, parse_factor
from pplx_quant.structure_pairs import pair_groups
from pplx_quant.tokenizer import load_tokenizer

BATCH = 4096
NONE = -1


@dataclass(frozen=True)
class PackConfig:
    """Options of `pack`."""

    tokenizer: Path = required("Directory of the tokenizer.")
    out: Path = required("Packed file to write.")
    data: Path | None = option(None, "Folder of training data.")
    max_query: int = option(64, "Cut queries to this many tokens. Training can cut further, but not read more.")
    max_text: int = option(160, "Cut passages, chunks and titles to this many tokens.")
    per_paragraph: int = option(
        2,
        "Pairs to make from each paragraph of text.* files: a part of a sentence, or a question, and the paragraph.",
    )
    held_out: float = option(0.02, "Share of the passages held out for validation, with all their questions.")
    cap: tuple[str, ...] = option(
        (),
        "Keep at most N random pairs of a group; for chunks.NAME, documents with N chunks in all.",
        metavar="GROUP=N",
    )
    more: tuple[Path, ...] = option(
        (), "Further files of pairs (JSON Lines, Parquet, datasets), which do not change what is held out of DATA."
    )
    keep_text: bool = option(False, "Keep the texts for a teacher that has another tokenizer.")
    max_mb: float = option(
        60.0, "Exit with an error if the packed file, which is written all the same, is larger than this many MB."
    )
    seed: int = option(1, "Seed of the random choices, among them what is held out.")

    def __post_init__(self) -> None:
        if self.data is None and not self.more:
            raise ConfigError("give --data, a folder, or --more, files of pairs")

    def limit(self, group: str) -> int | None:
        """Return the cap of a group, from the last pattern that matches it, or None."""
        limits = [int(value) for pattern, value in map(parse_factor, self.cap) if matches(group, pattern)]
        return limits[-1] if limits else None


class TextTable:
    """Assigns text ids in order of first appearance. Texts that differ only in case or white space share an id."""

    def __init__(self, tokenizer: Tokenizer, keep_text: bool = False):
        self.tokenizer, self.keep_text = tokenizer, keep_text
        self.utf8: list[bytes] = []
        self.dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
        self.numbers: dict[int, int] = {}
        self.ids: list[np.ndarray] = []
        self.lang: list[int] = []
        self.languages: dict[str, int] = {}

    def add(self, texts: Sequence[tuple[str, str]], max_tokens: int) -> list[int]:
        """Return the text ids of (text, language) items, each cut to `max_tokens`; -1 for a text without tokens."""
        keys = [text_key(text) for text, _ in texts]
        fresh = list({key: number for number, key in enumerate(keys) if key not in self.numbers}.values())
        encode = self.tokenizer.encode_batch if self.keep_text else self.tokenizer.encode_batch_fast  # without offsets
        encoded = encode([texts[number][0] for number in fresh], add_special_tokens=False)
        for number, item in zip(fresh, encoded, strict=True):
            self.numbers[keys[number]] = self._append(item, *texts[number], max_tokens)
        return [self.numbers[key] for key in keys]

    def _append(self, item: Encoding, text: str, lang: str, max_tokens: int) -> int:
        ids = item.ids[:max_tokens]
        if not ids:
            return NONE
        if self.keep_text:
            self.utf8.append(text[: item.offsets[len(ids) - 1][1]].encode())
        self.ids.append(np.array(ids, self.dtype))
        self.lang.append(self.languages.setdefault(lang, len(self.languages)))
        return len(self.ids) - 1


class CorpusPacker:
    """Collects texts, pairs and documents for a packed file."""

    def __init__(self, tokenizer: Tokenizer, config: PackConfig):
        self.config, self.table = config, TextTable(tokenizer, config.keep_text)
        self.groups: list[str] = []
        self.pairs: list[tuple[int, int, int, int, int]] = []  # query, positive, group, document, chunk
        self.negatives: dict[int, tuple[list[int], tuple[float, ...]]] = {}  # of pairs that came with some
        self.documents: dict[str, int] = {}
        self.n_chunks: list[int] = []
        self.chunks: list[int] = []
        self.titles: list[int] = []

    def add_documents(self, documents: Iterable[Document]) -> int:
        """Add documents in chunks; return their number."""
        before = len(self.n_chunks)
        for document in documents:
            texts = [(chunk, document.lang) for chunk in document.chunks]
            numbers = self.table.add([*texts, (document.title, document.lang)], self.config.max_text)
            if NONE in numbers[:-1]:
                raise DataError(f"document {document.doc_id}: chunk {numbers.index(NONE)} has no tokens; remove it")
            self.documents[document.doc_id] = len(self.n_chunks)
            self.n_chunks.append(len(texts))
            self.chunks += numbers[:-1]
            self.titles.append(numbers[-1])
        return len(self.n_chunks) - before

    def add_pairs(self, name: str, pairs: Iterable[Pair]) -> int:
        """Add the pairs of a group, except those without tokens or with equal texts; return their number."""
        before, stream, limit = len(self.pairs), iter(pairs), self.config.max_text
        self.groups.append(name)
        while batch := list(islice(stream, BATCH)):
            queries = self.table.add([(pair.query, pair.query_lang) for pair in batch], self.config.max_query)
            positives = self.table.add([(pair.positive, pair.positive_lang) for pair in batch], limit)
            for pair, query, positive in zip(batch, queries, positives, strict=True):
                if NONE not in (query, positive) and query != positive:
                    document = self.documents.get(pair.doc_id or "", NONE)
                    chunk = pair.chunk_idx if document != NONE and pair.chunk_idx is not None else NONE
                    if chunk >= (self.n_chunks[document] if document != NONE else 0):
                        chunk = NONE
                    if pair.negatives:
                        found = self.table.add([(text, pair.positive_lang) for text in pair.negatives], limit)
                        self.negatives[len(self.pairs)] = found, pair.scores
                    self.pairs.append((query, positive, len(self.groups) - 1, document, chunk))
        return len(self.pairs) - before

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the packed file, without teacher vectors."""
        pairs = np.array(self.pairs, np.int32).reshape(-1, 5)
        # A passage is held out with all its questions, from whichever file they are.
        drawn = np.random.default_rng(self.config.seed).random(len(self.table.ids)) < self.config.held_out
        kept = {
            "utf8": np.frombuffer(b"".join(self.table.utf8), np.uint8),
            "utf8_lengths": np.array([len(text) for text in self.table.utf8], np.uint32),
        }
        return (
            (kept if self.config.keep_text else {})
            | self._negatives()
            | {
                "ids": np.concatenate(self.table.ids),
                "lengths": np.array([len(ids) for ids in self.table.ids], np.uint16),
                "lang": np.array(self.table.lang, np.int16),
                "pairs": pairs[:, :2],
                "group": pairs[:, 2].astype(np.int16),
                "held_out": drawn[pairs[:, 1]],
                "place": pairs[:, 3:],
                "chunks": np.array(self.chunks, np.int32),
                "n_chunks": np.array(self.n_chunks, np.uint16),
                "titles": np.array(self.titles, np.int32),
            }
        )

    def _negatives(self) -> dict[str, np.ndarray]:
        """Return the arrays of the negatives that came with pairs, if there are any."""
        width = max((len(found) for found, _ in self.negatives.values()), default=0)
        if not width:
            return {}
        negatives = np.full((len(self.pairs), width), NONE, np.int32)
        scores = np.full((len(self.pairs), 1 + width), np.nan, np.float32)
        for row, (found, own) in self.negatives.items():
            negatives[row, : len(found)] = found
            scores[row, : len(own)] = own
        return {"negatives": negatives, "scores": scores}


def text_key(text: str) -> int:
    """Return a signed 64-bit hash of a text, which ignores case and the amount of white space."""
    folded = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "little", signed=True)


def pack(config: PackConfig) -> None:
    """Pack the documents and pairs of a data folder, and pairs made from the structure of its texts."""
    packer, dropped = CorpusPacker(load_tokenizer(config.tokenizer), config), {}
    if config.data is not None:
        for path in list_files(config.data, "chunks", required=not list_files(config.data, "pairs", required=False)):
            documents, report = read_documents(path)
            kept = _draw_documents(documents, config, f"chunks.{file_key(path)}")
            _report(f"chunks.{file_key(path)}", packer.add_documents(kept), "documents", dropped, report)
        for path in list_files(config.data, "pairs"):
            _add_file(packer, path, config, dropped)
        for name, structured in pair_groups(config.data, config.per_paragraph, config.seed):
            _report(name, packer.add_pairs(name, _draw(list(structured), config, name)), "pairs", dropped)
    for path in config.more:
        _add_file(packer, path, config, dropped)
    arrays = packer.arrays()
    info = {
        "groups": packer.groups,
        "languages": list(packer.table.languages),
        "pairs": dict(zip(packer.groups, np.bincount(arrays["group"]).tolist(), strict=False)),
        "dropped": dropped,
        "max_query": config.max_query,
        "max_text": config.max_text,
        "tokenizer_sha256": hashlib.sha256((config.tokenizer / layout.TOKENIZER).read_bytes()).hexdigest(),
    }
    size = write_packed(config.out, arrays, info)
    print(
        f"{len(arrays['lengths']):,} texts, {len(arrays['ids']):,} tokens, {len(arrays['pairs']):,} pairs, "
        f"{len(arrays['n_chunks']):,} documents: {size / 1e6:.1f} MB",
        file=sys.stderr,
    )
    if size > 1e6 * config.max_mb:
        raise ConfigError(f"{config.out}: {size / 1e6:.1f} MB, limit {config.max_mb:g}; lower --cap or raise --max-mb")


def _add_file(packer: CorpusPacker, path: Path, config: PackConfig, dropped: dict[str, dict]) -> None:
    """Add the pairs of a file as one group. Raises DataError if its name is not that of a new group."""
    if path.name.endswith(".gz") and not (path.name.startswith("pairs.") and path.name.endswith(".jsonl.gz")):
        raise DataError(f"{path}: gzip files of pairs must be named pairs.<group>.jsonl.gz; rename it or unpack it")
    group = pair_group(path)
    if group in packer.groups:
        raise DataError(f"{path}: group {group!r} already exists; rename the file")
    pairs, report = read_pairs(path)
    _report(group, packer.add_pairs(group, _draw(pairs, config, group)), "pairs", dropped, report)


def _draw(pairs: list[Pair], config: PackConfig, group: str) -> list[Pair]:
    limit = config.limit(group)
    if limit is None or len(pairs) <= limit:
        return pairs
    picked = sorted(random.Random(f"{config.seed}:{group}").sample(range(len(pairs)), limit))
    return [pairs[number] for number in picked]


def _draw_documents(documents: list[Document], config: PackConfig, group: str) -> list[Document]:
    """Return random documents until their chunks reach the cap."""
    limit = config.limit(group)
    if limit is None:
        return documents
    order = random.Random(f"{config.seed}:{group}").sample(documents, len(documents))
    totals = np.cumsum([len(document.chunks) for document in order])
    return order[: int(np.searchsorted(totals, limit, side="right"))]


def _report(name: str, count: int, noun: str, dropped: dict[str, dict], report: ReadReport | None = None) -> None:
    """Print the count of a group, and add the rows that its reader dropped to `dropped`."""
    suffix = ""
    if report and report.n_dropped:
        dropped[report.path.name] = {"rows": report.n_rows, "dropped": report.dropped, "first_lines": report.lines}
        suffix = f", {report.n_dropped} rows dropped"
    print(f"{name:32} {count:>9,} {noun}{suffix}", file=sys.stderr)
