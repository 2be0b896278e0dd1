"""Text matching in the training of a large catalogue, where no query is compared with all items.

A full comparison takes 0.3 s a query among a million items, and a training step has a hundred queries. Here a query is
compared with a sample of the catalogue (`gensar_hf.catalogue_loss`) that holds the items which it fits best by their
rare words and n-grams.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from gensar_hf.generator.text_matching import CHANNELS, NUM_MATCHES, QueryReading, TextIndex

WeightedTerms = list[tuple[sparse.csr_matrix, np.ndarray]]
"""What `LexicalChannel.weigh` returns, by words and by characters; empty without queries."""

# Items that a term may occur in to be looked up. What more of them have in common would take longer to read, and tells
# them apart too little.
_RARE_WORD, _RARE_NGRAM = 20_000, 1000


class SampledTexts:
    """Compares queries with some of the items of a `TextIndex`.

    Memory: the hashed words and n-grams of the index a second time, by item.

    Args:
        texts: of the catalogue.
        num_items: the first items alone are compared, those with item vectors.
    """

    def __init__(self, texts: TextIndex, num_items: int) -> None:
        self.texts, self.num_items = texts, num_items
        # Built anew: the index would keep what is not needed here, a gigabyte for a million items.
        channels = texts.lexical_channels()
        self._weigh = [channel.weigh for channel in channels]
        self._by_item = [channel.by_term.T.tocsr() for channel in channels]
        rare = zip(channels, (_RARE_WORD, _RARE_NGRAM), strict=True)
        self._lists = [_rows_of(channel.by_term, most) for channel, most in rare]
        self._found: dict[str, np.ndarray] = {}

    def weigh(self, queries: Sequence[str]) -> WeightedTerms:
        """The terms of some queries by words and by characters, for the other two methods."""
        return [weigh(queries) for weigh in self._weigh] if queries else []

    def candidates(self, queries: Sequence[str], terms: WeightedTerms) -> np.ndarray:
        """Rows of the items that fit one of the queries best, `NUM_MATCHES` at most by each of both kinds of terms."""
        found = [np.zeros(0, dtype=np.int64)]
        for place, query in enumerate(queries):
            best = self._found.get(query)
            if best is None:
                weights = (weights[place] for weights, _ in terms)
                best = np.concatenate([self._best(*pair) for pair in zip(weights, self._lists, strict=True)])
            if self.texts.is_remembered(query):
                self._found[query] = best
            found.append(best)
        return np.unique(np.concatenate(found))

    def _best(self, weights: sparse.csr_matrix, lists: sparse.csr_matrix) -> np.ndarray:
        scores = weights @ lists
        is_compared = scores.indices < self.num_items
        rows, values = scores.indices[is_compared], scores.data[is_compared]
        if len(rows) > NUM_MATCHES:
            rows = rows[np.argpartition(-values, NUM_MATCHES)[:NUM_MATCHES]]
        return rows.astype(np.int64)

    def match(self, queries: Sequence[str], terms: WeightedTerms, rows: np.ndarray) -> tuple[QueryReading, np.ndarray]:
        """As `TextIndex.match` without encoding, among some items.

        Args:
            queries: any texts.
            terms: `weigh(queries)`.
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
        for place, ((weights, most), by_item) in enumerate(zip(terms, self._by_item, strict=True)):
            scores[:, place] = _products(by_item[rows], weights).T / most
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


def _products(items: sparse.csr_matrix, queries: sparse.csr_matrix) -> np.ndarray:
    """`(num_items, num_queries)` products of their terms.

    The queries have a few thousand of all terms. Reduced to these they are a small dense matrix, and the product takes
    a third of the time of that of two sparse matrices.
    """
    terms, places = np.unique(queries.indices, return_inverse=True)
    dense = np.zeros((len(terms), queries.shape[0]), dtype=np.float32)
    dense[places, np.repeat(np.arange(queries.shape[0]), np.diff(queries.indptr))] = queries.data
    place_of = np.full(items.shape[1], -1, dtype=np.int32)
    place_of[terms] = np.arange(len(terms))
    columns = place_of[items.indices]
    is_asked = columns >= 0
    ends = np.concatenate([[0], np.cumsum(is_asked)])[items.indptr]
    return sparse.csr_matrix((items.data[is_asked], columns[is_asked], ends), (items.shape[0], len(terms))) @ dense


def _rows_of(by_term: sparse.csr_matrix, most: int) -> sparse.csr_matrix:
    """The rows of at most so many entries; the others are empty."""
    lengths = np.diff(by_term.indptr)
    lengths[lengths > most] = 0
    is_kept = np.repeat(lengths > 0, np.diff(by_term.indptr))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix((by_term.data[is_kept], by_term.indices[is_kept], ends), by_term.shape)
