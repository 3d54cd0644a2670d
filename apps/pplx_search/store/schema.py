"""The tables of an index, and the numbered migrations from older versions.

One SQLite file contains everything: the files and their state, the texts, the chunks and their vectors. The table of
texts is called `contents`, and columns called `content` are text ids. The null baselines are in `yardsticks`.

    collections ─< roots ─< files ─< documents >─ contents ─< blocks          texts, compressed
                                                     │
                                     generations ─< embeddings ─< runs, chunks          vectors
                                          └── words_<generation>                        chunks' words, FTS5

A text is stored once, no matter how many documents contain it, and has one embedding (set of vectors) per generation.
Chunk ids are assigned in order and never reused, so the chunks of one text form a few runs of consecutive ids. A run
also records its slots (rows in the bits file of the generation) and their checksum. Slots without a run are unused.
"""

import json
from collections.abc import Callable, Sequence

import apsw

from pplx_edge.text.lexical import TOKENIZER
from pplx_search.settings import fingerprint_of, with_current_names
from pplx_search.store.errors import StoreDamaged

APPLICATION_ID = 0x70706C78  # "pplx"

# `unmerged` counts chunks added or deleted since the full-text indexes were last optimized.
# `sha256` is the hash of the indexed version, if the file was ever `complete`; `tried` is the hash of the version that
# failed last. Only `live` documents are searched; the others wait for their file to be complete. `round` counts how
# often a file was begun: documents of an earlier round are no longer in the file.
_TABLES = f"""
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('next_chunk', 1), ('unmerged', 0);

CREATE TABLE collections(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, rules TEXT NOT NULL);
CREATE TABLE roots(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL REFERENCES collections(id),
    path BLOB NOT NULL,
    UNIQUE(collection, path)
);
CREATE TABLE files(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    root INTEGER NOT NULL REFERENCES roots(id),
    path BLOB NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, device INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'indexed', 'failed', 'skipped')),
    sha256 BLOB,
    complete INTEGER NOT NULL DEFAULT 0,
    round INTEGER NOT NULL DEFAULT 0,
    tried BLOB,
    code TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0, time REAL,
    UNIQUE(root, path)
);
CREATE INDEX files_by_inode ON files(inode);
CREATE INDEX files_by_sha256 ON files(sha256) WHERE sha256 IS NOT NULL;
CREATE INDEX files_not_indexed ON files(state) WHERE state <> 'indexed';

CREATE TABLE contents(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE,
    text_format TEXT NOT NULL,
    n_chars INTEGER NOT NULL,
    pages BLOB
);
CREATE TABLE blocks(
    content INTEGER NOT NULL REFERENCES contents(id), number INTEGER NOT NULL, data BLOB NOT NULL,
    UNIQUE(content, number)
);
CREATE TABLE documents(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    file INTEGER NOT NULL REFERENCES files(id),
    part TEXT NOT NULL,
    live INTEGER NOT NULL CHECK (live IN (0, 1)),
    round INTEGER NOT NULL,
    content INTEGER NOT NULL REFERENCES contents(id),
    kind TEXT NOT NULL, title TEXT NOT NULL, author TEXT NOT NULL, recipient TEXT NOT NULL, date REAL,
    metadata TEXT NOT NULL, remarks TEXT NOT NULL,
    UNIQUE(file, part, live)
);
CREATE INDEX documents_by_content ON documents(content);
CREATE VIRTUAL TABLE names USING fts5(name, title, content='', contentless_delete=1, tokenize='{TOKENIZER}');

CREATE TABLE generations(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint TEXT UNIQUE,
    settings TEXT NOT NULL,
    dim INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('serving', 'building', 'retired')),
    next_slot INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX one_generation_serves ON generations(state) WHERE state = 'serving';
CREATE TABLE embeddings(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    content INTEGER NOT NULL REFERENCES contents(id),
    generation INTEGER NOT NULL REFERENCES generations(id),
    n_chunks INTEGER NOT NULL DEFAULT 0,
    position TEXT,
    complete INTEGER NOT NULL DEFAULT 0,
    UNIQUE(content, generation)
);
CREATE INDEX embeddings_by_generation ON embeddings(generation);
CREATE TABLE runs(
    first_chunk INTEGER PRIMARY KEY,
    embedding INTEGER NOT NULL REFERENCES embeddings(id),
    n_chunks INTEGER NOT NULL, slot INTEGER NOT NULL, checksum INTEGER NOT NULL
);
CREATE INDEX runs_by_embedding ON runs(embedding);
CREATE TABLE chunks(
    id INTEGER PRIMARY KEY,
    embedding INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL, stop INTEGER NOT NULL, line INTEGER NOT NULL, page INTEGER, heading TEXT,
    codes BLOB NOT NULL
);
"""


def _first_tables(database: apsw.Connection) -> None:
    database.execute(_TABLES)


def _yardsticks(database: apsw.Connection) -> None:
    database.execute(
        "CREATE TABLE yardsticks(generation INTEGER PRIMARY KEY REFERENCES generations(id) ON DELETE CASCADE,"
        " figures TEXT NOT NULL)"
    )


def _setting_names(database: apsw.Connection) -> None:
    """Give renamed settings their new names, and the fingerprints that cover them their new value."""
    rows = database.execute("SELECT id, settings, fingerprint FROM generations").fetchall()
    for generation_id, stored, fingerprint in rows:
        before = json.loads(str(stored))
        after = with_current_names(before)
        if fingerprint == fingerprint_of(before):
            fingerprint = fingerprint_of(after)
        database.execute(
            "UPDATE generations SET settings = ?, fingerprint = ? WHERE id = ?",
            (json.dumps(after, sort_keys=True), fingerprint, generation_id),
        )


MIGRATIONS: Sequence[Callable[[apsw.Connection], None]] = (_first_tables, _yardsticks, _setting_names)


def migrate(database: apsw.Connection, migrations: Sequence[Callable[[apsw.Connection], None]] = MIGRATIONS) -> None:
    """Migrate an index to the current version, each step in its own transaction.

    Raises StoreDamaged if the database belongs to another program or a newer release.
    """
    version = require_readable(database, len(migrations))
    for number, step in enumerate(migrations[version:], start=version + 1):
        database.execute("BEGIN IMMEDIATE")
        try:
            step(database)
            database.pragma("application_id", APPLICATION_ID)
            database.pragma("user_version", number)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


def require_readable(database: apsw.Connection, newest: int = len(MIGRATIONS)) -> int:
    """Return the version of an index, 0 for an empty file. Raises StoreDamaged if this release cannot read it."""
    version, owner = database.pragma("user_version"), database.pragma("application_id")
    has_tables = bool(database.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall())
    if owner != APPLICATION_ID and (has_tables or version):
        raise StoreDamaged(f"{database.filename}: this database belongs to another program; choose another directory")
    if version > newest:
        raise StoreDamaged(
            f"{database.filename}: index version {version}, but this release reads up to {newest}; update pplx-edge"
        )
    return version


def create_words(database: apsw.Connection, generation_id: int) -> None:
    """Create the full-text index for the chunks of a generation.

    The text is the first column, because FTS5 needs two more bytes per word in any other column.
    """
    database.execute(
        f"CREATE VIRTUAL TABLE {words_table(generation_id)} USING"
        f" fts5(text, heading, content='', contentless_delete=1, tokenize='{TOKENIZER}')"
    )


def words_table(generation_id: int) -> str:
    """Return the table name of the full-text index of a generation."""
    return f"words_{generation_id:d}"
