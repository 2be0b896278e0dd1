"""Systems under evaluation: the `Scorer` protocol, and GenSAR as one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.errors import InputError

if TYPE_CHECKING:  # tables of finished evaluations are rendered without torch
    from gensar_hf.pipeline import GenSARPipeline

_SCORED_ITEMS = 4096  # of a catalogue, each of which is scored for each request
_FULL_RANKING_BEAMS = 128  # in a full ranking of more


class Scorer(Protocol):
    """A system under evaluation. It scores items for requests."""

    name: str  # in tables
    tasks: frozenset[str]  # of `RECOMMENDATION` and `SEARCH`

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Scores of `(num_requests, num_candidates)` item indices, distinct within a row; higher is better.

        A scorer may read the histories and queries of the requests (256 at a time), never their targets.
        """
        ...


class GeneratorScorer:
    """GenSAR as a scorer: log-probability of each candidate's identifier given behavior token and history.

    Differs from the paper: every candidate is scored exactly, where the paper restricts a beam search to them.

    Args:
        pipeline: a trained model. Items are matched to its identifier table by item id.
        name: row name in tables.
        parts: of the scores that count, see `score_parts`; default: all.
        as_answered: score only the items that a search or recommendation answers with: faster for whole catalogues.

    In a full ranking of more than 4,096 items by a model that asks its decoder, those are scored that a search with 128
    beams proposes, by identifier, vector and text; the others get -inf. To decode every identifier takes seconds a
    request.
    """

    tasks = frozenset({RECOMMENDATION, SEARCH})

    def __init__(
        self, pipeline: GenSARPipeline, name: str = "GenSAR", parts: Sequence[str] = (), as_answered: bool = False
    ) -> None:
        self.pipeline, self.name = pipeline, name
        self.parts, self.as_answered = parts, as_answered
        self._rows: tuple[Any, Any, np.ndarray] | None = None  # of the last catalogue, as item ids and as table

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """`(num_requests, num_candidates)` natural logarithms, up to one number for each request.

        Raises:
            InputError: an item of the requests' catalogue is not in the pipeline's identifier table.
        """
        from gensar_hf.generator.history import EventArrays

        rows = self.table_rows(requests.events.item_ids)
        histories = [
            EventArrays.of_user_events(requests.events, requests.history(row), rows) for row in range(len(requests))
        ]
        queries = requests.query_texts if requests.task == SEARCH else None
        is_full = candidates.shape[1] == len(rows) > _SCORED_ITEMS and self._decodes(queries is not None)
        if not self.as_answered and not is_full:
            return self.pipeline.score_items(
                histories, rows[candidates], queries, parts=self.parts, is_normalized=False
            )
        by_row = np.full((len(requests), self.pipeline.tokenizer.identifiers.num_items), -np.inf, dtype=np.float32)
        num_beams = None if self.as_answered else _FULL_RANKING_BEAMS
        for row, (found, values) in enumerate(self.pipeline.found_items(histories, queries, self.parts, num_beams)):
            by_row[row, found] = values
        return np.take_along_axis(by_row, rows[candidates], axis=1)

    def _decodes(self, is_search: bool) -> bool:
        """Whether identifiers count in the scores, which the decoder scores."""
        config = self.pipeline.model.config
        if not getattr(config, "num_items", 0):
            return True
        return "identifier" in self.parts if self.parts else config.score_weights(is_search)[0] > 0

    def table_rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """Rows of items in the pipeline's identifier table, `(num_items,)` int64; InputError: an item is not there."""
        table = self.pipeline.tokenizer.identifiers
        if self._rows is not None and self._rows[0] is item_ids and self._rows[1] is table:
            return self._rows[2]
        rows = table.rows()
        unknown = [item_id for item_id in item_ids if item_id not in rows]
        if unknown:
            raise InputError(
                f"{len(unknown):,} of the dataset's {len(item_ids):,} items are not in the model's catalogue, the "
                f"first is {unknown[0]!r}; add them to the model with `add_items`, or leave them out of the dataset."
            )
        known = np.array([rows[item_id] for item_id in item_ids], dtype=np.int64)
        self._rows = item_ids, table, known
        return known


def request_history(requests: Requests, row: int) -> list[dict[str, Any]]:
    """The history of a request in the form that `GenSARPipeline` reads."""
    events, history = requests.events, []
    for event in requests.history(row):
        item, query = events.items[event], events.queries[event]
        entry = {"item_id": events.item_ids[item]} if item >= 0 else {}
        history.append({**entry, "query": events.query_texts[query]} if query >= 0 else entry)
    return history
