"""Text matching in the training of a large catalogue, where no query is compared with all items.

A full comparison takes 0.3 s a query among a million items, and a training step has a hundred queries. Here a query is
compared with a sample of the catalogue (`gensar_hf.catalogue_loss`) that holds the items which it fits best by their
words and by their rare character n-grams.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from gensar_hf.generator.text_matching import CHANNELS, NUM_MATCHES, QueryReading, TextIndex

_RARE = 1000  # items that an n-gram may occur in to be looked up


class SampledTexts:
    """Compares queries with some of the items of a `TextIndex`.

    Memory: the hashed words and n-grams of the index a second time, by item.

    Args:
        texts: of the catalogue.
        num_items: the first items alone are compared, those with item vectors.
    """

    def __init__(self, texts: TextIndex, num_items: int) -> None:
        self.texts, self.num_items = texts, num_items
        self._channels = texts.lexical_channels
        self._by_item = [channel.by_term.T.tocsr()[:num_items] for channel in self._channels]
        words, characters = (channel.by_term[:, :num_items] for channel in self._channels)
        is_rare = np.diff(characters.indptr) <= _RARE
        self._lists = words, sparse.diags(is_rare.astype(np.float32)).tocsr() @ characters
        self._found: dict[str, np.ndarray] = {}

    def candidates(self, queries: Sequence[str]) -> np.ndarray:
        """Rows of the items that fit one of the queries best, `NUM_MATCHES` at most by each of both kinds of terms."""
        new = [query for query in dict.fromkeys(queries) if query not in self._found]
        own = {query: [np.zeros(0, dtype=np.int64)] for query in new}
        for channel, lists in zip(self._channels, self._lists, strict=True):
            if not new:
                break
            weights, _ = channel.weigh(new)
            for place, query in enumerate(new):
                scores = weights[place] @ lists
                if scores.nnz:
                    best = np.argsort(-scores.data, kind="stable")[:NUM_MATCHES]
                    own[query].append(scores.indices[best].astype(np.int64))
        found = {query: np.concatenate(rows) for query, rows in own.items()}
        known = [self._found[query] for query in queries if query in self._found]
        self._found.update({query: rows for query, rows in found.items() if self.texts.is_remembered(query)})
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found.values(), *known]))

    def match(self, queries: Sequence[str], rows: np.ndarray) -> tuple[QueryReading, np.ndarray]:
        """As `TextIndex.match` without encoding, among some items.

        Args:
            queries: any texts.
            rows: `(num_rows,)` items.

        Returns:
            what the encoder reads, and `(num_queries, 3, num_rows)` scores, -1 where a row is repeated.
        """
        if not queries:
            reading = QueryReading(
                np.zeros((0, self.texts.dim), np.float32),
                np.zeros((0, NUM_MATCHES), np.int64),
                np.zeros((0, NUM_MATCHES, len(CHANNELS)), np.float32),
            )
            return reading, np.zeros((0, len(CHANNELS), len(rows)), np.float32)
        scores = np.zeros((len(queries), len(CHANNELS), len(rows)), dtype=np.float32)
        for place, (channel, by_item) in enumerate(zip(self._channels, self._by_item, strict=True)):
            weights, most = channel.weigh(queries)
            scores[:, place] = (by_item[rows] @ weights.T.tocsr()).toarray().T / most
        vectors = self.texts.remembered_vectors(queries)
        is_known = vectors.any(axis=1)
        scores[is_known, 2] = vectors[is_known] @ self.texts.vectors[rows].astype(np.float32).T
        is_repeated = np.ones(len(rows), dtype=bool)
        is_repeated[np.unique(rows, return_index=True)[1]] = False
        scores[:, :, is_repeated] = -1  # below all others
        total = scores.sum(axis=1)
        num_best = min(NUM_MATCHES, len(rows))
        best = np.argpartition(-total, num_best - 1, axis=1)[:, :num_best]
        best_scores = np.take_along_axis(scores, best[:, None], axis=2).transpose(0, 2, 1)
        items = np.where(np.take_along_axis(total, best, axis=1) > 0, rows[best], -1)
        missing = NUM_MATCHES - num_best
        items = np.pad(items, ((0, 0), (0, missing)), constant_values=-1)
        return QueryReading(vectors, items, np.pad(best_scores, ((0, 0), (0, missing), (0, 0)))), scores
