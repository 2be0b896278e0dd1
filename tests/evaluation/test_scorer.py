from collections.abc import Callable

import numpy as np
import pytest
import torch

from gensar_hf import GenSARPipeline
from gensar_hf.data import Behavior, Split, UserEvents
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests
from gensar_hf.evaluation import CandidateSets, protocol, scorer
from gensar_hf.evaluation.metrics import metric_per_request
from gensar_hf.evaluation.protocol import SCORE_WEIGHTS, choose_weights, rank_requests
from gensar_hf.evaluation.scorer import GeneratorScorer, request_history
from gensar_hf.evaluation.significance import bootstrap_interval

R, Q, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM


def test_a_request_s_history_is_written_as_the_pipeline_reads_it(tiny_split: Split) -> None:
    """ann's test: her first ten events before the last click; her last search, whose own query is left out."""
    comedy, space, crime = "comedy 1990s", "space adventure", "crime drama"
    first_eight = [
        {"item_id": "film-0"},
        {"query": comedy},
        {"item_id": "film-1", "query": comedy},
        {"item_id": "film-2", "query": comedy},
        {"item_id": "film-3"},
        {"query": space},
        {"item_id": "film-4", "query": space},
        {"item_id": "film-5"},
    ]
    assert request_history(tiny_split.test[SEARCH], 0) == first_eight
    assert request_history(tiny_split.test[RECOMMENDATION], 0) == [
        *first_eight,
        {"query": crime},
        {"item_id": "film-6", "query": crime},
    ]


@pytest.mark.parametrize("task", [RECOMMENDATION, SEARCH])
def test_scores_are_the_log_probabilities_of_the_identifiers(
    task: str, tiny_split: Split, pipelines: dict[str, GenSARPipeline], encoding: str
) -> None:
    pipe, requests = pipelines[encoding], tiny_split.test[task]
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(12)[:6] for _ in range(len(requests))])
    scores = GeneratorScorer(pipe).score(requests, candidates)
    behavior = S if task == SEARCH else R
    for row in range(len(requests)):
        query = requests.query_texts[row] if task == SEARCH else None
        inputs = pipe.tokenizer.encode_request(request_history(requests, row), query, behavior.token)
        for column, item in enumerate(candidates[row]):
            codes = pipe.tokenizer.item_token_ids[behavior][item]
            inputs["decoder_input_ids"] = torch.tensor([[pipe.tokenizer.pad_token_id, *codes[:-1]]])
            with torch.no_grad():
                log_probabilities = pipe.model(**inputs).logits[0].log_softmax(dim=-1)
            expected = sum(log_probabilities[position, codes[position]].item() for position in range(1, 5))
            assert scores[row, column] == pytest.approx(expected, abs=1e-4)


def test_items_are_found_by_their_ids_not_by_their_order(
    tiny_split: Split, tiny_events: UserEvents, pipelines: dict[str, GenSARPipeline], make_events: Callable
) -> None:
    """An event log that lists the catalogue in another order gives the same scores for the same items."""
    pipe, requests = pipelines["events"], tiny_split.test[RECOMMENDATION]
    order = np.random.default_rng(1).permutation(12)
    place = np.argsort(order)
    shuffled = UserEvents(
        **{
            **vars(tiny_events),
            "item_ids": [tiny_events.item_ids[item] for item in order],
            "items": np.where(tiny_events.items >= 0, place[tiny_events.items], -1),
        }
    )
    candidates = np.tile(np.arange(12), (len(requests), 1))
    scorer = GeneratorScorer(pipe)
    expected = scorer.score(requests, candidates)
    scores = scorer.score(Requests(RECOMMENDATION, shuffled, requests.targets), place[candidates])
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_no_request_is_no_error(tiny_split: Split, pipelines: dict[str, GenSARPipeline]) -> None:
    for task, nothing in tiny_split.validation.items():
        scores = GeneratorScorer(pipelines["events"]).score(nothing, np.zeros((0, 100), dtype=int))
        assert scores.shape == (0, 100), task


def every_item(requests) -> CandidateSets:
    candidates = np.tile(np.arange(12), (len(requests), 1))
    return CandidateSets(candidates, requests.target_items, "all")


def quality_with(
    pipe: GenSARPipeline, pair: tuple[float, float], requests: Requests, sets: CandidateSets | None = None
) -> np.ndarray:
    """NDCG@5 of each request, by a model with these weights of identifier and item vector."""
    config = pipe.model.config
    configured = config.identifier_weight, config.item_weight
    config.identifier_weight, config.item_weight = pair
    try:
        return metric_per_request("NDCG@5", rank_requests(GeneratorScorer(pipe), requests, sets).ranks)
    finally:
        config.identifier_weight, config.item_weight = configured


def test_each_task_gets_the_weights_that_are_best_in_separate_evaluations(
    tiny_split: Split, pipelines: dict[str, GenSARPipeline]
) -> None:
    """Identifiers weigh nothing, or add .005 among the candidates and, beyond chance, something among all items."""
    pipe, config, kinds = pipelines["vectors"], pipelines["vectors"].model.config, set()
    configured = config.identifier_weight, config.item_weight
    vectors, both = (0.0, 1.0), (1.0, 1.0)
    assert {vectors, both} < {*SCORE_WEIGHTS}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        for task in (RECOMMENDATION, SEARCH):
            requests = tiny_split.test[task]
            if seed % 2:  # those that identifiers help
                gain = quality_with(pipe, both, requests) - quality_with(pipe, vectors, requests)
                requests = requests.subset(np.flatnonzero(gain > 0))
            others = [rng.permutation(np.setdiff1d(np.arange(12), [item]))[:3] for item in requests.target_items]
            candidates = np.concatenate([requests.target_items[:, None], np.stack(others)], axis=1)
            sets = CandidateSets(candidates, np.zeros(len(requests), dtype=int), "three others")
            chosen = choose_weights(pipe, {task: requests}, {task: sets})[task]
            assert (config.identifier_weight, config.item_weight) == configured
            among = {pair: quality_with(pipe, pair, requests, sets).mean() for pair in SCORE_WEIGHTS}
            worth = {pair: value - 0.005 * (pair[0] > 0) for pair, value in among.items()}
            best = max(worth, key=lambda pair: worth[pair])
            gain = quality_with(pipe, best, requests) - quality_with(pipe, vectors, requests)
            is_shown = bootstrap_interval(gain, groups=requests.users)[0] > 0
            assert chosen == (best if is_shown else vectors), (seed, task)
            kinds.add((best[0] > 0, chosen[0] > 0))
    assert kinds == {(False, False), (True, False), (True, True)}


def test_weights_are_chosen_for_a_model_with_item_vectors(
    tiny_split: Split, pipelines: dict[str, GenSARPipeline]
) -> None:
    candidates = {SEARCH: every_item(tiny_split.test[SEARCH])}
    with pytest.raises(ValueError, match="for a model with item vectors"):
        choose_weights(pipelines["events"], tiny_split.test, candidates)
    assert choose_weights(pipelines["vectors"], tiny_split.test, {}) == {}


@pytest.mark.parametrize("task", [RECOMMENDATION, SEARCH])
def test_a_full_ranking_of_many_items_scores_the_best_of_them(
    task: str, tiny_split: Split, pipe: GenSARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = tiny_split.test[task]
    whole = rank_requests(GeneratorScorer(pipe), requests).ranks
    monkeypatch.setattr(scorer, "_SCORED_ITEMS", 11)
    monkeypatch.setattr(scorer, "_FULL_RANKING_BEAMS", 12)
    monkeypatch.setattr(protocol, "_CHUNK_SCORES", 24)  # two requests at a time
    np.testing.assert_array_equal(rank_requests(GeneratorScorer(pipe), requests).ranks, whole)
