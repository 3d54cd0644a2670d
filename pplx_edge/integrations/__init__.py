"""Use pplx-edge models in other libraries. Each module needs its library, and nothing is imported until it is used.

| module | what it has |
|---|---|
| `transformers` | `register()`, so that AutoModel opens pplx-embed checkpoints without remote code |
| `sentence_transformers` | `EdgeModule` for `SentenceTransformer(modules=[...])` |
| `langchain` | `EdgeEmbeddings` |
| `llama_index` | `EdgeEmbedding` |
| `optimum` | `open(directory)` for what optimum exported, and `optimum-cli export pplx-edge` |
"""
