"""Dense retrieval: cosine similarity of query and item text embeddings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gensar_hf.baselines.bm25 import QueryScorer
from gensar_hf.baselines.registry import Baseline
from gensar_hf.embeddings.text_encoder import MINILM, TextEncoder
from gensar_hf.item_embeddings import unit_rows

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset

NAME = "Dense retrieval"


@dataclass
class DenseRetrievalConfig:
    """The text encoder and the prefixes that it expects.

    Args:
        model: sentence-transformers model, a folder or a name on the Hub; None = the package's default encoder.
        query_prefix: text put before every query, including its trailing space.
        passage_prefix: text put before every item text.
    """

    model: str | None = None
    query_prefix: str = ""
    passage_prefix: str = ""

    def __post_init__(self) -> None:
        if self.model is not None and not self.model.strip():
            raise ValueError("`model` is empty; name a sentence-transformers model, or leave it out.")


class DenseRetrieval(QueryScorer):
    """Score = cosine of the query's and the item's embedding.

    Bi-encoder as in Sentence-BERT (Reimers and Gurevych, EMNLP 2019); with other encoders E5 (Wang et al.,
    arXiv:2212.03533) or BGE (Xiao et al., SIGIR 2024). The encoder is not fine-tuned on clicks and the history is not
    read. `item_embeddings` are `(num_items, dim)` in catalogue order, from the same encoder; zero rows score 0.

    Raises:
        ValueError: in `score`, the dimensions differ.
    """

    def __init__(
        self,
        item_embeddings: np.ndarray,
        query_encoder: Callable[[list[str]], np.ndarray],
        name: str = NAME,
        query_prefix: str = "",
        num_parameters: int = 0,
    ) -> None:
        self.item_embeddings = unit_rows(item_embeddings)
        self.query_encoder, self.query_prefix = query_encoder, query_prefix
        self.name, self.num_parameters = name, num_parameters
        self._query_embeddings: dict[str, np.ndarray] = {}

    def score_items(self, queries: list[str]) -> np.ndarray:
        """Cosine of every item with each query, `(num_queries, num_items)` float32."""
        # Encoding costs far more than the products, so each query is encoded once, over all calls.
        if new := [query for query in queries if query not in self._query_embeddings]:
            embeddings = np.asarray(self.query_encoder([self.query_prefix + query for query in new]))
            if embeddings.shape != (len(new), self.item_embeddings.shape[1]):
                raise ValueError(
                    f"The query encoder gave shape {embeddings.shape} for {len(new)} queries, but the items have "
                    f"{self.item_embeddings.shape[1]} dimensions; use the encoder that made the item embeddings."
                )
            self._query_embeddings.update(zip(new, unit_rows(embeddings), strict=True))
        return np.stack([self._query_embeddings[query] for query in queries]) @ self.item_embeddings.T


def fit_dense_retrieval(
    dataset: "InteractionDataset", config: DenseRetrievalConfig, training: Mapping[str, Any]
) -> DenseRetrieval:
    """Encode the item texts; see `Baseline.fit`. A model named in the settings is part of the row's name."""
    encoder = TextEncoder.load(config.model or MINILM)
    embeddings = encoder.encode([config.passage_prefix + text for text in dataset.item_texts()])
    name = NAME if config.model is None else f"{NAME} ({Path(config.model).name})"
    return DenseRetrieval(embeddings, encoder.encode, name, config.query_prefix, encoder.num_parameters)


BASELINES = {"dense_retrieval": Baseline(DenseRetrievalConfig, fit_dense_retrieval)}
