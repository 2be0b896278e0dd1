import math

import numpy as np
import pytest

from gensar_hf.baselines import DenseRetrieval, dense_retrieval
from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.data.splits import SEARCH
from gensar_hf.files import load_arrays, read_json

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


def test_the_prefix_stands_before_every_query(split, catalogue):
    asked = []

    def encoder(queries):
        asked.extend(queries)
        return np.ones((len(queries), 2))

    DenseRetrieval(ITEMS, encoder, query_prefix="query: ").score(split.test[SEARCH], catalogue)
    assert asked == ["query: space comedy", "query: war drama"]


class FakeEncoder:
    """Encodes a text as its length and its number of words; notes what it was asked."""

    def __init__(self, monkeypatch):
        self.asked = []
        monkeypatch.setattr("gensar_hf.embeddings.semantic.encode_texts", self)
        monkeypatch.setattr("gensar_hf.baselines.dense_retrieval._num_parameters", lambda encoder: 7)

    def __call__(self, texts, model):
        self.asked.append((list(texts), model))
        return np.array([[len(text), len(text.split())] for text in texts], dtype=np.float32).reshape(-1, 2)


TEXTS = ["Space comedy", "war", "a comedy", "drama of war", "x", "space"]


def test_fit_takes_the_embeddings_that_are_there(split, catalogue, tmp_path, monkeypatch):
    encoder = FakeEncoder(monkeypatch)
    data = TrainingData(split.events, TEXTS, ITEMS, "run's encoder")
    scorer = dense_retrieval.fit(data, dense_retrieval.Settings(query_prefix="q: "), 0, tmp_path, tmp_path)
    scores = scorer.score(split.test[SEARCH], catalogue)

    assert encoder.asked == [(["q: space comedy", "q: war drama"], "run's encoder")]
    expected = DenseRetrieval(ITEMS, lambda queries: np.array([[15, 3], [12, 3]]))
    np.testing.assert_allclose(scores, expected.score(split.test[SEARCH], catalogue), rtol=1e-6)
    assert (scorer.name, scorer.num_parameters) == ("Dense retrieval", 7)
    assert not (tmp_path / "item_embeddings.safetensors").exists()


@pytest.mark.parametrize(
    ("values", "prefix", "encoder_name", "name"),
    [
        (
            {"model": "intfloat/e5-base-v2", "passage_prefix": "passage: "},
            "passage: ",
            "intfloat/e5-base-v2",
            "(e5-base-v2)",
        ),
        ({"model": "folder/bge/"}, "", "folder/bge/", "(bge)"),
        ({"passage_prefix": "p: "}, "p: ", "run's encoder", ""),
    ],
)
def test_fit_encodes_the_items_anew(split, tmp_path, monkeypatch, values, prefix, encoder_name, name):
    encoder = FakeEncoder(monkeypatch)
    data = TrainingData(split.events, TEXTS, ITEMS, "run's encoder")
    scorer = dense_retrieval.fit(data, dense_retrieval.Settings(**values), 0, tmp_path, tmp_path)

    assert encoder.asked == [([prefix + text for text in TEXTS], encoder_name)]
    assert scorer.name == f"Dense retrieval {name}".strip()
    lengths = [[len(prefix + text), len((prefix + text).split())] for text in TEXTS]
    np.testing.assert_array_equal(load_arrays(tmp_path / "item_embeddings.safetensors")["embeddings"], lengths)
    assert read_json(tmp_path / "settings.json")["model"] == encoder_name


def test_an_empty_model_is_refused():
    with pytest.raises(ValueError, match="`model` is empty"):
        dense_retrieval.Settings(model=" ")
