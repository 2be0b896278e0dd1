"""A pipeline whose catalogue changes: items removed, items added, while requests are answered."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_requests import HISTORIES, HISTORY, QUERIES, assert_same_answers, item_ids

from gensar_hf import GenSARPipeline
from gensar_hf.errors import InputError
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable

TEXTS = ["a horror film", "comedy 1990s", "space adventure and a crime drama"]


@pytest.fixture
def own_pipe(pipelines: dict[str, GenSARPipeline], model_dirs: dict[str, Path]) -> GenSARPipeline:
    """One whose catalogue may be changed."""
    return GenSARPipeline(pipelines["events"].model, GenSARTokenizer.from_pretrained(model_dirs["events"]))


def test_removed_items_are_not_found_but_understood(own_pipe: GenSARPipeline) -> None:
    before = own_pipe.recommend(HISTORY, top_k=12)
    removed = ["film-3", before[0]["item_id"]]
    table = own_pipe.tokenizer.identifiers
    own_pipe.set_catalogue(table.remove_items(removed))
    kept = [answer for answer in before if answer["item_id"] not in removed]
    # film-3 stands in the history, which is read as before.
    assert_same_answers([own_pipe.recommend(HISTORY, top_k=12)], [kept], "item_id")
    assert not set(removed) & set(item_ids(own_pipe.search("horror", HISTORY, top_k=12)))
    with pytest.raises(ValueError, match=r"candidates\[0\]: item 'film-3' was removed from the catalogue"):
        own_pipe.rank(HISTORY, ["film-3"])
    assert item_ids(own_pipe.rank(HISTORY, ["film-3", "film-5"], on_unknown="skip")) == ["film-5"]
    own_pipe.set_catalogue(own_pipe.tokenizer.identifiers.restore_items(removed))
    assert own_pipe.recommend(HISTORY, top_k=12) == before


def test_a_catalogue_with_further_items_finds_them(own_pipe: GenSARPipeline, make_identifiers: Callable) -> None:
    assert "film-17" not in item_ids(own_pipe.recommend(HISTORY, top_k=50))
    own_pipe.set_catalogue(make_identifiers(num_items=18))
    assert "film-17" in item_ids(own_pipe.recommend(HISTORY, top_k=50))
    assert "film-3" not in item_ids(own_pipe.recommend([{"item_id": "film-3"}], top_k=50, exclude_seen=True))


def test_a_catalogue_of_other_tokens_is_refused_and_the_old_one_stays(
    own_pipe: GenSARPipeline, make_identifiers: Callable
) -> None:
    before = own_pipe.recommend(HISTORY)
    with pytest.raises(InputError, match="lacks 24 tokens"):
        own_pipe.set_catalogue(make_identifiers(codebook_size=8))
    assert own_pipe.recommend(HISTORY) == before


def test_no_request_sees_a_part_of_two_catalogues(own_pipe: GenSARPipeline) -> None:
    """The same ids in another order and other titles: a request that mixes the two finds wrong ids or titles."""
    table = own_pipe.tokenizer.identifiers
    order = np.arange(table.num_items)[::-1]
    other = IdentifierTable(
        [table.item_ids[row] for row in order], table.semantic_codes[order], table.collaborative_codes[order],
        table.num_shared_levels, table.codebook_size, [f"Other {table.titles[row]}" for row in order],
    )  # fmt: skip
    asked = [f"film-{item}" for item in (1, 4, 9)]

    def ask() -> tuple:
        found = own_pipe.recommend(HISTORIES, top_k=3, exclude_seen=True)
        return found, own_pipe.search("horror", HISTORY, top_k=2), own_pipe.rank(HISTORY, asked)

    expected = []
    for choice in (table, other):
        own_pipe.set_catalogue(choice)
        expected.append(ask())
    for old, new in zip(*expected, strict=True):
        assert old != new
    answers: list[tuple] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(ask())

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    swaps = 0
    while len(answers) < 8:
        own_pipe.set_catalogue((table, other)[swaps % 2])
        swaps += 1
    stop.set()
    for thread in threads:
        thread.join()
    for answer in answers:
        for found, *wanted in zip(answer, *expected, strict=True):
            assert found in wanted


# ---- items added after training


@pytest.fixture(params=["events", "tokens"])
def with_added(
    pipelines: dict[str, GenSARPipeline], request: pytest.FixtureRequest
) -> Iterator[tuple[GenSARPipeline, IdentifierTable]]:
    """The pipeline with a catalogue whose last two items were added and borrow from two others each."""
    pipe = pipelines[request.param]
    table = pipe.tokenizer.identifiers
    added = replace(table, neighbors=np.array([[0, 3], [5, 1]]))
    pipe.set_catalogue(added)
    yield pipe, table
    pipe.set_catalogue(table)


def test_an_added_item_has_the_mean_probability_of_its_neighbors(with_added: tuple) -> None:
    pipe, table = with_added
    rows, queries = np.array([[11, 2, 10, 0]] * 4), QUERIES
    borrowed = np.exp(pipe.score_items(HISTORIES, rows, queries))
    pipe.set_catalogue(table)
    own = np.exp(pipe.score_items(HISTORIES, np.arange(12)[None].repeat(4, axis=0), queries))
    expected = np.stack([own[:, [5, 1]].mean(1), own[:, 2], own[:, [0, 3]].mean(1), own[:, 0]], axis=1)
    assert borrowed == pytest.approx(expected, rel=1e-4)


def test_added_items_are_found_at_the_place_that_their_neighbors_give_them(with_added: tuple) -> None:
    pipe, table = with_added
    answers = pipe.search("horror", HISTORY, top_k=12)
    scores = pipe.score_items([HISTORY], np.arange(12)[None], ["horror"])[0]
    assert item_ids(answers) == [table.item_ids[row] for row in np.argsort(-scores, kind="stable")]
    assert [answer["score"] for answer in answers] == pytest.approx(np.sort(scores)[::-1].tolist(), abs=1e-4)
    assert answers[0]["title"] is not None


def test_added_items_that_were_seen_or_removed_are_left_out(with_added: tuple) -> None:
    pipe, table = with_added
    new = table.item_ids[10:]
    seen = pipe.recommend([{"item_id": new[0]}], top_k=12, exclude_seen=True)
    assert new[0] not in item_ids(seen)
    assert new[1] in item_ids(seen)
    pipe.set_catalogue(pipe.tokenizer.identifiers.remove_items([new[1]]))
    assert item_ids(pipe.recommend(HISTORY, top_k=12)).count(new[1]) == 0


# ---- item vectors


def test_an_added_item_borrows_vectors_as_well_and_is_read_as_its_nearest(
    make_generator: Callable, make_identifiers: Callable
) -> None:
    table = replace(make_identifiers(12), titles=None, texts=None)
    trained = first_items(table, 10)
    tokenizer = GenSARTokenizer.train_from_texts(TEXTS, trained, vocab_size=100, history_encoding="events")
    pipe = GenSARPipeline(make_generator(tokenizer, num_items=10), tokenizer)
    own = np.exp(pipe.score_items([HISTORY], np.arange(10)[None], ["horror"]))[0]
    nearest = pipe.model.encoder(**encoder_inputs(tokenizer, [{"item_id": "film-5"}]))[0]
    pipe.set_catalogue(replace(table, neighbors=np.array([[0, 3], [5, 1]])))
    scores = np.exp(pipe.score_items([HISTORY], np.arange(12)[None], ["horror"]))[0]
    assert scores[:10] == pytest.approx(own, rel=1e-4)
    assert scores[10:] == pytest.approx([own[[0, 3]].mean(), own[[5, 1]].mean()], rel=1e-4)
    found = pipe.search("horror", HISTORY, top_k=12)
    assert sorted(item_ids(found)) == sorted(table.item_ids)
    inputs = encoder_inputs(tokenizer, [{"item_id": "film-11"}])
    assert inputs["event_items"].tolist() == [[-1, 5]]
    assert not torch.equal(pipe.model.encoder(**inputs)[0], nearest)  # its own identifier, the nearest one's vector


def test_an_added_item_that_was_marked_as_trained_is_one_of_its_own_neighbors(
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
    inputs = encoder_inputs(tokenizer, [{"item_id": "film-10"}, {"item_id": "film-11"}])
    assert inputs["event_items"].tolist() == [[-1, 10, 5]]


def test_vectors_of_another_number_of_items_are_refused(
    pipelines: dict[str, GenSARPipeline], make_generator: Callable, make_identifiers: Callable
) -> None:
    vectors_pipe = pipelines["vectors"]
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


def encoder_inputs(tokenizer: GenSARTokenizer, history: list) -> dict[str, torch.Tensor]:
    inputs = tokenizer.encode_request(history)
    return {name: tensor for name, tensor in inputs.items() if name != "decoder_input_ids"}
