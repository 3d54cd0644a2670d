"""Row ids of an index: integers with distinct types, so that a type checker does not mix them up."""

from typing import NewType

FileId = NewType("FileId", int)
DocumentId = NewType("DocumentId", int)
TextId = NewType("TextId", int)
EmbeddingId = NewType("EmbeddingId", int)
ChunkId = NewType("ChunkId", int)
