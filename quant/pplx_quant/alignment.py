"""Alignment of token states between two tokenizers that divide the same text differently.

The target of a student token is the mean of the teacher states over the characters that the token covers. Two tokens
that divide a word of the teacher both get the state of the word, and a token that joins several gets their mean,
weighted by length. With equal tokenizers, the alignment is the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Spans = np.ndarray  # characters [start, stop) of each token, int64 [T, 2]


@dataclass(frozen=True)
class Alignment:
    """Weights from the teacher tokens to the student tokens of a padded call: sparse, one row for each student token.

    `student` and `teacher` int64 `[K]` are places in the flattened `[B, S]` and `[B, T]`, `weights` float32 `[K]`, and
    the weights of each student token sum to 1. `shape` is `(B, S)`.
    """

    student: Tensor
    teacher: Tensor
    weights: Tensor
    shape: tuple[int, int]

    def carry(self, states: Tensor) -> Tensor:
        """Return the states `[B, S, D]` of student tokens from those of teacher tokens `[B, T, D]`; 0 at padding."""
        taken = states.flatten(0, 1)[self.teacher.to(states.device)] * self.weights.to(states)[:, None]
        found = torch.zeros(self.shape[0] * self.shape[1], states.shape[-1], dtype=states.dtype, device=states.device)
        return found.index_add_(0, self.student.to(states.device), taken).unflatten(0, self.shape)


def align(student: Sequence[Spans], teacher: Sequence[Spans], width: int) -> Alignment:
    """Align the tokens of several texts. Teacher spans may be empty, as those of special tokens are.

    `width` is T, the padded length of the teacher's rows; that of the student's is the longest of `student`.
    """
    longest = max(map(len, student))
    parts = [shares(own, other) for own, other in zip(student, teacher, strict=True)]
    places = [
        (row * longest + tokens, row * width + sources, weights) for row, (tokens, sources, weights) in enumerate(parts)
    ]
    rows, columns, weights = (np.concatenate(arrays) for arrays in zip(*places, strict=True))
    return Alignment(
        torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(weights), (len(student), longest)
    )


def shares(student: Spans, teacher: Spans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return student tokens, teacher tokens, and the share of the characters of the former that the latter covers.

    Characters that no teacher token covers, such as line breaks that its normalization drops, count as part of the
    token before them, or of the first one. Raises ValueError if the teacher covers no character at all.
    """
    filled = np.flatnonzero(teacher[:, 1] > teacher[:, 0])
    if not len(filled):
        raise ValueError("the teacher has no token with characters to align to")
    # The start of each filled token owns all characters up to the start of the next one.
    starts = np.maximum.accumulate(teacher[filled, 0])
    lengths = np.maximum(student[:, 1] - student[:, 0], 1)
    tokens = np.repeat(np.arange(len(student)), lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    characters = student[tokens, 0] + np.arange(len(tokens)) - first
    owner = filled[np.maximum(np.searchsorted(starts, characters, side="right") - 1, 0)]
    pairs, counts = np.unique(tokens * len(teacher) + owner, return_counts=True)
    tokens, owner = np.divmod(pairs, len(teacher))
    return tokens, owner, (counts / lengths[tokens]).astype(np.float32)
