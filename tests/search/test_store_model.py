"""Random sequences of changes: compare the store with a model of dictionaries, and searches with brute force."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from small_index import (
    CHUNK_CHARS,
    DIM,
    WORDS,
    Basket,
    cosine,
    document,
    embed,
    facts,
    index_file,
    make_codes,
    make_text,
)

from pplx_search.documents import Document
from pplx_search.store import FileState, Filter, Query, Store

PATHS = ("/home/a.txt", "/home/b.txt", "/home/sub/c.txt", "/home/sub/d.md", "/home/sub/deep/e.txt", "/home/subway.txt")
TEXTS = tuple(make_text(seed, n_words) for seed, n_words in enumerate((0, 1, 6, 12, 30, 45)))
KINDS = {".txt": "text", ".md": "markdown"}
FILTERS = (
    Filter(),
    Filter(folders=(b"/home/sub",)),
    Filter(folders=(b"/home/a.txt", b"/home/sub/deep/")),
    Filter(kinds=("markdown",)),
    Filter(collections=("home",), kinds=("text",)),
    Filter(collections=("other",)),
    Filter(since=4.0, until=9.0),
    Filter(author="QUINCE"),
)
AT_ONCE = 3
paths = st.sampled_from(PATHS)
some_texts = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=2)


def kind_of(path: str) -> str:
    return KINDS[os.path.splitext(path)[1]]


def documents_of(path: str, texts: dict[str, str]) -> list[Document]:
    return [document(text, part=part, kind=kind_of(path), author=author_of(text)) for part, text in texts.items()]


def author_of(text: str) -> str:
    return "Ann Quince" if len(text) % 2 else "Bob"


def n_chunks(text: str) -> int:
    return -(-len(text) // CHUNK_CHARS)


class Changes(RuleBasedStateMachine):
    """The model: `live` and `hidden` texts by path and part, `embedded` chunks by model and text, `facts` by path."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.store = Store.open(self.directory, write=True, kernel="numpy")
        self.root = Basket(self.store).root.id
        self.live: dict[str, dict[str, str]] = {}
        self.hidden: dict[str, dict[str, str]] = {}
        self.indexed: set[str] = set()
        self.complete: set[str] = set()
        self.facts: dict[str, tuple[int, int]] = {}
        self.dates: dict[str, int] = {}
        self.n_versions = 0
        self.model, self.next_model, self.n_models = "model-1", "", 1
        self.embedded: dict[str, dict[str, int]] = {"model-1": {}}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    # Changes

    def index(self, path: str, texts: dict[str, str], about: tuple[int, int], most: int | None = None) -> None:
        scan = self.store.files.scan(self.root)
        state = index_file(self.store, scan, facts(path, *about), documents_of(path, texts), most)
        assert state != FileState.MOVED
        self.facts[path] = about
        self.dates.setdefault(path, about[0])
        done = self.embedded[self.model]
        whole = True
        for text in texts.values():
            steps = -(-(n_chunks(text) - done.get(text, 0)) // AT_ONCE)
            whole &= most is None or steps <= most or done.get(text, -1) == n_chunks(text)
            done[text] = n_chunks(text) if most is None else min(n_chunks(text), done.get(text, 0) + most * AT_ONCE)
        if whole:
            self.dates[path] = about[0]
            self.live[path] = texts
            self.hidden.pop(path, None)
            self.complete.add(path)
            self.indexed.add(path)
        else:
            place = self.hidden if path in self.complete else self.live
            place[path] = place.get(path, {}) | texts
            self.indexed.discard(path)

    def fresh_facts(self, path: str) -> tuple[int, int]:
        self.n_versions += 1
        return self.n_versions, self.facts.get(path, (0, 1000 + self.n_versions))[1]

    @rule(path=paths, texts=some_texts)
    def put(self, path: str, texts: list[str]) -> None:
        self.index(path, {str(part or ""): text for part, text in enumerate(texts)}, self.fresh_facts(path))

    @rule(path=paths, text=st.sampled_from(TEXTS[3:]), most=st.integers(0, 2))
    def put_some(self, path: str, text: str, most: int) -> None:
        """Index part of a file. If it was complete before, its previous version stays searchable."""
        self.index(path, {"": text}, self.fresh_facts(path), most)

    @rule(path=paths)
    def put_again(self, path: str) -> None:
        """Assert that an unchanged file is not read again."""
        if path in self.indexed:
            seen = self.store.files.scan(self.root).see(facts(path, *self.facts[path]))
            assert seen.state == FileState.UNCHANGED

    @rule(path=paths, new=paths)
    def move(self, path: str, new: str) -> None:
        if path not in self.indexed or new in self.facts:
            return
        scan = self.store.files.scan(self.root)
        about, texts = self.facts[path], self.live[path]
        state = index_file(self.store, scan, facts(new, *about), documents_of(new, texts))
        same_type = kind_of(path) == kind_of(new)
        # A file of another type is new, or unchanged if a copy of it is indexed under the same type.
        assert state in ([FileState.MOVED] if same_type else [FileState.NEW, FileState.UNCHANGED])
        self.live[new], self.facts[new], self.dates[new] = texts, about, about[0]
        self.complete.add(new)
        self.indexed.add(new)
        self.forget(path)
        self.see_the_others(scan, new)

    @rule(path=paths)
    def delete(self, path: str) -> None:
        self.forget(path)
        self.see_the_others(self.store.files.scan(self.root))

    @rule(path=paths)
    def remove(self, path: str) -> None:
        assert self.store.files.remove(path.encode()) == (path in self.facts)
        self.forget(path)

    def forget(self, path: str) -> None:
        for known in (self.live, self.hidden, self.facts, self.dates):
            known.pop(path, None)
        self.complete.discard(path)
        self.indexed.discard(path)

    def see_the_others(self, scan, *seen: str) -> None:
        for path, about in self.facts.items():
            if path not in seen:
                scan.see(facts(path, *about))
        scan.forget_unseen(even_all=True)

    @rule(path=paths)
    def fail(self, path: str) -> None:
        """Fail to read a new version, which leaves the previous one."""
        about = self.fresh_facts(path)
        seen = self.store.files.scan(self.root).see(facts(path, *about))
        self.store.files.fail(seen.file_id, facts(path, *about), b"broken", "unreadable", "it is torn")
        self.facts[path], self.dates[path] = about, about[0]
        self.hidden.pop(path, None)
        self.indexed.discard(path)
        if path not in self.complete:
            self.live.pop(path, None)

    @rule(path=paths)
    def skip(self, path: str) -> None:
        about = self.fresh_facts(path)
        self.store.files.scan(self.root).skip(facts(path, *about), "too-large", "2 GB, limit 1 GB")
        self.forget(path)
        self.facts[path], self.dates[path] = about, about[0]

    @rule(most=st.integers(0, 3))
    def embed_anew(self, most: int) -> None:
        """Embed some texts with another model, and switch to it once all texts have vectors."""
        if not self.next_model:
            self.n_models += 1
            self.next_model = f"model-{self.n_models}"
            self.embedded[self.next_model] = {}
        generation = self.store.vectors.use(self.next_model, {}, DIM)
        for _, content in zip(range(most), self.store.vectors.pending(generation), strict=False):
            text = self.store.read(content)
            embed(self.store, content, generation)
            self.embedded[self.next_model][text] = n_chunks(text)
        if self.held() <= set(self.embedded[self.next_model]):
            self.store.vectors.switch(generation)
            del self.embedded[self.model]
            self.model, self.next_model = self.next_model, ""

    @rule()
    def compact(self) -> None:
        self.store.compact()
        for model, done in self.embedded.items():
            self.embedded[model] = {text: count for text, count in done.items() if text in self.held()}

    def held(self) -> set[str]:
        return {text for place in (self.live, self.hidden) for texts in place.values() for text in texts.values()}

    @rule(tear=st.sampled_from(["", "cut", "flip", "header", "lose"]), kernel=st.sampled_from(["numpy", "numkong"]))
    def open_again(self, tear: str, kernel: str) -> None:
        self.store.close()
        for path in self.directory.glob("bits-*.bin"):
            damage(path, tear)
        self.store = Store.open(self.directory, write=True, kernel=kernel)

    # Invariants

    @invariant()
    def is_sound(self) -> None:
        assert self.store.check() == []

    @invariant()
    def finds_what_brute_force_finds(self) -> None:
        query = make_codes("a question", self.n_versions, "any")
        for wanted in FILTERS:
            expected = self.brute_force(query, wanted)
            hits = self.store.search(Query(codes=query, k=1000, filter=wanted))
            assert sorted((hit.cosine, self.store.text(hit)) for hit in hits) == sorted(expected)
            assert [hit.cosine for hit in hits] == sorted((score for score, _ in expected), reverse=True)
            best = self.store.search(Query(codes=query, k=3, filter=wanted))
            assert [hit.cosine for hit in best] == [hit.cosine for hit in hits[:3]]

    @invariant()
    def finds_words(self) -> None:
        for wanted in FILTERS[:4]:
            for word in WORDS[:3]:
                expected = sorted(text for _, text in self.brute_force(None, wanted) if word in text.split())
                hits = self.store.search(Query(words=word, k=1000, filter=wanted))
                assert sorted(self.store.text(hit) for hit in hits) == expected

    def brute_force(self, query: np.ndarray | None, wanted: Filter) -> list[tuple[float, str]]:
        """Return the cosine and text of every chunk that passes the filter, once per distinct text."""
        found = {}
        for path, texts in self.live.items():
            for text in texts.values():
                if self.lets_through(path, text, wanted):
                    found[text] = self.embedded[self.model].get(text, 0)
        return [
            (0.0 if query is None else cosine(query, make_codes(text, i, self.model)), chunk_text(text, i))
            for text, count in found.items()
            for i in range(count)
        ]

    def lets_through(self, path: str, text: str, wanted: Filter) -> bool:
        folders = [folder.decode().rstrip("/") for folder in wanted.folders]
        date = self.dates[path]
        return all(
            (
                not folders or any(path == folder or path.startswith(folder + "/") for folder in folders),
                not wanted.kinds or kind_of(path) in wanted.kinds,
                not wanted.collections or "home" in wanted.collections,
                wanted.since is None or date >= wanted.since,
                wanted.until is None or date < wanted.until,
                wanted.author.lower() in author_of(text).lower(),
            )
        )


def chunk_text(text: str, index: int) -> str:
    return text[index * CHUNK_CHARS : (index + 1) * CHUNK_CHARS]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "lose":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) - 5])
    elif how in ("flip", "header") and content:
        content[20 if how == "header" else -1] ^= 64
        path.write_bytes(content)


def test_random_changes_leave_the_state_of_the_model():
    run_state_machine_as_test(Changes, settings=settings(max_examples=12, stateful_step_count=16, deadline=None))


@pytest.mark.slow
def test_long_random_changes_leave_the_state_of_the_model():
    run_state_machine_as_test(Changes, settings=settings(max_examples=100, stateful_step_count=40, deadline=None))
