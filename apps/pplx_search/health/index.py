"""The checks of `doctor` on an index: location, writer lock, database, bits files, model and indexed folders."""

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw

import pplx_edge
from pplx_edge.errors import EdgeError, InputError, OfflineError
from pplx_kit.findings import Finding, note, sound, wrong
from pplx_kit.terminal import human_bytes, printable
from pplx_search.console import shown_path
from pplx_search.health.file_systems import file_system_of
from pplx_search.health.sample_files import SENTENCE
from pplx_search.options import DEFAULT_MODEL
from pplx_search.store import Generation, Store, StoreBusy
from pplx_search.store.database import DATABASE_FILE, Database
from pplx_search.store.writer_lock import LOCK_FILE, WriterLock

_BEGIN = "pplx-search add FOLDER"
_LEAST_FREE_BYTES = 200_000_000
_CHECK_SECONDS, _CHECK_STEPS = 10.0, 10_000
_PASSAGE_TOKENS = 512
_PRIVACY = "System Settings > Privacy & Security > Full Disk Access: allow your terminal"


def index_health(home: Path) -> Iterator[Finding]:
    """Yield a finding for each part of the index in a directory, or for what a new index would need there."""
    database = home / DATABASE_FILE
    yield _place(home, database.exists())
    if not database.exists():
        yield from _model(DEFAULT_MODEL, None)
        return
    yield _writer(home)
    try:
        store = Store.open(home)
    except InputError as error:
        yield note("database", str(error))
        return
    except EdgeError as error:
        yield wrong("database", str(error))
        return
    with store:
        yield _database(database)
        yield _bits(store)
        serving = store.vectors.serving
        yield from _model(str(serving.settings["model"]) if serving else DEFAULT_MODEL, serving)
        yield from _folders(store)


def _place(home: Path, is_there: bool) -> Finding:
    existing = next(folder for folder in (home.absolute(), *home.absolute().parents) if folder.exists())
    # The lock file is not counted: every writer rewrites it, including this command.
    files = [path for path in home.iterdir() if path.is_file() and path.name != LOCK_FILE] if is_there else []
    size = sum(path.stat().st_size for path in files)
    free = shutil.disk_usage(existing).free
    system = file_system_of(existing)
    facts = {
        "directory": str(home),
        "exists": is_there,
        "bytes": size,
        "free_bytes": free,
        "file_system": system and system.kind,
        "remote": system and system.remote,
    }
    where = f"{human_bytes(free)} free" + (f" on {system.kind}" if system else "")
    shown = shown_path(os.fsencode(home), from_here=False)
    told = f"{human_bytes(size)} in {shown}, {where}" if is_there else f"no index yet in {shown} ({where})"
    if system and system.remote:
        told += "; this is a network file system, where SQLite's write-ahead log is not safe"
        return wrong("index", told, "use a folder on a local disk: pplx-search --home DIR …", **facts)
    if not is_there and not os.access(existing, os.W_OK | os.X_OK):
        return wrong("index", f"{told}; you cannot write to {existing}", "pplx-search --home DIR …", **facts)
    if free < _LEAST_FREE_BYTES:
        return wrong("index", f"{told}; this is not enough space for indexing", "free up disk space", **facts)
    if not is_there:
        return note("index", told, _BEGIN, **facts)
    if free < size:
        return note("index", f"{told}; switching models (reembed) temporarily needs the same space again", **facts)
    return sound("index", told, **facts)


def _writer(home: Path) -> Finding:
    """Check the writer lock by taking and releasing it, as every writer does first."""
    try:
        WriterLock(home).release()
    except StoreBusy as error:
        said = str(error).removeprefix(f"{home}: ").partition(";")[0]
        return note("writer", f"{said}; searches still work in the meantime", **_holder(home / LOCK_FILE))
    except OSError as error:
        what = f"{home} cannot be written to: {error.strerror}"
        return wrong("writer", what, "check its owner and permissions; searches may still work", pid=None)
    return sound("writer", "the index is free for writing", pid=None)


def _holder(lock: Path) -> dict[str, Any]:
    try:
        return {"pid": json.loads(lock.read_bytes())["pid"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"pid": None}


def _database(path: Path) -> Finding:
    try:
        problems, finished = _quick_check(path)
    except EdgeError as error:
        problems, finished = [str(error)], True
    if problems:
        advice = f"move {path.parent} away and index again"
        return wrong("database", printable("; ".join(problems)), advice, finished=finished)
    so_far = "" if finished else f" in the first {_CHECK_SECONDS:.0f} s"
    told = f"quick check found no problems{so_far}; for a full check, run: pplx-search check"
    return sound("database", told, finished=finished)


def _quick_check(path: Path) -> tuple[list[str], bool]:
    """Return the problems that SQLite reports, and whether its quick check finished in time."""
    until = time.monotonic() + _CHECK_SECONDS
    with closing(Database(path, write=False, on_step=lambda step: None)) as database:
        database.connection.set_progress_handler(lambda: time.monotonic() > until, _CHECK_STEPS)
        try:
            return [said for (said,) in database.rows("PRAGMA quick_check(3)") if said != "ok"], True
        except apsw.InterruptError:
            return [], False


def _bits(store: Store) -> Finding:
    status = store.status()
    if status.remarks:
        return note("bits", "; ".join(status.remarks), "pplx-search update", sound=False)
    return sound("bits", f"the sign bits of {status.n_chunks:,} passages match their checksums", sound=True)


def _model(name: str, serving: Generation | None) -> Iterator[Finding]:
    """Check that the model is on this machine, is the one the index was built with, and can encode."""
    try:
        model = pplx_edge.load(name, offline=True)
    except OfflineError:
        pull = f"pplx-edge models pull {name}"
        yield wrong("model", f"{name} is not on this machine", pull, model=name, here=False)
        yield note("network", "needed once, to download the model", pull, needed=True)
        return
    except EdgeError as error:
        yield wrong("model", f"{name}: {error}", model=name, here=False)
        return
    with model:
        facts: dict[str, Any] = {"model": name, "here": True, "backend": model.session.backend}
        if serving is not None and (model.fingerprint, model.dim) != (serving.settings["weights"], serving.dim):
            what = f"{name} is not the model that the index was built with: its weights have changed"
            yield wrong("model", what, f"pplx-search reembed --model {name}", same_weights=False, **facts)
        else:
            yield _encoding(name, model, facts | {"same_weights": None if serving is None else True})
    yield sound("network", "not needed: the model is on this machine", needed=False)


def _encoding(name: str, model: pplx_edge.Embedder, facts: dict[str, Any]) -> Finding:
    n_tokens, limit = model.tokenizer.count(SENTENCE), min(_PASSAGE_TOKENS, model.max_tokens)
    text = " ".join([SENTENCE] * max(1, limit // (n_tokens + 1)))
    n_tokens = model.tokenizer.count(text)
    try:
        model.encode([SENTENCE], show_progress=False)  # warm-up
        started = time.perf_counter()
        model.encode([text], show_progress=False)
    except EdgeError as error:
        return wrong("model", f"{name} is on this machine but does not encode: {error}", **facts)
    pace = n_tokens / max(time.perf_counter() - started, 1e-6)
    which = "the model of the index" if facts["same_weights"] else "the model for a new index"
    told = f"{name}, {which}: {model.dim} dimensions, about {pace:,.0f} tokens/s on this machine"
    return sound("model", told, tokens_per_second=round(pace, 1), dim=model.dim, **facts)


def _folders(store: Store) -> Iterator[Finding]:
    roots = [os.fsdecode(root.path) for collection in store.collections.all() for root in collection.roots]
    readable = 0
    for path in roots:
        try:
            _look_into(path)
            readable += 1
        except OSError as error:
            what = f"{path}: {error.strerror}; its files stay in the index"
            yield wrong("folder", what, _folder_advice(path, error), path=printable(path), errno=error.errno)
    if not roots:
        yield note("folders", "none added yet", _BEGIN, roots=0)
    elif readable:
        yield sound("folders", f"{readable} of {len(roots)} are readable", roots=len(roots), readable=readable)


def _look_into(path: str) -> None:
    """Raise OSError if a folder cannot be listed or a file cannot be opened."""
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            next(entries, None)
    else:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _folder_advice(path: str, error: OSError) -> str:
    if error.errno not in (errno.EPERM, errno.EACCES):
        return f"mount or restore it, or remove it from the index: pplx-search rm {path}"
    return _PRIVACY if sys.platform == "darwin" else "check its owner and permissions"
