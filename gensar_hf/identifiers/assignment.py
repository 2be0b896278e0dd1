"""Unique identifiers: change as few codes as possible, each by as little as possible, until no two items collide.

One rule for every level, coarse to fine: under one prefix, a code may hold at most K^(levels after it) items, because
that is how many identifiers begin with it. A code that holds more gives its surplus to other codes under the same
prefix. On the last level the limit is 1, and the codes are assigned by the Hungarian algorithm. Shared levels are
treated once, for both kinds together. Identifiers that are `taken` count against every limit and never change.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from gensar_hf.errors import InputError


@dataclass(frozen=True)
class JointCodes:
    """Codes of all items, not yet unique, and the latents and codebooks that they come from."""

    semantic_codes: np.ndarray  # (num_items, num_levels) int64, shared levels first
    collaborative_codes: np.ndarray  # the same, with the same shared levels
    latents: np.ndarray  # (num_items, 2 * latent_dim), semantic half first
    shared_codebooks: np.ndarray  # (num_shared_levels, codebook_size, 2 * latent_dim)
    semantic_codebooks: np.ndarray  # (num_specific_levels, codebook_size, latent_dim)
    collaborative_codebooks: np.ndarray  # the same

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self.latents)

    @property
    def num_shared_levels(self) -> int:
        """Levels on which both identifiers of an item agree."""
        return len(self.shared_codebooks)

    @property
    def num_levels(self) -> int:
        """Codes per identifier."""
        return len(self.shared_codebooks) + len(self.semantic_codebooks)

    @property
    def codebook_size(self) -> int:
        """Codes per codebook."""
        return max(self.shared_codebooks.shape[1], self.semantic_codebooks.shape[1])

    def quantized(self, semantic_codes: np.ndarray, collaborative_codes: np.ndarray) -> np.ndarray:
        """Sums of the codes of `(num_rows, num_levels)` identifiers: `(num_rows, 2 * latent_dim)`, semantic first."""
        total = np.zeros((len(semantic_codes), self.latents.shape[1]), dtype=self.latents.dtype)
        semantic_half, collaborative_half = np.split(total, 2, axis=1)  # views
        for level, codebook in enumerate(self.shared_codebooks):
            total += codebook[semantic_codes[:, level]]
        for index in range(len(self.semantic_codebooks)):
            level = self.num_shared_levels + index
            semantic_half += self.semantic_codebooks[index][semantic_codes[:, level]]
            collaborative_half += self.collaborative_codebooks[index][collaborative_codes[:, level]]
        return total

    def distortions(self, semantic_codes: np.ndarray, collaborative_codes: np.ndarray) -> dict[str, float]:
        """Squared error of each kind's latents, mean over the items, with these `(num_items, num_levels)` codes."""
        errors = np.square(self.latents - self.quantized(semantic_codes, collaborative_codes))
        halves = zip(("semantic", "collaborative"), np.split(errors, 2, axis=1), strict=True)
        return {kind: float(half.sum(dtype=np.float64)) / self.num_items for kind, half in halves}


@dataclass(frozen=True)
class UniqueIdentifiers:
    """What `assign_unique_identifiers` returns.

    The report has for `"semantic"` and `"collaborative"` each: `collision_rate_before`, `collision_rate_after`,
    `items_moved`, `distortion_before` and `distortion_after` (squared error of the latents, mean over items); and
    `prefixes_moved`, the number of items whose shared codes had to change.
    """

    semantic_codes: np.ndarray  # (num_items, num_levels) int64; all rows differ
    collaborative_codes: np.ndarray  # the same, with the same shared levels
    report: dict


def collision_rate(codes: np.ndarray, taken: np.ndarray | None = None) -> float:
    """1 − distinct identifiers / items, of `(num_items, num_levels)` codes; those in `taken` are not distinct."""
    everything = codes if taken is None else np.concatenate([taken, codes])
    return float(pd.DataFrame(everything).duplicated().sum() / len(codes))


def assign_unique_identifiers(
    codes: JointCodes, taken: tuple[np.ndarray, np.ndarray] | None = None
) -> UniqueIdentifiers:
    """Make each kind's identifiers distinct at a small distortion.

    An item that collides with no other keeps its codes, unless its prefix holds more than K^n items with n levels to
    come. Moved items' later codes are quantized again.

    Args:
        codes: of the items that need identifiers, from `JointRQVAE.encode`.
        taken: semantic and collaborative identifiers of other items, `(num_taken, num_levels)` each, distinct, shared
            levels equal. They do not change, and no new item gets one of them.

    Returns:
        identifiers of the items in `codes`, and a report about them; their collision rate before includes collisions
        with taken identifiers.

    Raises:
        InputError: there are more items than identifiers; the message says how many levels or codes would be enough.
    """
    nothing = np.zeros((0, codes.num_levels), dtype=np.int64)
    taken_kinds = [np.asarray(kind, dtype=np.int64) for kind in taken or (nothing, nothing)]
    num_taken, num_shared = len(taken_kinds[0]), codes.num_shared_levels
    total, num_levels, size = codes.num_items + num_taken, codes.num_levels, codes.codebook_size
    if total > size**num_levels:
        enough_levels = next(levels for levels in count(num_levels) if size**levels >= total)
        enough_codes = next(number for number in count(size) if number**num_levels >= total)
        parts = f" ({num_taken} with an identifier and {codes.num_items} new)" if num_taken else ""
        raise InputError(
            f"There are {total} items{parts}, but {num_levels} levels of {size} codes make only {size**num_levels} "
            f"identifiers; use at least {enough_levels} levels or codebooks of at least {enough_codes} codes."
        )
    raw = (codes.semantic_codes, codes.collaborative_codes)
    semantic, collaborative = (np.concatenate(pair) for pair in zip(taken_kinds, raw, strict=True))  # taken rows first
    residuals, stale = codes.latents.copy(), np.zeros(codes.num_items, dtype=bool)
    prefixes = np.zeros(len(semantic), dtype=np.int64)
    num_specific = len(codes.semantic_codebooks)
    shared = semantic[:, :num_shared]
    prefixes = _spread(residuals, shared, prefixes, codes.shared_codebooks, stale, num_specific)
    collaborative[:, :num_shared] = shared
    semantic_residuals, collaborative_residuals = np.split(residuals, 2, axis=1)
    _spread(semantic_residuals, semantic[:, num_shared:], prefixes, codes.semantic_codebooks, stale.copy())
    _spread(collaborative_residuals, collaborative[:, num_shared:], prefixes, codes.collaborative_codebooks, stale)
    unique = (semantic[num_taken:], collaborative[num_taken:])

    distortion_before, distortion_after = codes.distortions(*raw), codes.distortions(*unique)
    report: dict = {
        kind: {
            "collision_rate_before": collision_rate(before, kind_taken),
            "collision_rate_after": collision_rate(after, kind_taken),
            "items_moved": int((before != after).any(axis=1).sum()),
            "distortion_before": distortion_before[kind],
            "distortion_after": distortion_after[kind],
        }
        for kind, before, after, kind_taken in zip(("semantic", "collaborative"), raw, unique, taken_kinds, strict=True)
    }
    report["prefixes_moved"] = int((raw[0][:, :num_shared] != unique[0][:, :num_shared]).any(axis=1).sum())
    return UniqueIdentifiers(*unique, report)


def _spread(
    residuals: np.ndarray,
    codes: np.ndarray,
    prefixes: np.ndarray,
    codebooks: np.ndarray,
    stale: np.ndarray,
    levels_after: int = 0,
) -> np.ndarray:
    """Bring every code of consecutive levels down to its limit; return the prefixes after them.

    `codes` are `(num_taken + num_new, num_levels)`, `residuals` `(num_new, codebook_dim)`, `stale` `(num_new,)` marks
    items whose later codes are void because an earlier one has changed. All three change in place.
    """
    num_levels, size = codebooks.shape[:2]
    for level, codebook in enumerate(codebooks):
        level_codes = codes[:, level]  # a view: changes go through
        new_codes = level_codes[len(codes) - len(residuals) :]
        if stale.any():
            from sklearn.metrics import pairwise_distances_argmin  # here, because it takes a second to import

            new_codes[stale] = pairwise_distances_argmin(residuals[stale], codebook)
        before = new_codes.copy()
        _rebalance(residuals, level_codes, prefixes, codebook, size ** (num_levels - level - 1 + levels_after))
        stale |= new_codes != before
        residuals -= codebook[new_codes]
        prefixes = np.unique(prefixes * size + level_codes, return_inverse=True)[1]  # dense, so they never overflow
    return prefixes


def _rebalance(
    residuals: np.ndarray, codes: np.ndarray, prefixes: np.ndarray, codebook: np.ndarray, capacity: int
) -> None:
    """Change the new items' `codes` in place so that no code holds more than `capacity` items of one prefix."""
    from scipy.optimize import linear_sum_assignment  # here, because it takes as long to import as the whole package
    from scipy.spatial.distance import cdist

    size, num_taken = len(codebook), len(codes) - len(residuals)
    keys, counts = np.unique(prefixes * size + codes, return_counts=True)
    crowded_prefixes = np.unique(keys[counts > capacity] // size)
    order = np.argsort(prefixes, kind="stable")
    starts = np.searchsorted(prefixes, crowded_prefixes, sorter=order)
    ends = np.searchsorted(prefixes, crowded_prefixes, side="right", sorter=order)
    progress = tqdm(starts, desc="making identifiers unique", leave=False, delay=2)
    for start, end in zip(progress, ends, strict=True):
        rows = order[start:end]
        new_rows = rows[rows >= num_taken]
        load = np.bincount(codes[rows], minlength=size)
        crowded = new_rows[load[codes[new_rows]] > capacity]
        distances = cdist(residuals[crowded - num_taken], codebook, "sqeuclidean")
        if capacity > 1:
            codes[crowded] = _move_surplus(distances, codes[crowded], load, capacity)
            continue
        is_taken = np.bincount(codes[rows[rows < num_taken]], minlength=size) > 0
        allowed = np.flatnonzero(~is_taken & (load != 1))  # free, or for one of the colliding items
        codes[crowded] = allowed[linear_sum_assignment(distances[:, allowed])[1]]


def _move_surplus(distances: np.ndarray, codes: np.ndarray, load: np.ndarray, capacity: int) -> np.ndarray:
    """New codes of the items of one prefix, so that none holds more than `capacity`; the cheapest moves come first.

    `distances` are `(num_crowded, codebook_size)`; `load`, the prefix's items per code, changes in place.
    """
    codes, targets = codes.copy(), np.flatnonzero(load < capacity)
    losses = distances[:, targets] - distances[np.arange(len(codes)), codes][:, None]
    surplus = int((load - capacity).clip(min=0).sum())
    for move in np.argsort(losses, axis=None, kind="stable"):  # one pass: a full code stays full
        if surplus == 0:
            break
        row, target = move // len(targets), targets[move % len(targets)]
        if load[codes[row]] > capacity > load[target]:
            load[codes[row]] -= 1
            load[target] += 1
            codes[row] = target
            surplus -= 1
    return codes
