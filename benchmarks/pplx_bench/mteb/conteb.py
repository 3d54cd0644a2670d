"""The data sets of ConTEB (arXiv 2505.24782) as tasks of mteb, which includes only some of them.

A data set contains `documents` (`chunk_id`, `chunk`) and `queries` (`query`, and the relevant `chunk_id` or
`chunk_ids`). The id of a chunk is its document's id, `_` and its number, by which `MtebEncoder` groups chunks.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from pplx_edge.errors import InputError

_SUBSET = "default"


def conteb_task(data_set: str, split: str | None = None) -> AbsTaskRetrieval:
    """Return the task of a data set on the hub or in a local directory; `split` is optional if there is only one.

    Nothing is downloaded before the task runs.
    """
    metadata = TaskMetadata(
        name=f"ConTEB-{data_set.rstrip('/').rpartition('/')[2]}",
        description=f"Chunks of documents that answer a query, from {data_set}.",
        dataset={"path": data_set, "revision": "main"},
        type="Retrieval",
        category="t2t",
        eval_splits=[split or "test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        reference=None,
    )

    class ContebTask(AbsTaskRetrieval):
        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            if not self.data_loaded:
                documents, queries = (
                    _one_split(load_dataset(data_set, name), split) for name in ("documents", "queries")
                )
                self.dataset = {_SUBSET: {metadata.eval_splits[0]: retrieval_data(documents, queries)}}  # type: ignore[typeddict-item]
                self.data_loaded = True

    ContebTask.metadata = metadata
    return ContebTask()


def retrieval_data(documents: Iterable[Mapping[str, Any]], queries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return corpus, queries and relevant documents in the layout of mteb."""
    corpus = [{"id": row["chunk_id"], "text": row["chunk"]} for row in documents]
    asked, relevant = [], {}
    for number, row in enumerate(queries):
        name = f"q{number}"
        asked.append({"id": name, "text": row["query"]})
        answers = row["chunk_ids"] if row.get("chunk_ids") is not None else row["chunk_id"]
        relevant[name] = dict.fromkeys([answers] if isinstance(answers, str) else answers, 1)
    return {
        "corpus": Dataset.from_list(corpus),
        "queries": Dataset.from_list(asked),
        "relevant_docs": relevant,
        "top_ranked": None,
    }


def _one_split(splits: DatasetDict, wanted: str | None) -> Dataset:
    names = [str(name) for name in splits]
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted is None or wanted not in names:
        found = "no split was chosen" if wanted is None else f"there is no split {wanted!r}"
        raise InputError(f"{found}; choose one of {', '.join(names)}: DATASET:SPLIT")
    return splits[wanted]
