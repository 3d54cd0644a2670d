"""Files and their documents: their states in scans, and which documents are searchable, replaced, kept and deleted."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from small_index import DIM, Basket, chunk_vectors, document, embed, facts, make_codes, make_text, sha256

from pplx_edge.errors import InputError
from pplx_search.documents import Document, Piece
from pplx_search.store import FileFacts, FileState, Filter, Query, Store, text_digest

LONG = make_text(1, 60)
OTHER = make_text(2, 60)


@pytest.fixture
def basket(tmp_path: Path) -> Iterator[Basket]:
    with Store.open(tmp_path, write=True) as store:
        yield Basket(store)
        assert store.check() == []


def paths_found(store: Store, words: str, **limits) -> list[bytes]:
    return [hit.path for hit in store.search(Query(words=words, k=100, filter=Filter(**limits)))]


def test_an_unchanged_file_is_not_read_again(basket: Basket):
    assert basket.add("/home/a.txt", LONG) == FileState.NEW
    assert basket.add("/home/a.txt", LONG) == FileState.UNCHANGED
    assert basket.store.files.scan(basket.root.id).see(facts("/home/a.txt", 1)).state == FileState.CHANGED


def test_a_file_that_was_only_touched_is_adopted_without_being_read_twice(basket: Basket):
    basket.add("/home/a.txt", LONG)
    seen = basket.store.files.scan(basket.root.id).see(facts("/home/a.txt", 5))
    assert basket.store.files.adopt(seen.file_id, facts("/home/a.txt", 5), sha256([document(LONG)]))
    assert basket.add("/home/a.txt", LONG, version=5) == FileState.UNCHANGED


def test_a_copy_is_not_embedded_again_and_both_files_are_found(basket: Basket):
    basket.add("/home/a.txt", LONG)
    before = basket.store.status()
    assert basket.add("/home/b.txt", LONG) == FileState.UNCHANGED
    after = basket.store.status()
    assert (after.n_documents, after.n_chunks, after.n_texts) == (2, before.n_chunks, 1)
    hit, *_ = basket.store.search(Query(words="kiwi"))
    assert (hit.path, hit.copies) == (b"/home/a.txt", 1)
    assert paths_found(basket.store, "kiwi", folders=(b"/home/b.txt",))[0] == b"/home/b.txt"


def test_a_renamed_file_keeps_its_document_and_is_found_by_its_new_name(basket: Basket):
    basket.add("/home/report.txt", LONG)
    number = basket.store.search(Query(words="report.txt"))[0].document_id
    assert basket.index(facts("/home/x/summary.txt", inode=facts("/home/report.txt").inode)) == FileState.MOVED
    assert basket.store.document(number).path == b"/home/x/summary.txt"
    assert paths_found(basket.store, "summary.txt") == [b"/home/x/summary.txt"]
    assert paths_found(basket.store, "report.txt") == []


def test_a_hard_link_is_another_file(basket: Basket, tmp_path: Path):
    first = tmp_path / "first.txt"
    first.write_text(LONG)
    (tmp_path / "second.txt").hardlink_to(first)
    about = FileFacts.of(bytes(first), first.stat())
    basket.index(about, document(LONG))
    linked = FileFacts.of(bytes(tmp_path / "second.txt"), first.stat())
    assert basket.index(linked) == FileState.MOVED
    assert basket.store.status().n_documents == 2


def test_a_file_of_another_type_is_read_even_if_its_content_is_known(basket: Basket):
    basket.add("/home/a.txt", LONG)
    about = facts("/home/a.md", inode=facts("/home/a.txt").inode)
    seen = basket.store.files.scan(basket.root.id).see(about)
    assert seen.state == FileState.NEW
    assert not basket.store.files.adopt(seen.file_id, about, sha256([document(LONG)]))


def test_a_new_file_is_found_as_soon_as_it_has_chunks(basket: Basket):
    basket.add("/home/a.txt", LONG, most=1)
    assert paths_found(basket.store, " ".join(LONG.split())) != []
    status = basket.store.status()
    assert (status.pending, status.indexed, status.n_chunks) == (1, 0, 3)
    assert basket.store.n_pending() == status.pending
    assert basket.add("/home/a.txt", LONG) == FileState.PENDING
    assert basket.store.status().indexed == 1


def test_embedding_of_a_long_text_resumes_where_it_stopped(basket: Basket):
    basket.add("/home/a.txt", LONG, most=2)
    content = basket.store.search(Query(words=LONG))[0].text_id
    progress = basket.store.vectors.begin(content, basket.generation)
    assert (progress.n_chunks, progress.position, progress.complete) == (6, "6", False)
    basket.add("/home/a.txt", LONG)
    chunks = list(basket.store.chunks(content))
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all((chunk.codes == make_codes(LONG, chunk.index, "model-1")).all() for chunk in chunks)


def test_a_new_version_replaces_the_old_one_when_it_is_complete(basket: Basket):
    basket.add("/home/a.txt", "kiwi " * 30)
    number = basket.store.search(Query(words="kiwi"))[0].document_id
    basket.add("/home/a.txt", "plum " * 30, version=1, most=1)
    assert paths_found(basket.store, "kiwi") != []
    assert paths_found(basket.store, "plum") == []
    basket.add("/home/a.txt", "plum " * 30, version=1)
    assert paths_found(basket.store, "kiwi") == []
    assert {hit.document_id for hit in basket.store.search(Query(words="plum"))} == {number}


def test_parts_are_added_kept_and_deleted_with_their_file(basket: Basket):
    mail = facts("/home/mail.mbox")
    first = [document(make_text(i, 8), part=str(i), title=f"Message {i}") for i in range(4)]
    basket.index(mail, *first)
    numbers = {each.part: each.id for each in basket.store.documents()}
    basket.index(facts("/home/mail.mbox", 1), *first[1:], document("a late message", part="9"))
    later = {each.part: each.id for each in basket.store.documents()}
    assert set(later) == {"1", "2", "3", "9"}
    assert all(later[part] == numbers[part] for part in "123")


def test_files_that_a_complete_scan_did_not_see_are_deleted(basket: Basket):
    for name in "abc":
        basket.add(f"/home/{name}.txt", make_text(ord(name), 20))
    scan = basket.store.files.scan(basket.root.id)
    scan.see(facts("/home/b.txt"))
    assert sorted(scan.forget_unseen()) == [b"/home/a.txt", b"/home/c.txt"]
    assert {each.path for each in basket.store.documents()} == {b"/home/b.txt"}


def test_an_empty_scan_deletes_nothing_unless_even_all_is_set(basket: Basket):
    basket.add("/home/a.txt", LONG)
    assert basket.store.files.scan(basket.root.id).forget_unseen() == []
    assert basket.store.files.scan(basket.root.id).forget_unseen(even_all=True) == [b"/home/a.txt"]


def test_a_text_that_returns_before_the_next_compaction_is_not_embedded_again(basket: Basket):
    basket.add("/home/a.txt", LONG)
    basket.store.files.remove(b"/home")
    assert basket.store.search(Query(words="kiwi", codes=make_codes(LONG, 0, "model-1"))) == []
    basket.add("/home/other.md", LONG, most=0)
    assert basket.store.status().indexed == 1


def test_a_failure_is_recorded_with_its_reason_and_counted(basket: Basket):
    about = facts("/home/a.pdf")
    files = basket.store.files
    file = files.scan(basket.root.id).see(about).file_id
    assert [files.fail(file, about, b"hash", "crashed", "the parser died \ud800") for _ in range(2)] == [1, 2]
    seen = files.scan(basket.root.id).see(about)
    assert (seen.state, seen.attempts, seen.code) == (FileState.FAILED, 2, "crashed")
    (report,) = files.reports([FileState.FAILED])
    assert (report.path, report.code, report.message) == (b"/home/a.pdf", "crashed", "the parser died ?")
    assert basket.store.status().reasons == {"crashed": 1}
    assert files.fail(file, facts("/home/a.pdf", 1), b"another hash", "crashed", "again") == 1
    assert files.scan(basket.root.id).see(facts("/home/a.pdf", 2)).state == FileState.CHANGED


def test_a_version_that_fails_leaves_the_previous_one_searchable(basket: Basket):
    basket.add("/home/a.txt", LONG)
    seen = basket.store.files.scan(basket.root.id).see(facts("/home/a.txt", 1))
    basket.store.files.fail(seen.file_id, facts("/home/a.txt", 1), b"hash", "torn", "torn")
    assert paths_found(basket.store, "kiwi") != []


def test_a_skipped_file_is_no_longer_found_and_its_reason_is_recorded(basket: Basket):
    basket.add("/home/a.txt", LONG)
    scan = basket.store.files.scan(basket.root.id)
    scan.skip(facts("/home/a.txt"), "excluded", "by --exclude *.txt")
    scan.skip(facts("/home/.git"), "hidden", "its name begins with a dot")
    assert paths_found(basket.store, "kiwi") == []
    assert basket.store.status().reasons == {"excluded": 1, "hidden": 1}
    assert scan.forget_unseen() == []
    assert basket.add("/home/a.txt", LONG, version=1) == FileState.CHANGED


@pytest.mark.parametrize("name", [b"/home/\xff\xfe.txt", "/home/new\nline \u202eltr.txt".encode(), b"/home/'; DROP"])
def test_any_file_name_is_accepted(basket: Basket, name: bytes):
    basket.index(facts(name), document("kiwi"))
    assert paths_found(basket.store, "kiwi", folders=(b"/home",)) == [name]
    assert paths_found(basket.store, "kiwi", folders=(name,)) == [name]


def test_removing_a_folder_does_not_affect_paths_that_start_with_its_name(basket: Basket):
    for path in ("/home/sub/a.txt", "/home/sub", "/home/subway.txt", "/home/sub.txt"):
        basket.add(path, path)
    assert basket.store.files.remove(b"/home/sub") == 2
    assert sorted(each.path for each in basket.store.documents()) == [b"/home/sub.txt", b"/home/subway.txt"]


def test_collections_are_separate(basket: Basket):
    store = basket.store
    store.collections.add("work", {"exclude": ["*.log"]})
    other = store.collections.add_root("work", b"/work")
    basket.add("/home/a.txt", LONG)
    basket.root = other
    basket.add("/work/b.txt", OTHER)
    assert set(paths_found(store, "kiwi", collections=("work",))) == {b"/work/b.txt"}
    assert [collection.name for collection in store.collections.all()] == ["home", "work"]
    assert store.collections.get("work").rules == {"exclude": ["*.log"]}
    store.collections.remove("work")
    assert set(paths_found(store, "kiwi")) == {b"/home/a.txt"}
    with pytest.raises(InputError, match="no collection 'work'; there are: home"):
        store.collections.remove("work")


def test_a_file_whose_texts_lack_vectors_cannot_be_finished(basket: Basket):
    about = facts("/home/a.txt")
    file = basket.store.files.scan(basket.root.id).see(about).file_id
    with pytest.raises(InputError, match="was not begun"):
        basket.store.files.finish(99, about, b"")
    basket.store.files.begin(file)
    basket.store.files.stage(file, document(LONG), text_digest(document(LONG)))
    with pytest.raises(InputError, match=r"/home/a.txt: 1 of its documents have no vectors yet"):
        basket.store.files.finish(file, about, b"")


def test_chunks_that_do_not_follow_the_stored_ones_are_refused(basket: Basket):
    basket.add("/home/a.txt", LONG, most=1)
    content = basket.store.search(Query(words=LONG))[0].text_id
    embedding = basket.store.vectors.begin(content, basket.generation).embedding_id
    vectors = list(chunk_vectors(LONG, "model-1"))
    with pytest.raises(InputError, match="expected chunk 3 next, got chunk 0"):
        basket.store.vectors.append(embedding, vectors[:2])
    with pytest.raises(InputError, match=r"expected codes int8 \[N, 128\], got int8 \[1, 256\]"):
        basket.store.vectors.append(embedding, list(chunk_vectors(LONG, "model-1", 256, "3"))[:1])
    basket.store.vectors.restart(embedding)
    basket.store.vectors.append(embedding, vectors[:2])
    assert basket.store.check() == []


def test_a_failed_transaction_changes_nothing(basket: Basket):
    basket.add("/home/a.txt", LONG)
    before = [(hit.chunk_id, hit.cosine) for hit in basket.store.search(Query(codes=make_codes(LONG, 0, "x"), k=99))]
    with suppress(KeyboardInterrupt), basket.store.transaction():
        basket.add("/home/b.txt", OTHER)
        assert paths_found(basket.store, "kiwi", folders=(b"/home/b.txt",)) != []
        raise KeyboardInterrupt
    assert paths_found(basket.store, "kiwi", folders=(b"/home/b.txt",)) == []
    assert basket.store.check() == []
    basket.add("/home/c.txt", make_text(9, 70))  # overwrites the slots left by the failed transaction
    after = [(hit.chunk_id, hit.cosine) for hit in basket.store.search(Query(codes=make_codes(LONG, 0, "x"), k=99))]
    assert set(before) < set(after)


def test_another_model_serves_once_all_texts_have_its_vectors(basket: Basket):
    store = basket.store
    basket.add("/home/a.txt", LONG)
    basket.add("/home/b.txt", OTHER)
    new = store.vectors.use("model-2", {"model": "two"}, 256)
    assert (new.serving, store.vectors.serving) == (False, basket.generation)
    contents = list(store.vectors.pending(new))
    embed(store, contents[0], new)
    with pytest.raises(InputError, match="finish embedding first"):
        store.vectors.switch(new)
    old_query, new_query = make_codes(LONG, 0, "model-1"), make_codes(LONG, 0, "model-2", 256)
    assert store.search(Query(codes=old_query))[0].cosine == pytest.approx(1)
    assert store.status().n_rebuilt == 1
    embed(store, contents[1], new)
    store.vectors.switch(new)
    assert store.search(Query(codes=new_query))[0].cosine == pytest.approx(1)
    with pytest.raises(InputError, match="the query vector has 128 dimensions, the index 256"):
        store.search(Query(codes=old_query))
    assert paths_found(store, LONG) != []
    assert store.compact().generations == 1
    assert store.vectors.building is None


def test_an_abandoned_generation_is_deleted(basket: Basket):
    basket.add("/home/a.txt", LONG)
    store = basket.store
    second = store.vectors.use("model-2", {}, DIM)
    embed(store, next(store.vectors.pending(second)), second)
    third = store.vectors.use("model-3", {}, DIM)
    assert store.vectors.building == third
    store.compact()
    assert store.vectors.use("model-2", {}, DIM).id > third.id


def test_texts_are_read_back_with_their_pages(basket: Basket):
    pieces = tuple(Piece(make_text(page, 6000) + "\n\ud800é👩‍👧\n", page) for page in (1, 1, 2, 5))
    found = Document(kind="pdf", pieces=pieces, markup="text")
    about = facts("/home/a.pdf")
    file = basket.store.files.scan(basket.root.id).see(about).file_id
    basket.store.files.begin(file)
    content = basket.store.files.stage(file, found, text_digest(found)).text_id
    again = list(basket.store.pieces(content))
    assert "".join(piece.text for piece in again) == found.text
    assert [piece.page for piece in again if piece.page] == sorted(piece.page for piece in again if piece.page)
    assert {piece.page for piece in again} == {1, 2, 5}
    assert text_digest(Document(kind="pdf", pieces=tuple(again), markup="text")) == text_digest(found)
    assert text_digest(Document(kind="pdf", pieces=(Piece(found.text),))) != text_digest(found)
    assert basket.store.markup(content) == "text"
    text = found.text
    for start, stop in ((0, 10), (65_500, 65_600), (len(text) - 5, len(text) + 5), (70, 60), (-5, 3)):
        assert basket.store.read(content, start, stop) == text[max(0, start) : max(0, stop)]


def test_lines_of_a_text_can_be_read_from_anywhere(basket: Basket):
    text = "".join(f"line {i} {'x' * (i % 30)}\n" for i in range(1, 4000)) + "the end"
    basket.add("/home/a.txt", text)
    content = next(basket.store.documents()).text_id
    lines = text.splitlines(keepends=True)
    for first, count in ((1, 1), (1, 5), (17, 3), (2500, 40), (3999, 5), (4000, 1), (4001, 2)):
        assert basket.store.lines(content, first, count) == "".join(lines[first - 1 : first - 1 + count])
