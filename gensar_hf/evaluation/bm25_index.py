"""BM25 index over item texts, for the hard candidates of search and for the BM25 baseline."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class BM25Index:
    """A `bm25s` index of the catalogue's texts (Lù 2024, "BM25S: Orders of magnitude faster lexical search").

    Texts and queries are lower-cased and split into words of two or more letters or digits, without `bm25s`' English
    stop words and without stemming. Scores are those of Lucene's variant, `k1` and `b` as in `BM25Config`.
    """

    def __init__(self, item_texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        import bm25s  # takes 0.4 s to import

        self.num_items = len(item_texts)
        tokens = _words(item_texts)
        self._index: Any = None
        if any(tokens):  # bm25s divides by zero when no text holds a word
            self._index = bm25s.BM25(k1=k1, b=b)
            self._index.index(tokens, show_progress=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """BM25 of every item for every query, `(num_queries, num_items)` float32, 0 for items that share no word."""
        scores = np.zeros((len(queries), self.num_items), dtype=np.float32)
        if self._index is None:
            return scores
        for row, words in enumerate(_words(queries)):
            word_ids = self._index.get_tokens_ids(words)
            if word_ids:
                scores[row] = self._index.get_scores_from_ids(word_ids)
        return scores

    def retrieve(self, queries: Sequence[str], top_n: int, tie_order: np.ndarray | None = None) -> np.ndarray:
        """The best items for each query that share a word with it, `(num_queries, top_n)` int64, padded with -1.

        `tie_order` is the position of each item among items of equal score (`bm25s` does not define it). Default: its
        index.
        """
        items = np.full((len(queries), top_n), -1, dtype=np.int64)
        if self._index is None or not len(queries):
            return items
        scores = np.zeros(self.num_items, dtype=np.float32)  # one for all queries, cleared where a query has written
        for row, words in enumerate(_words(queries)):
            postings = [self._postings(word_id) for word_id in self._index.get_tokens_ids(words)]
            if not postings:
                continue
            for places, values in postings:  # in the order in which `bm25s` adds them up
                scores[places] += values
            places = np.concatenate([own for own, _ in postings])
            found = scores[places]
            scores[places] = 0
            # An item stands here once for each word, so that the last of these is not above the last of the best.
            last = top_n * len(postings)
            floor = np.partition(found, -last)[-last] if 0 < last < len(found) else -np.inf
            is_contender = (found > 0) & (found >= floor)  # with all ties of the last one
            contenders, first = np.unique(places[is_contender], return_index=True)
            found = found[is_contender][first]
            positions = contenders if tie_order is None else tie_order[contenders]
            best = contenders[np.lexsort((positions, -found))][:top_n]
            items[row, : len(best)] = best
        return items

    def _postings(self, word_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The items that hold a word, and what it adds to their scores."""
        matrix = self._index.scores
        own = slice(matrix["indptr"][word_id], matrix["indptr"][word_id + 1])
        return matrix["indices"][own], matrix["data"][own]


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    return bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
