"""BM25 over the items' texts: lexical search without a history."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.baselines.query_scores import gather_query_scores
from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.evaluation.bm25_index import BM25Index
from gensar_hf.files import write_json

NAME = "BM25"
REFERENCE = (
    "Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, Foundations and Trends in "
    "Information Retrieval, 2009"
)


@dataclass
class Settings:
    """BM25's two parameters.

    Args:
        k1: how much a word that a text repeats counts more than once; 0 = not more.
        b: how far scores are divided by the text's length: 0 = not at all, 1 = fully.

    Raises:
        ValueError: a value out of range.
    """

    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        if self.k1 < 0:
            raise ValueError(f"`k1` must not be negative; got {self.k1}.")
        if not 0 <= self.b <= 1:
            raise ValueError(f"`b` must lie between 0 and 1; got {self.b}.")


class BM25:
    """Score = BM25 of the item's text for the request's query (Robertson and Zaragoza 2009), as `BM25Index` counts it.

    Simplified: one field and no stemming. On BM25-hard candidates it cannot shine, whatever its parameters: all
    negatives are the best answers of an index with `bm25s`' default ones.

    Args:
        item_texts: one text per item in catalogue order, or an index that is there already.
        name: the row's name in tables.
    """

    tasks = frozenset({SEARCH})
    num_parameters = 0

    def __init__(self, item_texts: Sequence[str] | BM25Index, name: str = NAME):
        self.name = name
        self.index = item_texts if isinstance(item_texts, BM25Index) else BM25Index(item_texts)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """BM25 of each candidate, `(num_requests, num_candidates)` float32; 0 where no word is shared."""
        return gather_query_scores(requests, candidates, self.index.scores)


def fit(data: TrainingData, settings: Settings, seed: int, folder: Path, checkpoints: Path) -> BM25:
    """Index the items' texts; the folder gets `settings.json`, for the index is quicker made than read.

    Args:
        data: of which the texts alone are read.
        settings: of the index.
        seed: not used, nothing is drawn.
        folder: for the settings.
        checkpoints: not used.
    """
    write_json(folder / "settings.json", asdict(settings))
    return BM25(BM25Index(data.item_texts, settings.k1, settings.b))
