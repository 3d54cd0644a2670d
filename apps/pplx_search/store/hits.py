"""Look up the documents and locations of ranked chunks."""

import json
from collections.abc import Iterable

from pplx_search.query.types import Filter, Hit, RankedChunk
from pplx_search.store.database import Database
from pplx_search.store.snapshot import filter_sql


def read_hits(database: Database, ranked: Iterable[RankedChunk], wanted: Filter) -> list[Hit]:
    """Return a hit for each chunk, with the first document that contains its text and passes the filter."""
    condition, values = filter_sql(wanted)
    hits = []
    for chunk in ranked:
        ((text_id, start, stop, line, page, heading),) = database.rows(
            "SELECT content, start, stop, line, page, heading FROM chunks JOIN embeddings ON embeddings.id = embedding"
            " WHERE chunks.id = ?",
            (chunk.chunk_id,),
        )
        documents = database.rows(
            "SELECT documents.id, files.path, part, title, kind, collections.name, date FROM documents JOIN files"
            " ON files.id = file JOIN roots ON roots.id = root JOIN collections ON collections.id = collection"
            f" WHERE documents.content = ? AND {condition} ORDER BY documents.id",
            (text_id, *values),
        )
        document_id, path, part, title, kind, collection, date = documents[0]
        hits.append(
            Hit(
                chunk_id=chunk.chunk_id,
                score=chunk.score,
                cosine=chunk.cosine,
                bm25=chunk.bm25,
                ranks=chunk.ranks,
                document_id=document_id,
                text_id=text_id,
                path=path,
                part=part,
                title=title,
                kind=kind,
                collection=collection,
                date=date,
                start=start,
                stop=stop,
                line=line,
                page=page,
                heading=tuple(json.loads(heading)) if heading else (),
                copies=len(documents) - 1,
            )
        )
    return hits
