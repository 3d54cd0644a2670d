"""A new release brings other weights under the same name: an index answers by words, says so, and loses nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import killed_app
import numpy as np
import pytest
from fakes import FakeSession, fake_embedder
from test_app_kills import App, indexed, prose, require_sound

from pplx_search import program
from pplx_search.store import Store

ADVICE = "run: pplx-search reembed --model nano"


def asked(app: App, *argv: object) -> tuple[int, str, str]:
    command = [sys.executable, killed_app.__file__, app.home.parent / "asked", "--home", app.home, *argv]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


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
    model = fake_embedder(FakeSession())
    monkeypatch.setattr("pplx_edge.load", lambda *_, **__: model)
    monkeypatch.setenv("PPLX_EDGE_WARM", "0")
    (tmp_path / "lease.txt").write_text("The lease ends in June.\n", encoding="ascii")
    assert program.main(["--home", str(tmp_path / "home"), "add", str(tmp_path / "lease.txt")]) == 0
    model.fingerprint = "other"
    return tmp_path / "home"


def test_assistants_get_a_note(changed: Path):
    pytest.importorskip("mcp", reason="needs the extra [mcp]")
    import argparse
    import asyncio

    from pplx_search.assistant import QueryEncoder, build_server
    from pplx_search.page.library import Library

    library = Library(changed)
    server = build_server(library, QueryEncoder(library, argparse.Namespace(offline=True, threads=None)).encode)

    def found() -> dict[str, object]:
        result = asyncio.run(server.call_tool("search", {"query": "lease"}))
        content = result[1] if isinstance(result, tuple) else result.structured_content
        assert content is not None
        return dict(content)

    answer = found()
    assert len(answer["results"]) == 1  # type: ignore[arg-type]
    assert "searches use words alone" in str(answer["note"])
    assert program.main(["--home", str(changed), "reembed", "--quiet"]) == 0
    assert "note" not in found()
    library.close()


def test_a_vector_of_another_length_is_another_model_too(changed: Path):
    from pplx_search.access import WeightsChanged, require_same_weights

    with Store.open(changed) as store:
        assert store.vectors.serving is not None
        settings = dict(store.vectors.serving.settings)
    model = fake_embedder(FakeSession())
    require_same_weights(model, settings)
    with pytest.raises(WeightsChanged):
        require_same_weights(model, settings | {"dim": model.dim + 1})
    assert os.path.exists(changed)
