"""What callers of a pipeline give and get: one history or a batch of them, and answers as plain values."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gensar_hf.generator.catalogue import Catalogue
from gensar_hf.generator.history import History

Answer = dict[str, Any]


def answers_of(rows: np.ndarray, scores: np.ndarray, catalogue: Catalogue) -> list[Answer]:
    """Rows of the identifier table `(num_items,)` and their scores, as callers get them."""
    item_ids, titles = catalogue.identifiers.item_ids, catalogue.identifiers.titles
    return [
        {"item_id": item_ids[row], "score": score, "title": None if titles is None else titles[row]}
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def ranked_answers(rows: Sequence[np.ndarray], scores: np.ndarray, catalogue: Catalogue) -> list[list[Answer]]:
    """Each request's rows by their scores, the best first, equal ones in the order given.

    Args:
        rows: one `(num_candidates,)` array a request.
        scores: `(num_requests, most candidates)`.
        catalogue: whose rows they are.
    """
    answers = []
    for own_rows, own_scores in zip(rows, scores, strict=True):
        order = np.argsort(-own_scores[: len(own_rows)], kind="stable")
        answers.append(answers_of(own_rows[order], own_scores[order], catalogue))
    return answers


def as_batch(history: Any) -> tuple[list[History], bool]:
    """One history or a list of them as a list, and whether it was one."""
    is_batch = isinstance(history, Sequence) and len(history) > 0 and isinstance(history[0], (list, tuple))
    return (list(history) if is_batch else [history]), is_batch


def unbatch(answers: list[list[Answer]], is_batch: bool) -> list[Answer] | list[list[Answer]]:
    """The answers of a batch, or of the one history that was asked with."""
    return answers if is_batch else answers[0]


def chunks(rows: Sequence, size: int) -> Iterator[Sequence]:
    """`rows` in pieces of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def checked_top_k(top_k: Any) -> int:
    """`top_k`, or a `ValueError` if it is no positive whole number."""
    if not isinstance(top_k, (int, np.integer)) or top_k < 1:
        raise ValueError(f"`top_k` must be a whole number of at least 1; got {top_k!r}.")
    return int(top_k)


def distinct_queries(words: list[str], scores: list[float], top_k: int) -> list[Answer]:
    """The first `top_k` queries that are no repetition, with their scores; `words` come best first."""
    best: dict[str, float] = {}
    for text, score in zip(words, scores, strict=True):
        if text.strip():
            best.setdefault(text.strip(), score)
    return [{"query": text, "score": score} for text, score in list(best.items())[:top_k]]
