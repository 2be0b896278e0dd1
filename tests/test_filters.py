"""Allow lists and deny lists: the unfiltered exact scores, of the allowed items only, in every kind of model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_requests import HISTORIES, HISTORY, QUERIES, assert_same_answers, item_ids

from gensar_hf import GenSARPipeline

ROWS = st.sets(st.integers(0, 11))
REQUEST = st.tuples(st.sampled_from(HISTORIES), st.none() | ROWS, ROWS)


@pytest.fixture(params=[False, True], ids=["trained", "added"])
def filtered_pipe(pipe: GenSARPipeline, kind: str, request: pytest.FixtureRequest):
    """A pipeline of each kind; of those without item vectors also with two added items, which borrow their scores."""
    table = pipe.tokenizer.identifiers
    if request.param and kind in ("vectors", "texts"):
        pytest.skip("its vectors are of all items")
    if request.param:
        pipe.set_catalogue(replace(table, neighbors=np.array([[0, 3], [5, 1]])).remove_items(["film-2"]))
    yield pipe
    pipe.set_catalogue(table)


def names(rows: set[int]) -> list[str]:
    return [f"film-{row}" for row in rows]


@given(requests=st.lists(REQUEST, min_size=1, max_size=3), is_search=st.booleans(), seen=st.booleans())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_are_the_exact_scores_of_the_allowed_items(
    filtered_pipe: GenSARPipeline, requests: list, is_search: bool, seen: bool
) -> None:
    histories, allowed, excluded = zip(*requests, strict=True)
    queries = QUERIES[: len(requests)] if is_search else None
    options = {
        "among": [None if own is None else names(own) for own in allowed],
        "exclude": [names(own) for own in excluded], "exclude_seen": seen, "top_k": 12,
    }  # fmt: skip
    if queries:
        answers = filtered_pipe.search(queries, list(histories), **options)
    else:
        answers = filtered_pipe.recommend(list(histories), **options)
    catalogue = filtered_pipe.tokenizer.catalogue
    scores = filtered_pipe.score_items(histories, np.arange(12)[None].repeat(len(histories), axis=0), queries)
    for found, history, own, denied, exact in zip(answers, histories, allowed, excluded, scores, strict=True):
        rows = set(range(12)) if own is None else own
        rows = (rows & set(np.flatnonzero(catalogue.identifiers.available))) - denied
        rows -= catalogue.rows_in(history) if seen else set()
        assert set(item_ids(found)) == set(names(rows))
        assert [answer["score"] for answer in found] == pytest.approx(sorted(exact[[*rows]], reverse=True), abs=1e-5)
        assert {a["item_id"]: a["score"] for a in found} == pytest.approx(
            {f"film-{row}": exact[row] for row in rows}, abs=1e-5
        )


def test_beams_are_spent_on_allowed_items_only(pipe: GenSARPipeline) -> None:
    """As many answers as beams, which the best of all items are not among."""
    best, *_, third, second, first = item_ids(pipe.recommend(HISTORY, top_k=12))
    last = [third, second, first]
    few = GenSARPipeline(pipe.model, pipe.tokenizer, num_beams=3)
    assert item_ids(few.recommend(HISTORY, top_k=3, among=last)) == last
    both = few.recommend(HISTORY, top_k=3, among=[best, *last], exclude=[best])
    assert item_ids(both) == last


def test_one_list_in_every_form_gives_the_same(pipe: GenSARPipeline) -> None:
    mask = np.isin(np.arange(12), [1, 4, 9])
    expected = pipe.search("horror", HISTORY, among=names({1, 4, 9}))
    assert len(expected) == 3
    prepared = pipe.filter(mask)
    forms = (
        mask, mask.tolist(), torch.from_numpy(mask), pd.Series(mask), names({4, 1, 9}), set(names({9, 1, 4})),
        pipe.filter(names({1, 4, 9})), prepared, [prepared],
    )  # fmt: skip
    for form in forms:
        assert pipe.search("horror", HISTORY, among=form) == expected
    assert pipe.search("horror", HISTORY, exclude=~mask) == expected
    one, none, all_items = pipe.search(["horror"] * 3, [HISTORY] * 3, among=[prepared, [], None])
    assert item_ids(one) == item_ids(expected)
    assert (none, len(all_items)) == ([], 10)
    assert [len(own) for own in pipe.recommend([HISTORY, []], among=mask)] == [3, 3]


def test_an_empty_filter_answers_nothing(pipe: GenSARPipeline) -> None:
    nothing = pipe.filter([])
    for among in ([], nothing, np.zeros(12, bool)):
        assert pipe.recommend(HISTORY, among=among) == []
    assert pipe.search("horror", HISTORY, among=nothing, explain=True) == []
    assert pipe.rank(HISTORY, ["film-1"], among=nothing) == []
    assert pipe.search(QUERIES, HISTORIES, among=nothing) == [[]] * 4


def test_candidates_outside_the_filter_are_left_out_of_a_ranking(pipe: GenSARPipeline) -> None:
    everything = names(set(range(12)))
    ranked = pipe.rank([HISTORY, []], [everything] * 2, QUERIES[:2], among=[["film-3", "film-7"], None])
    assert [len(own) for own in ranked] == [2, 12]
    alone = pipe.rank([HISTORY, []], [["film-3", "film-7"], []], QUERIES[:2])[0]
    assert_same_answers([ranked[0]], [alone], "item_id")


def test_suggested_queries_have_an_allowed_item_among_their_best_answers(
    events_pipe: GenSARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gensar_hf.pipeline.NUM_CHECKED_ANSWERS", 2)
    monkeypatch.setattr("gensar_hf.pipeline.MAX_SUGGESTION_TOKENS", 4)
    free = events_pipe.suggest_queries(HISTORY, top_k=10)  # the 20 likeliest, as with a filter and `top_k=5`
    queries = [one["query"] for one in free]
    best = [set(item_ids(own)) for own in events_pipe.search(queries, [HISTORY] * len(queries), top_k=2)]
    for name in sorted(set.union(*best))[:2]:
        found = events_pipe.suggest_queries([HISTORY, []], top_k=5, among=[[name], None])
        assert [one["query"] for one in found[0] if one["query"] in queries] == [
            query for query, own in zip(queries, best, strict=True) if name in own
        ][: len(found[0])]
        assert len(found[1]) == 5
    assert events_pipe.suggest_queries(HISTORY, among=[]) == []


@pytest.mark.parametrize(
    ("among", "sentence"),
    [
        (
            ["film-1", "film-99", "x"],
            "`among`: 2 of 3 items, first 'film-99', are not in the catalogue; leave them out",
        ),
        ("film-1", "`among` must be a list of item ids, a boolean mask or a filter; got 'film-1'"),
        (7, "`among` must be a list of item ids"),
        ({"film-1": True}, "`among` must be a list of item ids"),
        ([True, False], "`among` must hold one truth value for each of the 12 items of the catalogue"),
        ([True, "film-1"], "`among` must hold one truth value for each of the 12 items"),
        (np.zeros((3, 12), bool), "`among`"),
        ([["film-1"], ["film-2"]], "`among` has 2 filters for 1 requests; pass one for all or one for each"),
    ],
)
def test_filters_that_cannot_be_used_are_one_sentence(
    events_pipe: GenSARPipeline, among: object, sentence: str
) -> None:
    for ask in (
        lambda: events_pipe.recommend(HISTORY, among=among),
        lambda: events_pipe.search("horror", HISTORY, among=among),
        lambda: events_pipe.suggest_queries(HISTORY, among=among),
        lambda: events_pipe.rank(HISTORY, ["film-1"], among=among),
    ):
        with pytest.raises(ValueError, match="`among`") as error:
            ask()
        assert sentence in str(error.value)
        assert len(str(error.value)) < 500


def test_unknown_items_of_a_filter_can_be_skipped(events_pipe: GenSARPipeline) -> None:
    with pytest.raises(ValueError, match="`exclude`: 1 of 2 items, first 'film-99', are not in the catalogue"):
        events_pipe.recommend(HISTORY, exclude=["film-1", "film-99"])
    options = {"among": ["film-1", "film-4", "film-99"], "exclude": ["film-4", "x"], "on_unknown": "skip"}
    assert item_ids(events_pipe.recommend(HISTORY, **options)) == ["film-1"]
    assert len(events_pipe.filter(["film-1", "film-99"], on_unknown="skip")) == 1


def test_a_filter_stands_for_the_same_items_after_a_change_of_the_catalogue(
    pipelines: dict[str, GenSARPipeline], model_dirs: dict[str, Path], make_identifiers
) -> None:
    pipe = GenSARPipeline.from_pretrained(model_dirs["events"], device="cpu")
    table = pipe.tokenizer.identifiers
    prepared = pipe.filter(np.isin(np.arange(12), [1, 4]))
    found = pipe.recommend(HISTORY, among=prepared)
    pipe.remove_items(["film-1"])
    assert item_ids(pipe.recommend(HISTORY, among=prepared)) == ["film-4"]
    pipe.restore_items(["film-1"])
    assert pipe.recommend(HISTORY, among=prepared) == found
    pipe.set_catalogue(make_identifiers(num_items=18))  # with items that the mask did not know
    assert set(item_ids(pipe.recommend(HISTORY, among=prepared))) == {"film-1", "film-4"}
    order = np.arange(12)[::-1]
    other = replace(
        table, item_ids=[table.item_ids[row] for row in order], semantic_codes=table.semantic_codes[order],
        collaborative_codes=table.collaborative_codes[order], titles=None, texts=None,
    )  # fmt: skip
    pipe.set_catalogue(other)  # the same ids in other rows
    assert set(item_ids(pipe.recommend(HISTORY, among=prepared))) == {"film-1", "film-4"}
    pipe.set_catalogue(make_identifiers(prefix="book-"))
    with pytest.raises(ValueError, match="`among`: 2 of 2 items, first 'film-1', are not in the catalogue"):
        pipe.recommend(HISTORY, among=prepared)
