import math

import numpy as np
import pytest

from gensar_hf.baselines import BM25, bm25
from gensar_hf.baselines.baseline import TrainingData
from gensar_hf.data.splits import SEARCH
from gensar_hf.evaluation import BM25Index
from gensar_hf.files import read_json

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


def test_fit_takes_k1_and_b(split, catalogue, tmp_path):
    data = TrainingData(split.events, TEXTS, np.zeros((6, 2)), "unused")
    scorer = bm25.fit(data, bm25.Settings(k1=0.5, b=0.0), 0, tmp_path, tmp_path)
    scores = scorer.score(split.test[SEARCH], np.tile(np.arange(6), (3, 1)))

    # Lucene's BM25: idf = ln(1 + (N - n + 0.5) / (n + 0.5)); without b, length has no part in it.
    idf = math.log(1 + (6 - 2 + 0.5) / (2 + 0.5)), math.log(1 + (6 - 3 + 0.5) / (3 + 0.5))  # space, comedy
    once, twice = 1 / (1 + 0.5), 2 / (2 + 0.5)
    expected = [sum(idf) * once, 0, idf[1] * once, 0, 0, idf[0] * twice + idf[1] * once]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    assert read_json(tmp_path / "settings.json") == {"k1": 0.5, "b": 0.0}
    assert (scorer.name, scorer.num_parameters) == ("BM25", 0)


def test_the_defaults_are_those_of_the_candidates(split, tmp_path):
    data = TrainingData(split.events, TEXTS, np.zeros((6, 2)), "unused")
    scorer = bm25.fit(data, bm25.Settings(), 0, tmp_path, tmp_path)
    np.testing.assert_array_equal(scorer.index.scores(["space war"]), BM25Index(TEXTS).scores(["space war"]))


@pytest.mark.parametrize(("values", "message"), [({"k1": -0.1}, "`k1` must not"), ({"b": 1.1}, "`b` must lie")])
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        bm25.Settings(**values)
