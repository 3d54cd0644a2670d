"""Small made-up training data."""

import gzip
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from pplx_edge.spec import ModelSpec

TINY = ModelSpec(
    n_layers=2,
    hidden_size=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    vocab_size=320,
    max_tokens=128,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    sep_id=0,
)
CHUNKS = 6
TOPICS = ("rivers", "mountains", "engines", "novels", "operas", "planets", "sauces", "bridges")


def write_jsonl(path: Path, rows: list) -> None:
    """Rows as gzip JSON Lines; a string is written as it is."""
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for row in rows:
            stream.write((row if isinstance(row, str) else json.dumps(row)) + "\n")


def sample_pairs(n_pairs: int) -> list[dict]:
    """Pairs whose query names the topic and number of its positive."""
    return [
        {
            "query": f"which {TOPICS[i % 8]} are number {i}?",
            "positive": f"Of all the {TOPICS[i % 8]} in the long list, this one is number {i}. It was here for years.",
            "lang": "en",
            "source": "sample",
            "doc_id": f"doc{i // CHUNKS}",
            "chunk_idx": i % CHUNKS,
        }
        for i in range(n_pairs)
    ]


def sample_chunks(n_chunks: int) -> list[dict]:
    """The positives of `sample_pairs` as documents of `CHUNKS` chunks each."""
    return [
        {
            "doc_id": row["doc_id"],
            "chunk_idx": row["chunk_idx"],
            "chunk": row["positive"],
            "doc_title": f"The list of {row['doc_id']}",
            "lang": "en",
            "source": "sample",
        }
        for row in sample_pairs(n_chunks)
    ]


def word_tokenizer(texts) -> Tokenizer:
    """A lower-casing WordPiece tokenizer with special tokens, unlike the student's byte-level BPE."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer
