"""Two models that rank together: sums by hand, and the generator alone where the other has no say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gensar_hf import GenSARPipeline
from gensar_hf.artifacts import DataError
from gensar_hf.embeddings.configuration_sasrec import SASRecConfig
from gensar_hf.embeddings.modeling_sasrec import SASRecModel, pad_histories
from gensar_hf.hybrid import HybridPipeline

HISTORY = [{"item_id": "film-3"}, {"query": "crime drama"}, {"item_id": "film-5", "query": "crime drama"}]
CLICKS = np.array([3, 5])


def sasrec(num_items: int = 12) -> SASRecModel:
    torch.manual_seed(0)
    return SASRecModel(SASRecConfig(num_items=num_items, hidden_size=8, max_length=6, initializer_range=1.0)).eval()


@pytest.fixture
def alone(pipelines: dict[str, GenSARPipeline]) -> GenSARPipeline:
    return pipelines["events"]


@pytest.fixture
def make_hybrid(alone: GenSARPipeline) -> Callable[..., HybridPipeline]:
    def make(weight: float = 1.0, **options: int) -> HybridPipeline:
        return HybridPipeline(alone.model, alone.tokenizer, sasrec(), weight, **options)

    return make


def expected_of_sasrec(history: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return sasrec().score(pad_histories([history], 6))[0].log_softmax(dim=-1).numpy()


def test_scores_are_the_weighted_sums_of_both(make_hybrid: Callable, alone: GenSARPipeline) -> None:
    rows = np.arange(12)[None]
    (scores,) = make_hybrid(2.0).score_items([HISTORY], rows)
    (generated,) = alone.score_items([HISTORY], rows)
    assert scores == pytest.approx(generated + 2 * expected_of_sasrec(CLICKS), abs=1e-4)


def test_recommendations_are_the_best_sums_of_what_either_proposes(
    make_hybrid: Callable, alone: GenSARPipeline
) -> None:
    few = make_hybrid(1.0, num_beams=2)
    (scores,) = few.score_items([HISTORY], np.arange(12)[None])
    answers = few.recommend(HISTORY, top_k=2)
    proposed = {answer["item_id"] for answer in GenSARPipeline(alone.model, alone.tokenizer, 2).recommend(HISTORY, 2)}
    proposed |= {f"film-{row}" for row in np.argsort(-expected_of_sasrec(CLICKS))[:2]}
    best = sorted(proposed, key=lambda item_id: -scores[int(item_id.removeprefix("film-"))])[:2]
    assert [answer["item_id"] for answer in answers] == best
    assert answers[0]["score"] == pytest.approx(scores.max(initial=-np.inf, where=np.isin(np.arange(12), [
        int(item_id.removeprefix("film-")) for item_id in proposed
    ])), abs=1e-4)  # fmt: skip
    everything = make_hybrid(1.0, num_beams=12).recommend(HISTORY, top_k=12)
    assert [answer["item_id"] for answer in everything] == [f"film-{row}" for row in np.argsort(-scores)]


def test_without_weight_the_generator_ranks_alone(make_hybrid: Callable, alone: GenSARPipeline) -> None:
    hybrid = make_hybrid(0.0)
    for own, other in zip(hybrid.recommend(HISTORY, 12), alone.recommend(HISTORY, 12), strict=True):
        assert own["item_id"] == other["item_id"]
        assert own["score"] == pytest.approx(other["score"], abs=1e-4)


def test_a_user_without_clicks_and_a_search_are_the_generator_s(make_hybrid: Callable, alone: GenSARPipeline) -> None:
    hybrid = make_hybrid(1.0)
    first, second = (
        [answer["item_id"] for answer in pipe.recommend([], top_k=5)] for pipe in (hybrid, alone)
    )  # fmt: skip
    assert first == second  # SASRec gives all items one score
    assert hybrid.search("crime drama", HISTORY) == alone.search("crime drama", HISTORY)
    ranked = hybrid.rank(HISTORY, ["film-1", "film-2"], query="crime drama")
    assert ranked == alone.rank(HISTORY, ["film-1", "film-2"], query="crime drama")


def test_ranking_and_batches_agree_with_single_requests(make_hybrid: Callable) -> None:
    hybrid = make_hybrid(1.0, batch_size=2)
    histories = [HISTORY, [], HISTORY[:1]]
    lists = [["film-1", "film-7", "film-2"], ["film-0"], ["film-4", "film-9"]]
    batch = hybrid.rank(histories, lists)
    for history, own, answers in zip(histories, lists, batch, strict=True):
        single = hybrid.rank(history, own)
        assert [answer["item_id"] for answer in single] == [answer["item_id"] for answer in answers]
        assert {answer["item_id"] for answer in answers} == set(own)
    recommended = hybrid.recommend(histories, top_k=3)
    assert [answer["item_id"] for answer in recommended[2]] == [
        answer["item_id"] for answer in hybrid.recommend(histories[2], top_k=3)
    ]


def test_seen_and_removed_items_are_not_proposed(pipelines: dict, model_dirs: dict[str, Path]) -> None:
    pipe = GenSARPipeline.from_pretrained(model_dirs["events"], device="cpu")
    hybrid = HybridPipeline(pipe.model, pipe.tokenizer, sasrec(), 1.0)
    hybrid.set_catalogue(pipe.tokenizer.identifiers.remove_items(["film-1"]))
    found = [answer["item_id"] for answer in hybrid.recommend(HISTORY, top_k=12, exclude_seen=True)]
    assert sorted(found) == sorted(f"film-{row}" for row in range(12) if row not in (1, 3, 5))


def test_both_models_load_from_their_folders(
    model_dirs: dict[str, Path], tmp_path: Path, alone: GenSARPipeline
) -> None:
    sasrec().save_pretrained(tmp_path / "collaborative")
    hybrid = HybridPipeline.from_pretrained(model_dirs["events"], tmp_path / "collaborative", weight=0.5, device="cpu")
    (scores,) = hybrid.score_items([HISTORY], np.arange(12)[None])
    (generated,) = alone.score_items([HISTORY], np.arange(12)[None])
    assert scores == pytest.approx(generated + 0.5 * expected_of_sasrec(CLICKS), abs=1e-4)


def test_what_does_not_belong_together_is_refused(alone: GenSARPipeline, model_dirs: dict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="knows 11 items, the generator was trained on 12"):
        HybridPipeline(alone.model, alone.tokenizer, sasrec(11))
    with pytest.raises(ValueError, match="must not be negative"):
        HybridPipeline(alone.model, alone.tokenizer, sasrec(), -1.0)
    with pytest.raises(DataError, match="cannot be loaded"):
        HybridPipeline.from_pretrained(model_dirs["events"], tmp_path / "nowhere", device="cpu")
    hybrid = HybridPipeline(alone.model, alone.tokenizer, sasrec())
    with pytest.raises(ValueError, match="exact scores only"):
        hybrid.rank(HISTORY, ["film-1"], method="beam_search")
    with pytest.raises(ValueError, match="`top_k` must be a whole number of at least 1; got 0"):
        hybrid.recommend(HISTORY, top_k=0)
    with pytest.raises(ValueError, match="one list of candidates, and one query or none at all, for each history"):
        hybrid.rank([HISTORY, HISTORY], [["film-1"]])
