import math

import numpy as np
import pytest

from gensar_hf.baselines import DenseRetrieval
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data.splits import SEARCH
from gensar_hf.embeddings.text_encoder import MINILM, TextEncoder

ITEMS = np.array([[1, 0], [5, 0], [0, 2], [1, 1], [-3, 0], [0, 0]], dtype=np.float32)
QUERIES = {"space comedy": [10.0, 0.0], "war drama": [0.0, 0.1]}
TEXTS = ["Space comedy", "war", "a comedy", "drama of war", "x", "space"]


def test_score_is_the_cosine(split, catalogue):
    encoded = []

    def encoder(queries):
        encoded.append(queries)
        return np.array([QUERIES[query] for query in queries])

    scorer = DenseRetrieval(ITEMS, encoder)
    scores = scorer.score(split.test[SEARCH], catalogue)
    cosines = np.array([[1, 1, 0, math.sqrt(1 / 2), -1, 0], [0, 0, 1, math.sqrt(1 / 2), 0, 0]])
    np.testing.assert_allclose(scores, np.take_along_axis(cosines[[0, 1, 0]], catalogue, axis=1), atol=1e-6)
    scorer.score(split.test[SEARCH], catalogue)
    assert encoded == [["space comedy", "war drama"]]  # each query is encoded once


def test_different_dimensions_are_refused(split, catalogue):
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 2 queries, but the items have 2 dimensions"):
        DenseRetrieval(ITEMS, lambda queries: np.ones((len(queries), 3))).score(split.test[SEARCH], catalogue)


class FakeEncoder:
    """Encodes a text as its length and its number of words, and records the texts."""

    def __init__(self):
        self.encoded = []

    num_parameters = 7

    def encode(self, texts):
        self.encoded.append(list(texts))
        return np.array([[len(text), len(text.split())] for text in texts], dtype=np.float32)


@pytest.mark.parametrize(
    ("settings", "model", "name"),
    [
        ({}, MINILM, "Dense retrieval"),
        (
            {"model": "intfloat/e5-base-v2", "query_prefix": "q: ", "passage_prefix": "passage: "},
            "intfloat/e5-base-v2",
            "Dense retrieval (e5-base-v2)",
        ),
        ({"model": "folder/bge/"}, "folder/bge/", "Dense retrieval (bge)"),
    ],
)
def test_one_loaded_encoder_encodes_items_and_queries(split, catalogue, dataset_of, monkeypatch, settings, model, name):
    encoder, loaded = FakeEncoder(), []
    monkeypatch.setattr(TextEncoder, "load", lambda name: loaded.append(name) or encoder)
    scorer = fit_baseline("dense_retrieval", dataset_of(split, TEXTS), settings=settings)
    scores = scorer.score(split.test[SEARCH], catalogue)

    assert loaded == [model]
    passages = [settings.get("passage_prefix", "") + text for text in TEXTS]
    queries = [settings.get("query_prefix", "") + query for query in ("space comedy", "war drama")]
    assert encoder.encoded == [passages, queries]
    assert (scorer.name, scorer.num_parameters, scorer.tasks) == (name, 7, {SEARCH})
    items, encoded = ([[len(text), len(text.split())] for text in texts] for texts in (passages, queries))
    expected = DenseRetrieval(np.array(items, dtype=float), lambda queries: np.array(encoded))
    np.testing.assert_allclose(scores, expected.score(split.test[SEARCH], catalogue), rtol=1e-6)
