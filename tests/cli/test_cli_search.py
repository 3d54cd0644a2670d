"""`pplx-edge search` on a fake model: what it finds, how it prints it, and what it passes over."""

import json
import os
from pathlib import Path

import pytest
from command_line import Run, run_fixture, session_fixture  # noqa: F401 (fixtures)
from fakes import FakeSession, fake_spec

from pplx_cli.walking import Walk
from pplx_kit.terminal import human_bytes, printable

# The fake model's vectors are means over tokens, so a text is most like a text of the same words.
FILES = {
    "fox.txt": "The quick brown fox jumps.\n\nOver the lazy dog, and the dog sleeps on.\n",
    "notes/learning.md": "# Notes\n\nSomething else altogether.\n\n## Learning\n\nDeep learning is machine learning.\n",
    "notes/deep/code.py": "def encode(texts):\n    return [model(text) for text in texts]\n",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of three text files, and the current one."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths_of(out: str) -> list[str]:
    return [line.split(":")[0] for line in out.splitlines()]


def test_the_best_passage_comes_first_with_file_line_and_score(run: Run, session: FakeSession, tree: Path):
    status, out, err = run("search", "Deep learning is machine learning.", ".")
    assert (status, err) == (0, "")
    place, score, snippet = out.splitlines()[0].split("  ", 2)
    assert place == "notes/learning.md:7"
    assert 0 < float(score) <= 1
    assert snippet == "Deep learning is machine learning."
    assert set(paths_of(out)) == set(FILES)


def test_dense_ranking_goes_by_the_cosine(run: Run, session: FakeSession, tree: Path):
    _, out, _ = run("search", "the dog sleeps on", ".", "--ranking", "dense")
    scores = [float(line.split("  ")[1]) for line in out.splitlines()]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_ranking_by_words_finds_what_holds_them_by_stem_and_by_path(run: Run, session: FakeSession, tree: Path):
    (tree / "中文.txt").write_text("合同将于六月到期。", encoding="utf-8")

    def found(question: str) -> list[str]:
        return paths_of(run("search", question, ".", "--ranking", "words")[1])

    assert found("Who was JUMPING?") == ["fox.txt"]
    assert found("notes") == ["notes/learning.md", "notes/deep/code.py"]
    assert found("六月") == ["中文.txt"]
    assert found("zebra") == found("?!") == []


def test_words_lift_a_passage_that_vectors_put_second(run: Run, session: FakeSession, tree: Path):
    (tree / "near.txt").write_text("the dog and the dog and the dog", encoding="utf-8")
    (tree / "exact.txt").write_text("error E4711: the valve and the pump are shut", encoding="utf-8")
    question = ("search", "the dog and the E4711", "near.txt", "exact.txt")
    assert paths_of(run(*question, "--ranking", "dense")[1])[0] == "near.txt"
    hybrid = [json.loads(line) for line in run(*question, "--json")[1].splitlines()]
    dense = [json.loads(line) for line in run(*question, "--ranking", "dense", "--json")[1].splitlines()]
    assert sorted(hit["score"] for hit in hybrid) == sorted(hit["score"] for hit in dense)


def test_a_file_whose_name_is_not_unicode_is_found(run: Run, session: FakeSession, tree: Path):
    name = os.fsdecode(b"fox-\xff.txt")
    try:
        (tree / name).write_text("a second quick brown fox", encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    status, out, _ = run("search", "a second quick brown fox", ".", "-k", "1")
    assert status == 0
    assert out.startswith("fox-")


def test_a_hit_points_at_the_line_that_is_most_alike(run: Run, session: FakeSession, tree: Path):
    _, out, _ = run("search", "the dog sleeps on", "fox.txt", "-k", "1")
    assert out.startswith("fox.txt:3  ")


def test_json_lines_hold_the_passage_and_its_place(run: Run, session: FakeSession, tree: Path):
    _, out, _ = run("search", "the dog sleeps on", "fox.txt", "--json")
    hit = json.loads(out)
    assert hit["path"] == "fox.txt"
    assert (hit["first_line"], hit["line"], hit["last_line"]) == (1, 3, 3)
    assert FILES["fox.txt"][hit["start"] : hit["stop"]] == hit["text"] == FILES["fox.txt"].strip()


def test_k_and_min_score_leave_hits_out(run: Run, session: FakeSession, tree: Path):
    assert len(run("search", "fox", "-k", "2")[1].splitlines()) == 2
    assert run("search", "fox", "--min-score", "1.01") == (1, "", "")


def test_no_text_is_no_hit(run: Run, session: FakeSession, tmp_path: Path):
    (tmp_path / "blank.txt").write_text(" \n\n", encoding="utf-8")
    assert run("search", "anything", tmp_path) == (1, "", "")


def test_a_named_file_that_is_missing_is_status_2_and_the_rest_is_searched(run: Run, session, tree: Path):
    status, out, err = run("search", "fox", "nowhere.txt", "fox.txt")
    assert status == 2
    assert paths_of(out) == ["fox.txt"]
    assert err == "pplx-edge: error: nowhere.txt: No such file or directory\n"


def test_an_empty_question_is_refused(run: Run, session: FakeSession, tree: Path):
    status, out, err = run("search", " ", ".")
    assert (status, out) == (2, "")
    assert "the question is empty" in err


def test_what_is_not_read_is_counted_with_its_reason(run: Run, session: FakeSession, tree: Path):
    (tree / "image.png").write_bytes(b"\x89PNG\0\0")
    (tree / "latin.txt").write_bytes("Übung".encode("latin-1"))
    (tree / "big.log").write_text("line\n" * 300_000, encoding="utf-8")
    (tree / "link").symlink_to("notes")
    os.mkfifo(tree / "pipe")
    status, out, err = run("search", "fox", ".")
    assert status == 0
    assert set(paths_of(out)) == set(FILES)
    assert err.count("\n") == 1
    for reason in ("binary (image.png)", "not UTF-8 text (latin.txt)", "larger than 1.0 MB (big.log)"):
        assert f"1 {reason}" in err
    assert "1 symbolic links (link)" in err
    assert "1 not plain files (pipe)" in err


def test_hidden_files_are_read_only_when_named(run: Run, session: FakeSession, tree: Path):
    (tree / ".git").mkdir()
    (tree / ".git" / "config").write_text("fox", encoding="utf-8")
    assert ".git/config" not in paths_of(run("search", "fox", ".")[1])
    assert paths_of(run("search", "fox", ".git/config")[1]) == [".git/config"]


def test_links_in_circles_and_paths_given_twice_are_read_once(run: Run, session: FakeSession, tree: Path):
    (tree / "notes" / "up").symlink_to("..")
    _, out, _ = run("search", "fox", ".", "notes", "fox.txt")
    assert sorted(set(paths_of(out))) == sorted(FILES)
    assert paths_of(out).count("fox.txt") == 1


def test_many_blocks_give_the_same_hits_as_one(run: Run, session: FakeSession, tree: Path, monkeypatch):
    whole = run("search", "machine learning", ".")
    monkeypatch.setattr("pplx_cli.commands.search._BLOCK_CHUNKS", 1)
    assert run("search", "machine learning", ".") == whole


def passages_in_a_pass(session: FakeSession) -> int:
    return max(
        sum(span.row == row for span in batch.spans) for batch in session.batches for row in range(len(batch.spans))
    )


def test_context_puts_the_passages_of_a_file_into_one_pass(run: Run, session: FakeSession, tree: Path):
    (tree / "long.txt").write_text(
        "\n\n".join(f"Paragraph {i} " + "and words " * 30 for i in range(9)), encoding="utf-8"
    )
    run("search", "fox", "long.txt")
    assert passages_in_a_pass(session) == 1
    session.batches.clear()
    assert run("search", "fox", "long.txt", "--context")[0] == 0
    assert 1 < passages_in_a_pass(session) <= 512 // 128


def test_with_context_the_path_is_read_first_and_is_no_passage(run: Run, session: FakeSession, tree: Path):
    folder = tree / ("very_long_name_" * 12) / ("of_a_folder_" * 15)
    folder.mkdir(parents=True)
    (folder / "fox.txt").write_text("one\n\nthe quick brown fox", encoding="utf-8")
    status, alone, _ = run("search", "quick brown fox", str(folder), "--json")
    n_alone = passages_in_a_pass(session)
    session.batches.clear()
    again, among, _ = run("search", "quick brown fox", str(folder), "--json", "--context")
    assert status == again == 0
    assert passages_in_a_pass(session) == n_alone + 1
    # The fake model has no context, so a vector that stood for another passage would change its score.
    assert [json.loads(line) for line in among.splitlines()] == [json.loads(line) for line in alone.splitlines()]


@pytest.mark.parametrize("option", [[], ["--no-context"]])
def test_contextual_models_use_context_unless_told_not_to(
    run: Run, session: FakeSession, tree: Path, option: list[str]
):
    session.spec = fake_spec(contextual=True)
    (tree / "long.txt").write_text(
        "\n\n".join(f"Paragraph {i} " + "and words " * 30 for i in range(9)), encoding="utf-8"
    )
    run("search", "fox", "long.txt", *option)
    assert (passages_in_a_pass(session) == 1) == bool(option)


def test_no_file_can_play_tricks_on_the_terminal(run: Run, session: FakeSession, tree: Path):
    (tree / "trick\n.txt").write_text("\x1b[31mfox\x1b]0;title\x07 \u202e jumps", encoding="utf-8")
    _, out, _ = run("search", "fox", ".", "-k", "1", "--min-score", "0")
    assert all(char.isprintable() or char == "\n" for char in out)
    assert out.count("\n") == 1


@pytest.mark.parametrize(("no_colour", "painted"), [("", True), ("1", False)])
def test_colours_are_for_terminals_without_no_color(run: Run, session, tree: Path, monkeypatch, no_colour, painted):
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" not in run("search", "fox", ".")[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert ("\x1b[35m" in run("search", "fox", ".")[1]) == painted


def test_unreadable_directories_are_failures_not_silence(tree: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    walk = Walk(max_bytes=1000)
    assert list(walk.text_files(["."])) == []
    assert walk.failed == [".: Permission denied"]


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_384_199_680, "2.4 GB"), (5 * 10**12, "5.0 TB")],
)
def test_sizes_are_readable(n_bytes: int, words: str):
    assert human_bytes(n_bytes) == words


def test_printable_text_is_one_line():
    assert printable("a\n\tb\x1b[0m\u202e漢👩\u200d🔧") == "a b�[0m�漢👩\u200d🔧"
