"""Retrieval metrics by ir_measures, which runs trec_eval: nDCG@10, recall@10, recall@100, MRR@10.

trec_eval sorts by score and breaks ties by descending id, in whatever order the hits are given. We pass it the negative
rank as the score, which has no ties, so it judges exactly the ranking that the search returned.
"""

from collections.abc import Sequence

import ir_measures
import numpy as np

from pplx_bench.retrieval.beir import Qrels, RetrievalTask

MEASURES = {
    "ndcg@10": ir_measures.nDCG @ 10,
    "recall@10": ir_measures.R @ 10,
    "recall@100": ir_measures.R @ 100,
    "mrr@10": ir_measures.RR @ 10,
}
LABELS = dict(zip(MEASURES, ("nDCG@10", "recall@10", "recall@100", "MRR@10"), strict=True))
MAIN = "ndcg@10"
DEPTH = 100  # hits of a query that the metrics need


def evaluate(
    qrels: Qrels, query_ids: Sequence[str], passage_ids: Sequence[str], ranking: np.ndarray
) -> dict[str, float]:
    """Return the mean of each measure over the queries.

    `ranking` holds the indices of each query's passages, best first: int64 `[Q, k]`.
    """
    run = {
        query: {passage_ids[index]: -float(rank) for rank, index in enumerate(indices)}
        for query, indices in zip(query_ids, ranking.tolist(), strict=True)
    }
    found = ir_measures.calc_aggregate(MEASURES.values(), {query: qrels[query] for query in query_ids}, run)
    return {name: float(found[measure]) for name, measure in MEASURES.items()}


def evaluate_task(task: RetrievalTask, ranking: np.ndarray) -> dict[str, float]:
    """Return the mean of each measure over the queries of a task, from indices in its corpus."""
    return evaluate(task.qrels, [query.id for query in task.queries], [passage.id for passage in task.corpus], ranking)
