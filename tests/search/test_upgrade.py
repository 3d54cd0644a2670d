"""A new release brings other weights under the same name: an index answers by words, says so, and loses nothing."""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import killed_app
import numpy as np
import pytest
from fakes import FakeSession, fake_embedder
from test_app_kills import App, indexed, prose, require_sound

from pplx_edge import Embedder
from pplx_search import program
from pplx_search.access import WeightsChanged, require_same_weights
from pplx_search.page.library import Library
from pplx_search.store import Store

ADVICE = "run: pplx-search reembed --model nano"


def asked(app: App, *argv: object) -> tuple[int, str, str]:
    command = [sys.executable, killed_app.__file__, app.home.parent / "asked", "--home", app.home, *argv]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_an_index_answers_by_words_until_reembed_is_through_even_if_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, app = tmp_path / "files", App(tmp_path / "app")
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(prose(number, 12), encoding="ascii")
    (folder / "book.txt").write_text(prose(99, 500), encoding="ascii")
    (folder / "lease.txt").write_text("The zeppelin hangar is let until the end of June.\n", encoding="ascii")
    assert app.start("add", folder).wait() == 0
    before = indexed(app.home)
    n_tokens = sum(count for _, count in app.embedded())

    def answers() -> tuple[bool, str]:
        """Return whether a search uses vectors, and what it says; it must find the file and the index must be sound."""
        status, out, err = asked(app, "search", "zeppelin hangar", "--json", "-k", 1)
        assert (status, "lease.txt" in out) == (0, True), err
        require_sound(app.home)
        return '"cosine": null' not in out, err

    assert answers() == (True, "")
    monkeypatch.setenv(killed_app.UPGRADED, "1")
    uses_vectors, said = answers()
    assert not uses_vectors
    assert "searches use words alone" in said
    assert ADVICE in said
    status, _, said = asked(app, "update")
    assert status == 2
    assert ADVICE in said

    writer = app.start("reembed")
    app.wait_for_passes(writer, 2)
    assert writer.poll() is None
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    n_killed = sum(count for _, count in app.embedded())
    assert 0 < n_killed < n_tokens
    assert indexed(app.home) == before
    uses_vectors, said = answers()
    assert (uses_vectors, ADVICE in said) == (False, True)
    assert "new model" in asked(app, "status")[1]

    assert app.start("reembed").wait() == 0
    assert answers() == (True, "")
    after = indexed(app.home)
    assert after.keys() == before.keys()
    for name, chunks in after.items():
        assert [chunk[:2] for chunk in chunks] == [chunk[:2] for chunk in before[name]]
        for (*_, new), (*_, old) in zip(chunks, before[name], strict=True):
            assert np.array_equal(np.frombuffer(new, np.int8), -np.frombuffer(old, np.int8).astype(np.int64))
    assert asked(app, "update")[0] == 0


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of an index whose model has changed since, with one file about a lease."""
    fingerprint = "old"

    def load(*_: object, **__: object) -> Embedder:
        model = fake_embedder(FakeSession())
        model.fingerprint = fingerprint
        return model

    monkeypatch.setattr("pplx_edge.load", load)
    monkeypatch.setenv("PPLX_EDGE_WARM", "0")
    (tmp_path / "lease.txt").write_text("The lease ends in June.\n", encoding="ascii")
    assert program.main(["--home", str(tmp_path / "home"), "add", str(tmp_path / "lease.txt")]) == 0
    fingerprint = "new"
    return tmp_path / "home"


def test_searches_rank_by_words_and_say_so_until_reembed(changed: Path, capsys: pytest.CaptureFixture[str]):
    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = program.main(["--home", str(changed), *argv])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    status, out, err = run("search", "lease", "--json")
    assert (status, json.loads(out)["cosine"]) == (0, None)
    assert err.count("\n") == 1
    assert "searches use words alone" in err
    assert ADVICE in err
    assert run("search", "zebra")[0] == 1
    for command in (("update",), ("add", str(changed.parent / "lease.txt"))):
        status, _, err = run(*command)
        assert status == 2
        assert ADVICE in err
    assert run("reembed")[0] == 0
    status, out, err = run("search", "lease", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["cosine"] is not None
    assert run("update")[0] == 0


def test_assistants_get_a_note(changed: Path):
    pytest.importorskip("mcp", reason="needs the extra [mcp]")
    from pplx_search.assistant import QueryEncoder, build_server

    library = Library(changed)
    arguments = argparse.Namespace(offline=True, threads=None)
    server = build_server(library, QueryEncoder(library, arguments).encode)

    def found() -> dict[str, Any]:
        result = asyncio.run(server.call_tool("search", {"query": "lease"}))
        return dict(result.structured_content or {})  # type: ignore[union-attr]

    answer = found()
    assert len(answer["results"]) == 1
    assert "searches use words alone" in answer["note"]
    assert program.main(["--home", str(changed), "reembed", "--quiet"]) == 0
    answer = found()
    assert len(answer["results"]) == 1
    assert "note" not in answer
    library.close()


def test_the_page_gets_a_note(changed: Path):
    pytest.importorskip("starlette", reason="needs the extra [serve]")
    from starlette.requests import Request

    from pplx_search.page.indexing import Indexing
    from pplx_search.page.routes import SearchPage

    async def encode(words: str) -> np.ndarray:
        raise WeightsChanged("the model has changed")

    library = Library(changed)
    page = SearchPage(library, Indexing(changed), encode, None, "", "")  # type: ignore[arg-type]
    for mode, note in (("all", "the model has changed"), ("words", "")):
        scope = {"type": "http", "method": "GET", "query_string": f"q=lease&mode={mode}".encode(), "headers": []}
        answer = json.loads(asyncio.run(page.search(Request(scope))).body.decode())  # type: ignore[union-attr]
        assert (len(answer["hits"]), answer["note"]) == (1, note)
    library.close()


def test_a_vector_of_another_length_is_another_model_too(changed: Path):
    with Store.open(changed) as store:
        assert store.vectors.serving is not None
        settings = dict(store.vectors.serving.settings)
    model = fake_embedder(FakeSession())
    model.fingerprint = "old"
    require_same_weights(model, settings)
    with pytest.raises(WeightsChanged):
        require_same_weights(model, settings | {"dim": model.dim + 1})
