"""Collaborative embeddings of items that nobody has clicked yet, from their texts."""

import os
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from gensar_hf.errors import InputError
from gensar_hf.files import load_array_metadata, load_arrays, save_arrays

MAX_ITEMS = 10_000
RIDGE = 0.3
SHARPNESS = 2.5
FULL_TRUST_CLICKS = 20
_LEAST_TRUST = 0.02
_CHUNK_ROWS = 1024
_FORMAT = {"format": "gensar_hf.collaborative_map", "format_version": "1"}
_ARRAYS = {"semantic": 2, "coefficients": 2, "mean": 1, "sharpness": 0}


@dataclass(frozen=True, eq=False)
class CollaborativeMap:
    """Predicts an item's collaborative embedding from its semantic one: kernel ridge regression on warm items.

    `v̂_c = mean + Σ_i exp(-sharpness ‖u - u_i‖²) coefficients_i`, with u the semantic embedding scaled to length 1
    (Hastie, Tibshirani and Friedman 2009, sec. 12.3.7, with a Gaussian kernel). What the text says nothing about is
    predicted as its mean, so predictions are shorter than learned embeddings. They are left so: stretched to the warm
    items' norm they are further from the embeddings that the items would have learned, and share fewer of the codes.

    Attributes:
        semantic: `(num_fitted, semantic_dim)` float32, rows of length 1.
        coefficients: `(num_fitted, collaborative_dim)` float32.
        mean: `(collaborative_dim,)` float32.
        sharpness: `()` float32, of the kernel.
    """

    semantic: np.ndarray
    coefficients: np.ndarray
    mean: np.ndarray
    sharpness: np.ndarray

    @classmethod
    def fit(
        cls,
        semantic: np.ndarray,
        collaborative: np.ndarray,
        seed: int,
        num_clicks: np.ndarray | None = None,
        max_items: int = MAX_ITEMS,
    ) -> "CollaborativeMap":
        """Learn the map from items that have both embeddings.

        Args:
            semantic: `(num_items, semantic_dim)`, of any length.
            collaborative: `(num_items, collaborative_dim)`, of the same items.
            seed: of the sample that is taken of more than `max_items` items.
            num_clicks: `(num_items,)` training clicks of each item. An embedding that was learned from few clicks is
                mostly noise, and counts for less; all count alike when omitted.
            max_items: time grows with its cube, memory with its square.

        Raises:
            InputError: no such tables, different numbers of rows, fewer than two items, a value that is not finite,
                or semantic embeddings that are all equal.
        """
        semantic, collaborative, trust = _checked_pairs(semantic, collaborative, num_clicks)
        if len(semantic) > max_items:
            chosen = np.sort(np.random.default_rng(seed).choice(len(semantic), max_items, replace=False))
            semantic, collaborative, trust = semantic[chosen], collaborative[chosen], trust[chosen]
        from scipy.linalg import solve  # takes as long to import as the whole package

        rows = _unit_rows(semantic)
        sharpness = SHARPNESS / _typical_distance(rows)
        kernel = _kernel(rows, rows, sharpness)
        kernel[np.diag_indices(len(rows))] += (RIDGE / trust).astype(np.float32)
        mean = np.average(collaborative, axis=0, weights=trust).astype(np.float32)
        # The transpose of a symmetric matrix is the matrix, and lies in memory as LAPACK overwrites it: no copy.
        coefficients = solve(kernel.T, collaborative - mean, assume_a="pos", overwrite_a=True, check_finite=False)
        return cls(rows, coefficients, mean, np.array(sharpness, dtype=np.float32))

    def predict(self, semantic: np.ndarray) -> np.ndarray:
        """Collaborative embeddings `(num_items, collaborative_dim)` float32 of `(num_items, semantic_dim)` items.

        Raises:
            InputError: not a finite table of the width that the map was fitted on.
        """
        semantic = _checked("semantic", semantic)
        if semantic.shape[1] != self.semantic.shape[1]:
            raise InputError(
                f"The semantic embeddings have {semantic.shape[1]} dimensions, but the map was fitted on "
                f"{self.semantic.shape[1]}; encode the items with the encoder of the warm items."
            )
        predicted = np.empty((len(semantic), len(self.mean)), dtype=np.float32)
        for start in range(0, len(semantic), _CHUNK_ROWS):
            rows = _unit_rows(semantic[start : start + _CHUNK_ROWS])
            kernel = _kernel(rows, self.semantic, float(self.sharpness))
            predicted[start : start + len(rows)] = self.mean + kernel @ self.coefficients
        return predicted

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one `.safetensors` file, aside and renamed."""
        save_arrays(path, {name: getattr(self, name) for name in _ARRAYS}, metadata=_FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CollaborativeMap":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        arrays, header = load_arrays(path), load_array_metadata(path)
        fits = header == _FORMAT and {name: array.ndim for name, array in arrays.items()} == _ARRAYS
        if not fits or not _belong_together(arrays):
            raise InputError(
                f"{path} holds no map of collaborative embeddings that this version reads; fit the map again."
            )
        return cls(**arrays)


def neighbour_recall(
    semantic: np.ndarray,
    collaborative: np.ndarray,
    seed: int,
    num_clicks: np.ndarray | None = None,
    k: int = 10,
    num_folds: int = 5,
) -> dict[str, float]:
    """How well the map finds the neighbours that an item's clicks would have given it, by cross-validation.

    Every item is held out of the fit once. Neighbours are the k nearest other items by the cosine of collaborative
    embeddings: those of the item's own embedding are the true ones, those of the predicted one the answer.

    Args:
        semantic: `(num_items, semantic_dim)`.
        collaborative: `(num_items, collaborative_dim)`.
        seed: of the folds and the map.
        num_clicks: as in `CollaborativeMap.fit`.
        k: number of neighbours.
        num_folds: parts, each held out once.

    Returns:
        `recall`, the share of true neighbours among the answer's; `mean_embedding`, the same when the mean of the
        other items is predicted for all, which the text has no part in; `chance`, of k random items.

    Raises:
        InputError: as in `fit`, or too few items for k neighbours and that many folds.
    """
    semantic, collaborative, _ = _checked_pairs(semantic, collaborative, num_clicks)
    num_items = len(semantic)
    if num_items <= k or num_items < 2 * num_folds:
        raise InputError(
            f"There are {num_items} items; {k} neighbours and {num_folds} folds need at least "
            f"{max(k + 1, 2 * num_folds)}."
        )
    folds = np.random.default_rng(seed).permutation(num_items) % num_folds
    shares: dict[str, list[np.ndarray]] = {"recall": [], "mean_embedding": []}
    for fold in tqdm(range(num_folds), desc="held-out neighbours", leave=False, delay=2):
        held_out, warm = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        clicks = None if num_clicks is None else np.asarray(num_clicks)[warm]
        fitted = CollaborativeMap.fit(semantic[warm], collaborative[warm], seed, clicks)
        means = np.repeat(collaborative[warm].mean(axis=0, keepdims=True), len(held_out), axis=0)
        for name, predicted in (("recall", fitted.predict(semantic[held_out])), ("mean_embedding", means)):
            shares[name].append(_shared_neighbours(predicted, held_out, _unit_rows(collaborative), k))
    found = {name: float(np.concatenate(parts).mean()) for name, parts in shares.items()}
    return {**found, "chance": k / (num_items - 1)}


def nearest_items(embeddings: np.ndarray, catalogue: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k items of a catalogue with the greatest cosine, nearest first.

    Args:
        embeddings: `(num_items, dim)`.
        catalogue: `(num_catalogue, dim)`.
        k: at most `num_catalogue`.

    Returns:
        `(num_items, k)` int64.
    """
    cosines = _unit_rows(embeddings) @ _unit_rows(catalogue).T
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def _shared_neighbours(predicted: np.ndarray, items: np.ndarray, units: np.ndarray, k: int) -> np.ndarray:
    """Of each item's k true neighbours the share that the predicted embedding has, too, `(len(items),)`."""
    shares = np.empty(len(items))
    for start in range(0, len(items), _CHUNK_ROWS):
        chunk = items[start : start + _CHUNK_ROWS]
        neighbours = []
        for queries in (units[chunk], _unit_rows(predicted[start : start + _CHUNK_ROWS])):
            cosines = queries @ units.T
            cosines[np.arange(len(chunk)), chunk] = -np.inf  # an item is no neighbour of itself
            neighbours.append(np.argpartition(-cosines, k - 1, axis=1)[:, :k])
        true, answer = neighbours
        shares[start : start + len(chunk)] = (true[:, :, None] == answer[:, None, :]).any(axis=2).mean(axis=1)
    return shares


def _checked(name: str, embeddings: np.ndarray) -> np.ndarray:
    table = np.asarray(embeddings, dtype=np.float32)
    if table.ndim != 2:
        raise InputError(f"The {name} embeddings must be a table with one row per item; got the shape {table.shape}.")
    is_finite = np.isfinite(table).all(axis=1)
    if not is_finite.all():
        raise InputError(
            f"The {name} embedding of item {int(is_finite.argmin())} (counted from 0) holds NaN or an infinity; make "
            "the embeddings again."
        )
    return table


def _checked_pairs(
    semantic: np.ndarray, collaborative: np.ndarray, num_clicks: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both tables, and how much each item counts, `(num_items,)` in (0, 1]."""
    semantic, collaborative = _checked("semantic", semantic), _checked("collaborative", collaborative)
    if len(semantic) != len(collaborative):
        raise InputError(
            f"There are {len(semantic)} semantic but {len(collaborative)} collaborative embeddings; give one of each "
            "per item, in the same order."
        )
    if len(semantic) < 2:
        raise InputError(f"The map is learned from warm items, of which it needs at least 2; got {len(semantic)}.")
    if num_clicks is None:
        return semantic, collaborative, np.ones(len(semantic))
    clicks = np.asarray(num_clicks, dtype=np.float64)
    if clicks.shape != (len(semantic),) or not (clicks >= 0).all():
        raise InputError(
            f"`num_clicks` must hold one number of clicks, at least 0, for each of the {len(semantic)} items; got an "
            f"array of shape {clicks.shape}{'' if clicks.size == 0 else f', least value {clicks.min()}'}."
        )
    return semantic, collaborative, np.clip(clicks / FULL_TRUST_CLICKS, _LEAST_TRUST, 1)


def _unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Float32 rows of length 1; zero rows stay zero."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def _squared_distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`(num_rows, num_others)` float32, never below 0."""
    distances = rows @ others.T
    distances *= -2
    distances += np.square(rows).sum(axis=1)[:, None]
    distances += np.square(others).sum(axis=1)
    return np.maximum(distances, 0, out=distances)


def _kernel(rows: np.ndarray, others: np.ndarray, sharpness: float) -> np.ndarray:
    """Gaussian kernel, `(num_rows, num_others)` float32."""
    kernel = _squared_distances(rows, others)
    kernel *= -sharpness
    return np.exp(kernel, out=kernel)


def _typical_distance(rows: np.ndarray) -> float:
    """Median squared distance between items; encoders differ in how close together they put all texts.

    Raises:
        InputError: all items are at the same place.
    """
    some = rows[:: max(1, len(rows) // _CHUNK_ROWS)]
    distances = _squared_distances(some, rows)
    distances = distances[distances > 1e-6]
    if distances.size == 0:
        raise InputError(
            f"All {len(rows)} semantic embeddings are equal, so that nothing can be predicted from them; check the "
            "items' texts and the encoder."
        )
    return float(np.median(distances))


def _belong_together(arrays: dict[str, np.ndarray]) -> bool:
    return (
        len(arrays["semantic"]) == len(arrays["coefficients"])
        and arrays["coefficients"].shape[1] == len(arrays["mean"])
        and all(bool(np.isfinite(array).all()) for array in arrays.values())
    )
