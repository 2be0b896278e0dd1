"""Codes → identifiers that no two items share, at the least distortion that a top-down pass can give.

One rule for every level, coarse to fine: under one prefix, a code may hold at most K^(levels after it) items, because
that is how many identifiers begin with it. A code that holds more gives its surplus to other codes under the same
prefix. On the last level the limit is 1, and the codes are assigned by the Hungarian algorithm. Shared levels are
treated once, for both kinds together, so both identifiers of an item keep the same shared prefix.
"""

from dataclasses import dataclass

import numpy as np

from gensar_hf.artifacts import DataError
from gensar_hf.identifiers.joint_codes import JointCodes


@dataclass(frozen=True)
class UniqueIdentifiers:
    """What `assign_unique_identifiers` returns.

    Attributes:
        semantic_codes: `(num_items, num_levels)` int64; all rows differ.
        collaborative_codes: the same; the shared levels are equal to those of `semantic_codes`.
        report: for `"semantic"` and `"collaborative"` each: `collision_rate_before`, `collision_rate_after`,
            `items_moved`, `distortion_before` and `distortion_after` (squared error of the latents, mean over items);
            and `prefixes_moved`, the number of items whose shared codes had to change.
    """

    semantic_codes: np.ndarray
    collaborative_codes: np.ndarray
    report: dict


def collision_rate(codes: np.ndarray) -> float:
    """1 − distinct identifiers / items.

    Args:
        codes: `(num_items, num_levels)`, at least one item.

    >>> collision_rate(np.array([[0, 1], [0, 1], [2, 1], [0, 2]]))
    0.25
    """
    return 1 - len(np.unique(codes, axis=0)) / len(codes)


def assign_unique_identifiers(codes: JointCodes) -> UniqueIdentifiers:
    """Change as few codes as needed, and by as little as possible, so that each kind's identifiers are distinct.

    An item that collides with no other keeps its codes, unless its prefix is too full (more than K^n items with n
    levels to come). Items that collide on the last level are assigned, jointly, to their own code and to the free codes
    under their prefix with the least sum of squared distances. If a prefix is too full, those of its items that lose
    least move to the nearest code with room on the level in question, and the levels after it are quantized anew. With
    one specific level the level in question is the last shared one, so both identifiers of the moved item change;
    with two or more only the kind that needs it, until K^L_n items share one shared prefix.

    Args:
        codes: from `JointRQVAE.encode`.

    Returns:
        `UniqueIdentifiers`; the same input gives the same result.

    Raises:
        DataError: there are more items than identifiers; the message says how many levels or codes would do.
    """
    require_capacity(codes.num_items, codes.codebook_size, codes.num_levels)
    num_shared = codes.num_shared_levels
    latent_dim = codes.latents.shape[1] // 2
    residuals = codes.latents.astype(np.float64)
    nothing_moved = np.zeros(codes.num_items, dtype=bool)
    shared = _Chain(residuals, codes.semantic_codes[:, :num_shared], codes.shared_codebooks, nothing_moved)
    shared.spread(np.zeros(codes.num_items, dtype=np.int64), len(codes.semantic_codebooks))
    prefixes = _row_ids(shared.codes)
    unique = []
    for kind_codes, codebooks, half in (
        (codes.semantic_codes, codes.semantic_codebooks, slice(latent_dim)),
        (codes.collaborative_codes, codes.collaborative_codebooks, slice(latent_dim, None)),
    ):
        specific = _Chain(shared.residuals[:, half], kind_codes[:, num_shared:], codebooks, shared.stale)
        specific.spread(prefixes, 0)
        unique.append(np.concatenate([shared.codes, specific.codes], axis=1))
    return UniqueIdentifiers(unique[0], unique[1], _report(codes, unique[0], unique[1]))


def require_capacity(num_items: int, codebook_size: int, num_levels: int) -> None:
    """Refuse a catalogue with more items than identifiers.

    Raises:
        DataError: `num_items > codebook_size ** num_levels`.
    """
    if num_items <= codebook_size**num_levels:
        return
    enough_codes, enough_levels = codebook_size, num_levels
    while enough_codes**num_levels < num_items:
        enough_codes += 1
    while codebook_size**enough_levels < num_items:
        enough_levels += 1
    raise DataError(
        f"There are {num_items} items, but {num_levels} levels of {codebook_size} codes make only "
        f"{codebook_size**num_levels} identifiers; use at least {enough_levels} levels or codebooks of at least "
        f"{enough_codes} codes."
    )


class _Chain:
    """Consecutive levels of one residual quantizer, their codes being made to fit level by level.

    `stale` marks the items whose codes on the levels to come are void, because an earlier code of theirs has changed.
    """

    def __init__(self, latents: np.ndarray, codes: np.ndarray, codebooks: np.ndarray, stale: np.ndarray) -> None:
        self.residuals = latents.copy()
        self.codes = codes.astype(np.int64)
        self.codebooks = codebooks.astype(np.float64)
        self.stale = stale.copy()

    def spread(self, parents: np.ndarray, levels_after: int) -> None:
        """Bring every code of every level down to what it may hold.

        Args:
            parents: `(num_items,)` int64, number of the prefix before the first level of this chain.
            levels_after: levels that follow this chain.
        """
        num_levels, codebook_size = self.codebooks.shape[:2]
        for level, codebook in enumerate(self.codebooks):
            level_codes = self.codes[:, level]  # a view: changes go through
            level_codes[self.stale] = _distances(self.residuals[self.stale], codebook).argmin(axis=1)
            capacity = codebook_size ** (num_levels - level - 1 + levels_after)
            before = level_codes.copy()
            _relieve(self.residuals, level_codes, parents, codebook, capacity)
            self.stale |= level_codes != before
            self.residuals -= codebook[level_codes]
            parents = _row_ids(np.stack([parents, level_codes], axis=1))


def _relieve(
    residuals: np.ndarray, codes: np.ndarray, parents: np.ndarray, codebook: np.ndarray, capacity: int
) -> None:
    """Change `codes` in place so that no (parent, code) holds more than `capacity` items."""
    keys = parents * len(codebook) + codes
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    is_crowded = counts[inverse] > capacity
    if not is_crowded.any():
        return
    solve = _assign_last_level if capacity == 1 else _move_surplus
    by_parent = np.argsort(parents, kind="stable")
    starts = np.searchsorted(parents[by_parent], np.unique(parents[is_crowded]), side="left")
    ends = np.searchsorted(parents[by_parent], np.unique(parents[is_crowded]), side="right")
    for start, end in zip(starts, ends, strict=True):
        siblings = by_parent[start:end]
        crowded = siblings[is_crowded[siblings]]
        load = np.bincount(codes[siblings], minlength=len(codebook))
        codes[crowded] = solve(residuals[crowded], codes[crowded], load, codebook, capacity)


def _assign_last_level(
    residuals: np.ndarray, codes: np.ndarray, load: np.ndarray, codebook: np.ndarray, capacity: int
) -> np.ndarray:
    """Codes for the colliding items of one prefix, all different and not used by its other items.

    Args:
        residuals: `(num_colliding, codebook_dim)`.
        codes: `(num_colliding,)`, their present codes.
        load: `(codebook_size,)`, items of the prefix per code.
        codebook: `(codebook_size, codebook_dim)`.
        capacity: 1.

    Returns:
        `(num_colliding,)` codes with the least sum of squared distances.
    """
    from scipy.optimize import linear_sum_assignment  # here, because it takes as long to import as the whole package

    allowed = np.flatnonzero((load == 0) | (load > capacity))
    _, columns = linear_sum_assignment(_distances(residuals, codebook[allowed]))
    return allowed[columns]


def _move_surplus(
    residuals: np.ndarray, codes: np.ndarray, load: np.ndarray, codebook: np.ndarray, capacity: int
) -> np.ndarray:
    """Move items off the crowded codes of one prefix, cheapest first, each to the nearest code with room.

    Every round asks each item of a crowded code for its nearest code with room, and moves those that lose least, as
    many as their code has to give and the other code can take. A round ends the surplus or fills a code, so there are
    at most `codebook_size` rounds.

    Args:
        residuals: `(num_crowded, codebook_dim)`, the items of the crowded codes.
        codes: `(num_crowded,)`, their present codes.
        load: `(codebook_size,)`, items of the prefix per code.
        codebook: `(codebook_size, codebook_dim)`.
        capacity: items that a code may hold.

    Returns:
        `(num_crowded,)`, the new codes.
    """
    codes, load = codes.copy(), load.copy()
    distances = _distances(residuals, codebook)
    preferences = distances.argsort(axis=1, kind="stable").astype(np.int32)  # one sort; rounds only step along it
    position = np.zeros(len(codes), dtype=np.int64)
    own_distances = np.take_along_axis(distances, codes[:, None], axis=1)[:, 0]
    waiting = np.arange(len(codes))
    while len(waiting := waiting[load[codes[waiting]] > capacity]):
        blocked = waiting
        while len(blocked := blocked[load[preferences[blocked, position[blocked]]] >= capacity]):
            position[blocked] += 1
        targets = preferences[waiting, position[waiting]]
        losses = distances[waiting, targets] - own_distances[waiting]
        leaves = _rank_within(codes[waiting], losses) < (load - capacity)[codes[waiting]]
        rows, targets, losses = waiting[leaves], targets[leaves], losses[leaves]
        fits = _rank_within(targets, losses) < (capacity - load)[targets]
        rows, targets = rows[fits], targets[fits]
        load += np.bincount(targets, minlength=len(load)) - np.bincount(codes[rows], minlength=len(load))
        codes[rows] = targets
    return codes


def _rank_within(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank of each value inside its group, from 0, ties in the order of the rows; both `(n,)`."""
    order = np.lexsort((values, groups))
    sorted_groups = groups[order]
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.searchsorted(sorted_groups, sorted_groups, side="left")
    return ranks


def _distances(residuals: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Squared distances `(n, codebook_size)` less the residuals' own norms, which change no comparison of codes."""
    return np.square(codebook).sum(axis=1) - 2 * residuals @ codebook.T


def _row_ids(rows: np.ndarray) -> np.ndarray:
    """Number from 0 of each distinct row of `(n, k)`, `(n,)` int64; with k = 0 all rows are equal."""
    if rows.shape[1] == 0:
        return np.zeros(len(rows), dtype=np.int64)
    ids = np.unique(rows[:, 0], return_inverse=True)[1]
    for column in rows.T[1:]:
        ids = np.unique(ids * (int(column.max()) + 1) + column, return_inverse=True)[1]
    return ids.astype(np.int64)


def _report(codes: JointCodes, semantic_codes: np.ndarray, collaborative_codes: np.ndarray) -> dict:
    pairs = {
        "semantic": (codes.semantic_codes, semantic_codes),
        "collaborative": (codes.collaborative_codes, collaborative_codes),
    }
    errors_before = np.square(codes.latents - codes.quantized(codes.semantic_codes, codes.collaborative_codes))
    errors_after = np.square(codes.latents - codes.quantized(semantic_codes, collaborative_codes))
    halves = dict(
        zip(pairs, zip(np.split(errors_before, 2, 1), np.split(errors_after, 2, 1), strict=True), strict=True)
    )
    report: dict = {
        kind: {
            "collision_rate_before": collision_rate(before),
            "collision_rate_after": collision_rate(after),
            "items_moved": int((before != after).any(axis=1).sum()),
            "distortion_before": float(halves[kind][0].sum(axis=1).mean()),
            "distortion_after": float(halves[kind][1].sum(axis=1).mean()),
        }
        for kind, (before, after) in pairs.items()
    }
    shared = slice(codes.num_shared_levels)
    report["prefixes_moved"] = int((codes.semantic_codes[:, shared] != semantic_codes[:, shared]).any(axis=1).sum())
    return report
