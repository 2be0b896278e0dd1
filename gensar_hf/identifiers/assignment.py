"""Codes → identifiers that no two items share, at the least distortion that a top-down pass can give.

One rule for every level, coarse to fine: under one prefix, a code may hold at most K^(levels after it) items, because
that is how many identifiers begin with it. A code that holds more gives its surplus to other codes under the same
prefix. On the last level the limit is 1, and the codes are assigned by the Hungarian algorithm. Shared levels are
treated once, for both kinds together, so both identifiers of an item keep the same shared prefix.

Identifiers given before are `taken`: they count against every limit and never change. A catalogue can therefore always
be filled up to its last identifier, whatever it holds: what is taken under a prefix is never more than the limit.
"""

from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from gensar_hf.errors import InputError
from gensar_hf.identifiers.joint_codes import KEY_LIMIT, JointCodes, chunks, num_distinct

_EQUAL_UP_TO = 1e-5  # of the largest code: batched float32 matrix products give equal items latents that differ less


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


def collision_rate(codes: np.ndarray, taken: np.ndarray | None = None) -> float:
    """1 − distinct identifiers / items; with `taken`, the identifiers that are new to them are counted.

    Args:
        codes: `(num_items, num_levels)`, at least one item.
        taken: `(num_taken, num_levels)`, identifiers given before, all different.

    >>> collision_rate(np.array([[0, 1], [0, 1], [2, 1], [0, 2]]))
    0.25
    >>> collision_rate(np.array([[0, 1], [0, 1], [2, 1], [0, 2]]), taken=np.array([[2, 1], [5, 5]]))
    0.5
    """
    if taken is None:
        return 1 - num_distinct(codes) / len(codes)
    return 1 - (num_distinct(np.concatenate([taken, codes])) - len(taken)) / len(codes)


def assign_unique_identifiers(
    codes: JointCodes, taken: tuple[np.ndarray, np.ndarray] | None = None
) -> UniqueIdentifiers:
    """Change as few codes as needed, and by as little as possible, so that each kind's identifiers are distinct.

    An item that collides with no other keeps its codes, unless its prefix is too full (more than K^n items with n
    levels to come). Items that collide on the last level are assigned, jointly, to their own code and to the free codes
    under their prefix with the least sum of squared distances. If a prefix is too full, those of its items that lose
    least move to the nearest code with room on the level in question, and the levels after it are quantized anew. With
    one specific level the level in question is the last shared one, so both identifiers of the moved item change;
    with two or more only the kind that needs it, until K^L_n items share one shared prefix.

    Args:
        codes: of the items that need identifiers, from `JointRQVAE.encode`.
        taken: semantic and collaborative identifiers of items that have theirs already, `(num_taken, num_levels)` each,
            distinct, shared levels equal. They are given to no other item and do not change.

    Returns:
        `UniqueIdentifiers` of the items in `codes`, none of them taken; the same input gives the same result. The
        report is about these items; their collision rate before counts collisions with taken identifiers, too.

    Raises:
        InputError: there are more items than identifiers; the message says how many levels or codes would do.
        ValueError: `taken` has another number of levels than `codes`.
    """
    taken = _checked_taken(codes, taken)
    require_capacity(codes.num_items, codes.codebook_size, codes.num_levels, len(taken[0]))
    num_shared = codes.num_shared_levels
    latent_dim = codes.latents.shape[1] // 2
    root = _Prefixes(np.zeros(codes.num_items, dtype=np.int64), np.zeros(len(taken[0]), dtype=np.int64))
    nothing_moved = np.zeros(codes.num_items, dtype=bool)
    shared = _Chain(codes.latents, codes.semantic_codes[:, :num_shared], codes.shared_codebooks, nothing_moved)
    prefixes = shared.spread(root, taken[0][:, :num_shared], len(codes.semantic_codebooks))
    unique = []
    for kind_codes, kind_taken, codebooks, half in (
        (codes.semantic_codes, taken[0], codes.semantic_codebooks, slice(latent_dim)),
        (codes.collaborative_codes, taken[1], codes.collaborative_codebooks, slice(latent_dim, None)),
    ):
        specific = _Chain(shared.residuals[:, half], kind_codes[:, num_shared:], codebooks, shared.stale)
        specific.spread(prefixes, kind_taken[:, num_shared:], 0)
        unique.append(np.concatenate([shared.codes, specific.codes], axis=1))
    return UniqueIdentifiers(unique[0], unique[1], _report(codes, (unique[0], unique[1]), taken))


def require_capacity(num_items: int, codebook_size: int, num_levels: int, num_taken: int = 0) -> None:
    """Refuse a catalogue with more items than identifiers.

    Args:
        num_items: items that need identifiers.
        codebook_size: K.
        num_levels: codes per identifier.
        num_taken: items that have theirs already.

    Raises:
        InputError: `num_items + num_taken > codebook_size ** num_levels`.
    """
    total = num_items + num_taken
    if total <= codebook_size**num_levels:
        return
    enough_codes, enough_levels = codebook_size, num_levels
    while enough_codes**num_levels < total:
        enough_codes += 1
    while codebook_size**enough_levels < total:
        enough_levels += 1
    parts = f" ({num_taken} with an identifier and {num_items} new)" if num_taken else ""
    raise InputError(
        f"There are {total} items{parts}, but {num_levels} levels of {codebook_size} codes make only "
        f"{codebook_size**num_levels} identifiers; use at least {enough_levels} levels or codebooks of at least "
        f"{enough_codes} codes."
    )


def _checked_taken(codes: JointCodes, taken: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
    """Both kinds' taken identifiers, `(num_taken, num_levels)` int64."""
    nothing = np.zeros((0, codes.num_levels), dtype=np.int64)
    semantic, collaborative = (np.asarray(kind, dtype=np.int64) for kind in taken or (nothing, nothing))
    if semantic.shape != collaborative.shape or semantic.shape[1:] != (codes.num_levels,):
        raise ValueError(
            f"Taken identifiers must have {codes.num_levels} levels, like the items' codes, and both kinds the same "
            f"number of rows; got arrays of shape {semantic.shape} and {collaborative.shape}."
        )
    return semantic, collaborative


@dataclass(frozen=True)
class _Prefixes:
    """The prefix that each item and each taken identifier has so far, as a number; equal numbers, equal prefixes."""

    items: np.ndarray  # (num_items,) int64
    taken: np.ndarray  # (num_taken,) int64

    def extended(self, codes: np.ndarray, taken_codes: np.ndarray, codebook_size: int) -> "_Prefixes":
        """One level more: `prefix * codebook_size + code`."""
        items, taken = self.items, self.taken
        if max(items.max(), taken.max(initial=0)) >= KEY_LIMIT // codebook_size:
            numbers = np.unique(np.concatenate([items, taken]), return_inverse=True)[1]
            items, taken = np.split(numbers, [len(items)])
        return _Prefixes(items * codebook_size + codes, taken * codebook_size + taken_codes)


class _Chain:
    """Consecutive levels of one residual quantizer, their codes being made to fit level by level.

    `stale` marks the items whose codes on the levels to come are void, because an earlier code of theirs has changed.
    """

    def __init__(self, latents: np.ndarray, codes: np.ndarray, codebooks: np.ndarray, stale: np.ndarray) -> None:
        self.residuals = latents.copy()
        self.codes = codes.astype(np.int64)
        self.codebooks = codebooks
        self.stale = stale.copy()

    def spread(self, prefixes: _Prefixes, taken_codes: np.ndarray, levels_after: int) -> _Prefixes:
        """Bring every code of every level down to what it may hold.

        Args:
            prefixes: before the first level of this chain.
            taken_codes: `(num_taken, levels of this chain)`.
            levels_after: levels that follow this chain.

        Returns:
            the prefixes after the last level of this chain.
        """
        num_levels, codebook_size = self.codebooks.shape[:2]
        for level, codebook in enumerate(self.codebooks):
            level_codes = self.codes[:, level]  # a view: changes go through
            self._quantize_stale(level_codes, codebook)
            before = level_codes.copy()
            prefixes = prefixes.extended(level_codes, taken_codes[:, level], codebook_size)
            capacity = codebook_size ** (num_levels - level - 1 + levels_after)
            _relieve(self.residuals, level_codes, prefixes, codebook, capacity)
            prefixes = _Prefixes(prefixes.items + (level_codes - before), prefixes.taken)
            self.stale |= level_codes != before
            for rows in chunks(len(level_codes)):
                self.residuals[rows] -= codebook[level_codes[rows]]
        return prefixes

    def _quantize_stale(self, level_codes: np.ndarray, codebook: np.ndarray) -> None:
        stale = np.flatnonzero(self.stale)
        for rows in chunks(len(stale)):
            level_codes[stale[rows]] = _distances(self.residuals[stale[rows]], codebook).argmin(axis=1)


def _relieve(
    residuals: np.ndarray, codes: np.ndarray, prefixes: _Prefixes, codebook: np.ndarray, capacity: int
) -> None:
    """Change `codes` in place so that no prefix, which ends in one of them, holds more than `capacity` items.

    Args:
        residuals: `(num_items, codebook_dim)` before this level.
        codes: `(num_items,)`.
        prefixes: this level's codes included.
        codebook: `(codebook_size, codebook_dim)`.
        capacity: items that one prefix may hold.
    """
    size = len(codebook)
    order = np.argsort(prefixes.items, kind="stable")
    keys, taken_keys = prefixes.items[order], np.sort(prefixes.taken)
    crowded_parents = _crowded_keys(keys, taken_keys, capacity) // size
    first_keys = np.unique(crowded_parents) * size  # all prefixes with one parent lie between this and this + size
    ranges = np.searchsorted(keys, [first_keys, first_keys + size]).T
    taken_ranges = np.searchsorted(taken_keys, [first_keys, first_keys + size]).T
    work = zip(first_keys, ranges, taken_ranges, strict=True)
    for first_key, (start, end), (taken_start, taken_end) in tqdm(
        work, desc="making identifiers unique", total=len(first_keys), leave=False, delay=2
    ):
        siblings = order[start:end]
        taken_load = np.bincount(taken_keys[taken_start:taken_end] - first_key, minlength=size)
        load = taken_load + np.bincount(codes[siblings], minlength=size)
        crowded = siblings[load[codes[siblings]] > capacity]
        if capacity == 1:
            allowed = np.flatnonzero((taken_load == 0) & (load != 1))  # free, or to be given to one of its items
            codes[crowded] = _assign_last_level(residuals[crowded], codebook, allowed)
        else:
            codes[crowded] = _move_surplus(residuals[crowded], codes[crowded], load, codebook, capacity)


def _crowded_keys(keys: np.ndarray, taken_keys: np.ndarray, capacity: int) -> np.ndarray:
    """Those of the sorted `keys`, each once, that more than `capacity` of both sorted arrays are equal to."""
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(starts, append=len(keys))
    if len(taken_keys):
        counts += np.searchsorted(taken_keys, keys[starts], side="right") - np.searchsorted(taken_keys, keys[starts])
    return keys[starts[counts > capacity]]


def _assign_last_level(residuals: np.ndarray, codebook: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Codes for the colliding items of one prefix, all different, with the least sum of squared distances.

    Args:
        residuals: `(num_colliding, codebook_dim)`.
        codebook: `(codebook_size, codebook_dim)`.
        allowed: the codes that may be given, at least as many as items.

    Returns:
        `(num_colliding,)` codes.
    """
    from scipy.optimize import linear_sum_assignment  # here, because it takes as long to import as the whole package

    costs = _distances(residuals, codebook[allowed])
    num_items, num_allowed = costs.shape
    if 5 * num_items < 4 * num_allowed:
        return allowed[linear_sum_assignment(costs)[1]]
    # Items of one prefix ask for the same few codes, which makes the solver's search long. If most codes will be given
    # out anyway, let the codes ask for items, the spare codes for items that cost nothing: the sum is the same.
    square = np.zeros((num_allowed, num_allowed))
    square[:, :num_items] = costs.T
    return allowed[np.argsort(linear_sum_assignment(square)[1])[:num_items]]


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
    if np.ptp(codes) == 0 and np.ptp(residuals, axis=0).max() <= _EQUAL_UP_TO * np.abs(codebook).max():
        return _move_equal_items(residuals[0], codes, load, codebook, capacity)
    codes, load = codes.copy(), load.copy()
    distances = np.empty((len(codes), len(codebook)), dtype=np.float32)  # half the memory if all items are in one place
    for rows in chunks(len(codes)):
        distances[rows] = _distances(residuals[rows], codebook)
    own_distances = distances[np.arange(len(codes)), codes]
    targets = codes.copy()  # without room, so the first round looks for a target for every item
    waiting = np.arange(len(codes))
    while len(waiting := waiting[load[codes[waiting]] > capacity]):
        has_room = load < capacity
        targetless = waiting[~has_room[targets[waiting]]]
        for part in chunks(len(targetless)):
            targets[targetless[part]] = np.where(has_room, distances[targetless[part]], np.inf).argmin(axis=1)
        losses = distances[waiting, targets[waiting]] - own_distances[waiting]
        leaves = _rank_within(codes[waiting], losses) < (load - capacity)[codes[waiting]]
        rows, losses = waiting[leaves], losses[leaves]
        fits = _rank_within(targets[rows], losses) < (capacity - load)[targets[rows]]
        rows = rows[fits]
        load += np.bincount(targets[rows], minlength=len(load)) - np.bincount(codes[rows], minlength=len(load))
        codes[rows] = targets[rows]
    return codes


def _move_equal_items(
    residual: np.ndarray, codes: np.ndarray, load: np.ndarray, codebook: np.ndarray, capacity: int
) -> np.ndarray:
    """What `_move_surplus` comes to if all items have one residual and one code: fill the other codes, nearest first.

    Args:
        residual: `(codebook_dim,)`.
        codes: `(num_crowded,)`, all equal.
        load: `(codebook_size,)`.
        codebook: `(codebook_size, codebook_dim)`.
        capacity: items that a code may hold.
    """
    nearest_first = _distances(residual[None], codebook)[0].argsort(kind="stable")
    places = np.repeat(nearest_first, (capacity - load[nearest_first]).clip(min=0))
    surplus = load[codes[0]] - capacity
    return np.concatenate([places[:surplus], codes[surplus:]])


def _rank_within(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank of each value inside its group, from 0, ties in the order of the rows; both `(n,)`."""
    order = np.lexsort((values, groups))
    sorted_groups = groups[order]
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.searchsorted(sorted_groups, sorted_groups, side="left")
    return ranks


def _distances(residuals: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Squared distances `(n, codebook_size)` less the residuals' own norms, which change no comparison of codes."""
    codebook = codebook.astype(np.float64)
    return np.square(codebook).sum(axis=1) - 2 * residuals.astype(np.float64) @ codebook.T


def _report(codes: JointCodes, unique: tuple[np.ndarray, np.ndarray], taken: tuple[np.ndarray, np.ndarray]) -> dict:
    raw = (codes.semantic_codes, codes.collaborative_codes)
    distortion_before, distortion_after = codes.distortions(*raw), codes.distortions(*unique)
    report: dict = {
        kind: {
            "collision_rate_before": collision_rate(before, kind_taken),
            "collision_rate_after": collision_rate(after, kind_taken),
            "items_moved": int((before != after).any(axis=1).sum()),
            "distortion_before": distortion_before[kind],
            "distortion_after": distortion_after[kind],
        }
        for kind, before, after, kind_taken in zip(("semantic", "collaborative"), raw, unique, taken, strict=True)
    }
    shared = slice(codes.num_shared_levels)
    report["prefixes_moved"] = int((raw[0][:, shared] != unique[0][:, shared]).any(axis=1).sum())
    return report
