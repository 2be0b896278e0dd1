import numpy as np
import pytest

from gensar_hf import GenSARPipeline
from gensar_hf.data import Split
from gensar_hf.data.splits import RECOMMENDATION, SEARCH
from gensar_hf.evaluation import CandidateSets, ndcg, rank_of_target
from gensar_hf.evaluation.generator_scorer import GeneratorScorer
from gensar_hf.evaluation.item_weight import qualities_of_weights


def every_item(requests) -> CandidateSets:
    candidates = np.tile(np.arange(12), (len(requests), 1))
    return CandidateSets(candidates, requests.target_items, "all", 0)


def test_qualities_are_those_of_evaluations_with_each_weight(
    tiny_split: Split, pipelines: dict[str, GenSARPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, requests, weights = pipelines["vectors"], tiny_split.test, (0.0, 0.25, 1.0, 30.0)
    candidates = {task: every_item(requests[task]) for task in (RECOMMENDATION, SEARCH)}
    before = pipe.model.config.item_weight

    qualities = qualities_of_weights(pipe, requests, candidates, weights)

    assert pipe.model.config.item_weight == before
    assert list(qualities) == list(weights)
    assert len(set(qualities.values())) > 1
    for weight, quality in qualities.items():
        monkeypatch.setattr(pipe.model.config, "item_weight", weight)
        scores = {task: GeneratorScorer(pipe).score(requests[task], candidates[task].candidates) for task in candidates}
        ranks = {task: rank_of_target(scores[task], candidates[task].target_columns) for task in candidates}
        assert quality == pytest.approx(np.mean([ndcg(ranks[task], 5) for task in candidates]), abs=1e-12)


def test_identifiers_alone_have_nothing_to_weigh(tiny_split: Split, pipelines: dict[str, GenSARPipeline]) -> None:
    requests = tiny_split.test
    candidates = {SEARCH: every_item(requests[SEARCH])}
    with pytest.raises(ValueError, match="a model with item vectors"):
        qualities_of_weights(pipelines["events"], requests, candidates)
    with pytest.raises(ValueError, match="at least one request"):
        qualities_of_weights(pipelines["vectors"], requests, {})
