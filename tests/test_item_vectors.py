"""A model with item vectors beside its identifiers, asked through the pipeline."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from pipeline_requests import HISTORY, assert_same_answers, item_ids, weighted_by_vector

from gensar_hf import GenSARPipeline
from gensar_hf.errors import InputError
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable

TEXTS = ["a horror film", "comedy 1990s", "space adventure and a crime drama"]


@pytest.fixture
def vectors_pipe(pipelines: dict[str, GenSARPipeline]) -> GenSARPipeline:
    return pipelines["vectors"]


def test_vectors_propose_items_that_few_beams_do_not_find(vectors_pipe: GenSARPipeline) -> None:
    few = GenSARPipeline(vectors_pipe.model, vectors_pipe.tokenizer, num_beams=1)
    by_vector = int(weighted_by_vector(vectors_pipe, HISTORY, None).argmax())
    identifiers = item_ids(vectors_pipe.rank(HISTORY, [f"film-{row}" for row in range(12)], method="beam_search"))
    assert f"film-{by_vector}" != identifiers[0]
    scores = vectors_pipe.score_items([HISTORY], np.arange(12)[None])[0]
    (best,) = few.recommend(HISTORY, top_k=1)
    assert best["item_id"] == max(identifiers[0], f"film-{by_vector}", key=lambda name: scores[int(name[5:])])
    assert best["score"] == pytest.approx(scores[int(best["item_id"][5:])], abs=1e-4)


def test_a_weight_of_zero_leaves_the_identifiers_alone(
    vectors_pipe: GenSARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_pipe.model.config, "item_weight", 0.0)
    everything = [f"film-{row}" for row in range(12)]
    exact = vectors_pipe.rank(HISTORY, everything, "horror")
    assert_same_answers([exact], [vectors_pipe.rank(HISTORY, everything, "horror", method="beam_search")], "item_id")


def test_an_added_item_borrows_vectors_too_and_is_read_as_its_nearest(
    make_generator: Callable, make_identifiers: Callable
) -> None:
    table = replace(make_identifiers(12), titles=None, texts=None)
    trained = first_items(table, 10)
    tokenizer = GenSARTokenizer.train_from_texts(TEXTS, trained, vocab_size=100, history_encoding="events")
    pipe = GenSARPipeline(make_generator(tokenizer, num_items=10), tokenizer)
    own = np.exp(pipe.score_items([HISTORY], np.arange(10)[None], ["horror"]))[0]
    nearest = pipe.model.encoder(**_encoder_inputs(tokenizer, [{"item_id": "film-5"}]))[0]
    pipe.set_catalogue(replace(table, neighbors=np.array([[0, 3], [5, 1]])))
    scores = np.exp(pipe.score_items([HISTORY], np.arange(12)[None], ["horror"]))[0]
    assert scores[:10] == pytest.approx(own, rel=1e-4)
    assert scores[10:] == pytest.approx([own[[0, 3]].mean(), own[[5, 1]].mean()], rel=1e-4)
    found = pipe.search("horror", HISTORY, top_k=12)
    assert sorted(item_ids(found)) == sorted(table.item_ids)
    inputs = _encoder_inputs(tokenizer, [{"item_id": "film-11"}])
    assert inputs["event_items"].tolist() == [[-1, 5]]
    assert not torch.equal(pipe.model.encoder(**inputs)[0], nearest)  # its own identifier, the nearest one's vector


def test_an_added_item_that_was_learned_is_one_of_its_own_neighbors(
    make_generator: Callable, make_identifiers: Callable
) -> None:
    table = replace(make_identifiers(12), titles=None, texts=None)
    tokenizer = GenSARTokenizer.train_from_texts(TEXTS, first_items(table, 11), vocab_size=100)
    pipe = GenSARPipeline(make_generator(tokenizer, num_items=11), tokenizer)
    own = np.exp(pipe.score_items([HISTORY], np.arange(11)[None], ["horror"]))[0]
    pipe.set_catalogue(replace(table, neighbors=np.array([[10, 3], [5, 1]])))
    scores = np.exp(pipe.score_items([HISTORY], np.arange(12)[None], ["horror"]))[0]
    expected = [*own[:10], own[[10, 3]].mean(), own[[5, 1]].mean()]
    assert scores == pytest.approx(expected, rel=1e-4)
    found = pipe.search("horror", HISTORY, top_k=12)
    assert item_ids(found) == [table.item_ids[row] for row in np.argsort(-scores, kind="stable")]
    inputs = _encoder_inputs(tokenizer, [{"item_id": "film-10"}, {"item_id": "film-11"}])
    assert inputs["event_items"].tolist() == [[-1, 10, 5]]


def test_vectors_of_another_number_of_items_are_refused(
    vectors_pipe: GenSARPipeline, make_generator: Callable, make_identifiers: Callable
) -> None:
    with pytest.raises(InputError, match="vectors of 5 items, the identifier table 12 items"):
        GenSARPipeline(make_generator(vectors_pipe.tokenizer, num_items=5), vectors_pipe.tokenizer)
    before = vectors_pipe.tokenizer.catalogue
    with pytest.raises(InputError, match="vectors of 12 items"):
        vectors_pipe.set_catalogue(make_identifiers(11))
    assert vectors_pipe.tokenizer.catalogue is before


def first_items(table: IdentifierTable, number: int) -> IdentifierTable:
    """The catalogue of a model that was trained on some of the items."""
    return replace(
        table,
        item_ids=table.item_ids[:number],
        semantic_codes=table.semantic_codes[:number],
        collaborative_codes=table.collaborative_codes[:number],
        available=table.available[:number],
    )


def _encoder_inputs(tokenizer: GenSARTokenizer, history: list) -> dict[str, torch.Tensor]:
    inputs = tokenizer.encode_request(history)
    return {name: tensor for name, tensor in inputs.items() if name != "decoder_input_ids"}
