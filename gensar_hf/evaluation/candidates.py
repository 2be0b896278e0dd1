"""Candidates among which a target is ranked: random items for recommendation, the best BM25 hits for search."""

import logging
from collections.abc import Iterator, Sequence
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
    """Candidates of all requests of one task: the target and its negatives, in a seeded shuffled order.

    The shuffle matters: `rank_of_target` breaks ties by the order.

    Args:
        candidates: `(num_requests, num_candidates)` int64 item indices, distinct within a row.
        target_columns: `(num_requests,)` int64, the column of the target.
        protocol: name with the actual number of negatives, such as `"random-99"` or `"bm25-hard-99"`.
        seed: of the negatives and the order.

    Raises:
        ValueError: shapes disagree, a row has a repeated or negative item, or a target column is out of range.
    """

    candidates: np.ndarray
    target_columns: np.ndarray
    protocol: str
    seed: int

    def __post_init__(self) -> None:
        if self.candidates.ndim != 2 or self.target_columns.shape != self.candidates.shape[:1]:
            raise ValueError(
                "`candidates` must be (num_requests, num_candidates) and `target_columns` (num_requests,); "
                f"got {self.candidates.shape} and {self.target_columns.shape}."
            )
        in_order = np.sort(self.candidates, axis=1)
        faulty = np.flatnonzero((in_order < 0).any(axis=1) | (np.diff(in_order, axis=1) == 0).any(axis=1))
        if len(faulty):
            raise ValueError(
                f"Candidates must be distinct item indices, at least 0; those of request {faulty[0]} are not."
            )
        outside = np.flatnonzero((self.target_columns < 0) | (self.target_columns >= self.candidates.shape[1]))
        if len(outside):
            raise ValueError(
                f"Target columns must lie in the {self.candidates.shape[1]} columns; that of request {outside[0]} is "
                f"{self.target_columns[outside[0]]}."
            )

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def target_items(self) -> np.ndarray:
        """The targets' item indices, `(num_requests,)`."""
        return np.take_along_axis(self.candidates, self.target_columns[:, None], axis=1)[:, 0]


def draw_candidates(
    requests: Requests, item_texts: Sequence[str], num_negatives: int = 99, seed: int = 0
) -> CandidateSets:
    """Draw BM25-hard candidates for search requests, random candidates for recommendation requests.

    Args:
        requests: of one task, at least one.
        item_texts: one text per item, in catalogue order.
        num_negatives: candidates per request, without the target.
        seed: of the draw and the order.

    Raises:
        InputError: as `random_candidates`.
    """
    if requests.task == SEARCH:
        return bm25_candidates(requests, item_texts, num_negatives, seed)
    return random_candidates(requests, num_negatives, seed)


def random_candidates(requests: Requests, num_negatives: int = 99, seed: int = 0) -> CandidateSets:
    """Draw distinct random items that the user never interacted with in the whole log.

    Sampled metrics may order systems differently from a full ranking (Krichene and Rendle, KDD 2020): compare them only
    within one protocol. The draw depends on the seed and the request alone, so a request has the same negatives in any
    subset of the requests.

    Args:
        requests: the requests. Their users' interactions are those of `requests.events`.
        num_negatives: negatives per request. If a user has fewer items left, all requests get that smaller number: a
            warning is logged and the protocol's name has the smaller number.
        seed: of the draw and the order.

    Returns:
        candidate sets with protocol `random-NUM`.

    Raises:
        InputError: a user has interacted with every item.
    """
    num_items = requests.events.num_items
    used_negatives = _available_negatives(requests, num_negatives)
    rows = []
    for generator, user, target in _seeded_requests(requests, seed):
        untouched = np.ones(num_items, dtype=bool)
        untouched[_items_of_user(requests, user)] = False
        negatives = generator.choice(np.flatnonzero(untouched), used_negatives, replace=False)
        rows.append(generator.permutation(np.append(negatives, target)))
    return _candidate_sets(requests, rows, used_negatives + 1, f"random-{used_negatives}", seed)


def bm25_candidates(
    requests: Requests, item_texts: Sequence[str], num_negatives: int = 99, seed: int = 0
) -> CandidateSets:
    """Take the best BM25 hits for the query, without the target.

    Hits share at least one word with the query. Ties are broken in a seeded random order, because the order of a
    catalogue is correlated with popularity: with ties by index, the negatives of MovieLens-100k are more popular films
    and the popularity baseline loses .02 NDCG@10. Where a query has too few hits, random other items fill the row.
    Items of the user's history are not removed, as in the paper.

    Args:
        requests: search requests.
        item_texts: one text per item, in catalogue order.
        num_negatives: negatives per request, at most the number of other items.
        seed: of the random items and the order.

    Returns:
        candidate sets with protocol `bm25-hard-NUM`.
    """
    num_items = len(item_texts)
    if num_items - 1 < num_negatives:
        logger.warning("The catalogue of %d items has only %d hard negatives per request.", num_items, num_items - 1)
    used_negatives = min(num_negatives, num_items - 1)
    query_codes, queries = pd.factorize(np.asarray(requests.query_texts, dtype=object))  # each query is retrieved once
    tie_order = np.random.default_rng(seed).permutation(num_items)
    hits, _ = BM25Index(item_texts).retrieve(list(queries), min(used_negatives + 1, num_items), tie_order)
    rows, num_filled = [], 0
    for row, (generator, _, target) in enumerate(_seeded_requests(requests, seed)):
        matching = hits[query_codes[row]]
        negatives = matching[(matching >= 0) & (matching != target)][:used_negatives]
        num_missing = used_negatives - len(negatives)
        if num_missing:
            others = np.ones(num_items, dtype=bool)
            others[negatives] = False
            others[target] = False
            negatives = np.append(negatives, generator.choice(np.flatnonzero(others), num_missing, replace=False))
            num_filled += 1
        rows.append(generator.permutation(np.append(negatives, target)))
    if num_filled:
        logger.info("%d of %d queries have too few BM25 hits and get random items as well.", num_filled, len(requests))
    return _candidate_sets(requests, rows, used_negatives + 1, f"bm25-hard-{used_negatives}", seed)


def _available_negatives(requests: Requests, num_negatives: int) -> int:
    """The number of random negatives that every request can have, at most `num_negatives`."""
    events, users = requests.events, np.unique(requests.users)
    num_untouched = np.array([events.num_items - len(np.unique(_items_of_user(requests, user))) for user in users])
    if len(users) == 0 or num_untouched.min() >= num_negatives:
        return num_negatives
    fewest = int(num_untouched.argmin())
    available, user_id = int(num_untouched[fewest]), events.user_ids[users[fewest]]
    if available == 0:
        raise InputError(
            f"User {user_id!r} has interacted with all {events.num_items} items, so no random negatives are left; "
            "evaluate with full ranking, or leave this user out."
        )
    logger.warning(
        "User %r has no interaction with only %d of %d items: every request gets %d random negatives instead of %d.",
        user_id,
        available,
        events.num_items,
        available,
        num_negatives,
    )
    return available


def _items_of_user(requests: Requests, user: int) -> np.ndarray:
    """All items the user has clicked, held-out clicks included, with repeats."""
    events = requests.events
    items = events.items[events.offsets[user] : events.offsets[user + 1]]
    return items[items >= 0]


def _seeded_requests(requests: Requests, seed: int) -> Iterator[tuple[np.random.Generator, int, int]]:
    """For each request a random generator seeded with its target's event, its user and its target item."""
    triples = zip(requests.targets, requests.users, requests.target_items, strict=True)
    for event, user, item in tqdm(
        triples, desc=f"{requests.task} candidates", total=len(requests), leave=False, delay=2
    ):
        yield np.random.default_rng([seed, int(event)]), int(user), int(item)


def _candidate_sets(
    requests: Requests, rows: list[np.ndarray], num_candidates: int, protocol: str, seed: int
) -> CandidateSets:
    candidates = np.array(rows, dtype=np.int64).reshape(len(rows), num_candidates)
    target_columns = (candidates == requests.target_items[:, None]).argmax(axis=1)
    return CandidateSets(candidates, target_columns, protocol, seed)
