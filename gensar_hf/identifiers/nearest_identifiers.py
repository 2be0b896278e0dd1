"""Which identifiers are close to one another in the space that their codes stand for."""

from typing import TYPE_CHECKING

import numpy as np

from gensar_hf.errors import InputError

if TYPE_CHECKING:
    from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE

_CHUNK_ROWS = 128


def nearest_identifiers(
    semantic_codes: np.ndarray, model: "JointRQVAE", rows: np.ndarray, known_rows: np.ndarray, k: int
) -> np.ndarray:
    """For each of some items the k known items with the nearest semantic identifiers, nearest first.

    The distance is that of the quantized semantic latents, ẑ_s = Σ shared[:d] + Σ semantic (GenSAR, sec. 3.1).

    Args:
        semantic_codes: `(num_items, num_levels)`, of all these items.
        model: the joint RQ-VAE that the identifiers were made with.
        rows: `(num_rows,)` the items in question.
        known_rows: `(num_known,)` rows to choose from; an item is never its own neighbour.
        k: number of neighbours.

    Returns:
        `(num_rows, k)` int64, of `known_rows`.

    Raises:
        InputError: fewer than k other known items.
    """
    num_others = len(known_rows) - int(np.isin(rows, known_rows).any())
    if num_others < k:
        raise InputError(f"There are only {num_others} known items to choose {k} nearest ones from; ask for fewer.")
    latents = semantic_latents(semantic_codes, model)
    known = latents[known_rows]
    nearest = np.empty((len(rows), k), dtype=np.int64)
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = rows[start : start + _CHUNK_ROWS]
        # Without the items' own norms, which change no comparison.
        distances = np.square(known).sum(axis=1) - 2 * latents[chunk] @ known.T
        distances[chunk[:, None] == known_rows] = np.inf
        near = np.argpartition(distances, k - 1, axis=1)[:, :k]  # a full sort of a large catalogue takes minutes
        order = np.argsort(np.take_along_axis(distances, near, axis=1), axis=1, kind="stable")
        nearest[start : start + len(chunk)] = known_rows[np.take_along_axis(near, order, axis=1)]
    return nearest


def semantic_latents(semantic_codes: np.ndarray, model: "JointRQVAE") -> np.ndarray:
    """What semantic identifiers `(num_items, num_levels)` stand for, ẑ_s, `(num_items, latent_dim)` float32."""
    shared, specific = (
        [codebook.detach().float().cpu().numpy() for codebook in quantizer.codebooks]
        for quantizer in (model.shared_quantizer, model.semantic_quantizer)
    )
    dim = model.config.latent_dim
    codebooks = [codebook[:, :dim] for codebook in shared] + specific
    return np.sum([codebook[codes] for codebook, codes in zip(codebooks, semantic_codes.T, strict=True)], axis=0)
