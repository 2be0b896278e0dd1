"""The codes of a catalogue, with what is needed to change some of them at the least distortion."""

from dataclasses import dataclass

import numpy as np


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
        """Sum of the codes, `(num_items, 2 * latent_dim)`, semantic half first; the inputs are as the attributes."""
        total = np.zeros_like(self.latents)
        for level, codebook in enumerate(self.shared_codebooks):
            total += codebook[semantic_codes[:, level]]
        semantic_half, collaborative_half = np.split(total, 2, axis=1)
        for index in range(len(self.semantic_codebooks)):
            level = self.num_shared_levels + index
            semantic_half += self.semantic_codebooks[index][semantic_codes[:, level]]
            collaborative_half += self.collaborative_codebooks[index][collaborative_codes[:, level]]
        return total
