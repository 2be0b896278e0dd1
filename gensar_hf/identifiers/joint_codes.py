"""The codes of a catalogue, with what is needed to change some of them at the least distortion."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CHUNK_ROWS = 8192  # rows of a million-row table that are worked on at once, so that no second table of its size arises
KEY_LIMIT = 1 << 62  # prefixes and rows are compared as one int64 each, as long as the number stays below this


@dataclass(frozen=True)
class JointCodes:
    """Codes of all items, not yet unique, and the latents and codebooks that they come from.

    Attributes:
        semantic_codes: `(num_items, num_levels)` int64, shared levels first.
        collaborative_codes: the same; the shared levels are equal to those of `semantic_codes`.
        latents: `(num_items, 2 * latent_dim)`, semantic half first.
        shared_codebooks: `(num_shared_levels, codebook_size, 2 * latent_dim)`.
        semantic_codebooks: `(num_specific_levels, codebook_size, latent_dim)`.
        collaborative_codebooks: the same.
    """

    semantic_codes: np.ndarray
    collaborative_codes: np.ndarray
    latents: np.ndarray
    shared_codebooks: np.ndarray
    semantic_codebooks: np.ndarray
    collaborative_codebooks: np.ndarray

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
        """Sum of the codes, `(num_rows, 2 * latent_dim)`, semantic half first.

        Args:
            semantic_codes: `(num_rows, num_levels)`, of any items.
            collaborative_codes: the same.
        """
        total = np.zeros((len(semantic_codes), self.latents.shape[1]), dtype=self.latents.dtype)
        for rows in chunks(len(total)):
            self._add_codes(total[rows], semantic_codes[rows], collaborative_codes[rows])
        return total

    def _add_codes(self, total: np.ndarray, semantic_codes: np.ndarray, collaborative_codes: np.ndarray) -> None:
        for level, codebook in enumerate(self.shared_codebooks):
            total += codebook[semantic_codes[:, level]]
        semantic_half, collaborative_half = np.split(total, 2, axis=1)
        for index in range(len(self.semantic_codebooks)):
            level = self.num_shared_levels + index
            semantic_half += self.semantic_codebooks[index][semantic_codes[:, level]]
            collaborative_half += self.collaborative_codebooks[index][collaborative_codes[:, level]]

    def distortions(self, semantic_codes: np.ndarray, collaborative_codes: np.ndarray) -> dict[str, float]:
        """Squared error of the latents if they had these codes, mean over all items, for each kind.

        Args:
            semantic_codes: `(num_items, num_levels)`.
            collaborative_codes: the same.
        """
        total = np.zeros(2)
        for rows in chunks(self.num_items):
            errors = self.latents[rows] - self.quantized(semantic_codes[rows], collaborative_codes[rows])
            total += [np.square(half, dtype=np.float64).sum() for half in np.split(errors, 2, axis=1)]
        semantic, collaborative = (total / self.num_items).tolist()
        return {"semantic": semantic, "collaborative": collaborative}


def chunks(num_rows: int) -> Iterator[slice]:
    """Slices of `CHUNK_ROWS` rows, the last one shorter, that together are all rows."""
    for start in range(0, num_rows, CHUNK_ROWS):
        yield slice(start, start + CHUNK_ROWS)


def row_keys(codes: np.ndarray) -> np.ndarray:
    """One number per row: equal for equal rows, and in the order of the rows (first column first).

    Sorting numbers instead of rows is what makes checks of a million identifiers quick.

    Args:
        codes: `(num_rows, num_columns)` integers.

    Returns:
        `(num_rows,)` int64.
    """
    keys = np.zeros(len(codes), dtype=np.int64)
    for column in codes.T if len(codes) else ():
        lowest = int(column.min())
        width = int(column.max()) - lowest + 1
        if int(keys.max()) >= KEY_LIMIT // width:  # too many levels for one number: count the prefixes that occur
            keys = np.unique(keys, return_inverse=True)[1]
        keys = keys * width + (column - lowest)
    return keys


def num_distinct(codes: np.ndarray) -> int:
    """How many different rows `(num_rows, num_columns)` integers have."""
    keys = np.sort(row_keys(codes))
    return len(keys) and 1 + int(np.count_nonzero(keys[1:] != keys[:-1]))
