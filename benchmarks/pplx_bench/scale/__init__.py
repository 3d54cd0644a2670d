"""`pplx-edge bench scale`: corpora on Ray, vectors in an engine, and what both cost."""
