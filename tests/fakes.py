"""A session with predictable vectors, to test everything from tokenizer to store without a model."""

from dataclasses import dataclass, field

import numpy as np
from checkpoints import tiny_config, tiny_tokenizer

from pplx_edge.embedder import Embedder
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import BatchPolicy, TokenBatch


def fake_spec(dim: int = 256, max_tokens: int = 512, contextual: bool = False) -> ModelSpec:
    """The spec of a tiny model with vectors wide enough to be cut."""
    model = "context-0.6b" if contextual else "0.6b"
    return ModelSpec.from_config(tiny_config(model, hidden_size=dim, max_position_embeddings=max_tokens))


@dataclass
class FakeSession:
    """A token's state is its row of a random table, so a vector is the mean of its tokens' rows.

    `batches` keeps what was asked for; a row that holds the token `nan_id` comes back as NaN.
    """

    spec: ModelSpec = field(default_factory=fake_spec)
    backend: str = "fake"
    device: str = "nowhere"
    policy: BatchPolicy = field(default_factory=lambda: BatchPolicy(max_tokens=64))
    nan_id: int | None = None
    batches: list[TokenBatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        self.table = rng.standard_normal((self.spec.vocab_size, self.spec.dim), dtype=np.float32)

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        states = self.table[batch.input_ids]
        states[(batch.input_ids == self.nan_id).any(axis=1)] = np.nan
        return states

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        self.batches.append(batch)
        states = self.token_states(batch)
        means = np.zeros((len(batch.spans), self.spec.dim), np.float32)
        for i, span in enumerate(batch.spans):
            real = states[span.row][batch.attention_mask[span.row] == 1]
            if span.n_tokens:
                means[i] = real[span.start : span.stop].mean(axis=0)
        return means


def fake_embedder(session: FakeSession | None = None) -> Embedder:
    """An Embedder over a fake session and the tiny real tokenizer."""
    session = session or FakeSession()
    return Embedder(session, Tokenizer(tiny_tokenizer(), session.spec.sep_id))
