"""A corpus on Ray Data: the codes of a single process, and complete and unique rows after failures."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")
ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")

import stub_encoder
from ray import cloudpickle
from stub_encoder import StubEncoder, hashed

import pplx_edge
from pplx_edge.errors import EdgeError, InputError
from pplx_edge.registry import ONNX
from pplx_edge.types import StreamOptions
from pplx_scale.corpus import Corpus, embed_corpus, model_opener
from pplx_scale.encoding import EncodeOptions
from pplx_scale.reading import ReadOptions
from pplx_scale.workers import Workers

pytestmark = [pytest.mark.usefixtures("ray_started"), pytest.mark.filterwarnings("default")]
cloudpickle.register_pickle_by_value(stub_encoder)  # workers do not have the folder of the tests on their path

TWO = Workers(least=2, most=2, cpus=1, block_bytes=2000, rows_per_file=20)
WORDS = [f"{word}{number}" for number in range(3) for word in ("the", "lease", "ends", "in", "June", "rent")]
TEXTS = [" ".join(WORDS[i % 7 :][: 1 + i % 11]) + f" {i}" for i in range(200)]


def found(out: Path) -> Any:
    """Return all vectors of a corpus, ordered by row and chunk."""
    return pa.concat_tables(Corpus.open(out).vectors()).sort_by([("key", "ascending"), ("chunk", "ascending")])


def require_complete(out: Path, texts: list[str]) -> None:
    """Every text has exactly one vector, that of the stub."""
    table = found(out)
    assert table["key"].to_pylist() == list(range(len(texts)))
    assert (np.stack(table["vector"].to_numpy()) == [hashed(text, 16) for text in texts]).all()


def test_codes_are_those_of_one_process(tmp_path: Path, nano_dir: Path, write_lines: Callable[..., Path]):
    source = write_lines([{"name": f"n{i}", "text": text} for i, text in enumerate(TEXTS)])
    report = embed_corpus(
        source,
        tmp_path / "out",
        open_encoder=model_opener(str(nano_dir), backend=ONNX.name, threads=1),
        read=ReadOptions(id_field="name"),
        workers=TWO,
    )
    table = found(tmp_path / "out")
    model = pplx_edge.load(nano_dir, backend=ONNX.name)
    assert (np.stack(table["vector"].to_numpy()) == model.encode(TEXTS)).all()
    assert table["id"].to_pylist() == [f"n{i}" for i in range(len(TEXTS))]
    assert table.schema.field("vector").type == pa.list_(pa.int8(), 512)
    assert report.tokens == sum(len(row) for row in model.tokenizer.text_rows(TEXTS))
    assert (report.rows, report.vectors, report.duplicates) == (200, 200, 0)
    assert Corpus.open(tmp_path / "out").settings["fingerprint"] == model.fingerprint


def test_chunks_of_long_documents_are_those_of_one_process(tmp_path: Path, nano_dir: Path):
    books = [f"# Book {i}\n\n" + "\n\n".join(TEXTS[i : i + 20 * i + 1]) for i in range(5)]
    (tmp_path / "in").mkdir()
    for i, book in enumerate(books):
        (tmp_path / "in" / f"{i}.md").write_text(book)
    options = StreamOptions(chunk_tokens=32, window=256)
    embed_corpus(
        tmp_path / "in",
        tmp_path / "out",
        open_encoder=model_opener(str(nano_dir), backend=ONNX.name, threads=1),
        read=ReadOptions(whole_files=True),
        encode=EncodeOptions(precision="ubinary", late_chunking=options, with_text=True),
        workers=TWO,
    )
    table = found(tmp_path / "out")
    stream = list(pplx_edge.load(nano_dir, backend=ONNX.name).encode_streams(books, "ubinary", options=options))
    assert len(stream) > 50
    assert (np.stack(table["vector"].to_numpy()) == np.stack([chunk.codes for _, chunk in stream])).all()
    assert table["id"].to_pylist() == [f"{document}.md:0" for document, _ in stream]
    assert table["text"].to_pylist() == [books[document][chunk.start : chunk.stop] for document, chunk in stream]
    for part in Corpus.open(tmp_path / "out").vectors():  # in a file, the chunks of a document follow each other
        places = list(zip(part["key"].to_pylist(), part["chunk"].to_pylist(), strict=True))
        assert [chunk for _, chunk in places] == [
            chunk
            for key in dict.fromkeys(key for key, _ in places)
            for chunk in range(sum(k == key for k, _ in places))
        ]


def test_a_run_that_failed_is_continued(tmp_path: Path, write_lines: Callable[..., Path]):
    source = write_lines([{"text": text} for text in TEXTS], "in/a.jsonl").parent
    marker = tmp_path / "broken"
    marker.touch()
    embed = partial(
        embed_corpus,
        source,
        tmp_path / "out",
        open_encoder=partial(StubEncoder, break_at=TEXTS[150], broken=str(marker)),
        workers=TWO,
    )
    with pytest.raises(EdgeError, match=r"a worker failed: .*the disk of this node is broken; start the run again"):
        embed()
    with pytest.raises(InputError, match="has not ended"):
        Corpus.open(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").rglob("*.parquet")}
    with pytest.raises(InputError, match="truncate was False and is now True"):
        embed(encode=EncodeOptions(truncate=True))
    marker.unlink()
    report = embed()
    assert report.restarts == 1
    assert report.rows == 200
    committed = [path for path, time in before.items() if path.exists() and path.stat().st_mtime_ns == time]
    assert report.run_rows == 200 - sum(
        len(pa.parquet.read_table(path)) for path in committed if path.parent.name == "vectors"
    )
    require_complete(tmp_path / "out", TEXTS)
    write_lines([{"text": "new"}], "in/b.jsonl")
    assert embed().run_rows == 1
    assert len(found(tmp_path / "out")) == 201


def test_an_actor_that_is_killed_loses_no_row(tmp_path: Path, write_lines: Callable[..., Path]):
    source = write_lines([{"text": text} for text in TEXTS])
    killed = tmp_path / "killed"
    opener = partial(StubEncoder, kill_at=TEXTS[120], killed=str(killed))
    report = embed_corpus(source, tmp_path / "out", open_encoder=opener, workers=TWO)
    assert killed.exists()
    assert report.rows == 200
    require_complete(tmp_path / "out", TEXTS)


def test_an_actor_with_another_model_is_refused(tmp_path: Path, write_lines: Callable[..., Path]):
    source = write_lines([{"text": "one"}])
    opened = tmp_path / "opened"

    def open_encoder() -> StubEncoder:
        name = "second" if opened.exists() else "first"
        opened.touch()
        return StubEncoder(fingerprint=name)

    with pytest.raises(EdgeError, match="its fingerprint is second, expected first"):
        embed_corpus(source, tmp_path / "out", open_encoder=open_encoder, workers=Workers(block_bytes=2000))


def test_an_error_of_a_reader_is_ours(tmp_path: Path):
    (tmp_path / "lines.txt").write_text("one\n")
    with pytest.raises(EdgeError, match="have no field 'id'"):
        embed_corpus(
            tmp_path / "lines.txt",
            tmp_path / "out",
            open_encoder=StubEncoder,
            read=ReadOptions(id_field="id"),
            workers=TWO,
        )
