"""Corpora past one machine: embed on Ray Data, and hand the vectors to LanceDB or Milvus.

- `pplx_scale.corpus.embed_corpus` embeds Parquet, JSON Lines or text on a cluster, with restart.
- `pplx_scale.corpus.Corpus` reads the result; `pplx_scale.lance` and `pplx_scale.milvus` load it into an engine.

Only `pipeline` imports Ray, and it is imported when a corpus is embedded.
"""
