import math

import numpy as np

from gensar_hf.baselines import BM25
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data.splits import SEARCH
from gensar_hf.evaluation import BM25Index

TEXTS = ["Space comedy", "war", "a comedy", "drama of war", "", "space, space, comedy"]


def test_scores_are_gathered_from_the_index(split, catalogue):
    scores = BM25(TEXTS).score(split.test[SEARCH], catalogue)
    every_item = BM25Index(TEXTS).scores(["space comedy", "war drama", "space comedy"])
    np.testing.assert_array_equal(scores, np.take_along_axis(every_item, catalogue, axis=1))
    assert scores[1].argmax() == 2  # "drama of war" stands in column 2
    assert (scores > 0).sum(axis=1).tolist() == [3, 2, 3]


def test_k1_and_b_are_those_of_the_settings(split, dataset_of):
    scorer = fit_baseline("bm25", dataset_of(split, TEXTS), settings={"k1": 0.5, "b": 0.0})
    scores = scorer.score(split.test[SEARCH], np.tile(np.arange(6), (3, 1)))

    # Lucene's BM25: idf = ln(1 + (N - n + 0.5) / (n + 0.5)); without b, the length does not count.
    idf = math.log(1 + (6 - 2 + 0.5) / (2 + 0.5)), math.log(1 + (6 - 3 + 0.5) / (3 + 0.5))  # space, comedy
    once, twice = 1 / (1 + 0.5), 2 / (2 + 0.5)
    expected = [sum(idf) * once, 0, idf[1] * once, 0, 0, idf[0] * twice + idf[1] * once]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    assert (scorer.name, scorer.tasks) == ("BM25", {SEARCH})


def test_the_defaults_are_those_of_the_candidates(split, dataset_of):
    scorer = fit_baseline("bm25", dataset_of(split, TEXTS))
    np.testing.assert_array_equal(scorer.index.scores(["space war"]), BM25Index(TEXTS).scores(["space war"]))
