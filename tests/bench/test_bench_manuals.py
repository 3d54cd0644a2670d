"""`pplx-edge bench search manuals`: sections, ranks, and a run over tiny manuals."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from pplx_bench.search.manuals import (
    QUESTIONS_FILE,
    Manual,
    Question,
    rank_of,
    read_questions,
    sections,
)
from pplx_cli import main
from pplx_search.ids import ChunkId, DocumentId, TextId
from pplx_search.store import Hit

HIT = Hit(
    **dict.fromkeys(("score", "cosine", "bm25", "date", "page"), None),  # type: ignore[arg-type]
    **dict.fromkeys(("part", "title", "kind", "collection"), ""),  # type: ignore[arg-type]
    chunk_id=ChunkId(1),
    document_id=DocumentId(1),
    text_id=TextId(1),
    ranks={},
    path=b"/a.html",
    start=0,
    stop=10,
    line=1,
    heading=(),
)
GARDEN = """<html><body><h1>Garden</h1><p>All about gardens.</p>
<h2>Tools¶</h2><p>The rake, the spade and the hoe hang in the shed behind the compost heap.</p>
<h2>Watering</h2><p>Tomatoes need two litres of water a day in summer, and none in the evening.</p>
<h3>Frost</h3><p>Drain the hose before the first night of frost, or the tap will burst.</p>
</body></html>"""
KITCHEN = """<html><body><h1>Kitchen</h1>
<h2>Oven</h2><p>Bread is baked at 230 degrees for forty minutes, then left to cool on a rack.</p>
<h2>Frost</h2><p>The freezer must be defrosted twice a year, with a bowl of hot water.</p>
</body></html>"""
PARTS = ("Wash the {0} with lukewarm water.", "Keep the {0} in a dry place.", "A new {0} is ordered by telephone.")
THINGS = ("kettle", "toaster", "ladle", "sieve", "grater", "whisk", "tin", "pan")


def manual(folder: Path, name: str) -> dict[str, str]:
    made = {"name": name, "package": f"{name}-doc", "version": "1", "folder": name, "include": "*.html", "sha256": ""}
    return made | {"sha256": Manual(**made).digest(folder)}


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    folder = tmp_path / "unpacked"
    for name, text in (("garden", GARDEN), ("kitchen", KITCHEN)):
        (folder / name).mkdir(parents=True)
        (folder / name / "index.html").write_text(text, encoding="utf-8")
    for thing in THINGS:  # enough for a null baseline
        text = "".join(f"<h2>{part[:8]}</h2><p>{part.format(thing) * 3}</p>" for part in PARTS)
        (folder / "kitchen" / f"{thing}.html").write_text(f"<h1>The {thing}</h1>{text}", encoding="utf-8")
    return folder


@pytest.fixture
def questions(unpacked: Path, tmp_path: Path) -> Path:
    asked = [
        ("garden", "how much water do tomatoes need?", ["index.html#Watering"]),
        ("garden", "where is the spade?", ["index.html#Tools"]),
        ("kitchen", "how long is bread baked?", ["index.html#Oven", "index.html#Kitchen > Frost"]),
    ]
    path = tmp_path / "asked.json"
    content = {
        "manuals": [manual(unpacked, name) for name in ("garden", "kitchen")],
        "questions": [{"manual": m, "lang": "en", "question": q, "right": r} for m, q, r in asked],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_sections_end_at_the_next_heading_and_have_those_above():
    text = "before\n\n# A¶\n\none\n\n## B\n\ntwo\n\n# C\n\nthree\n"
    found = [(above, text[start:stop]) for above, start, stop in sections(text)]
    assert found == [((), "before"), (("A",), "# A¶\n\none"), (("A", "B"), "## B\n\ntwo"), (("C",), "# C\n\nthree")]


def test_a_hit_shows_a_section_if_they_share_half_of_the_shorter_one():
    assert {field.name for field in fields(Hit)} >= {"start", "stop"}
    hits = [replace(HIT, start=0, stop=100), replace(HIT, start=100, stop=200), replace(HIT, path=b"/b.html")]
    for span, rank in (((0, 300), 1), ((60, 140), 1), ((120, 130), 2), ((80, 400), 2), ((190, 230), None)):
        assert rank_of(hits, {b"/a.html": [span]}) == rank, span
    assert rank_of(hits, {b"/b.html": [(0, 5)]}) == 3


def test_the_questions_are_complete():
    manuals, asked = read_questions(QUESTIONS_FILE)
    assert [manual.name for manual in manuals] == ["keepassxc", "borg", "debian-policy"]
    for manual in manuals:
        assert sum(each.manual == manual.name for each in asked) == 20
    assert len({each.question for each in asked}) == 60
    assert sum(each.lang != "en" for each in asked) == 6
    assert all("#" in mark for each in asked for mark in each.right)
    assert isinstance(asked[0], Question)


def test_a_run_over_tiny_manuals(unpacked: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results, home = tmp_path / "found.jsonl", tmp_path / "home"
    options = ["--questions", str(questions), "--threads", "1", "--json", str(results), "--home", str(home)]
    assert main(["bench", "search", "manuals", str(unpacked), *options]) == 0
    printed = capsys.readouterr().out
    assert "| hybrid | all | 3 |" in printed
    assert "other pages than those that were marked" not in printed
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [(line["system"], line["manual"]) for line in lines[:3]] == [
        ("hybrid", "garden"),
        ("hybrid", "kitchen"),
        ("hybrid", "all"),
    ]
    by_name = {(line["system"], line["manual"]): line for line in lines}
    assert by_name["hybrid", "all"]["first"] == by_name["words only", "all"]["first"] == 3
    assert by_name["words only", "all"]["declined"] is None
    assert by_name["hybrid", "all"]["declined"] in range(4)
    assert by_name["vectors only", "garden"]["ranks"].keys() == {
        "how much water do tomatoes need?",
        "where is the spade?",
    }
    (unpacked / "garden" / "more.html").write_text("<h1>More</h1><p>Nothing.</p>", encoding="utf-8")
    assert main(["bench", "search", "manuals", str(unpacked), *options]) == 0  # the index is continued
    assert "other pages than those that were marked: garden; check the marks" in capsys.readouterr().out


def test_what_is_missing_is_named(unpacked: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def said(folder: Path, path: Path) -> str:
        assert main(["bench", "search", "manuals", str(folder), "--questions", str(path), "--threads", "1"]) == 2
        return capsys.readouterr().err

    assert "apt-get download garden-doc && dpkg-deb -x" in said(tmp_path / "nowhere", questions)
    content = json.loads(questions.read_text(encoding="utf-8"))
    content["questions"][0]["right"] = ["index.html#Rain"]
    questions.write_text(json.dumps(content), encoding="utf-8")
    assert "no section 'index.html#Rain'" in said(unpacked, questions)
    content["questions"][0] |= {"right": [], "manual": "attic"}
    questions.write_text(json.dumps(content), encoding="utf-8")
    assert "found 'attic' and 0" in said(unpacked, questions)
    questions.write_text("{}", encoding="utf-8")
    assert "not a file of manuals and questions" in said(unpacked, questions)
