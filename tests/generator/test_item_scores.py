"""The best items by vector, and items added after training, which get the mean probability of their neighbors."""

import numpy as np
import pytest
import torch
from conftest import build_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_requests import HISTORIES, QUERIES, assert_same_answers

from gensar_hf import GenSARPipeline
from gensar_hf.generator import item_scores
from gensar_hf.generator.item_scores import mean_probability, rank_with_cold_items
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable


def test_the_mean_is_one_of_probabilities_not_of_logarithms():
    assert mean_probability(np.log([0.5, 0.1])) == pytest.approx(np.log(0.3))
    assert mean_probability(np.array([np.log(0.5), -np.inf])) == pytest.approx(np.log(0.25))
    assert mean_probability(np.array([-np.inf, -np.inf])) == -np.inf
    assert mean_probability(np.array([-1000.0, -1000.0])) == pytest.approx(-1000)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-50, 0), min_size=1, max_size=6))
def test_the_mean_lies_between_the_least_and_the_greatest(values):
    mean = mean_probability(np.array(values))
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


def test_cold_items_rank_by_the_scores_of_their_neighbors():
    rows, scores = np.array([3, 0, 2]), np.log([0.5, 0.3, 0.1])
    # 7 borrows (0.5 + 0.3) / 2, 8 borrows (0.1 + 0) / 2, and none of 9's neighbors was found
    neighbors = np.array([[3, 0], [2, 1], [1, 4]])

    ranked, ranked_scores = rank_with_cold_items(rows, scores, np.array([7, 8, 9]), neighbors)

    np.testing.assert_array_equal(ranked, [3, 7, 0, 2, 8])
    np.testing.assert_allclose(np.exp(ranked_scores), [0.5, 0.4, 0.3, 0.1, 0.05])


def test_a_cold_item_may_be_among_its_own_neighbors():
    rows, scores = np.array([7, 3, 0]), np.log([0.5, 0.3, 0.1])
    ranked, ranked_scores = rank_with_cold_items(rows, scores, np.array([7, 8]), np.array([[7, 3], [8, 0]]))
    np.testing.assert_array_equal(ranked, [7, 3, 0, 8])
    np.testing.assert_allclose(np.exp(ranked_scores), [0.4, 0.3, 0.1, 0.05])


def test_without_cold_items_or_without_results_nothing_changes():
    rows, scores = np.array([3, 0]), np.array([-1.0, -2.0])
    ranked, ranked_scores = rank_with_cold_items(rows, scores, np.zeros(0, int), np.zeros((0, 5), int))
    np.testing.assert_array_equal(ranked, rows)
    np.testing.assert_array_equal(ranked_scores, scores)
    ranked, _ = rank_with_cold_items(rows[:0], scores[:0], np.array([7]), np.array([[0, 3]]))
    assert len(ranked) == 0


# ---- the best items by vector


@pytest.fixture(scope="module")
def many_items() -> GenSARPipeline:
    """Two thousand items, of which a hundred at a time have the same vector: one number of the request."""
    numbers = np.random.default_rng(0).permutation(16**4)[:2000]
    codes = numbers[:, None] // 16 ** np.arange(4) % 16
    table = IdentifierTable([f"item {row}" for row in range(2000)], codes, codes, 2, 16)
    tokenizer = GenSARTokenizer.train_from_texts(["red soap"], table, vocab_size=60, max_history_events=8)
    model = build_generator(tokenizer, num_items=2000)
    with torch.no_grad():
        model.encoder.items.table.weight.copy_(torch.eye(16)[torch.arange(2000) % 16])
    return GenSARPipeline(model, tokenizer, num_beams=5)


HISTORIES_OF_MANY = [[{"item_id": "item 7"}, {"item_id": "item 1999"}], [], [{"item_id": "item 30"}]]


@pytest.mark.parametrize("num_beams", [1, 5, 130, 1000])
def test_of_equal_items_the_first_ones_are_found(many_items: GenSARPipeline, num_beams: int) -> None:
    pipe = GenSARPipeline(many_items.model, many_items.tokenizer, num_beams=num_beams)
    histories = HISTORIES_OF_MANY
    everything = np.arange(2000)[None].repeat(3, axis=0)
    scores = pipe.score_items(histories, everything, parts=["vector"])
    for (rows, found), own in zip(pipe.found_items(histories, None, ["vector"]), scores, strict=True):
        expected = np.argsort(-own, kind="stable")[:num_beams]
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(found, own[expected], atol=1e-5)


def test_blocks_change_no_score(many_items: GenSARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = np.random.default_rng(0).integers(2000, size=(3, 20))
    whole = many_items.score_items(HISTORIES_OF_MANY, candidates), many_items.recommend(HISTORIES_OF_MANY)
    monkeypatch.setattr(item_scores, "_BLOCK_ITEMS", 7)
    monkeypatch.setattr(item_scores, "_BLOCK_LOGITS", 1)
    np.testing.assert_allclose(many_items.score_items(HISTORIES_OF_MANY, candidates), whole[0], atol=1e-5)
    assert_same_answers(many_items.recommend(HISTORIES_OF_MANY), whole[1], "item_id")


def test_few_candidates_are_ranked_without_the_catalogue(pipe: GenSARPipeline, many_items: GenSARPipeline) -> None:
    for own, histories, queries in (
        (pipe, HISTORIES, None), (pipe, HISTORIES, QUERIES), (many_items, HISTORIES_OF_MANY, None),
    ):  # fmt: skip
        candidates = np.random.default_rng(0).permuted(np.arange(12)[None].repeat(len(histories), axis=0), axis=1)
        difference = own.score_items(histories, candidates, queries)
        difference = difference - own.score_items(histories, candidates, queries, is_normalized=False)
        np.testing.assert_allclose(difference, difference[:, :1].repeat(12, axis=1), atol=1e-4)
