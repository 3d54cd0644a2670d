"""BM25 by the library bm25s with its defaults (Lucene's formula, k1 1.5, b 0.75).

Terms are runs of letters, digits and marks, case folded, without stemming or stop words, so that no language has an
advantage. Scripts written without spaces are split into pairs of adjacent characters instead.
"""

import itertools
import unicodedata
from collections.abc import Sequence

import bm25s
import numpy as np
import regex

from pplx_bench.retrieval.ranking import rank_scores

K1, B = 1.5, 0.75
_PIECES = regex.compile(
    r"(?P<pairs>[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+)"
    r"|(?:(?![\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])\w)+"
)


def terms(text: str) -> list[str]:
    """Return the terms of a text: its words, and character pairs in scripts without spaces."""
    found: list[str] = []
    for match in _PIECES.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run = match.group()
        if match.group("pairs") is None or len(run) == 1:
            found.append(run)
        else:
            found += [a + b for a, b in itertools.pairwise(run)]
    return found


def rank_by_terms(queries: Sequence[str], passages: Sequence[str], k: int) -> np.ndarray:
    """Return the `k` passages with the highest BM25 for each query, best first: int64 `[Q, min(k, N)]`."""
    index = bm25s.BM25(k1=K1, b=B)
    corpus = [terms(passage) for passage in passages]
    if any(corpus):
        index.index(corpus, show_progress=False)
    wanted = [terms(query) for query in queries]

    def scores(q: slice, n: slice) -> np.ndarray:
        found = np.zeros((q.stop - q.start, n.stop - n.start), np.float32)
        for row, words in zip(found, wanted[q], strict=True):
            known = [word for word in words if word in index.vocab_dict] if any(corpus) else []
            if known:
                row[:] = index.get_scores(known)[n]
        return found

    return rank_scores(scores, len(queries), len(passages), k)
