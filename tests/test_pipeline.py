import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_requests import (
    HISTORIES,
    HISTORY,
    QUERIES,
    assert_same_answers,
    continued,
    item_ids,
    weighted_by_vector,
)

from gensar_hf import GenSARPipeline
from gensar_hf.data import Behavior
from gensar_hf.errors import InputError

# ---- answers


def test_recommendations_are_the_best_items_with_their_titles(pipe: GenSARPipeline) -> None:
    answers = pipe.recommend(HISTORY, top_k=5)
    scores = pipe.score_items([HISTORY], np.arange(12)[None])[0]
    best = np.argsort(-scores)[:5]
    table = pipe.tokenizer.identifiers
    assert item_ids(answers) == [table.item_ids[row] for row in best]
    assert [answer["title"] for answer in answers] == [table.titles[row] for row in best]
    assert [answer["score"] for answer in answers] == pytest.approx(scores[best].tolist(), abs=1e-4)
    assert json.loads(json.dumps(answers)) == answers


def test_search_results_are_the_best_items_for_the_query(pipe: GenSARPipeline) -> None:
    for history in (HISTORY, []):
        answers = pipe.search("space adventure", history, top_k=5)
        scores = pipe.score_items([history], np.arange(12)[None], ["space adventure"])[0]
        assert item_ids(answers) == [pipe.tokenizer.identifiers.item_ids[row] for row in np.argsort(-scores)[:5]]
    assert pipe.search("space adventure", top_k=5) == answers  # no history is an empty one


def test_exact_scores_equal_one_forward_for_each_candidate(pipe: GenSARPipeline) -> None:
    """Padded batches, several chunks, a different choice of candidates for each request."""
    model, tokenizer = pipe.model, pipe.tokenizer
    candidates = np.stack([np.random.default_rng(row).permutation(12)[:5] for row in range(4)])
    chunked = GenSARPipeline(model, tokenizer, batch_size=3)
    for queries, behavior in ((None, Behavior.RECOMMENDED_ITEM), (QUERIES, Behavior.SEARCHED_ITEM)):
        scores = chunked.score_items(HISTORIES, candidates, queries)
        assert scores.shape == (4, 5)
        for row, candidate in np.ndindex(4, 5):
            codes = tokenizer.item_token_ids[behavior][candidates[row, candidate]]
            inputs = tokenizer.encode_request(HISTORIES[row], queries and queries[row], behavior.token)
            inputs, first = continued(tokenizer, inputs, codes)
            with torch.no_grad():
                log_probabilities = model(**inputs).logits[0, first:].log_softmax(dim=-1)
            expected = sum(log_probabilities[place, codes[place + 1]].item() for place in range(4))
            expected += weighted_by_vector(pipe, HISTORIES[row], queries and queries[row])[candidates[row, candidate]]
            assert scores[row, candidate] == pytest.approx(expected, abs=1e-4)


def test_no_request_has_no_scores(events_pipe: GenSARPipeline) -> None:
    assert events_pipe.score_items([], np.zeros((0, 7), dtype=int)).shape == (0, 7)


def test_all_items_at_most_once(pipe: GenSARPipeline) -> None:
    for answers in (pipe.recommend(HISTORY, top_k=50), pipe.search("horror", HISTORY, top_k=50)):
        assert sorted(item_ids(answers)) == sorted(pipe.tokenizer.identifiers.item_ids)
        assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)


@pytest.mark.parametrize("num_beams", [1, 2, 4])
def test_few_beams_return_distinct_items(pipelines: dict[str, GenSARPipeline], num_beams: int) -> None:
    pipe = GenSARPipeline(pipelines["events"].model, pipelines["events"].tokenizer, num_beams=num_beams)
    for top_k in (1, 3, 6):
        answers = item_ids(pipe.recommend(HISTORY, top_k=top_k))
        assert len(set(answers)) == len(answers) == top_k


def test_seen_items_can_be_excluded(pipe: GenSARPipeline) -> None:
    everything = item_ids(pipe.recommend(HISTORIES, top_k=12)[0])
    answers = pipe.recommend(HISTORIES, top_k=12, exclude_seen=True)
    assert item_ids(answers[0]) == [item for item in everything if item not in ("film-2", "film-3")]
    assert len(answers[1]) == 12
    assert set(item_ids(answers[2])) == set(everything) - {"film-9"}
    assert "film-2" not in item_ids(pipe.search("horror", HISTORY, top_k=12, exclude_seen=True))


def test_items_seen_before_the_events_that_are_read_are_excluded_too(events_pipe: GenSARPipeline) -> None:
    history = [{"item_id": f"film-{item}"} for item in range(11)]
    assert item_ids(events_pipe.recommend(history, top_k=12, exclude_seen=True)) == ["film-11"]


def test_a_user_who_has_seen_everything_gets_nothing(events_pipe: GenSARPipeline) -> None:
    history = [{"item_id": f"film-{item}"} for item in range(12)]
    assert events_pipe.recommend([history, []], top_k=3, exclude_seen=True)[0] == []
    assert events_pipe.recommend(history, top_k=3, exclude_seen=True) == []


def test_batches_answer_as_single_requests_do(pipelines: dict[str, GenSARPipeline], kind: str) -> None:
    pipe = GenSARPipeline(pipelines[kind].model, pipelines[kind].tokenizer, batch_size=3)
    assert_same_answers(
        pipe.recommend(HISTORIES, top_k=4), [pipe.recommend(history, top_k=4) for history in HISTORIES], "item_id"
    )
    singles = [pipe.search(query, history, top_k=4) for query, history in zip(QUERIES, HISTORIES, strict=True)]
    assert_same_answers(pipe.search(QUERIES, HISTORIES, top_k=4), singles, "item_id")
    singles = [pipe.suggest_queries(history) for history in HISTORIES[:2]]
    assert_same_answers(pipe.suggest_queries(HISTORIES)[:2], singles, "query")


def test_many_queries_need_no_history(events_pipe: GenSARPipeline) -> None:
    batch = events_pipe.search(QUERIES[:2], top_k=2)
    assert_same_answers(batch, [events_pipe.search(query, top_k=2) for query in QUERIES[:2]], "item_id")


def test_a_batch_of_one_is_a_batch(events_pipe: GenSARPipeline) -> None:
    assert events_pipe.recommend([HISTORY], top_k=2)[0] == events_pipe.recommend(HISTORY, top_k=2)
    assert events_pipe.search(["horror"], [HISTORY], top_k=2)[0] == events_pipe.search("horror", HISTORY, top_k=2)
    assert events_pipe.suggest_queries([HISTORY])[0] == events_pipe.suggest_queries(HISTORY)


def test_an_empty_batch_has_no_answers(events_pipe: GenSARPipeline) -> None:
    assert events_pipe.search([], top_k=2) == []


def test_suggested_queries_are_distinct_words(pipe: GenSARPipeline) -> None:
    for history in HISTORIES[:2]:
        answers = pipe.suggest_queries(history, top_k=4)
        queries = [answer["query"] for answer in answers]
        assert 1 <= len(set(queries)) == len(queries) <= 4
        assert all(query.strip() == query != "" for query in queries)
        assert not any("<" in query for query in queries)
        assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)


def test_suggestions_hold_no_code_token_however_likely(make_generator: Callable, tokenizers: dict) -> None:
    """The output favours code tokens over every word; they would vanish from the text but not from the beam."""
    tokenizer = tokenizers["events"]
    model = make_generator(tokenizer)
    pipe = GenSARPipeline(model, tokenizer)
    seen = []

    def favour_codes(module: torch.nn.Module, inputs: tuple, logits: torch.Tensor) -> torch.Tensor:
        logits[..., torch.from_numpy(tokenizer.code_token_ids)] += 50
        return logits

    def remember(*arguments: object, **options: object) -> object:
        seen.append(generate(*arguments, **options))
        return seen[-1]

    model.lm_head.register_forward_hook(favour_codes)
    generate, model.generate = model.generate, remember
    assert pipe.suggest_queries(HISTORY)
    assert not np.isin(seen[0].sequences[:, 2:].numpy(), tokenizer.code_token_ids).any()


# ---- ranking


def test_ranking_gives_the_candidates_by_their_exact_scores(pipe: GenSARPipeline) -> None:
    chosen, table = [7, 2, 11, 4], pipe.tokenizer.identifiers
    for query in (None, "space adventure"):
        answers = pipe.rank(HISTORY, [table.item_ids[row] for row in chosen], query)
        scores = pipe.score_items([HISTORY], np.array([chosen]), query and [query])[0]
        best = np.argsort(-scores)
        assert item_ids(answers) == [table.item_ids[chosen[place]] for place in best]
        assert [answer["score"] for answer in answers] == pytest.approx(scores[best].tolist(), abs=1e-5)
        assert [answer["title"] for answer in answers] == [table.titles[chosen[place]] for place in best]


def test_ranking_all_items_is_recommending_or_searching_them(pipe: GenSARPipeline) -> None:
    everything = pipe.tokenizer.identifiers.item_ids
    assert_same_answers([pipe.rank(HISTORY, everything)], [pipe.recommend(HISTORY, top_k=12)], "item_id")
    found = pipe.search("horror", HISTORY, top_k=12)
    assert_same_answers([pipe.rank(HISTORY, everything, "horror")], [found], "item_id")


@pytest.mark.parametrize("method", ["exact", "beam_search"])
def test_a_batch_may_rank_different_numbers_of_candidates(
    pipelines: dict[str, GenSARPipeline], kind: str, method: str
) -> None:
    pipe = GenSARPipeline(pipelines[kind].model, pipelines[kind].tokenizer, batch_size=3)
    candidates = [["film-3", "film-4"], [], ["film-0", "film-11", "film-5", "film-6"], ["film-8"]]
    for queries in (None, QUERIES):
        batch = pipe.rank(HISTORIES, candidates, queries, method=method)
        singles = [
            pipe.rank(history, own, queries and queries[row], method=method)
            for row, (history, own) in enumerate(zip(HISTORIES, candidates, strict=True))
        ]
        assert_same_answers(batch, singles, "item_id")
        assert list(map(len, batch)) == [2, 0, 4, 1]
    assert pipe.rank([HISTORY], [["film-1"]], method=method) == [pipe.rank(HISTORY, ["film-1"], method=method)]


@pytest.mark.parametrize("kind", ["events", "tokens", "causal"])  # the search knows identifiers alone
def test_enough_beams_rank_as_the_exact_scores_do(pipe: GenSARPipeline) -> None:
    candidates = [f"film-{item}" for item in (1, 2, 5, 8, 9, 10)]
    exact, by_beams = (pipe.rank(HISTORY, candidates, method=method) for method in ("exact", "beam_search"))
    assert_same_answers([by_beams], [exact], "item_id")


def test_candidates_that_no_beam_finds_come_last_in_the_order_given(pipelines: dict[str, GenSARPipeline]) -> None:
    pipe = GenSARPipeline(pipelines["events"].model, pipelines["events"].tokenizer, num_beams=2)
    candidates = [f"film-{item}" for item in (10, 1, 8, 5, 2)]
    answers = pipe.rank(HISTORY, candidates, method="beam_search")
    found = [answer for answer in answers if answer["score"] > -np.inf]
    assert answers[: len(found)] == found
    assert 1 <= len(found) <= 2
    missed = [answer["item_id"] for answer in answers[len(found) :]]
    assert missed == [item for item in candidates if item in missed]
    assert {*missed, *item_ids(found)} == set(candidates)


def test_a_candidate_given_twice_is_answered_twice(events_pipe: GenSARPipeline) -> None:
    for method in ("exact", "beam_search"):
        answers = events_pipe.rank(HISTORY, ["film-3", "film-4", "film-3"], method=method)
        assert sorted(item_ids(answers)) == ["film-3", "film-3", "film-4"]


def test_unknown_candidates_are_named_or_skipped(events_pipe: GenSARPipeline, caplog: pytest.LogCaptureFixture) -> None:
    candidates = ["film-1", "film-99", "film-2"]
    with pytest.raises(ValueError, match=r"candidates\[1\]: item 'film-99' is not in the model's catalogue"):
        events_pipe.rank(HISTORY, candidates)
    answers = events_pipe.rank(HISTORY, candidates, on_unknown="skip")
    assert answers == events_pipe.rank(HISTORY, ["film-1", "film-2"])
    assert "candidates[1]: item 'film-99' is not in the model's catalogue and was skipped" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((HISTORY, "film-1"), r"`candidates` must be a list of item ids such as .* got 'film-1'"),
        ((HISTORY, None), r"`candidates` must be a list of item ids such as .* got None"),
        (([HISTORY, []], ["film-1", "film-2"]), r"`candidates` must be a list of item ids such as .* got 'film-1'"),
        (([HISTORY, []], [["film-1"]]), r"got 2 histories, 1 lists of candidates and no queries"),
        (([HISTORY, []], [["film-1"]] * 2, "ab"), r"got 2 histories, 2 lists of candidates and 1 queries"),
        (([HISTORY, []], [["film-1"]] * 2, ["a"]), r"got 2 histories, 2 lists of candidates and 1 queries"),
        (([HISTORY, []], [["film-1"]] * 2, []), r"got 2 histories, 2 lists of candidates and 0 queries"),
        ((HISTORY, ["film-1"], ["a"]), "A query must be text"),
        ((HISTORY, ["film-1"], None, "raise", "fast"), "`method` must be one of exact, beam_search; got 'fast'"),
    ],
)
def test_what_cannot_be_ranked_is_named(events_pipe: GenSARPipeline, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        events_pipe.rank(*arguments)


def test_scores_of_given_items_may_be_asked_for_in_lists(events_pipe: GenSARPipeline) -> None:
    scores = events_pipe.score_items(HISTORIES[:2], [np.array([3]), np.array([5, 1])])
    assert scores.shape == (2, 2)
    assert scores[0, 1] == -np.inf
    whole = events_pipe.score_items(HISTORIES[:2], np.array([[3, 4], [5, 1]]))
    assert scores[[0, 1, 1], [0, 0, 1]] == pytest.approx(whole[[0, 1, 1], [0, 0, 1]], abs=1e-5)


# ---- what cannot be answered


def test_an_unknown_item_is_named(pipe: GenSARPipeline) -> None:
    history = [*HISTORY, {"item_id": "film-99"}]
    for ask in (pipe.recommend, pipe.suggest_queries, lambda history: pipe.search("horror", history)):
        with pytest.raises(ValueError, match=r"history\[3\]: item 'film-99' is not in the model's catalogue"):
            ask(history)


def test_an_unknown_item_can_be_skipped(pipe: GenSARPipeline, caplog: pytest.LogCaptureFixture) -> None:
    history = [HISTORY[0], {"item_id": "film-99"}, *HISTORY[1:]]
    with caplog.at_level(logging.WARNING):
        answers = pipe.recommend(history, top_k=3, on_unknown="skip", exclude_seen=True)
    assert answers == pipe.recommend(HISTORY, top_k=3, exclude_seen=True)
    warnings = [record for record in caplog.records if "'film-99' is not in the catalogue" in record.getMessage()]
    assert len(warnings) == 1


@pytest.mark.parametrize("top_k", [0, -3, 2.5, "3", None])
def test_top_k_must_be_positive(events_pipe: GenSARPipeline, top_k: object) -> None:
    for ask in (
        events_pipe.recommend,
        events_pipe.suggest_queries,
        lambda history, k: events_pipe.search("a", history, k),
    ):
        with pytest.raises(ValueError, match="`top_k` must be a whole number of at least 1"):
            ask(HISTORY, top_k)


def test_top_k_may_be_a_numpy_number(events_pipe: GenSARPipeline) -> None:
    assert len(events_pipe.recommend(HISTORY, top_k=np.int64(2))) == 2


def test_a_long_query_is_cut_with_a_warning(events_pipe: GenSARPipeline, caplog: pytest.LogCaptureFixture) -> None:
    query = "space " * 1667
    assert len(query) > 10_000
    with caplog.at_level(logging.WARNING):
        answers = events_pipe.search(query, HISTORY, top_k=2)
    assert "was cut to the first 1000" in caplog.text
    assert answers == events_pipe.search(query[:1000], HISTORY, top_k=2)


@pytest.mark.parametrize("query", ["", "  ", "\n"])
def test_an_empty_query_is_refused(events_pipe: GenSARPipeline, query: str) -> None:
    with pytest.raises(ValueError, match="A query must be text with at least one word; got"):
        events_pipe.search(query, HISTORY)
    with pytest.raises(ValueError, match="A query must be text with at least one word; got"):
        events_pipe.search(["horror", query], [HISTORY, HISTORY])


@pytest.mark.parametrize("query", [None, 7, b"horror"])
def test_a_query_must_be_text(events_pipe: GenSARPipeline, query: object) -> None:
    """In a batch, too: a missing query is not taken for a request for recommendations."""
    with pytest.raises(ValueError, match="query"):
        events_pipe.search(query, HISTORY)
    with pytest.raises(ValueError, match="query"):
        events_pipe.search([query, "horror"], [HISTORY, HISTORY])


def test_a_batch_needs_one_history_for_each_query(events_pipe: GenSARPipeline) -> None:
    for query, histories in ((["a", "b", "c"], [HISTORY, HISTORY]), (["a", "b"], HISTORY), ("a", [HISTORY, HISTORY])):
        with pytest.raises(ValueError, match="A batch needs one history for each query; got"):
            events_pipe.search(query, histories)


def test_one_bad_history_of_a_batch_is_named(events_pipe: GenSARPipeline) -> None:
    for history in ("film-1", {"item_id": "film-1"}, [7], None):
        with pytest.raises(ValueError, match="history"):
            events_pipe.recommend([HISTORY, history])
    for history in ("film-1", None, [7]):
        with pytest.raises(ValueError, match="history"):
            events_pipe.recommend(history)


# ---- item vectors


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


def test_a_weight_of_zero_ranks_by_identifiers_only(
    vectors_pipe: GenSARPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_pipe.model.config, "item_weight", 0.0)
    everything = [f"film-{row}" for row in range(12)]
    exact = vectors_pipe.rank(HISTORY, everything, "horror")
    assert_same_answers([exact], [vectors_pipe.rank(HISTORY, everything, "horror", method="beam_search")], "item_id")


# ---- the pipeline's own settings


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_beams": -3}, "`num_beams` must be a whole number of at least 1 and at most 1,024; got -3"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1; got 0"),
        ({"device": "nowhere"}, "The device 'nowhere' cannot be used"),
    ],
)
def test_settings_out_of_range_are_refused(model_dirs: dict[str, Path], options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        GenSARPipeline.from_pretrained(model_dirs["events"], **{"device": "cpu", **options})
    loaded = GenSARPipeline.from_pretrained(model_dirs["events"], device="cpu", num_beams=7, batch_size=2)
    assert (loaded.num_beams, loaded.batch_size) == (7, 2)


def test_an_argument_that_does_not_exist_is_named(model_dirs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="`from_pretrained` has no argument 'qurey'"):
        GenSARPipeline.from_pretrained(model_dirs["events"], device="cpu", qurey=1)


def test_a_wrapped_model_is_refused(events_pipe: GenSARPipeline) -> None:
    with pytest.raises(InputError, match="before it is wrapped"):
        GenSARPipeline(torch.nn.DataParallel(events_pipe.model), events_pipe.tokenizer)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_lower_precision_answers_about_the_same(
    dtype: str, model_dirs: dict[str, Path], pipelines: dict[str, GenSARPipeline]
) -> None:
    loaded = GenSARPipeline.from_pretrained(model_dirs["texts"], device="cpu", dtype=dtype)
    for ask in (lambda pipe: pipe.rank(HISTORY, ["film-1", "film-2"], "space"), lambda pipe: pipe.rank([], ["film-1"])):
        expected = {answer["item_id"]: answer["score"] for answer in ask(pipelines["texts"])}
        assert {answer["item_id"]: answer["score"] for answer in ask(loaded)} == pytest.approx(expected, rel=0.05)


def test_a_default_dtype_of_the_process_does_not_change_answers(events_pipe: GenSARPipeline) -> None:
    expected = events_pipe.recommend(HISTORY)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert events_pipe.recommend(HISTORY) == expected
        assert item_ids(events_pipe.rank(HISTORY, ["film-1"])) == ["film-1"]
    finally:
        torch.set_default_dtype(torch.float32)


def test_weights_that_became_nan_give_no_answers(pipelines: dict[str, GenSARPipeline]) -> None:
    pipe = copy.deepcopy(pipelines["vectors"])
    with torch.no_grad():
        pipe.model.encoder.items.table.weight[3] = torch.nan
    for ask in (lambda: pipe.recommend(HISTORY), lambda: pipe.rank([], ["film-1", "film-3"])):
        with pytest.raises(ValueError, match="are NaN"):
            ask()
