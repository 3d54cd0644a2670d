"""A tokenizer and a packed folder, both tiny."""

from pathlib import Path

import pytest
import torch
from pplx_quant.pack import PackConfig, pack
from pplx_quant.tokenizer import save_tokenizer, train_tokenizer
from training_samples import sample_pairs, write_jsonl


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "pairs.sample.jsonl.gz", sample_pairs(120))
    paragraphs = [
        {"text": f"{row['positive']} The river is wide. " * 2, "source": "sample"} for row in sample_pairs(40)
    ]
    write_jsonl(folder / "text.en.jsonl.gz", paragraphs)
    write_jsonl(folder / "text2.en.jsonl.gz", paragraphs)
    chunks = [{"chunk": "First words of it.", "chunk_idx": 0, "doc_title": "A title", "lang": "en", "doc_id": "1"}]
    write_jsonl(folder / "chunks.sample.jsonl.gz", chunks)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [row[side] for row in sample_pairs(120) for side in ("query", "positive")]
    save_tokenizer(train_tokenizer(iter(texts), vocab_size=320), folder, max_tokens=128)
    return folder


@pytest.fixture(scope="session")
def packed_folder(data_folder, tokenizer_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(PackConfig(data=data_folder, tokenizer=tokenizer_folder, out=folder, held_out=0.2))
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices gain nothing from a second thread and lose much when it has to wait for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
