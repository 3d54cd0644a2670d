"""LanceDB and Milvus hold the vectors of a corpus as they are, and hybrid queries rank as the local store does."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pandas")
pytest.importorskip("apsw")

from small_corpus import clustered, write_corpus

from pplx_bench.search.index import IndexWriter, chunk_vector
from pplx_edge.errors import InputError
from pplx_edge.vectors.codes import packed_signs
from pplx_edge.vectors.similarity import cosine_similarity, top_k
from pplx_scale import hybrid
from pplx_scale.corpus import Corpus
from pplx_scale.loading import NUMBER, numbered_tables, vectors_of
from pplx_scale.words import Words
from pplx_search.store import FileFacts, Query, Store

N, DIM = 600, 64
NAMES = ("rent", "lease", "invoice", "train", "oven", "cats", "bridge", "month", "the", "of", "due")
DEPTH = 50


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return clustered(N, DIM)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(1)
    return [f"{' '.join(rng.choice(NAMES, 3 + i % 9))} number{i}" for i in range(N)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, codes: np.ndarray, texts: list[str]) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), codes, texts)


@pytest.fixture(scope="module")
def binary_corpus(tmp_path_factory: pytest.TempPathFactory, codes: np.ndarray, texts: list[str]) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("binary"), codes, texts, precision="ubinary")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Words:
    return Words.build(corpus, tmp_path_factory.mktemp("words") / "words.sqlite")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, codes: np.ndarray, texts: list[str]) -> Store:
    """A local store with the same vectors and texts: a file for each, in a folder by the parity of its number."""
    folder = tmp_path_factory.mktemp("store")
    with Store.open(folder, write=True) as writable:
        writer = IndexWriter(writable, b"/all", {"model": "synthetic"}, DIM)
        for i, text in enumerate(texts):
            facts = FileFacts(path=f"/all/{i:06}.bin".encode(), size=1, mtime_ns=1, inode=i + 1)
            chunk = chunk_vector(0, 0, len(text), codes[i])
            writer.add(facts, text, [chunk], i.to_bytes(32, "little"), "text")
    return Store.open(folder, threads=1)


@pytest.fixture(scope="module")
def lance(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Any:
    pytest.importorskip("lancedb")
    from pplx_scale.lance import LanceCorpus

    return LanceCorpus.write(corpus, tmp_path_factory.mktemp("lance"), floats=True)


class ArrayEngine:
    """An engine over arrays, whose filter is a set of numbers."""

    def __init__(self, codes: np.ndarray):
        self.all, self.n_vectors, self.dim = codes, len(codes), codes.shape[1]

    def nearest(self, bits: np.ndarray, count: int, where: Any = None) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.array(sorted(where)) if where is not None else np.arange(1, self.n_vectors + 1)
        distances = np.bitwise_count(packed_signs(self.all[numbers - 1]) ^ bits).sum(axis=1)
        picked = numbers[np.argsort(distances, kind="stable")[:count]]
        return picked, self.all[picked - 1]

    def codes(self, numbers: Any, where: Any = None) -> dict[int, np.ndarray]:
        return {number: self.all[number - 1] for number in numbers if where is None or number in where}


QUESTIONS = ["", "rent due", "the lease of the oven", '"cats bridge"', "number17 month", "nothing of that sort"]


def ranked(hits: Any) -> list[tuple[Any, ...]]:
    return [(hit.chunk_id, round(hit.score, 9), hit.cosine, hit.bm25, dict(hit.ranks)) for hit in hits]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("with_vector", [True, False])
def test_hybrid_results_are_those_of_the_local_store(
    question: str, with_vector: bool, codes: np.ndarray, store: Store, words: Words
):
    if not question and not with_vector:
        return
    engine = ArrayEngine(codes)
    for row in (3, 77, 400):
        query = codes[row] if with_vector else None
        expected = store.search(Query(codes=query, words=question, k=20, depth=DEPTH))
        found = hybrid.search(engine, query, question, words=words, k=20, depth=DEPTH)
        assert ranked(found) == ranked(expected)
        assert with_vector or len(expected) > 0 or question == "nothing of that sort"


def test_a_filter_holds_for_vectors_and_words(codes: np.ndarray, words: Words):
    odd = set(range(1, N + 1, 2))
    found = hybrid.search(ArrayEngine(codes), codes[4], "rent due", words=words, where=odd, k=30)
    assert len(found) == 30
    assert {hit.chunk_id % 2 for hit in found} == {1}
    everything = hybrid.search(ArrayEngine(codes), codes[4], "rent due", words=words, k=N)
    scores = {hit.chunk_id: hit.score for hit in everything}
    assert [hit.score for hit in found] == pytest.approx([scores[hit.chunk_id] for hit in found])


def test_wrong_queries_are_refused(codes: np.ndarray, corpus: Corpus, tmp_path: Path):
    with pytest.raises(InputError, match="needs a file of words"):
        hybrid.search(ArrayEngine(codes), codes[0], "rent")
    with pytest.raises(InputError, match="has 3 dimensions, the engine 64"):
        hybrid.search(ArrayEngine(codes), codes[0][:3])
    with pytest.raises(InputError, match="no file of words"):
        Words(tmp_path / "none.sqlite")
    without = Corpus(corpus.location, corpus.settings | {"with_text": False})
    with pytest.raises(InputError, match="has no texts"):
        Words.build(without, tmp_path / "words.sqlite")


def test_lance_holds_the_vectors_as_they_are(lance: Any, corpus: Corpus, codes: np.ndarray):
    from pplx_scale.lance import LanceCorpus

    table = lance.table.to_arrow().sort_by(NUMBER)
    assert (vectors_of(table, "codes") == codes).all()
    assert (vectors_of(table, "vector") == codes).all()  # float16 holds each code exactly
    assert (vectors_of(table, "bits") == packed_signs(codes)).all()
    assert lance.table.schema.metadata == pa.concat_tables(corpus.vectors()).schema.metadata
    with pytest.raises(InputError, match="has float32 vectors"):
        LanceCorpus.write(Corpus(corpus.location, corpus.settings | {"precision": "float32"}), "/nowhere")


def test_lance_cosine_over_float16_is_ours(lance: Any, codes: np.ndarray):
    found = lance.table.search(codes[9].astype(np.float16), vector_column_name="vector").distance_type("cosine")
    rows = found.limit(10).select([NUMBER]).to_list()
    scores = cosine_similarity(codes[9:10], codes)[0]
    assert [row[NUMBER] - 1 for row in rows] == top_k(scores, 10).tolist()
    assert [1 - row["_distance"] for row in rows] == pytest.approx(np.sort(scores)[::-1][:10].tolist(), abs=1e-3)


def test_lance_neither_searches_nor_indexes_int8(lance: Any, codes: np.ndarray):
    """The reason for `bits`: if this fails, a release of LanceDB compares int8, and `lance` may become simpler."""
    from lancedb.index import IvfFlat

    with pytest.raises(ValueError, match="Int8"):
        lance.table.search(codes[0], vector_column_name="codes").distance_type("cosine").limit(1).to_list()
    with pytest.raises((ValueError, RuntimeError), match="Int8"):
        lance.table.create_index("codes", config=IvfFlat(distance_type="cosine", num_partitions=1))


@pytest.mark.parametrize("indexed", [False, True])
def test_hybrid_over_lance_is_the_local_store(
    indexed: bool, lance: Any, codes: np.ndarray, store: Store, words: Words, monkeypatch: pytest.MonkeyPatch
):
    if indexed:
        lance.create_index(4)
        monkeypatch.setattr(lance, "probes", 4)  # all of them
    for question in QUESTIONS:
        # A depth that no tie at the last distance divides: which of several rows at the same distance an engine
        # returns is its own affair.
        found = hybrid.search(lance, codes[33], question, words=words, k=20, depth=N)
        assert ranked(found) == ranked(store.search(Query(codes=codes[33], words=question, k=20, depth=N)))


def test_lance_filters_before_it_searches(lance: Any, codes: np.ndarray, words: Words):
    where = "id IN ('d5', 'd6', 'd7', 'd400')"
    assert {hit.chunk_id for hit in hybrid.search(lance, codes[100], where=where)} == {6, 7, 8, 401}
    found = hybrid.search(lance, codes[100], "the rent", words=words, where=where)
    assert {hit.chunk_id for hit in found} == {6, 7, 8, 401}
    assert [row["id"] for row in lance.rows([401, 6])] == ["d400", "d5"]


def test_binary_vectors_in_lance_are_compared_by_hamming(tmp_path: Path, binary_corpus: Corpus, codes: np.ndarray):
    pytest.importorskip("lancedb")
    from pplx_scale.lance import LanceCorpus

    LanceCorpus.write(binary_corpus, tmp_path)
    table = LanceCorpus.open(tmp_path)
    assert (table.dim, table.n_vectors) == (DIM, N)
    bits = packed_signs(codes)
    found = table.nearest_by_bits(bits[50], N)
    distances = np.bitwise_count(bits ^ bits[50]).sum(axis=1)
    assert [distance for _, distance in found] == sorted(distances.tolist())
    assert all(distances[number - 1] == distance for number, distance in found)


@pytest.fixture
def milvus() -> Any:
    pytest.importorskip("pymilvus")
    pytest.importorskip("pymilvus.bulk_writer", exc_type=ImportError)
    from pplx_scale import milvus

    return milvus


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "dim"), [("corpus", DIM), ("binary_corpus", DIM)])
def test_bulk_files_for_milvus_hold_the_corpus(
    name: str, dim: int, milvus: Any, tmp_path: Path, request: pytest.FixtureRequest
):
    from pymilvus import DataType

    corpus = request.getfixturevalue(name)
    fields = {field.name: field for field in milvus.schema(corpus).fields}
    assert fields["vector"].dtype == (DataType.INT8_VECTOR if name == "corpus" else DataType.BINARY_VECTOR)
    assert fields["vector"].params["dim"] == dim
    assert fields[NUMBER].is_primary
    paths = milvus.write_bulk_files(corpus, tmp_path, chunk_bytes=20_000)
    assert len(paths) > 1
    assert milvus.require_bulk_files(corpus, paths) == N
    with pytest.raises(InputError, match="the corpus has more"):
        milvus.require_bulk_files(corpus, paths[:-1])
    table = pa.parquet.read_table(paths[0])
    wrong = table.set_column(table.schema.get_field_index("stop"), "stop", pa.array([0] * len(table)))
    pa.parquet.write_table(wrong, paths[0])
    with pytest.raises(InputError, match="row 0 is not the row of the corpus"):
        milvus.require_bulk_files(corpus, paths)
    pa.parquet.write_table(table.drop_columns("vector"), paths[0])
    with pytest.raises(InputError, match=r"column vector must be a list of u?int8, found none"):
        milvus.require_bulk_files(corpus, paths)


def test_milvus_refuses_what_it_cannot_hold(milvus: Any, tmp_path: Path, codes: np.ndarray, binary_corpus: Corpus):
    long = write_corpus(tmp_path / "long", codes[:1], ["x" * 70_000], parts=1)
    with pytest.raises(InputError, match=r"its text has 70,000 bytes, Milvus stores 65,535"):
        milvus.write_bulk_files(long, tmp_path / "files")
    with pytest.raises(InputError, match="ubinary vectors cannot be stored as float32"):
        milvus.schema(binary_corpus, "float32")


@pytest.mark.filterwarnings("default")
def test_milvus_lite_ranks_normalized_floats_as_we_rank_codes(
    milvus: Any, corpus: Corpus, codes: np.ndarray, tmp_path: Path
):
    pytest.importorskip("milvus_lite")
    require_ranking(milvus, corpus, codes, str(tmp_path / "lite.db"), "float32")


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif("PPLX_MILVUS_URI" not in os.environ, reason="PPLX_MILVUS_URI names no Milvus server")
@pytest.mark.parametrize("kind", ["int8", "ubinary"])
def test_a_milvus_server_ranks_as_we_do(kind: Any, milvus: Any, codes: np.ndarray, request: pytest.FixtureRequest):
    corpus = request.getfixturevalue("corpus" if kind == "int8" else "binary_corpus")
    require_ranking(milvus, corpus, codes, os.environ["PPLX_MILVUS_URI"], kind)


def require_ranking(milvus: Any, corpus: Corpus, codes: np.ndarray, uri: str, kind: Any) -> None:
    """The nearest rows of a collection have the similarities that we compute, in the same order."""
    from pymilvus import MilvusClient

    client = MilvusClient(uri)
    name = f"pplx_test_{os.getpid()}"
    try:
        assert milvus.insert(corpus, client, name, kind) == N
        rows = packed_signs(codes) if kind == "ubinary" else codes
        query = milvus.query_vector(rows[12], kind)
        [hits] = client.search(name, [query], limit=10, output_fields=["id"])
        if kind == "ubinary":
            expected = np.sort(np.bitwise_count(rows ^ rows[12]).sum(axis=1))[:10]
        else:
            expected = np.sort(cosine_similarity(codes[12:13], codes)[0])[::-1][:10]
        assert [hit["distance"] for hit in hits] == pytest.approx(expected.tolist(), abs=1e-4)
        assert hits[0]["entity"]["id"] == "d12"
    finally:
        if client.has_collection(name):
            client.drop_collection(name)
        client.close()


def test_numbers_are_places_in_the_corpus(corpus: Corpus):
    tables = list(numbered_tables(corpus))
    assert len(tables) == 3
    assert [number for table in tables for number in table[NUMBER].to_pylist()] == list(range(1, N + 1))
