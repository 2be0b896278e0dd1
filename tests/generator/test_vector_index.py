"""Recommendations with an index of the item vectors, compared with those that look at all items."""

import logging
import sys

import numpy as np
import pytest
import torch
from conftest import build_generator

from gensar_hf import GenSARPipeline
from gensar_hf.errors import InputError
from gensar_hf.generator.item_vectors import ItemVectors, item_vectors_of
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.generator.vector_index import VectorIndex
from gensar_hf.identifiers import IdentifierTable

pytest.importorskip("faiss")

NUM_ITEMS = 3000
HISTORIES = [[{"item_id": "item 7"}, {"item_id": "item 2999"}], [], [{"item_id": "item 30"}]]


def table_of(neighbors: np.ndarray | None = None) -> IdentifierTable:
    numbers = np.random.default_rng(0).permutation(16**4)[: NUM_ITEMS + (0 if neighbors is None else len(neighbors))]
    codes = numbers[:, None] // 16 ** np.arange(4) % 16
    return IdentifierTable([f"item {row}" for row in range(len(codes))], codes, codes, 2, 16, neighbors=neighbors)


@pytest.fixture
def pipe() -> GenSARPipeline:
    """Without identifiers in the score, so that the vectors alone propose."""
    tokenizer = GenSARTokenizer.train_from_texts(["red soap"], table_of(), vocab_size=60, max_history_events=8)
    model = build_generator(tokenizer, num_items=NUM_ITEMS)
    items = item_vectors_of(model)
    with torch.no_grad():
        items.table.weight.normal_(generator=torch.Generator().manual_seed(0))
        items.bias.normal_(generator=torch.Generator().manual_seed(1))
    model.config.identifier_weight = 0.0
    return GenSARPipeline(model, tokenizer, num_beams=20)


def ids(answers: list) -> list[list[str]]:
    return [[answer["item_id"] for answer in own] for own in answers]


def test_an_index_finds_the_highest_logits(pipe: GenSARPipeline) -> None:
    items = item_vectors_of(pipe.model)
    requests = torch.randn(4, items.table.weight.shape[1], generator=torch.Generator().manual_seed(2))
    logits = torch.nn.functional.linear(requests, items.table.weight, items.bias).detach().numpy()
    is_open = np.random.default_rng(0).random((4, NUM_ITEMS)) < 0.5
    for kind, least in (("Flat", 1.0), ("SQ8", 0.9), ("IVF16,SQ8", 0.9)):
        found = VectorIndex(items, kind, num_probes=16).search(requests, 10, list(is_open))
        for own, row, own_open in zip(found, logits, is_open, strict=True):
            expected = np.argsort(-np.where(own_open, row, -np.inf))[:10]
            assert len(own) == 10
            assert own_open[own].all()
            assert len(np.intersect1d(own, expected)) >= least * 10


def test_recommendations_are_those_without_an_index(pipe: GenSARPipeline) -> None:
    allowed = [f"item {row}" for row in range(0, NUM_ITEMS, 7)]
    requests = ({}, {"exclude_seen": True}, {"among": allowed}, {"exclude": allowed})
    without = [pipe.recommend(HISTORIES, top_k=5, **options) for options in requests]
    searched = pipe.search("red soap", HISTORIES[0])
    pipe.build_index("SQ8")
    for options, expected in zip(requests, without, strict=True):
        answers = pipe.recommend(HISTORIES, top_k=5, **options)
        assert ids(answers) == ids(expected)
        for own, before in zip(answers, expected, strict=True):  # up to one number for each request
            differences = [one["score"] - other["score"] for one, other in zip(own, before, strict=True)]
            assert differences == pytest.approx([differences[0]] * 5, abs=1e-4)
    assert ids([pipe.search("red soap", HISTORIES[0])]) == ids([searched])
    answer = pipe.recommend(HISTORIES[0], top_k=3, explain=True)[2]
    assert sum(answer["parts"].values()) == pytest.approx(answer["score"], abs=1e-4)


def test_with_identifiers_both_propose(pipe: GenSARPipeline) -> None:
    pipe.model.config.identifier_weight = 1.0
    expected = pipe.recommend(HISTORIES, top_k=5)
    pipe.build_index("SQ8")
    assert ids(pipe.recommend(HISTORIES, top_k=5)) == ids(expected)


def test_added_and_removed_items(pipe: GenSARPipeline) -> None:
    """An added item borrows from the best of all, which may be removed or not among the allowed ones."""
    pipe.build_index("SQ8")
    best = int(pipe.recommend([], top_k=1)[0]["item_id"].split()[1])
    table = table_of(np.array([[best, best], [5, 6]]))
    pipe.set_catalogue(table.remove_items([f"item {best}"]))
    assert pipe.recommend([], top_k=1)[0]["item_id"] == f"item {NUM_ITEMS}"
    added = [f"item {NUM_ITEMS}", f"item {NUM_ITEMS + 1}"]
    assert {answer["item_id"] for answer in pipe.recommend([], top_k=5, among=added)} == set(added)


@pytest.mark.parametrize("kind", ["SQ8", "IVF64,SQ8"])
def test_narrow_filters_get_as_many_answers_as_they_allow(pipe: GenSARPipeline, kind: str) -> None:
    """One item far from the probed clusters, and items of low logit beside added ones that borrow from the best."""
    ranked = [answer["item_id"] for answer in pipe.recommend([], top_k=1000)]
    pipe.build_index(kind, num_probes=2)
    for item_id in ranked[::200]:
        assert ids([pipe.recommend([], top_k=1, among=[item_id])]) == [[item_id]]
    lenders = np.array([int(item_id.split()[1]) for item_id in ranked[:100]]).reshape(10, 10)
    pipe.set_catalogue(table_of(lenders))
    allowed = ranked[-20:] + [f"item {NUM_ITEMS + row}" for row in range(10)]
    assert {answer["item_id"] for answer in pipe.recommend([], top_k=30, among=allowed)} == set(allowed)


def test_explained_parts_add_up_however_many_answers(pipe: GenSARPipeline) -> None:
    pipe.build_index()
    for answers in (
        pipe.recommend(HISTORIES[0], top_k=1100, explain=True),
        pipe.search("red soap", HISTORIES[0], top_k=3, explain=True),
    ):
        assert sum(answers[2]["parts"].values()) == pytest.approx(answers[2]["score"], abs=1e-4)


def test_an_index_of_older_vectors_is_not_used(pipe: GenSARPipeline, caplog: pytest.LogCaptureFixture) -> None:
    pipe.build_index("SQ8")
    with torch.no_grad():
        item_vectors_of(pipe.model).bias[4] += 10
    with caplog.at_level(logging.WARNING):
        changed = pipe.recommend(HISTORIES, top_k=5)
    assert "call `build_index` again" in caplog.text
    pipe.build_index("SQ8")
    assert ids(pipe.recommend(HISTORIES, top_k=5)) == ids(changed)


def test_unusable_indexes_are_one_sentence(pipe: GenSARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("no such", "IVF5000,SQ8", "SQ8,RFlat"):
        with pytest.raises(InputError, match=f"no index of kind '{kind}'|of kind '{kind}' of 3,000 items"):
            pipe.build_index(kind)
    with pytest.raises(ValueError, match="num_probes"):
        pipe.build_index("IVF16,SQ8", num_probes=0)
    pipe.model.config.num_items = 0
    with pytest.raises(InputError, match="no item vectors"):
        pipe.build_index()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"gensar-hf\[faiss\]"):
        VectorIndex(ItemVectors(pipe.model.config))
