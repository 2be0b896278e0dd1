"""Candidates among which a target is ranked: random items for recommendation, the best BM25 hits for search."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from gensar_hf.data.splits import SEARCH, Requests
from gensar_hf.errors import InputError
from gensar_hf.evaluation.bm25_index import BM25Index

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateSets:
    """Candidates of all requests of one task: targets and negatives, shuffled because ties are broken by column.

    Raises:
        ValueError: a row has a repeated or negative item.
    """

    candidates: np.ndarray  # (num_requests, num_candidates) int64 item indices, distinct within a row
    target_columns: np.ndarray  # (num_requests,) int64
    protocol: str  # with the actual number of negatives, such as "random-99" or "bm25-hard-99"

    def __post_init__(self) -> None:
        in_order = np.sort(self.candidates, axis=1)
        if len(faulty := np.flatnonzero((in_order < 0).any(axis=1) | (np.diff(in_order, axis=1) == 0).any(axis=1))):
            raise ValueError(
                f"Candidates must be distinct item indices, at least 0; those of request {faulty[0]} are not."
            )

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def target_items(self) -> np.ndarray:
        """The targets' item indices, `(num_requests,)`."""
        return np.take_along_axis(self.candidates, self.target_columns[:, None], axis=1)[:, 0]


def draw_candidates(
    requests: Requests,
    item_texts: Sequence[str],
    num_negatives: int = 99,
    seed: int = 0,
    columns: Sequence[str] | None = None,
) -> CandidateSets:
    """`bm25_candidates` for search requests, `random_candidates` for recommendation requests."""
    if requests.task == SEARCH:
        return bm25_candidates(requests, item_texts, num_negatives, seed, columns)
    return random_candidates(requests, num_negatives, seed)


def with_negatives(requests: Requests) -> Requests:
    """The requests of users who have not interacted with every item; a warning tells how many others are left out."""
    num_items = requests.events.num_items
    full = [user for user in np.unique(requests.users) if len(np.unique(_items_of_user(requests, user))) == num_items]
    kept = np.flatnonzero(~np.isin(requests.users, full))
    if full:
        logger.warning(
            f"{len(requests) - len(kept)} of {len(requests)} {requests.task} requests are left out: their users, first "
            f"{requests.events.user_ids[full[0]]!r}, have interacted with all {num_items} items, so that no negatives "
            "are left."
        )
    return requests.subset(kept) if full else requests


def random_candidates(requests: Requests, num_negatives: int = 99, seed: int = 0) -> CandidateSets:
    """Draw distinct random items that the user never interacted with in the whole log; the protocol is `random-NUM`.

    Sampled metrics may order systems differently from a full ranking (Krichene and Rendle, KDD 2020): compare them only
    within one protocol. The draw depends on the seed and the request alone, so a request has the same negatives in any
    subset of the requests. If a user has fewer than `num_negatives` items left, all requests get that smaller number: a
    warning is logged and the protocol's name has the smaller number.

    Raises:
        InputError: a user has interacted with every item.
    """
    used_negatives, users = _available_negatives(requests, num_negatives), requests.users
    untouched = np.ones(requests.events.num_items, dtype=bool)

    def negatives(row: int, generator: np.random.Generator) -> np.ndarray:
        clicked = _items_of_user(requests, users[row])
        untouched[clicked] = False
        drawn = generator.choice(np.flatnonzero(untouched), used_negatives, replace=False)
        untouched[clicked] = True
        return drawn

    return _shuffled(requests, negatives, "random", used_negatives, seed)


def bm25_candidates(
    requests: Requests,
    item_texts: Sequence[str],
    num_negatives: int = 99,
    seed: int = 0,
    columns: Sequence[str] | None = None,
) -> CandidateSets:
    """Take the best BM25 hits for the query, without the target; the protocol is `bm25-hard-NUM`.

    Ties are broken in a seeded random order, because the order of a catalogue is correlated with popularity: with ties
    by index, the popularity baseline loses .02 NDCG@10 on MovieLens-100k. Where a query has too few hits, random other
    items fill the row. Items of the user's history are not removed, as in the paper. `item_texts` are in catalogue
    order, made from `columns`, which the protocol names: `bm25-hard(COLUMN, COLUMN)-NUM`. Default: all text columns.
    """
    num_items = len(item_texts)
    if num_items - 1 < num_negatives:
        logger.warning("The catalogue of %d items has only %d hard negatives per request.", num_items, num_items - 1)
    used_negatives = min(num_negatives, num_items - 1)
    query_codes, queries = pd.factorize(np.asarray(requests.query_texts, dtype=object))  # each query is retrieved once
    tie_order = np.random.default_rng(seed).permutation(num_items)
    hits = BM25Index(item_texts).retrieve(list(queries), min(used_negatives + 1, num_items), tie_order)
    num_filled, targets = 0, requests.target_items
    kind = "bm25-hard" if columns is None else f"bm25-hard({', '.join(columns)})"

    def negatives(row: int, generator: np.random.Generator) -> np.ndarray:
        nonlocal num_filled
        matching, target = hits[query_codes[row]], targets[row]
        best = matching[(matching >= 0) & (matching != target)][:used_negatives]
        if len(best) == used_negatives:
            return best
        num_filled += 1
        others = np.setdiff1d(np.arange(num_items), [*best, target])
        return np.append(best, generator.choice(others, used_negatives - len(best), replace=False))

    sets = _shuffled(requests, negatives, kind, used_negatives, seed)
    if num_filled:
        logger.info("%d of %d queries have too few BM25 hits and get random items as well.", num_filled, len(requests))
    return sets


def _available_negatives(requests: Requests, num_negatives: int) -> int:
    """The number of random negatives that every request can have, at most `num_negatives`."""
    events, users = requests.events, np.unique(requests.users)
    num_untouched = [events.num_items - len(np.unique(_items_of_user(requests, user))) for user in users]
    available = min(num_untouched, default=num_negatives)
    if available >= num_negatives:
        return num_negatives
    user_id = events.user_ids[users[num_untouched.index(available)]]
    if available == 0:
        raise InputError(
            f"User {user_id!r} has interacted with all {events.num_items} items, so no random negatives are left; "
            "leave this user's requests out, as `Evaluation` does."
        )
    logger.warning(
        f"User {user_id!r} has no interaction with only {available} of {events.num_items} items: every request gets "
        f"{available} random negatives instead of {num_negatives}."
    )
    return available


def _items_of_user(requests: Requests, user: int) -> np.ndarray:
    """All items the user has clicked, held-out clicks included, with repeats."""
    events = requests.events
    items = events.items[events.offsets[user] : events.offsets[user + 1]]
    return items[items >= 0]


def _shuffled(
    requests: Requests,
    negatives: Callable[[int, np.random.Generator], np.ndarray],
    kind: str,
    num_negatives: int,
    seed: int,
) -> CandidateSets:
    """Target and `negatives(row, generator)` in random order; a generator is seeded with its row's target event."""
    candidates, targets = np.zeros((len(requests), num_negatives + 1), dtype=np.int64), requests.target_items
    for row in tqdm(range(len(requests)), desc=f"{requests.task} candidates", leave=False, delay=2):
        generator = np.random.default_rng([seed, int(requests.targets[row])])
        candidates[row] = generator.permutation(np.append(negatives(row, generator), targets[row]))
    target_columns = (candidates == targets[:, None]).argmax(axis=1)
    return CandidateSets(candidates, target_columns, f"{kind}-{num_negatives}")
