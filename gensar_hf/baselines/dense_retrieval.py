"""Dense retrieval: the query's embedding against the items' embeddings."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.baselines.query_scores import gather_query_scores
from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.embeddings.item_embeddings import save_item_embeddings
from gensar_hf.files import write_json

NAME = "Dense retrieval"
REFERENCE = (
    "Reimers and Gurevych, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, EMNLP 2019; E5: Wang et "
    "al., Text Embeddings by Weakly-Supervised Contrastive Pre-training, arXiv:2212.03533, 2022; BGE: Xiao et al., "
    "C-Pack: Packed Resources For General Chinese Embeddings, SIGIR 2024"
)


@dataclass
class Settings:
    """Which encoder, and what it wants to read before a text.

    Args:
        model: a sentence-transformers model, a folder or a name on the Hub, that encodes the items anew; None = the
            encoder of the run's semantic embeddings, which are used as they are.
        query_prefix: before every query, its trailing space included.
        passage_prefix: before every item's text; where there is one, the items are encoded anew, too.
    """

    model: str | None = None
    query_prefix: str = ""
    passage_prefix: str = ""

    def __post_init__(self) -> None:
        if self.model is not None and not self.model.strip():
            raise ValueError("`model` is empty; name a sentence-transformers model, or leave it out.")


class DenseRetrieval:
    """Score = cosine of the query's and the item's embedding (bi-encoder, Reimers and Gurevych 2019).

    Simplified: the encoder is used as it comes, not fine-tuned on the log's clicks, and the history is not read. The
    paper's E5 and BGE rows are this with larger encoders.

    Args:
        item_embeddings: `(num_items, dim)` in catalogue order, from the same encoder; any length, zero rows score 0.
        query_encoder: queries → `(num_queries, dim)`, or the name or path of a sentence-transformers model.
        name: the row's name in tables.
        query_prefix: before every query.
        num_parameters: of the encoder.

    Raises:
        ValueError: when the embeddings are no finite matrix, or, in `score`, when the dimensions disagree.
    """

    tasks = frozenset({SEARCH})

    def __init__(
        self,
        item_embeddings: np.ndarray,
        query_encoder: Callable[[list[str]], np.ndarray] | str,
        name: str = NAME,
        query_prefix: str = "",
        num_parameters: int = 0,
    ):
        if item_embeddings.ndim != 2 or not np.isfinite(item_embeddings).all():
            raise ValueError(
                f"`item_embeddings` must be a finite (num_items, dim) matrix; got shape {item_embeddings.shape}."
            )
        self.name = name
        self.item_embeddings = _normalised(item_embeddings)
        self.query_encoder = query_encoder
        self.query_prefix = query_prefix
        self.num_parameters = num_parameters
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
        queries = [self.query_prefix + query for query in queries]
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


def fit(data: TrainingData, settings: Settings, seed: int, folder: Path, checkpoints: Path) -> DenseRetrieval:
    """Take the items' embeddings, or make them with the encoder that the settings name; nothing is learnt.

    Args:
        data: of which texts and embeddings alone are read.
        settings: of the encoder.
        seed: not used, nothing is drawn.
        folder: for the items' embeddings, where they are new, and the settings.
        checkpoints: not used.

    Raises:
        InputError: the model cannot be found or loaded.
    """
    from gensar_hf.embeddings.semantic import encode_texts

    encoder, embeddings = settings.model or data.text_encoder, data.item_embeddings
    if settings.model is not None or settings.passage_prefix:
        embeddings = encode_texts([settings.passage_prefix + text for text in data.item_texts], encoder)
        save_item_embeddings(folder / "item_embeddings.safetensors", embeddings, data.events.item_ids)
    write_json(folder / "settings.json", {**asdict(settings), "model": encoder})
    # Rows of several encoders stand in one table, so one that the settings name is part of the row's name.
    name = NAME if settings.model is None else f"{NAME} ({Path(encoder).name})"
    return DenseRetrieval(embeddings, encoder, name, settings.query_prefix, _num_parameters(encoder))


def _num_parameters(encoder: str) -> int:
    from gensar_hf.embeddings.semantic import _load_encoder

    return sum(parameter.numel() for parameter in _load_encoder(encoder, device=None).parameters())
