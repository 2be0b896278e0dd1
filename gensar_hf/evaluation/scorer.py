"""Systems under evaluation: the `Scorer` protocol, and GenSAR as one of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.errors import InputError
from gensar_hf.evaluation.candidates import CandidateSets
from gensar_hf.evaluation.metrics import ndcg
from gensar_hf.evaluation.ranks import rank_of_target

if TYPE_CHECKING:  # tables of finished evaluations are rendered without torch
    from gensar_hf.pipeline import GenSARPipeline

logger = logging.getLogger(__name__)

ITEM_WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class Scorer(Protocol):
    """A system under evaluation. It scores items for requests.

    Attributes:
        name: row name in tables.
        tasks: supported tasks, of `RECOMMENDATION` and `SEARCH`.
    """

    name: str
    tasks: frozenset[str]

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Score each request's candidates.

        Args:
            requests: at most 256 in an evaluation. A scorer may read histories and queries, never targets.
            candidates: `(num_requests, num_candidates)` item indices, distinct within a row.

        Returns:
            `(num_requests, num_candidates)`, higher is better.
        """
        ...


class GeneratorScorer:
    """GenSAR as a scorer: log-probability of each candidate's identifier given behavior token and history.

    Differs from the paper: every candidate is scored exactly, where the paper restricts a beam search to them.

    Args:
        pipeline: a trained model. Items are matched to its identifier table by item id.
        name: row name in tables.
    """

    tasks = frozenset({RECOMMENDATION, SEARCH})

    def __init__(self, pipeline: GenSARPipeline, name: str = "GenSAR") -> None:
        self.pipeline = pipeline
        self.name = name

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """`(num_requests, num_candidates)` natural logarithms.

        Raises:
            InputError: an item of the requests' catalogue is not in the pipeline's identifier table.
        """
        from gensar_hf.generator.history import EventArrays

        rows = self.table_rows(requests.events.item_ids)
        histories = [
            EventArrays.of_user_events(requests.events, requests.history(row), rows) for row in range(len(requests))
        ]
        queries = requests.query_texts if requests.task == SEARCH else None
        return self.pipeline.score_items(histories, rows[candidates], queries)

    def table_rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """Rows of items in the pipeline's identifier table, `(num_items,)` int64.

        Raises:
            InputError: an item is not in the table.
        """
        rows = self.pipeline.tokenizer.identifiers.rows()
        unknown = [item_id for item_id in item_ids if item_id not in rows]
        if unknown:
            raise InputError(
                f"{len(unknown):,} of the dataset's {len(item_ids):,} items are not in the model's catalogue, the "
                f"first is {unknown[0]!r}; add them to the model with `add_items`, or leave them out of the dataset."
            )
        return np.array([rows[item_id] for item_id in item_ids], dtype=np.int64)


def request_history(requests: Requests, row: int) -> list[dict[str, Any]]:
    """The history of a request in the form that `GenSARPipeline` reads."""
    events, history = requests.events, []
    for event in requests.history(row):
        item, query = events.items[event], events.queries[event]
        entry = {"item_id": events.item_ids[item]} if item >= 0 else {}
        history.append({**entry, "query": events.query_texts[query]} if query >= 0 else entry)
    return history


def choose_item_weight(
    pipe: GenSARPipeline,
    requests: Mapping[str, Requests],
    candidates: Mapping[str, CandidateSets],
    weights: Sequence[float] = ITEM_WEIGHTS,
) -> float:
    """The value of `config.item_weight` with the highest NDCG@5 on validation requests, mean over the tasks.

    The score is linear in the weight (for catalogues without added items), so two scoring passes cover all weights.

    Args:
        pipe: its model has item vectors. Its `item_weight` is not changed.
        requests: validation requests by task.
        candidates: candidates by task; tasks without candidates are ignored.
        weights: values to compare.

    Returns:
        the best weight, the first one if several are equally good.

    Raises:
        ValueError: the model has no item vectors, or there is no task.
    """
    config = pipe.model.config
    if not getattr(config, "num_items", 0) or not candidates:
        raise ValueError("`item_weight` is chosen for a model with item vectors, on at least one request.")
    scorer, configured, quality = GeneratorScorer(pipe), config.item_weight, np.zeros(len(weights))
    try:
        for task, sets in candidates.items():
            config.item_weight = 0.0
            identifiers = scorer.score(requests[task], sets.candidates)
            config.item_weight = 1.0
            vectors = scorer.score(requests[task], sets.candidates) - identifiers
            ranks = [rank_of_target(identifiers + weight * vectors, sets.target_columns) for weight in weights]
            quality += np.array([ndcg(target_ranks, 5) for target_ranks in ranks]) / len(candidates)
    finally:
        config.item_weight = configured
    logger.info("NDCG@5 by item weight: %s", dict(zip(weights, quality.round(4).tolist(), strict=True)))
    return weights[int(quality.argmax())]
