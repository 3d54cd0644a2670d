"""Parsers: one module per file kind, each with `parse(opened, output)`. They only run in child processes."""

PARSERS = {
    "text": "pplx_search.ingest.parsers.lines",
    "markdown": "pplx_search.ingest.parsers.lines",
    "code": "pplx_search.ingest.parsers.lines",
    "csv": "pplx_search.ingest.parsers.lines",
    "jsonl": "pplx_search.ingest.parsers.lines",
    "json": "pplx_search.ingest.parsers.lines",
    "html": "pplx_search.ingest.parsers.html",
    "mail": "pplx_search.ingest.parsers.mail",
    "mbox": "pplx_search.ingest.parsers.mail",
    "docx": "pplx_search.ingest.parsers.docx",
    "pptx": "pplx_search.ingest.parsers.pptx",
    "xlsx": "pplx_search.ingest.parsers.xlsx",
    "odt": "pplx_search.ingest.parsers.odt",
    "epub": "pplx_search.ingest.parsers.epub",
    "pdf": "pplx_search.ingest.parsers.pdf",
}
