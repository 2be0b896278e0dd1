import numpy as np
import pytest

from gensar_hf.baselines import BM25, DenseRetrieval, HybridSearch
from gensar_hf.baselines.tuning import fit_baseline
from gensar_hf.data.splits import SEARCH
from gensar_hf.embeddings.text_encoder import TextEncoder

TEXTS = ["Space comedy", "war", "a comedy", "drama of war", "", "space, space, comedy"]


class ScoreTable:
    """A search system with given scores of six items for each query."""

    num_parameters = 5

    def __init__(self, scores):
        self.scores = scores

    def score_items(self, queries):
        return np.array([self.scores[query] for query in queries], dtype=np.float32)


LEXICAL = ScoreTable({"space comedy": [3, 0, 1, 0, 0, 2], "war drama": [0, 2, 0, 2, 0, 1]})
DENSE = ScoreTable({"space comedy": [0.9, -0.2, 0.3, -0.5, 0, 0.4], "war drama": [0.1, 0.2, 0.3, 0.4, 0, 0.5]})
# Ranks of items without a score are missing; the two first of "war drama" share ranks 1 and 2.
LEXICAL_RANKS = {"space comedy": [1, None, 3, None, None, 2], "war drama": [None, 1.5, None, 1.5, None, 3]}
DENSE_RANKS = {"space comedy": [1, 4, 3, 5, None, 2], "war drama": [5, 4, 3, 2, None, 1]}


def fused(query, k):
    rows = zip(LEXICAL_RANKS[query], DENSE_RANKS[query], strict=True)
    return [sum(1 / (k + rank) for rank in ranks if rank) for ranks in rows]


@pytest.mark.parametrize("k", [60, 1])
def test_scores_are_sums_of_reciprocal_ranks_in_the_whole_catalogue(split, catalogue, k):
    scorer = HybridSearch([LEXICAL, DENSE], k=k)
    every_item = np.array([fused(query, k) for query in ("space comedy", "war drama", "space comedy")])
    scores = scorer.score(split.test[SEARCH], catalogue)
    np.testing.assert_allclose(scores, np.take_along_axis(every_item, catalogue, axis=1), rtol=1e-12)
    assert (scorer.name, scorer.tasks, scorer.num_parameters) == ("Hybrid (RRF)", {SEARCH}, 10)
    few = scorer.score(split.test[SEARCH], catalogue[:, :2])
    np.testing.assert_array_equal(few, scores[:, :2])


def test_a_query_without_a_known_word_gives_no_item_credit():
    assert not HybridSearch([BM25(TEXTS)]).score_items(["unheard", ""]).any()


def test_equal_items_are_equal_wherever_they_stand():
    scores = HybridSearch([BM25(["war film", "love", "war film"])]).score_items(["war"])
    np.testing.assert_allclose(scores, [[1 / 61.5, 0, 1 / 61.5]])


def test_the_baseline_fuses_bm25_and_the_encoder(split, dataset_of, monkeypatch):
    class FakeEncoder:
        num_parameters = 7

        def encode(self, texts):
            return np.array([[len(text), text.count(" ")] for text in texts], dtype=np.float32)

    monkeypatch.setattr(TextEncoder, "load", lambda name: FakeEncoder())
    scorer = fit_baseline("hybrid", dataset_of(split, TEXTS), settings={"k": 2})
    dense = DenseRetrieval(FakeEncoder().encode(TEXTS), FakeEncoder().encode)
    expected = HybridSearch([BM25(TEXTS), dense], k=2).score_items(["space comedy"])
    np.testing.assert_array_equal(scorer.score_items(["space comedy"]), expected)
    assert scorer.num_parameters == 7
