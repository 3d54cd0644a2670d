import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import SEP, TINY_SEP_ID, tiny_tokenizer
from fakes import FakeSession, fake_embedder, fake_spec
from hypothesis import given
from hypothesis import strategies as st

from pplx_edge import backends, load
from pplx_edge.errors import InputError, MissingExtra, NumericalError, TextTooLong
from pplx_edge.registry import BACKENDS, COREML, MLX, ONNX
from pplx_edge.types import PRECISIONS, BatchPolicy, Precision, SessionOptions
from pplx_edge.vectors.codes import quantize

BPE = tiny_tokenizer()
MACHINES_DEFAULT = backends.default_backend  # as it is without the fixture that sets it for tests
TEXTS = ["The quick brown fox", "", "x", "dog " * 30, "機械学習", "x", "", "Der schnelle braune Fuchs springt"]


def ids_of(text: str) -> list[int]:
    return BPE.encode(text, add_special_tokens=False).ids


def oracle(session: FakeSession, rows: Sequence[Sequence[int]], precision: Precision = "int8") -> np.ndarray:
    """Return one row of codes for each list of ids, each computed alone."""
    means = [session.table[list(ids)].mean(axis=0) if len(ids) else np.zeros(session.spec.dim) for ids in rows]
    return quantize(np.array(means, np.float32).reshape(-1, session.spec.dim), precision)


# Order and number


@pytest.mark.parametrize("precision", PRECISIONS)
def test_vectors_are_in_input_order(precision: Precision):
    session = FakeSession()
    vectors = fake_embedder(session).encode(TEXTS, precision)
    expected = oracle(session, [ids_of(text) for text in TEXTS], precision)
    assert (vectors.dtype, vectors.shape) == (expected.dtype, expected.shape)
    assert (vectors == expected).all()


@given(
    texts=st.lists(
        st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=12
    ),
    max_tokens=st.integers(1, 60),
    padded=st.booleans(),
)
def test_vectors_do_not_depend_on_the_batch_policy(texts: list[str], max_tokens: int, padded: bool):
    session = FakeSession(policy=BatchPolicy(max_tokens=max_tokens, padded=padded))
    vectors = fake_embedder(session).encode(texts)
    assert (vectors == oracle(session, [ids_of(text) for text in texts])).all()
    for batch in session.batches:
        assert len(batch.input_ids) == 1 or batch.lengths.sum() <= max_tokens
    assert sum(len(batch.input_ids) for batch in session.batches) == sum(1 for text in texts if ids_of(text))


def test_shuffled_inputs_give_shuffled_vectors():
    embedder = fake_embedder()
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert (embedder.encode([TEXTS[i] for i in order]) == embedder.encode(TEXTS)[order]).all()


def test_queries_and_documents_get_no_prefix():
    embedder = fake_embedder()
    for precision in PRECISIONS:
        plain = embedder.encode(TEXTS, precision, dim=128)
        assert (embedder.encode_query(TEXTS, precision, dim=128) == plain).all()
        assert (embedder.encode_document(TEXTS, precision, dim=128) == plain).all()


# Shapes and kinds


SHAPES = [("int8", np.int8, 256), ("binary", np.int8, 256), ("ubinary", np.uint8, 32), ("float32", np.float32, 256)]


@pytest.mark.parametrize(("precision", "dtype", "width"), SHAPES)
def test_an_empty_list_gives_an_empty_array(precision: Precision, dtype: type, width: int):
    session = FakeSession()
    embedder = fake_embedder(session)
    for vectors in (embedder.encode([], precision), embedder.encode_query([], precision)):
        assert (vectors.dtype, vectors.shape) == (dtype, (0, width))
    assert embedder.encode_chunks([], precision) == []
    (none,) = embedder.encode_chunks([[]], precision)
    assert (none.dtype, none.shape) == (dtype, (0, width))
    assert session.batches == []


@pytest.mark.parametrize(("precision", "value"), [("int8", 0), ("binary", 1), ("ubinary", 255), ("float32", 0)])
def test_an_empty_string_has_the_codes_of_a_zero_mean(precision: Precision, value: int):
    session = FakeSession()
    embedder = fake_embedder(session)
    assert (embedder.encode(["", ""], precision) == value).all()
    assert session.batches == []
    mixed = embedder.encode(["a", "", "b"], precision)
    assert (mixed[1] == value).all()
    assert (mixed[0] != value).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dim_keeps_the_first_components(precision: Precision):
    embedder = fake_embedder()
    whole, cut = embedder.encode(TEXTS, precision), embedder.encode(TEXTS, precision, dim=136)
    width = 17 if precision == "ubinary" else 136
    assert cut.shape == (len(TEXTS), width)
    assert (cut == whole[:, :width]).all()
    chunked = embedder.encode_chunks([["a", "b"]], precision, dim=136)[0]
    assert chunked.shape == (2, width)


@pytest.mark.parametrize("options", [{"dim": 127}, {"dim": 257}, {"dim": "128"}, {"dim": 130, "precision": "ubinary"}])
@pytest.mark.parametrize("texts", [[], ["a"]])
def test_a_dim_that_is_not_allowed_is_refused(texts: list[str], options: dict[str, Any]):
    with pytest.raises(InputError, match="dim"):
        fake_embedder().encode(texts, **options)


@pytest.mark.parametrize("texts", [[], ["a"]])
def test_an_unknown_precision_is_refused(texts: list[str]):
    with pytest.raises(InputError, match="unknown precision 'int4'"):
        fake_embedder().encode(texts, "int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", ["text", None, 3, b"text", [None], [b"a"], {"a": 1}, (text for text in "ab")])
def test_anything_but_a_list_of_strings_is_refused(texts: Any):
    embedder = fake_embedder()
    for encode in (embedder.encode, embedder.encode_query, embedder.encode_document, embedder.encode_chunks):
        with pytest.raises(InputError, match="must be a"):
            encode(texts)


def test_the_list_of_the_caller_is_not_changed():
    texts = list(TEXTS)
    fake_embedder().encode(texts)
    assert texts == TEXTS


def test_properties_describe_the_model():
    embedder = fake_embedder(FakeSession(fake_spec(dim=192, max_tokens=77)))
    assert (embedder.dim, embedder.max_tokens) == (192, 77)


# Chunks


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_chunk_has_a_vector_in_its_document(precision: Precision):
    session = FakeSession()
    documents = [["The fox", "", "jumps"], [], ["alone"], ["", ""], [f"a{SEP}b", SEP, "c"], ["dog " * 9] * 3]
    found = fake_embedder(session).encode_chunks(documents, precision)
    assert [len(vectors) for vectors in found] == [3, 0, 1, 2, 3, 3]
    for vectors, chunks in zip(found, documents, strict=True):
        assert (vectors == oracle(session, [ids_of(chunk) for chunk in chunks], precision)).all()


def test_a_document_is_one_row():
    session = FakeSession()
    fake_embedder(session).encode_chunks([["a", "b"], ["c"]])
    (batch,) = session.batches
    together = [*ids_of("a"), TINY_SEP_ID, *ids_of("b")]
    assert batch.input_ids[0].tolist() == together
    assert batch.lengths.tolist() == [3, 1]
    assert [(span.row, span.start, span.stop) for span in batch.spans] == [(0, 0, 1), (0, 2, 3), (1, 0, 1)]


def test_separators_count_as_tokens_of_a_document():
    embedder = fake_embedder(FakeSession(fake_spec(max_tokens=4)))
    with pytest.raises(TextTooLong, match="document 0 has 5 tokens, limit 4"):
        embedder.encode_chunks([["a", "b", "c"]])


# Limits


def test_an_input_over_the_limit_is_refused_with_its_length():
    embedder = fake_embedder(FakeSession(fake_spec(max_tokens=8)))
    embedder.encode(["x" * 8])
    with pytest.raises(TextTooLong, match=r"^text 1 has 9 tokens, limit 8; split it or pass truncate=True$") as caught:
        embedder.encode(["ok", "0" * 9])
    assert (caught.value.index, caught.value.n_tokens, caught.value.limit) == (1, 9, 8)
    with pytest.raises(TextTooLong, match=r"^text 0 has 1,234 tokens, limit 8 \(2 more exceed it\)"):
        embedder.encode(["0" * 1234, "a", "0" * 9, "0" * 10])


def test_an_input_over_the_limit_never_reaches_the_session():
    session = FakeSession(fake_spec(max_tokens=8))
    with pytest.raises(TextTooLong):
        fake_embedder(session).encode(["ok", "0" * 9])
    assert session.batches == []


def test_truncating_cuts_and_warns_with_a_count():
    session = FakeSession(fake_spec(max_tokens=8))
    texts = ["short", "0" * 9, "12345678", "1" * 50]
    with pytest.warns(UserWarning, match=r"^2 of 4 texts were cut to 8 tokens, the first being text 1$") as caught:
        vectors = fake_embedder(session).encode(texts, truncate=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (vectors == oracle(session, [ids_of(text)[:8] for text in texts])).all()


@pytest.mark.parametrize("encode", ["encode_query", "encode_document"])
def test_the_warning_points_at_the_caller(encode: str):
    embedder = fake_embedder(FakeSession(fake_spec(max_tokens=8)))
    with pytest.warns(UserWarning, match="1 of 1 texts were cut") as caught:
        getattr(embedder, encode)(["0" * 9], truncate=True)
    assert caught[0].filename == __file__


def test_truncating_short_inputs_gives_no_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fake_embedder(FakeSession(fake_spec(max_tokens=8))).encode(["short", "12345678"], truncate=True)
    assert caught == []


def test_chunks_past_the_limit_have_the_codes_of_a_zero_mean():
    session = FakeSession(fake_spec(max_tokens=8))
    with pytest.warns(UserWarning, match=r"^1 of 1 documents were cut to 8 tokens, the first being document 0$"):
        (vectors,) = fake_embedder(session).encode_chunks([["00000", "11111", "22222"]], truncate=True)
    assert (vectors == oracle(session, [ids_of("00000"), ids_of("11"), []])).all()


# Broken sessions


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_that_is_not_finite_names_the_index_of_its_input(precision: Precision):
    (nan_id,) = ids_of("Z")
    embedder = fake_embedder(FakeSession(nan_id=nan_id, policy=BatchPolicy(max_tokens=4)))
    with pytest.raises(NumericalError, match=r"^text 2: the model produced NaN or infinity"):
        embedder.encode(["a", "", "Z", "The quick brown fox"], precision)
    with pytest.raises(NumericalError, match=r"^document 1: "):
        embedder.encode_chunks([["a", "b"], ["c", "Z"]], precision)


def test_the_invalid_vector_of_a_batch_is_named():
    (nan_id,) = ids_of("Z")
    session = FakeSession(nan_id=nan_id)
    with pytest.raises(NumericalError, match=r"^document 2: "):
        fake_embedder(session).encode_chunks([["a", "b", "c"], ["", "d"], ["e", "Z"]])
    assert len(session.batches) == 1


def test_errors_of_a_session_propagate():
    class Failing(FakeSession):
        def span_means(self, batch):
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        fake_embedder(Failing()).encode(["a"])


# Progress


def test_a_requested_progress_bar_is_on_stderr(capsys: pytest.CaptureFixture[str]):
    fake_embedder().encode(TEXTS, show_progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "embedding: 100%" in err


@pytest.mark.parametrize("show", [False, None])
def test_no_progress_bar_without_a_terminal(show: bool | None, capsys: pytest.CaptureFixture[str]):
    fake_embedder().encode(TEXTS, show_progress=show)
    assert capsys.readouterr() == ("", "")


class Terminal:
    """A stderr that is a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.written = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        pass


def test_a_terminal_shows_a_bar_only_for_long_work(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    embedder = fake_embedder()
    embedder.encode(TEXTS)
    assert terminal.written == ""
    monkeypatch.setattr("pplx_edge.embedder._PROGRESS_DELAY_SECONDS", 1e-9)
    embedder.encode(TEXTS)
    assert "embedding" in terminal.written


# Threads and life


def test_several_threads_get_the_results_of_one():
    embedder = fake_embedder()
    lists = [TEXTS[i:] + TEXTS[:i] for i in range(len(TEXTS))] * 4
    expected = [embedder.encode(texts) for texts in lists]
    with ThreadPoolExecutor(8) as pool:
        for vectors, wanted in zip(pool.map(embedder.encode, lists), expected, strict=True):
            assert (vectors == wanted).all()


def test_a_closed_embedder_releases_its_session():
    with fake_embedder() as embedder:
        embedder.encode(["a"])
    with pytest.raises(InputError, match="closed"):
        embedder.encode(["a"])


def test_similarity_is_that_of_the_package():
    embedder = fake_embedder()
    vectors = embedder.encode(["a", "b"])
    assert np.diag(embedder.similarity(vectors, vectors)) == pytest.approx(1)


# The table of backends


def test_auto_chooses_by_the_files_and_then_by_the_machine(tiny_dir, tmp_path, monkeypatch):
    assert backends.backend_for(tiny_dir) is ONNX
    monkeypatch.setattr(backends, "default_backend", lambda: COREML)
    assert backends.backend_for(tiny_dir) is COREML
    (tmp_path / "model.onnx").touch()
    assert backends.backend_for(tmp_path) is ONNX
    assert backends.backend_for(tiny_dir, artifact_format="mlx-q8") is MLX
    for name, backend in BACKENDS.items():
        assert backends.backend_for(tiny_dir, name) is backend


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("darwin", "arm64", "mlx"),
        ("darwin", "x86_64", "native"),
        ("linux", "aarch64", "native"),
        ("win32", "AMD64", "onnx"),
    ],
)
def test_the_machine_decides_the_default(system: str, machine: str, expected: str, monkeypatch):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(backends, "_meets_requirement", lambda name: True)
    assert MACHINES_DEFAULT().name == expected


def test_a_backend_without_its_package_is_an_error_with_the_command(tiny_dir, monkeypatch):
    monkeypatch.setitem(BACKENDS, "onnx", replace(ONNX, package="no_such_package", extra="extra"))
    with pytest.raises(MissingExtra, match=r"the onnx backend needs: pip install 'pplx-edge\[extra\]'"):
        load(tiny_dir, backend="onnx")


def test_an_option_of_another_backend_is_refused(tiny_dir):
    with pytest.raises(InputError, match="weights is not an option of the onnx backend; its options are threads"):
        backends.open_session(ONNX, tiny_dir, SessionOptions(weights="q8"))


@pytest.mark.parametrize("name", ["", "ONNX", "tensorflow", "os"])
def test_an_unknown_backend_is_refused(name: str, tmp_path):
    with pytest.raises(InputError, match=r"unknown backend .*: choose auto or one of onnx"):
        load(tmp_path, backend=name)
