"""Full ranking: the target's rank among all items of the catalogue."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from gensar_hf.data.splits import Requests
from gensar_hf.evaluation.ranks import rank_in_catalogue

if TYPE_CHECKING:
    from gensar_hf.evaluation.protocol import Scorer

FULL_RANKING = "full-ranking"
FULL_RANKING_UNSEEN = "full-ranking-unseen"
"""Names of the protocol: with all items, and without those in the user's history (the target always stays)."""


def full_ranks(
    scorer: "Scorer",
    requests: Requests,
    exclude_history: bool = False,
    seed: int = 0,
    chunk_size: int = 256,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Rank each request's target among all items by a scorer.

    Args:
        scorer: asked for the scores of all items, a chunk of requests at a time.
        requests: the questions.
        exclude_history: take the items in the user's history out of the list, except the target.
        seed: decides between equal scores.
        chunk_size: requests per call; memory is `chunk_size * num_items` scores.
        rows: of the requests that are asked; default: all of them.

    Returns:
        `(num_requests,)` or `(num_rows,)` int64, from 1.
    """
    num_items = requests.events.num_items
    # Drawn at once: the same for every chunk size and every choice of rows.
    tie_draws = np.random.default_rng(seed).random(len(requests))
    ranks = [np.zeros(0, dtype=np.int64)]
    rows = np.arange(len(requests)) if rows is None else rows
    for part in _chunks(rows, chunk_size, f"{scorer.name}, all items"):
        chunk = requests.subset(part)
        catalogue = np.broadcast_to(np.arange(num_items), (len(part), num_items))
        excluded = history_items(chunk) if exclude_history else None
        scores = scorer.score(chunk, catalogue)
        ranks.append(rank_in_catalogue(scores, chunk.target_items, tie_draws[part], excluded))
    return np.concatenate(ranks)


def history_items(requests: Requests) -> np.ndarray:
    """Which items stand in each request's history, `(num_requests, num_items)` bool."""
    in_history = np.zeros((len(requests), requests.events.num_items), dtype=bool)
    for row in range(len(requests)):
        items = requests.events.items[requests.history(row)]
        in_history[row, items[items >= 0]] = True
    return in_history


def _chunks(rows: np.ndarray, chunk_size: int, label: str) -> Iterator[np.ndarray]:
    for start in tqdm(range(0, len(rows), chunk_size), desc=label, leave=False, delay=2):
        yield rows[start : start + chunk_size]
