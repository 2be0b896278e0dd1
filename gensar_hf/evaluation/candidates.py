"""The candidates among which a target is ranked: random items for recommendation, BM25's best for search."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from gensar_hf.data.splits import Requests
from gensar_hf.errors import InputError
from gensar_hf.evaluation.bm25_index import BM25Index
from gensar_hf.files import load_array_metadata, load_arrays, save_arrays

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateSets:
    """The candidates of every request of one task: the target and its negatives, in a seeded shuffled order.

    The shuffle matters: `rank_of_target` lets the order decide between equal scores.

    Args:
        candidates: `(num_requests, num_candidates)` int64 item indices, distinct within a row.
        target_columns: `(num_requests,)` int64, the column of the target.
        protocol: name with the true number of negatives, `"random-99"` or `"bm25-hard-99"`.
        seed: what the negatives and the order were drawn with.

    Raises:
        ValueError: when shapes disagree, a row holds an item twice or below 0, or a target column is outside.
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
            raise ValueError(f"The candidates of request {faulty[0]} are not distinct item indices from 0.")
        outside = np.flatnonzero((self.target_columns < 0) | (self.target_columns >= self.candidates.shape[1]))
        if len(outside):
            raise ValueError(
                f"The target column of request {outside[0]} is {self.target_columns[outside[0]]}, outside."
            )

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def target_items(self) -> np.ndarray:
        """The targets' item indices, `(num_requests,)`."""
        return np.take_along_axis(self.candidates, self.target_columns[:, None], axis=1)[:, 0]

    def subset(self, rows: np.ndarray) -> "CandidateSets":
        """The same candidates for some of the requests only, beside `Requests.subset(rows)`."""
        return CandidateSets(self.candidates[rows], self.target_columns[rows], self.protocol, self.seed)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; protocol and seed go to its header."""
        arrays = {"candidates": self.candidates, "target_columns": self.target_columns}
        save_arrays(path, arrays, {"protocol": self.protocol, "seed": str(self.seed)})

    @classmethod
    def load(cls, path: str | Path) -> "CandidateSets":
        """Read what `save` has written.

        Raises:
            InputError: when the file is missing, damaged, or holds something else.
        """
        arrays, header = load_arrays(path), load_array_metadata(path)
        try:
            return cls(arrays["candidates"], arrays["target_columns"], header["protocol"], int(header["seed"]))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path} holds no candidate sets ({error}); delete it and run the evaluation stage again."
            ) from error


def random_candidates(requests: Requests, num_negatives: int = 99, seed: int = 0) -> CandidateSets:
    """The target among distinct random items that its user has never interacted with, in the whole log.

    Krichene and Rendle (KDD 2020) show that such figures do not tell systems apart as a full ranking would: never
    compare them with figures of another protocol. The draw depends on the seed and the request only, so a request
    meets the same negatives whichever others are evaluated with it.

    Args:
        requests: the questions; their users' interactions are taken from `requests.events`.
        num_negatives: negatives per request. When some user has left fewer items untouched, every request gets that
            smaller number, a warning says so, and the protocol's name carries it.
        seed: of the draw and the order.

    Returns:
        candidate sets with protocol `random-NUM`.

    Raises:
        InputError: when a user has interacted with every item.
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
    """The target among the best BM25 hits for its query that are not the target.

    Hits share at least one word with the query; equal scores are in a seeded random order, because the order of a
    catalogue says something about popularity: with ties by index the negatives of MovieLens-100k are the more popular
    films, and the popularity baseline loses .02 NDCG@10. Where a query has too few hits,
    random other items (any but the target and the hits) fill the row up. Items of the user's history stay in: they are
    hits like others, and the paper does not take them out.

    Args:
        requests: search requests.
        item_texts: one text per item, in catalogue order.
        num_negatives: negatives per request; at most the number of the other items.
        seed: of the filling and the order.

    Returns:
        candidate sets with protocol `bm25-hard-NUM`.
    """
    num_items = len(item_texts)
    if num_items - 1 < num_negatives:
        logger.warning("The catalogue of %d items gives only %d hard negatives.", num_items, num_items - 1)
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
        logger.info("%d of %d queries have too few BM25 hits; random items fill them up.", num_filled, len(requests))
    return _candidate_sets(requests, rows, used_negatives + 1, f"bm25-hard-{used_negatives}", seed)


def _available_negatives(requests: Requests, num_negatives: int) -> int:
    """The number of random negatives that every request can have, with a warning when it is smaller than asked."""
    events, users = requests.events, np.unique(requests.users)
    num_untouched = np.array([events.num_items - len(np.unique(_items_of_user(requests, user))) for user in users])
    if len(users) == 0 or num_untouched.min() >= num_negatives:
        return num_negatives
    fewest = int(num_untouched.argmin())
    available, user_id = int(num_untouched[fewest]), events.user_ids[users[fewest]]
    if available == 0:
        raise InputError(
            f"User {user_id!r} has interacted with all {events.num_items} items, so no random negatives are left; "
            "evaluate by full ranking."
        )
    logger.warning(
        "User %r has left only %d of %d items untouched: every request gets %d random negatives instead of %d.",
        user_id,
        available,
        events.num_items,
        available,
        num_negatives,
    )
    return available


def _items_of_user(requests: Requests, user: int) -> np.ndarray:
    """All items the user has ever clicked, held-out ones included, with repeats."""
    events = requests.events
    items = events.items[events.offsets[user] : events.offsets[user + 1]]
    return items[items >= 0]


def _seeded_requests(requests: Requests, seed: int) -> Iterator[tuple[np.random.Generator, int, int]]:
    """Each request's own generator (seeded by its target's event), its user and its target item."""
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
