"""Read the status of an index."""

from pathlib import Path

from pplx_search.store.bits import PATTERN
from pplx_search.store.database import Database
from pplx_search.store.values import Status
from pplx_search.store.vectors import Vectors


def read_status(database: Database, directory: Path, vectors: Vectors, kernel: str, bits_rebuilt: bool) -> Status:
    """See `Store.status`."""
    states = dict(database.rows("SELECT state, count(*) FROM files GROUP BY state"))
    reasons = database.rows("SELECT code, count(*) FROM files WHERE state IN ('failed', 'skipped') GROUP BY code")
    serving, building = vectors.serving, vectors.building
    is_live = "EXISTS (SELECT 1 FROM documents WHERE documents.content = contents.id AND live)"
    n_texts, n_chars = database.rows(f"SELECT count(*), coalesce(sum(n_chars), 0) FROM contents WHERE {is_live}")[0]

    def embedded(generation_id: int) -> tuple[int, int]:
        """Return the number of fully embedded texts and the number of chunks in a generation."""
        row = database.rows(
            "SELECT coalesce(sum(complete), 0), coalesce(sum(n_chunks), 0) FROM embeddings JOIN contents"
            f" ON contents.id = content WHERE generation = ? AND {is_live}",
            (generation_id,),
        )[0]
        return row[0], row[1]

    n_embedded, n_chunks = embedded(serving.id) if serving else (0, 0)
    remark = "the bits file is damaged and was rebuilt in memory; opening the index for writing repairs it"
    return Status(
        indexed=states.get("indexed", 0),
        pending=states.get("pending", 0),
        failed=states.get("failed", 0),
        skipped=states.get("skipped", 0),
        reasons=dict(reasons),
        n_documents=database.value("SELECT count(*) FROM documents WHERE live"),
        n_chunks=n_chunks,
        n_chars=n_chars,
        n_texts=n_texts,
        n_embedded=n_embedded,
        n_rebuilt=embedded(building.id)[0] if building else None,
        serving=serving,
        building=building,
        database_bytes=database.pragma("page_count") * database.pragma("page_size"),
        bits_bytes=sum(path.stat().st_size for path in directory.glob(PATTERN)),
        kernel=kernel,
        remarks=(remark,) if bits_rebuilt else (),
    )


def read_pending(database: Database) -> int:
    """See `Store.n_pending`. The second condition lets SQLite use the partial index `files_not_indexed`."""
    return database.value("SELECT count(*) FROM files WHERE state = 'pending' AND state <> 'indexed'")
