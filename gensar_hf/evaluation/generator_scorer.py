"""GenSAR under evaluation: exact scores of the candidates' identifiers."""

from typing import Any

import numpy as np

from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.pipeline import GenSARPipeline


class GeneratorScorer:
    """Score = log-probability of the candidate's identifier, behavior token and history given (GenSAR, inference).

    Differs from the paper: every candidate is scored exactly, where the paper restricts a beam search to them.

    Args:
        pipeline: trained; its catalogue is the event log's.
        name: the row's name in tables.
    """

    tasks = frozenset({RECOMMENDATION, SEARCH})

    def __init__(self, pipeline: GenSARPipeline, name: str = "GenSAR") -> None:
        self.pipeline = pipeline
        self.name = name

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """`(num_requests, num_candidates)` natural logarithms."""
        histories = [request_history(requests, row) for row in range(len(requests))]
        queries = requests.query_texts if requests.task == SEARCH else None
        table = self.pipeline.tokenizer.identifiers
        rows = np.array([table.index_of(item_id) for item_id in requests.events.item_ids])
        return self.pipeline.score_items(histories, rows[candidates], queries)


def request_history(requests: Requests, row: int) -> list[dict[str, Any]]:
    """What the user of a request had done, as `GenSARPipeline` takes it."""
    events, history = requests.events, []
    for event in requests.history(row):
        entry = {}
        if events.items[event] >= 0:
            entry["item_id"] = events.item_ids[events.items[event]]
        if events.queries[event] >= 0:
            entry["query"] = events.query_texts[events.queries[event]]
        history.append(entry)
    return history
