"""Turn chunk ids into hits that can be shown."""

import json
from collections.abc import Sequence

from pplx_search.store.database import Database
from pplx_search.store.fusing import Rankings
from pplx_search.store.snapshot import filter_sql
from pplx_search.store.values import Filter, Hit


def read_hits(
    database: Database,
    chosen: Sequence[tuple[int, float]],
    wanted: Filter,
    found: Rankings,
) -> list[Hit]:
    """Return hits for scored chunks, each with the first document that contains its text and passes the filter."""
    condition, values = filter_sql(wanted)
    ranks = {name: {chunk: rank for rank, chunk in enumerate(leg, start=1)} for name, leg in found.legs.items()}
    hits = []
    for chunk, score in chosen:
        ((content, start, stop, line, page, heading),) = database.rows(
            "SELECT content, start, stop, line, page, heading FROM chunks JOIN embeddings ON embeddings.id = embedding"
            " WHERE chunks.id = ?",
            (chunk,),
        )
        holders = database.rows(
            "SELECT documents.id, files.path, part, title, kind FROM documents JOIN files ON files.id = file"
            f" JOIN roots ON roots.id = root WHERE documents.content = ? AND {condition} ORDER BY documents.id",
            (content, *values),
        )
        document, path, part, title, kind = holders[0]
        hits.append(
            Hit(
                chunk=chunk,
                document=document,
                content=content,
                path=path,
                part=part,
                title=title,
                kind=kind,
                start=start,
                stop=stop,
                line=line,
                page=page,
                heading=tuple(json.loads(heading)) if heading else (),
                score=score,
                cosine=found.cosines.get(chunk),
                bm25=found.bm25.get(chunk),
                ranks={name: leg[chunk] for name, leg in ranks.items() if chunk in leg},
                copies=len(holders) - 1,
            )
        )
    return hits
