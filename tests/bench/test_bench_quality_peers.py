"""sentence-transformers models as peers of `bench quality`, on a tiny random BERT."""

import json
from pathlib import Path

import numpy as np
import pytest
from beir_folders import PASSAGES, write_task
from command_line import Run, run_fixture  # noqa: F401 (fixture)

pytest.importorskip("ir_measures", reason="needs pip install 'pplx-edge[quality]'")
pytest.importorskip("bm25s", reason="needs pip install 'pplx-edge[quality]'")
pytest.importorskip("sentence_transformers")

from pplx_bench.quality import systems
from pplx_bench.retrieval.beir import read_task
from pplx_bench.retrieval.encoders import SentenceTransformerEncoder
from pplx_bench.retrieval.metrics import evaluate_task
from pplx_bench.retrieval.ranking import rank
from pplx_edge.errors import InputError, MissingExtra

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns of is its own
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_N_POSITIONS = 32


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in the layout of all-MiniLM-L6-v2: transformer, mean, normalization."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("peers") / "little-bert"
    words = sorted({word for _, _, text in PASSAGES for word in text.lower().split()})
    vocabulary = {word: i for i, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=_N_POSITIONS,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    about = dict(zip(names, _SPECIAL, strict=True)) | {"tokenizer_class": "BertTokenizer"}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files = {
        "tokenizer_config.json": about,
        "sentence_bert_config.json": {"max_seq_length": 8},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    }
    (folder / "2_Normalize").mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_directory_is_a_peer_in_float32(run: Run, peer: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    folder, found = write_task(tmp_path / "pieces"), tmp_path / "found.jsonl"
    options = ("--models", "", "--peers", peer, "--baseline", "little-bert", "--context", "off,on,title")
    status, _, err = run("bench", "quality", folder, *options, "--precisions", "int8", "--json", found)
    assert status == 0, err
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    assert [(row["context"], row["precision"], row["dim"]) for row in rows] == [
        ("off", "float32", 32),
        ("title", "float32", 32),
    ]
    stock, task = SentenceTransformer(str(peer), device="cpu"), read_task(folder)
    stock.max_seq_length = _N_POSITIONS
    sides = [stock.encode([item.text for item in items]) for items in (task.queries, task.corpus)]
    wanted = evaluate_task(task, rank(*sides, 100))
    assert rows[0]["metrics"] == pytest.approx(wanted)


def test_its_own_limit_gives_way_to_the_one_that_is_asked_for(peer: Path):
    texts = ["the ship", "the red star of the southern sky is a giant"]
    counts = [len(text.split()) + 2 for text in texts]  # and the tokens at both ends
    wide, narrow = (SentenceTransformerEncoder(peer, limit, 1).texts(texts) for limit in (512, 6))
    assert (wide.n_tokens, wide.n_cut) == (sum(counts), 0)
    assert (narrow.n_tokens, narrow.n_cut) == (counts[0] + 6, 1)
    np.testing.assert_allclose(wide.means[0], narrow.means[0], atol=1e-6)
    assert np.abs(wide.means[1] - narrow.means[1]).max() > 1e-3
    long = SentenceTransformerEncoder(peer, 512, 1).texts(["star " * 100])
    assert (long.n_tokens, long.n_cut) == (_N_POSITIONS, 1)  # the network has no more positions


def test_it_reads_no_documents(peer: Path):
    with pytest.raises(InputError, match="choose --context off or title"):
        SentenceTransformerEncoder(peer, 512, 1).documents([["a"]])


def test_a_directory_that_does_not_open_is_one_line(run: Run, tmp_path: Path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    status, _, err = run("bench", "quality", write_task(tmp_path / "t"), "--models", "", "--peers", folder)
    assert status == 2
    assert f"{folder}: sentence-transformers cannot open it" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["minilm", "bm25"])
def test_a_peer_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(systems.util, "find_spec", lambda *_: None)
    with pytest.raises(MissingExtra, match=r"the peer .* needs: pip install 'pplx-edge\[quality\]'"):
        systems.open_systems([], [name], systems.Opening())
