import math

import numpy as np
import pytest

from gensar_hf.baselines import DenseRetrieval
from gensar_hf.data.splits import SEARCH

ITEMS = np.array([[1, 0], [5, 0], [0, 2], [1, 1], [-3, 0], [0, 0]], dtype=np.float32)
QUERIES = {"space comedy": [10.0, 0.0], "war drama": [0.0, 0.1]}


def test_score_is_the_cosine(split, catalogue):
    asked = []

    def encoder(queries):
        asked.append(queries)
        return np.array([QUERIES[query] for query in queries])

    scorer = DenseRetrieval(ITEMS, encoder)
    scores = scorer.score(split.test[SEARCH], catalogue)
    cosines = np.array([[1, 1, 0, math.sqrt(1 / 2), -1, 0], [0, 0, 1, math.sqrt(1 / 2), 0, 0]])
    np.testing.assert_allclose(scores, np.take_along_axis(cosines[[0, 1, 0]], catalogue, axis=1), atol=1e-6)
    scorer.score(split.test[SEARCH], catalogue)
    assert asked == [["space comedy", "war drama"]]  # each query is encoded once


def test_dimensions_that_disagree_are_named(split, catalogue):
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 2 queries, but the items have 2 dimensions"):
        DenseRetrieval(ITEMS, lambda queries: np.ones((len(queries), 3))).score(split.test[SEARCH], catalogue)


@pytest.mark.parametrize("embeddings", [np.full((6, 2), np.nan), np.ones(6)])
def test_unusable_item_embeddings_are_refused(embeddings):
    with pytest.raises(ValueError, match="must be a finite"):
        DenseRetrieval(embeddings, lambda queries: np.ones((len(queries), 2)))


def test_name_and_tasks():
    assert DenseRetrieval(ITEMS, "some-model", name="MiniLM").name == "MiniLM"
    assert DenseRetrieval.tasks == {SEARCH}
