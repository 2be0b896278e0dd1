"""Collaborative embeddings of items without clicks, predicted from their text embeddings."""

import os
from dataclasses import dataclass

import numpy as np

from gensar_hf.errors import InputError
from gensar_hf.files import load_array_metadata, load_arrays, save_arrays
from gensar_hf.item_embeddings import CHUNK_ROWS, checked_pair, checked_table, row_chunks, unit_rows

MAX_ITEMS = 10_000  # time grows with its cube, memory with its square
RIDGE = 0.3
SHARPNESS = 2.5
FULL_TRUST_CLICKS = 20
_LEAST_TRUST = 0.02
_FORMAT = {"format": "gensar_hf.collaborative_map", "format_version": "1"}
_ARRAYS = {"semantic": 2, "coefficients": 2, "mean": 1, "sharpness": 0}


@dataclass(frozen=True, eq=False)
class CollaborativeMap:
    """Predicts an item's collaborative embedding from its semantic one: kernel ridge regression on warm items.

    `v̂_c = mean + Σ_i exp(-sharpness ‖u - u_i‖²) coefficients_i`, with u the semantic embedding scaled to length 1
    (Hastie, Tibshirani and Friedman 2009, sec. 12.3.7, with a Gaussian kernel). Predictions are shorter than learned
    embeddings, because what the text does not determine is predicted as its mean. They are not rescaled: stretched they
    are further from the embeddings that the items would have learned.
    """

    semantic: np.ndarray  # (num_fitted, semantic_dim) float32 rows of length 1, rounded to float16, as they are saved
    coefficients: np.ndarray  # (num_fitted, collaborative_dim) float32
    mean: np.ndarray  # (collaborative_dim,) float32
    sharpness: np.ndarray  # () float32, of the kernel

    @classmethod
    def fit(
        cls, semantic: np.ndarray, collaborative: np.ndarray, seed: int, num_clicks: np.ndarray | None = None
    ) -> "CollaborativeMap":
        """Learn the map from `(num_items, semantic_dim)` and `(num_items, collaborative_dim)` embeddings.

        Of more than `MAX_ITEMS` items a seeded sample is taken. With `num_clicks`, the `(num_items,)` training clicks,
        an embedding that was learned from few clicks gets a lower weight, because it is mostly noise.

        Raises:
            InputError: not a table, different numbers of rows, fewer than two items, a value that is not finite, or
                semantic embeddings that are all equal.
        """
        from sklearn.kernel_ridge import KernelRidge  # here, because scikit-learn takes a second to import
        from sklearn.metrics.pairwise import euclidean_distances

        semantic, collaborative = checked_pair(semantic, collaborative)
        if len(semantic) < 2:
            raise InputError(f"The map is learned from warm items, of which it needs at least 2; got {len(semantic)}.")
        clicks = np.full(len(semantic), np.inf) if num_clicks is None else num_clicks
        trust = np.clip(clicks / FULL_TRUST_CLICKS, _LEAST_TRUST, 1)
        if len(semantic) > MAX_ITEMS:
            chosen = np.sort(np.random.default_rng(seed).choice(len(semantic), MAX_ITEMS, replace=False))
            semantic, collaborative, trust = semantic[chosen], collaborative[chosen], trust[chosen]
        rows = unit_rows(semantic).astype(np.float16).astype(np.float32)
        # The kernel's width follows the median distance: encoders differ in how close together they put all texts.
        distances = euclidean_distances(rows[:: max(1, len(rows) // CHUNK_ROWS)], rows, squared=True)
        distances = distances[distances > 1e-6]
        if distances.size == 0:
            raise InputError(
                f"All {len(rows)} semantic embeddings are equal, so that nothing can be predicted from them; check the "
                "items' texts and the encoder."
            )
        sharpness = SHARPNESS / float(np.median(distances))
        mean = np.average(collaborative, axis=0, weights=trust).astype(np.float32)
        regression = KernelRidge(kernel="rbf", gamma=sharpness, alpha=RIDGE)
        regression.fit(rows, collaborative - mean, sample_weight=trust.astype(np.float32))
        return cls(rows, regression.dual_coef_.astype(np.float32), mean, np.array(sharpness, dtype=np.float32))

    def predict(self, semantic: np.ndarray) -> np.ndarray:
        """`(num_items, collaborative_dim)` float32 of `(num_items, semantic_dim)`; InputError: not a fitting table."""
        from sklearn.metrics.pairwise import rbf_kernel

        semantic = checked_table("semantic", semantic)
        if semantic.shape[1] != self.semantic.shape[1]:
            raise InputError(
                f"The semantic embeddings have {semantic.shape[1]} dimensions, but the map was fitted on "
                f"{self.semantic.shape[1]}; encode the items with the encoder of the warm items."
            )
        predicted = np.empty((len(semantic), len(self.mean)), dtype=np.float32)
        for part in row_chunks(len(semantic)):
            kernel = rbf_kernel(unit_rows(semantic[part]), self.semantic, gamma=float(self.sharpness))
            predicted[part] = self.mean + kernel @ self.coefficients
        return predicted

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one `.safetensors` file atomically; `load` reads the same map, without retraining."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        save_arrays(path, {**arrays, "semantic": self.semantic.astype(np.float16)}, metadata=_FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CollaborativeMap":
        """Read what `save` wrote; files of version 0.1, with float32 rows, load as well.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        arrays = {name: array.astype(np.float32) for name, array in load_arrays(path).items()}
        is_map = load_array_metadata(path) == _FORMAT and {name: a.ndim for name, a in arrays.items()} == _ARRAYS
        if not (
            is_map
            and all(np.isfinite(array).all() for array in arrays.values())
            and arrays["coefficients"].shape == (len(arrays["semantic"]), len(arrays["mean"]))
        ):
            raise InputError(
                f"{path} holds no map of collaborative embeddings that this version reads; fit the map again."
            )
        return cls(**arrays)
