"""Figures of rankings, by ir_measures (which runs trec_eval): nDCG@10, recall@10, recall@100, MRR@10.

trec_eval orders by score and breaks ties by descending id, whatever order it is given; so it is given places for
scores, which have no ties, and judges the ranking that the search returned.
"""

from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np

MEASURES = {
    "ndcg@10": ir_measures.nDCG @ 10,
    "recall@10": ir_measures.R @ 10,
    "recall@100": ir_measures.R @ 100,
    "mrr@10": ir_measures.RR @ 10,
}
DEPTH = 100
Judgements = Mapping[str, Mapping[str, int]]


def figures(
    judgements: Judgements, query_ids: Sequence[str], passage_ids: Sequence[str], ranking: np.ndarray
) -> dict[str, float]:
    """Mean of each measure over the queries, from the places of their passages, best first: int64 `[Q, k]`."""
    run = {
        query: {passage_ids[place]: -float(position) for position, place in enumerate(places)}
        for query, places in zip(query_ids, ranking.tolist(), strict=True)
    }
    found = ir_measures.calc_aggregate(MEASURES.values(), {query: judgements[query] for query in query_ids}, run)
    return {name: float(found[measure]) for name, measure in MEASURES.items()}
