"""`pplx-edge embed --stream` on a fake model: lines, files, errors, and going on after an interruption."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, run_fixture, session_fixture  # noqa: F401 (fixtures)
from fakes import FakeSession, fake_embedder

from pplx_edge.types import StreamOptions

TEXT = "# Foxes\n\nThe quick brown fox. The dog sleeps on.\n\n## Dogs\n\nDer Hund läuft. 機械学習。\n" * 12
SIZES = ["--window", "64", "--margin", "8", "--chunk-tokens", "16"]
OPTIONS = StreamOptions(window=64, margin=8, chunk_tokens=16)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.md"
    path.write_text(TEXT, encoding="utf-8")
    return path


def rows_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_line_a_chunk_with_all_that_is_known(run: Run, session: FakeSession, book: Path):
    status, out, err = run("embed", "--stream", book, *SIZES)
    assert (status, err) == (0, "")
    expected = list(fake_embedder().encode_stream(TEXT, options=OPTIONS))
    rows = rows_of(out)
    assert len(rows) == len(expected) > 30
    for i, (row, vector) in enumerate(zip(rows, expected, strict=True)):
        assert row["doc"] == str(book)
        assert row["chunk"] == i
        assert (row["start"], row["stop"], row["line"]) == (vector.start, vector.stop, vector.line)
        assert (row["page"], row["heading"]) == (None, list(vector.heading))
        assert (row["codes"], row["position"]) == (vector.codes.tolist(), vector.position)


def test_codes_of_several_files_are_stacked(run: Run, session: FakeSession, book: Path, tmp_path: Path):
    other, output = tmp_path / "b.txt", tmp_path / "x.npy"
    other.write_text("One fox.", encoding="utf-8")
    assert run("embed", "--stream", book, other, *SIZES, "-o", output, "--dim", 128)[0] == 0
    vectors = fake_embedder().encode_streams([TEXT, "One fox."], dim=128, options=OPTIONS)
    np.testing.assert_array_equal(np.load(output), np.stack([vector.codes for _, vector in vectors]))


def test_standard_input_is_a_stream(run: Run, session: FakeSession):
    rows = rows_of(run("embed", "--stream", stdin="One fox.")[1])
    assert [(row["doc"], row["start"], row["stop"]) for row in rows] == [("-", 0, 8)]


def test_an_interruption_says_how_to_go_on_and_keeps_what_is_final(
    run: Run, session: FakeSession, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = rows_of(run("embed", "--stream", book, *SIZES)[1])
    means, calls = session.span_means, 0

    def interrupted(batch: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return means(batch)

    monkeypatch.setattr(session, "span_means", interrupted)
    output = tmp_path / "part.jsonl"
    status, _, err = run("embed", "--stream", book, *SIZES, "-o", output)
    assert status == 130
    assert f"to continue, use the same options with: {book} --resume " in err
    assert err.count("\n") == 1
    part = rows_of(output.read_text(encoding="utf-8"))
    assert part == whole[: len(part)]
    assert len(part) > 5
    position = err.split()[-1]
    assert position == part[-1]["position"]
    status, out, _ = run("embed", "--stream", book, *SIZES, "--resume", position)
    assert status == 0
    assert rows_of(out) == whole[len(part) :]
    status, _, err = run("embed", "--stream", book, *SIZES, "--resume", position, "-o", output)
    assert status == 2
    assert "would be replaced by the rest alone" in err


def test_what_is_final_before_an_error_is_there(run: Run, session: FakeSession, tmp_path: Path):
    broken = tmp_path / "broken.txt"
    broken.write_bytes(TEXT.encode() * 30 + b"\xff")
    status, out, err = run("embed", "--stream", broken, *SIZES)
    assert status == 2
    assert len(rows_of(out)) > 100
    assert f"error: {broken}: not UTF-8: byte 0xff at offset {len(TEXT.encode()) * 30:,}" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--jsonl"], "--jsonl is for texts that are lines"),
        (["--contextual"], "--contextual is for texts that are lines"),
        (["--truncate"], "--truncate is for texts that are lines"),
        (["--window", "5000"], "reads at most 512 tokens"),
        (["--window", "64", "--window-mb", "64"], "cannot be combined"),
        (["--resume", "nonsense"], "not a stream position"),
        (["--margin", "-1"], "not a whole number"),
        (["--overlap", "100"], "more than half"),
        (["--resume", "x", "nowhere.txt"], "not a stream position"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, session: FakeSession, argv: list[str], message: str):
    status, out, err = run("embed", "--stream", *argv)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_there_is_named(run: Run, session: FakeSession, book: Path):
    status, out, err = run("embed", "--stream", book, "nowhere.txt", *SIZES)
    assert status == 2
    assert len(rows_of(out)) > 30
    assert "nowhere.txt: No such file" in err
