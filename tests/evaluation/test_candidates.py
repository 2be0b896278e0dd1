import logging

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data.splits import SEARCH
from gensar_hf.errors import InputError
from gensar_hf.evaluation.bm25_index import BM25Index
from gensar_hf.evaluation.candidates import CandidateSets, bm25_candidates, random_candidates

TEXTS = [
    "A space adventure",
    "space opera, space ships",
    "Comedy of the nineties",
    "romantic comedy",
    "the space comedy",
    "war drama",
    "",
    "drama in space",
]


def bm25_by_bm25s(query: str) -> np.ndarray:
    """Every item's score, straight from bm25s on tokens split by hand."""
    stop_words = {"a", "the", "of", "in"}

    def words(text):
        return [word for word in text.lower().replace(",", "").split() if word not in stop_words]

    index = bm25s.BM25()
    index.index([words(text) for text in TEXTS], show_progress=False)
    known = [word for word in words(query) if word in index.vocab_dict]
    return index.get_scores(known) if known else np.zeros(len(TEXTS), dtype=np.float32)


@pytest.mark.parametrize("query", ["space", "Space Comedy", "comedy comedy drama", "western", "the of", ""])
def test_index_scores_are_those_of_bm25s(query):
    np.testing.assert_array_equal(BM25Index(TEXTS).scores([query, query]), [bm25_by_bm25s(query)] * 2)


@given(st.integers(1, 12), st.sampled_from(["space", "comedy drama", "space space war"]))
def test_retrieve_is_a_stable_sort_of_all_scores(top_n, query):
    items = BM25Index(TEXTS).retrieve([query], top_n)
    scores = bm25_by_bm25s(query)
    expected = [item for item in np.argsort(-scores, kind="stable") if scores[item] > 0][:top_n]
    assert items[0].tolist() == expected + [-1] * (top_n - len(expected))


def test_texts_without_words_score_nothing():
    assert BM25Index(["", "!", "a"]).scores(["a", "comedy"]).tolist() == [[0, 0, 0], [0, 0, 0]]


@settings(max_examples=25)
@given(
    clicks=st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=12), min_size=1, max_size=6),
    num_negatives=st.integers(1, 15),
    seed=st.integers(0, 99),
)
def test_random_candidates_are_the_target_and_untouched_items(make_requests, clicks, num_negatives, seed):
    requests = make_requests(clicks, num_items=30)
    sets = random_candidates(requests, num_negatives, seed)
    assert sets.candidates.shape == (len(clicks), num_negatives + 1)
    np.testing.assert_array_equal(sets.target_items, [user_clicks[-1] for user_clicks in clicks])
    for row, user_clicks in zip(sets.candidates, clicks, strict=True):
        assert len(set(row)) == num_negatives + 1
        assert set(row) & set(user_clicks) == {user_clicks[-1]}
    assert sets.protocol == f"random-{num_negatives}"


def test_items_clicked_after_the_target_are_no_negatives(make_requests):
    requests = make_requests([[0, 1, 2, 3, 4, 5]], num_items=8)
    early = type(requests)(task=requests.task, events=requests.events, targets=np.array([1]))  # item 1, before 2 … 5
    assert sorted(random_candidates(early, num_negatives=2).candidates[0]) == [1, 6, 7]


def test_negatives_and_target_places_are_uniform(make_requests):
    requests = make_requests([[0]] * 2000, num_items=11)
    sets = random_candidates(requests, num_negatives=4)
    counts = np.bincount(sets.candidates.ravel(), minlength=11)
    assert counts[0] == 2000
    np.testing.assert_allclose(counts[1:] / 2000, 4 / 10, atol=0.055)  # 5 standard deviations
    np.testing.assert_allclose(np.bincount(sets.target_columns) / 2000, 1 / 5, atol=0.045)


def test_a_request_keeps_its_candidates_in_other_company(make_requests):
    requests = make_requests([[0, 1], [2, 3], [4, 5]], num_items=40)
    sets, alone = random_candidates(requests, 10, seed=3), random_candidates(requests.subset(np.array([1])), 10, seed=3)
    np.testing.assert_array_equal(sets.candidates[1], alone.candidates[0])
    np.testing.assert_array_equal(sets.candidates[[1]], alone.candidates)
    assert not np.array_equal(sets.candidates, random_candidates(requests, 10, seed=4).candidates)


def test_a_small_catalogue_gives_fewer_negatives_and_says_so(make_requests, caplog):
    requests = make_requests([[0, 1, 2], [4]], num_items=5)
    with caplog.at_level(logging.WARNING):
        sets = random_candidates(requests, num_negatives=99)
    assert sets.candidates.shape == (2, 3)
    assert sets.protocol == "random-2"
    assert "'user-0' has no interaction with only 2 of 5 items" in caplog.text


def test_a_user_of_everything_is_an_error(make_requests):
    with pytest.raises(InputError, match="User 'user-1' has interacted with all 3 items"):
        random_candidates(make_requests([[0], [0, 1, 2]], num_items=3))


@pytest.mark.parametrize("query", ["space", "comedy drama", "adventure ships war", "space comedy drama war"])
@pytest.mark.parametrize("target", [0, 4, 6])
@pytest.mark.parametrize("num_negatives", [1, 3, 7])
def test_bm25_candidates_are_the_best_hits_but_the_target(make_requests, query, target, num_negatives):
    requests = make_requests([[2, target]], num_items=len(TEXTS), task=SEARCH, queries=[query])
    sets = bm25_candidates(requests, TEXTS, num_negatives)
    scores = bm25_by_bm25s(query)
    best = sorted((score for item, score in enumerate(scores) if score > 0 and item != target), reverse=True)
    row = sets.candidates[0].tolist()
    assert len(set(row)) == num_negatives + 1
    negatives = sorted((scores[item] for item in row if item != target), reverse=True)
    assert negatives[: len(best)] == best[:num_negatives]
    assert sets.target_items.tolist() == [target]
    assert sets.protocol == f"bm25-hard-{num_negatives}"


def test_the_columns_that_bm25_reads_are_part_of_the_protocol(make_requests):
    requests = make_requests([[0, 3]], num_items=len(TEXTS), task=SEARCH, queries=["space"])
    assert (
        bm25_candidates(requests, TEXTS, 3, columns=["title", "year-made"]).protocol == "bm25-hard(title, year-made)-3"
    )


def test_equal_bm25_scores_are_in_a_seeded_order(make_requests):
    texts = ["space"] * 40
    requests = make_requests([[0, 3]], num_items=40, task=SEARCH, queries=["space"])
    first, again, other = (bm25_candidates(requests, texts, 5, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.candidates, again.candidates)
    assert set(first.candidates[0]) != set(other.candidates[0])


def test_a_query_without_hits_gets_seeded_random_items(make_requests):
    requests = make_requests([[3]] * 500, num_items=len(TEXTS), task=SEARCH, queries=["western"] * 500)
    sets = bm25_candidates(requests, TEXTS, num_negatives=2, seed=1)
    counts = np.bincount(sets.candidates.ravel(), minlength=len(TEXTS))
    assert counts[3] == 500
    np.testing.assert_allclose(np.delete(counts, 3) / 500, 2 / 7, atol=0.1)  # 5 standard deviations
    again = bm25_candidates(requests, TEXTS, num_negatives=2, seed=1)
    np.testing.assert_array_equal(sets.candidates, again.candidates)


def test_hard_negatives_are_limited_by_the_catalogue(make_requests, caplog):
    requests = make_requests([[0]], num_items=len(TEXTS), task=SEARCH, queries=["space"])
    sets = bm25_candidates(requests, TEXTS)
    assert sorted(sets.candidates[0]) == list(range(len(TEXTS)))
    assert sets.protocol == "bm25-hard-7"
    assert "only 7 hard negatives" in caplog.text


def test_no_requests_give_no_sets(make_requests):
    requests = make_requests([[0, 1]], num_items=150).subset(np.zeros(0, dtype=np.int64))
    for sets in (random_candidates(requests), bm25_candidates(requests, ["text"] * 150)):
        assert sets.candidates.shape == (0, 100)


@pytest.mark.parametrize(
    ("candidates", "target_columns", "message"),
    [
        ([[1, 2], [3, 3]], [0, 1], "must be distinct item indices"),
        ([[1, 2], [3, -1]], [0, 1], "at least 0; those of request 1 are not"),
    ],
)
def test_impossible_sets_are_refused(candidates, target_columns, message):
    with pytest.raises(ValueError, match=message):
        CandidateSets(np.array(candidates), np.array(target_columns), "random-1")
