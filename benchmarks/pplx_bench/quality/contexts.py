"""What a passage is read with: alone (`off`), after its title (`title`), or among its document's pieces (`on`)."""

from collections.abc import Sequence
from typing import Literal, get_args

from pplx_bench.beir import RetrievalTask

Context = Literal["off", "on", "title"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
ALONE: tuple[Context, ...] = ("off", "title")  # what any system can read


def applies(context: Context, task: RetrievalTask) -> bool:
    """Whether a task has what a context needs: pieces of documents, or titles."""
    return {"off": True, "on": task.is_contextual, "title": task.has_titles}[context]


def passage_texts(task: RetrievalTask, context: Context) -> list[str]:
    """The text of each passage for `off` or `title`, in the order of the corpus."""
    if context == "title":
        return [f"{passage.title} {passage.text}".strip() for passage in task.corpus]
    return [passage.text for passage in task.corpus]


def windows(lengths: Sequence[int], limit: int) -> list[slice]:
    """Consecutive pieces of a document that fit into `limit` tokens together, a separator between two of them.

    As few windows as possible, and of those the ones whose longest is shortest, so that no window is left with a piece
    or two and hardly any context. A piece that is longer than the limit is a window of its own.
    """
    if not lengths:
        return []
    low, high = min(limit, max(lengths)), limit
    fewest = len(_filled(lengths, high))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(lengths, middle)) <= fewest else (middle + 1, high)
    return _filled(lengths, high)


def _filled(lengths: Sequence[int], limit: int) -> list[slice]:
    """Windows filled from the left, each as far as the limit allows."""
    found, start, total = [], 0, -1
    for i, length in enumerate(lengths):
        if i > start and total + 1 + length > limit:
            found.append(slice(start, i))
            start, total = i, -1
        total += 1 + length
    return [*found, slice(start, len(lengths))]
