"""A tokenizer and a packed folder, both tiny."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from training_samples import TINY, sample_chunks, sample_pairs, word_tokenizer, write_jsonl

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.checkpoint import write_checkpoint
from pplx_quant.pack import PackConfig, pack
from pplx_quant.teach import TeachConfig, teach
from pplx_quant.tokenizer import save_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "pairs.sample.jsonl.gz", sample_pairs(120))
    paragraphs = [
        {"text": f"{row['positive']} The river is wide. " * 2, "source": "sample"} for row in sample_pairs(40)
    ]
    write_jsonl(folder / "text.en.jsonl.gz", paragraphs)
    write_jsonl(folder / "text2.en.jsonl.gz", paragraphs)
    write_jsonl(folder / "chunks.sample.jsonl.gz", sample_chunks(60))
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [row[side] for row in sample_pairs(120) for side in ("query", "positive")]
    save_tokenizer(train_tokenizer(iter(texts), vocab_size=320), folder, max_tokens=128)
    return folder


@pytest.fixture(scope="session")
def packed_file(data_folder, tokenizer_folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "packed.npz"
    pack(PackConfig(data=data_folder, tokenizer=tokenizer_folder, out=path, held_out=0.2))
    return path


@pytest.fixture(scope="session")
def model_folder(tokenizer_folder, tmp_path_factory) -> Path:
    """A checkpoint with random weights, which stock libraries open too."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    write_checkpoint(folder, Qwen3Encoder(TINY), tokenizer_folder)
    return folder


@pytest.fixture(scope="session")
def taught_file(packed_file, tokenizer_folder, model_folder, tmp_path_factory) -> Path:
    """The packed file with vectors of a stand-in for a teacher."""
    path = tmp_path_factory.mktemp("taught") / "packed.npz"
    shutil.copy(packed_file, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the teacher's library
        teach(TeachConfig(packed=path, tokenizer=tokenizer_folder, teacher=model_folder, width=16))
    return path


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices gain nothing from a second thread and lose much when it has to wait for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teacher_folder(data_folder, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("teacher")
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=TINY.hidden_size,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    transformers.BertModel(config).save_pretrained(folder)
    texts = [row[side] for row in sample_pairs(120) for side in ("query", "positive")]
    word_tokenizer(texts).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def text_file(data_folder, tokenizer_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "packed.npz"
    pack(PackConfig(data=data_folder, tokenizer=tokenizer_folder, out=path, held_out=0.2, keep_text=True))
    return path
