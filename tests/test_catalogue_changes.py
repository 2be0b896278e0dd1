"""A pipeline whose catalogue changes: items removed, items added, while requests are answered."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipeline_requests import HISTORIES, HISTORY, QUERIES, assert_same_answers, item_ids

from gensar_hf import GenSARPipeline
from gensar_hf.errors import InputError
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable


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
