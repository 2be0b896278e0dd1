import numpy as np

from gensar_hf.baselines import BM25
from gensar_hf.data.splits import SEARCH
from gensar_hf.evaluation import BM25Index

TEXTS = ["Space comedy", "war", "a comedy", "drama of war", "", "space, space, comedy"]


def test_scores_are_gathered_from_the_index(split, catalogue):
    scores = BM25(TEXTS).score(split.test[SEARCH], catalogue)
    every_item = BM25Index(TEXTS).scores(["space comedy", "war drama", "space comedy"])
    np.testing.assert_array_equal(scores, np.take_along_axis(every_item, catalogue, axis=1))
    assert scores[1].argmax() == 2  # "drama of war" stands in column 2
    assert (scores[:, :] > 0).sum(axis=1).tolist() == [3, 2, 3]


def test_an_index_is_shared(split, catalogue):
    index = BM25Index(TEXTS)
    scorer = BM25(index)
    assert scorer.index is index
    np.testing.assert_array_equal(
        scorer.score(split.test[SEARCH], catalogue), BM25(TEXTS).score(split.test[SEARCH], catalogue)
    )


def test_more_queries_than_one_chunk(split, catalogue, monkeypatch):
    expected = BM25(TEXTS).score(split.test[SEARCH], catalogue)
    monkeypatch.setattr("gensar_hf.baselines.query_scores._CHUNK_SIZE", 1)
    np.testing.assert_array_equal(BM25(TEXTS).score(split.test[SEARCH], catalogue), expected)


def test_it_does_not_recommend():
    assert BM25.tasks == {SEARCH}
