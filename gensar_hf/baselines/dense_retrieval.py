"""Dense retrieval: the query's embedding against the items' embeddings."""

from collections.abc import Callable

import numpy as np

from gensar_hf.baselines.query_scores import gather_query_scores
from gensar_hf.data.splits import SEARCH, Requests


class DenseRetrieval:
    """Score = cosine of the query's and the item's embedding (bi-encoder, Reimers and Gurevych 2019).

    Simplified: the encoder is used as it comes, not fine-tuned on the log's clicks, without instruction prefixes, and
    the history is not read. The paper's E5 and BGE rows are this with larger encoders.

    Args:
        item_embeddings: `(num_items, dim)` in catalogue order, from the same encoder; any length, zero rows score 0.
        query_encoder: queries → `(num_queries, dim)`, or the name or path of a sentence-transformers model.
        name: the row's name in tables.

    Raises:
        ValueError: when the embeddings are no finite matrix, or, in `score`, when the dimensions disagree.
    """

    tasks = frozenset({SEARCH})

    def __init__(
        self,
        item_embeddings: np.ndarray,
        query_encoder: Callable[[list[str]], np.ndarray] | str,
        name: str = "Dense retrieval",
    ):
        if item_embeddings.ndim != 2 or not np.isfinite(item_embeddings).all():
            raise ValueError(
                f"`item_embeddings` must be a finite (num_items, dim) matrix; got shape {item_embeddings.shape}."
            )
        self.name = name
        self.item_embeddings = _normalised(item_embeddings)
        self.query_encoder = query_encoder
        self._query_embeddings: dict[str, np.ndarray] = {}

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Cosine of each candidate with the request's query, `(num_requests, num_candidates)` float32."""
        # Encoding costs far more than the products, and a named model is loaded anew by each call: once per query.
        new_queries = [query for query in dict.fromkeys(requests.query_texts) if query not in self._query_embeddings]
        if new_queries:
            self._query_embeddings.update(zip(new_queries, self._encode(new_queries), strict=True))
        return gather_query_scores(requests, candidates, self._score_items)

    def _score_items(self, queries: list[str]) -> np.ndarray:
        return np.stack([self._query_embeddings[query] for query in queries]) @ self.item_embeddings.T

    def _encode(self, queries: list[str]) -> np.ndarray:
        if callable(self.query_encoder):
            embeddings = np.asarray(self.query_encoder(queries))
        else:
            from gensar_hf.embeddings.semantic import encode_texts

            embeddings = encode_texts(queries, self.query_encoder)
        if embeddings.shape != (len(queries), self.item_embeddings.shape[1]):
            raise ValueError(
                f"The query encoder gave shape {embeddings.shape} for {len(queries)} queries, but the items have "
                f"{self.item_embeddings.shape[1]} dimensions; take the encoder that made the item embeddings."
            )
        return _normalised(embeddings)


def _normalised(embeddings: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; zero rows stay zero."""
    embeddings = np.asarray(embeddings, dtype=np.float32)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths == 0, 1, lengths)
