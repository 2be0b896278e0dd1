"""P5-CID: a T5 that recommends by collaborative identifiers, the paths of a tree of co-clicked items."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from huggingface_hub.dataclasses import strict
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.exceptions import ConvergenceWarning

from gensar_hf.baselines.generative import GenerativeConfig, GenerativeScorer, fit_generator, one_identifier_table
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.dataset import InteractionDataset
from gensar_hf.data.splits import RECOMMENDATION, training_events
from gensar_hf.data.user_events import UserEvents
from gensar_hf.item_embeddings import unit_rows

DENSE_ITEMS = 2048  # up to which all eigenvectors are computed


@strict
class P5CIDConfig(GenerativeConfig):
    """Configuration of P5-CID: `codebook_size` is the number of a cluster's children, see `tree_codes`."""

    model_type = "p5_cid"

    codebook_size: int = 32


def co_clicks(events: UserEvents) -> csr_matrix:
    """How many users clicked both of two items, `(num_items, num_items)` float64; 0 on the diagonal."""
    is_click = events.items >= 0
    users, items = events.event_users()[is_click], events.items[is_click]
    clicks = coo_matrix((np.ones(len(items)), (users, items)), (events.num_users, events.num_items)).tocsr()
    clicks.data[:] = 1.0  # repeated clicks were summed
    together = (clicks.T @ clicks).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    return together


def tree_codes(affinity: csr_matrix, codebook_size: int, seed: int) -> np.ndarray:
    """Recursive spectral clustering (Hua et al. 2023, collaborative indexing): each item's path, one code a level.

    A cluster of more than `codebook_size` items is split into as many clusters, a smaller one into its items. Shorter
    paths end with zeros. A split that leaves more than half of the items together is replaced by equal parts along the
    second eigenvector (of unit rows), or the tree would be as deep as there are items.

    Args:
        affinity: `(num_items, num_items)` symmetric, not negative.
        codebook_size: most children of a cluster.
        seed: of the clustering.

    Returns:
        `(num_items, depth)` int64; all rows differ.
    """
    from sklearn.cluster import KMeans  # here, because it takes a second to import

    num_items = affinity.shape[0]
    if num_items <= codebook_size:
        return np.arange(num_items)[:, None]
    equal_parts = np.arange(num_items) * codebook_size // num_items
    if not affinity.nnz:  # nothing tells these items apart
        labels = equal_parts
    else:
        vectors = spectral_embedding(affinity, codebook_size, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of items with equal co-clicks
            labels = KMeans(codebook_size, n_init=1, random_state=seed).fit_predict(vectors)
        if np.bincount(labels).max() > num_items // 2:
            labels = equal_parts[np.argsort(np.argsort(vectors[:, -2]))]
    members = [np.flatnonzero(labels == code) for code in np.unique(labels)]
    parts = [tree_codes(affinity[rows][:, rows], codebook_size, seed) for rows in members]
    codes = np.zeros((num_items, 1 + max(part.shape[1] for part in parts)), dtype=np.int64)
    for code, (rows, part) in enumerate(zip(members, parts, strict=True)):
        codes[rows, 0] = code
        codes[rows, 1 : 1 + part.shape[1]] = part
    return codes


def spectral_embedding(affinity: csr_matrix, num_vectors: int, seed: int) -> np.ndarray:
    """Leading eigenvectors of the normalized affinity, `(num_items, num_vectors)` by ascending eigenvalue, unit rows.

    Every pair is closer by the mean degree over the number of items (regularized spectral clustering; Zhang and Rohe,
    NeurIPS 2018). Otherwise rare items are split off one by one: of 1,682 films 1,290 stayed in one of 32 clusters.
    """
    num_items = affinity.shape[0]
    degrees = np.asarray(affinity.sum(axis=1)).ravel()
    added = max(degrees.mean(), 1e-9)
    scale = 1 / np.sqrt(degrees + added)
    if num_items <= DENSE_ITEMS:
        matrix = scale[:, None] * (affinity.toarray() + added / num_items) * scale
        vectors = np.linalg.eigh(matrix)[1][:, -num_vectors:]
    else:

        def product(vector: np.ndarray) -> np.ndarray:
            scaled = scale * vector.ravel()
            return scale * (affinity @ scaled + added / num_items * scaled.sum())

        operator = LinearOperator(affinity.shape, matvec=product, dtype=np.float64)
        start = np.random.default_rng(seed).normal(size=num_items)
        vectors = eigsh(operator, num_vectors, which="LA", v0=start)[1]
    return unit_rows(vectors)


def fit_p5_cid(dataset: InteractionDataset, config: P5CIDConfig, training: Mapping[str, Any]) -> GenerativeScorer:
    """Train on the recommended clicks; see `Baseline.fit`.

    Geng, Liu, Fu, Ge and Zhang, Recommendation as Language Processing (RLP): A Unified Pretrain, Personalized Prompt &
    Predict Paradigm (P5), RecSys 2022; Hua, Xu, Ge and Zhang, How to Index Item IDs for Recommendation Foundation
    Models, SIGIR-AP 2023: collaborative identifiers (CID).

    Differs from the papers: a small T5 from scratch, trained on the next item alone, reads a click as one position;
    users have no identifiers; the clustering is regularized; code n of a level is one token under all clusters; clicks
    after a search and queries are part of the history, as for the other generators.
    """
    affinity = co_clicks(training_events(dataset.split))
    codes = tree_codes(affinity, config.codebook_size, training["seed"])
    table = one_identifier_table(dataset, codes, config.codebook_size)
    return fit_generator("P5-CID", dataset, table, config, training, tasks=[RECOMMENDATION])


BASELINES = {"p5_cid": Baseline(P5CIDConfig, fit_p5_cid)}
