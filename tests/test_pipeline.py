import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration, TokenizersBackend

from gensar_hf import GenSARPipeline, TrieLogitsProcessor
from gensar_hf.artifacts import DataError
from gensar_hf.data import Behavior
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable

HISTORY = [{"item_id": "film-2"}, {"query": "comedy 1990s"}, {"item_id": "film-3", "query": "comedy 1990s"}]
HISTORIES = [HISTORY, [], [{"item_id": "film-9"}, {"item_id": "film-9"}, {"query": "space"}], HISTORY[:1]]
TEXTS = ["a horror film", "comedy 1990s", "space adventure and a crime drama"]
QUERIES = ["space adventure", "horror", "Comedy 1990s", "a film about nothing"]


@pytest.fixture(params=["events", "tokens", "vectors"])
def encoding(request: pytest.FixtureRequest) -> str:
    """Runs a test once for each history encoding, and once for a model with item vectors."""
    return request.param


@pytest.fixture
def pipe(pipelines: dict[str, GenSARPipeline], encoding: str) -> GenSARPipeline:
    return pipelines[encoding]


@pytest.fixture
def events_pipe(pipelines: dict[str, GenSARPipeline]) -> GenSARPipeline:
    return pipelines["events"]


def item_ids(answers: list[dict]) -> list[str]:
    return [answer["item_id"] for answer in answers]


def assert_same_answers(batch: list[list[dict]], singles: list[list[dict]], key: str) -> None:
    assert len(batch) == len(singles)
    for one, other in zip(batch, singles, strict=True):
        assert [answer[key] for answer in one] == [answer[key] for answer in other]
        assert [answer["score"] for answer in one] == pytest.approx([answer["score"] for answer in other], abs=1e-4)


def weighted_by_vector(pipe: GenSARPipeline, history: list, query: str | None) -> np.ndarray:
    """What a model's item vectors add to the score of each item; zeros of a model without."""
    items, tokenizer = getattr(pipe.model.encoder, "items", None), pipe.tokenizer
    if items is None:
        return np.zeros(12)
    behavior = Behavior.SEARCHED_ITEM if query else Behavior.RECOMMENDED_ITEM
    inputs = tokenizer.encode_request(history, query, behavior.token)
    del inputs["decoder_input_ids"]
    with torch.no_grad():
        last = pipe.model.encoder(**inputs).last_hidden_state[:, -1]
        logits = items.logits(last, torch.tensor([1 if query else 0]))[0]
    return pipe.model.config.item_weight * logits.log_softmax(dim=-1).numpy()


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
            inputs["decoder_input_ids"] = torch.tensor([[tokenizer.pad_token_id, *codes[:-1]]])
            with torch.no_grad():
                log_probabilities = model(**inputs).logits[0].log_softmax(dim=-1)
            expected = sum(log_probabilities[position, codes[position]].item() for position in range(1, 5))
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


def test_batches_answer_as_single_requests_do(pipelines: dict[str, GenSARPipeline], encoding: str) -> None:
    pipe = GenSARPipeline(pipelines[encoding].model, pipelines[encoding].tokenizer, batch_size=3)
    assert_same_answers(
        pipe.recommend(HISTORIES, top_k=4), [pipe.recommend(history, top_k=4) for history in HISTORIES], "item_id"
    )
    singles = [pipe.search(query, history, top_k=4) for query, history in zip(QUERIES, HISTORIES, strict=True)]
    assert_same_answers(pipe.search(QUERIES, HISTORIES, top_k=4), singles, "item_id")
    singles = [pipe.suggest_queries(history) for history in HISTORIES]
    assert_same_answers(pipe.suggest_queries(HISTORIES), singles, "query")


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
    for history in HISTORIES:
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


def test_packed_weights_give_the_same_answers(pipelines: dict[str, GenSARPipeline], encoding: str) -> None:
    pipe = pipelines[encoding]
    packed = GenSARPipeline(pipe.model, pipe.tokenizer, pack_weights=True)
    assert_same_answers(packed.recommend(HISTORIES, top_k=4), pipe.recommend(HISTORIES, top_k=4), "item_id")
    assert_same_answers(packed.suggest_queries(HISTORIES), pipe.suggest_queries(HISTORIES), "query")


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
    pipelines: dict[str, GenSARPipeline], encoding: str, method: str
) -> None:
    pipe = GenSARPipeline(pipelines[encoding].model, pipelines[encoding].tokenizer, batch_size=3)
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


@pytest.mark.parametrize("encoding", ["events", "tokens"])  # the search knows identifiers alone
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


# ---- changing the catalogue


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
    assert own_pipe.recommend(HISTORY, top_k=12) == kept  # film-3 stands in the history, which is read as before
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
    with pytest.raises(DataError, match="lacks 24 tokens"):
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
    while len(answers) < 20:
        own_pipe.set_catalogue((table, other)[swaps % 2])
        swaps += 1
    stop.set()
    for thread in threads:
        thread.join()
    for answer in answers:
        for found, *wanted in zip(answer, *expected, strict=True):
            assert found in wanted


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
        with pytest.raises(ValueError, match="`top_k` must be a whole number of at least 1; got"):
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


# ---- saving, loading, broken folders


def test_a_copied_folder_gives_the_same_answers_to_the_last_bit(
    pipe: GenSARPipeline, model_dirs: dict[str, Path], encoding: str, tmp_path: Path
) -> None:
    shutil.copytree(model_dirs[encoding], tmp_path / "copy")
    loaded = GenSARPipeline.from_pretrained(tmp_path / "copy", device="cpu")
    assert loaded.recommend(HISTORIES, top_k=12) == pipe.recommend(HISTORIES, top_k=12)
    assert loaded.search(QUERIES, HISTORIES, top_k=12) == pipe.search(QUERIES, HISTORIES, top_k=12)
    assert loaded.suggest_queries(HISTORIES) == pipe.suggest_queries(HISTORIES)


def test_the_auto_classes_give_the_same_sequences(
    pipe: GenSARPipeline, model_dirs: dict[str, Path], encoding: str
) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(model_dirs[encoding])
    tokenizer = AutoTokenizer.from_pretrained(model_dirs[encoding])
    outputs = [
        part.generate(
            **tok.encode_request(HISTORY, "horror", "<S_I>"), logits_processor=[TrieLogitsProcessor(tok.trie)],
            num_return_sequences=10, return_dict_in_generate=True, output_scores=True,
        )
        for part, tok in ((pipe.model, pipe.tokenizer), (model, tokenizer))
    ]  # fmt: skip
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert torch.equal(outputs[0].sequences_scores, outputs[1].sequences_scores)


FRESH_PROCESS = """
import json, sys
from gensar_hf import GenSARPipeline
pipe = GenSARPipeline.from_pretrained(sys.argv[1], device="cpu")
history = json.loads(sys.argv[2])
print(json.dumps([pipe.recommend(history), pipe.search("horror", history), pipe.suggest_queries(history)]))
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_answers_to_the_last_bit(
    pipe: GenSARPipeline, model_dirs: dict[str, Path], encoding: str, tmp_path: Path
) -> None:
    shutil.copytree(model_dirs[encoding], tmp_path / "copy")
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "copy"), json.dumps(HISTORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    expected = [pipe.recommend(HISTORY), pipe.search("horror", HISTORY), pipe.suggest_queries(HISTORY)]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.fixture
def folder(model_dirs: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(model_dirs["events"], tmp_path / "model")
    return tmp_path / "model"


def refuse(folder: Path, *words: str) -> None:
    """Loading raises one sentence, on one line, that names the folder."""
    with pytest.raises(DataError) as error:
        GenSARPipeline.from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message


def test_a_folder_without_identifiers_is_refused(folder: Path) -> None:
    (folder / "identifiers.parquet").unlink()
    refuse(folder, "holds no identifiers.parquet")


@pytest.mark.parametrize("num_bytes", [0, 5, 300, -1])
def test_truncated_weights_are_refused(folder: Path, num_bytes: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    refuse(folder, "cannot be loaded", "model.safetensors")


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refuse(folder, "cannot be loaded")


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_configuration_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refuse(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("d_model", 0), ("num_heads", -1), ("dropout_rate", 1.5), ("item_dropout", 1.0), ("item_weight", -1.0),
        ("num_items", -1), ("history_encoding", "bytes"), ("d_ff", "wide"),
    ],
)  # fmt: skip
def test_a_configuration_out_of_range_is_refused(folder: Path, name: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    refuse(folder, name)


def test_a_folder_s_own_code_is_never_run(folder: Path, pipelines: dict[str, GenSARPipeline], tmp_path: Path) -> None:
    """A stranger's folder may name classes of its own; loading takes ours, and imports nothing from there."""
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'was run')!r}).touch()\nclass Evil: pass\n"
    for module in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (folder / f"{module}.py").write_text(code)
    classes = {
        "config.json": {"AutoConfig": "configuration_evil.Evil", "AutoModelForSeq2SeqLM": "modeling_evil.Evil"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "tokenization_evil.Evil"]},
    }
    for name, auto_map in classes.items():
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": auto_map}))
    answers = GenSARPipeline.from_pretrained(folder).recommend(HISTORY)
    assert answers == pipelines["events"].recommend(HISTORY)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    refuse(folder)
    assert not (tmp_path / "was run").exists()


def test_a_damaged_vocabulary_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refuse(folder, "cannot be loaded")


def test_a_folder_with_another_kind_of_model_is_refused(tmp_path: Path, tokenizers: dict[str, GenSARTokenizer]) -> None:
    T5ForConditionalGeneration(
        T5Config(vocab_size=119, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    ).save_pretrained(tmp_path)
    words = tokenizers["tokens"].backend_tokenizer
    TokenizersBackend(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(tmp_path)
    refuse(tmp_path, "which cannot search or recommend")


def test_the_tokenizer_of_a_larger_catalogue_is_refused(folder: Path, make_identifiers: Callable) -> None:
    other = GenSARTokenizer.train_from_texts(["toy story"], make_identifiers(codebook_size=32), vocab_size=60)
    other.save_pretrained(folder)
    with pytest.raises(DataError, match=r"The tokenizer has \d+ tokens, the model embeddings for 146; they do not"):
        GenSARPipeline.from_pretrained(folder)


def test_the_identifiers_of_another_catalogue_are_refused(folder: Path, make_identifiers: Callable) -> None:
    make_identifiers(codebook_size=5).save(folder)
    with pytest.raises(DataError, match=r"The tokenizer lacks 6 tokens of the identifier table, first '<M1_4>'"):
        GenSARPipeline.from_pretrained(folder)


def test_two_ways_of_reading_histories_do_not_go_together(pipelines: dict[str, GenSARPipeline]) -> None:
    with pytest.raises(DataError, match="The tokenizer encodes histories as tokens, the model reads events"):
        GenSARPipeline(pipelines["events"].model, pipelines["tokens"].tokenizer)


def test_a_catalogue_without_titles_has_none(make_generator: Callable, make_identifiers: Callable) -> None:
    table = make_identifiers()
    table.titles = None
    tokenizer = GenSARTokenizer.train_from_texts(["toy story"], table, vocab_size=60)
    answers = GenSARPipeline(make_generator(tokenizer), tokenizer).recommend([], top_k=2)
    assert [answer["title"] for answer in answers] == [None, None]


# ---- items added after training


@pytest.fixture
def with_added(pipe: GenSARPipeline) -> Iterator[tuple[GenSARPipeline, IdentifierTable]]:
    """The pipeline with a catalogue whose last two items were added and borrow from two others each."""
    table = pipe.tokenizer.identifiers
    if pipe.model.encoder.items is not None:
        pytest.skip("its vectors are of all twelve items")
    added = replace(table, lenders=np.array([[0, 3], [5, 1]]))
    pipe.set_catalogue(added)
    yield pipe, table
    pipe.set_catalogue(table)


def test_an_added_item_has_the_mean_probability_of_its_lenders(with_added: tuple) -> None:
    pipe, table = with_added
    rows, queries = np.array([[11, 2, 10, 0]] * 4), QUERIES
    borrowed = np.exp(pipe.score_items(HISTORIES, rows, queries))
    pipe.set_catalogue(table)
    own = np.exp(pipe.score_items(HISTORIES, np.arange(12)[None].repeat(4, axis=0), queries))
    expected = np.stack([own[:, [5, 1]].mean(1), own[:, 2], own[:, [0, 3]].mean(1), own[:, 0]], axis=1)
    assert borrowed == pytest.approx(expected, rel=1e-4)


def test_added_items_are_found_at_the_place_that_their_lenders_give_them(with_added: tuple) -> None:
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
    table = make_identifiers(12)
    trained = replace(
        table,
        item_ids=table.item_ids[:10],
        semantic_codes=table.semantic_codes[:10],
        collaborative_codes=table.collaborative_codes[:10],
        titles=None,
        texts=None,
        available=table.available[:10],
    )
    tokenizer = GenSARTokenizer.train_from_texts(TEXTS, trained, vocab_size=100, history_encoding="events")
    pipe = GenSARPipeline(make_generator(tokenizer, num_items=10), tokenizer)
    own = np.exp(pipe.score_items([HISTORY], np.arange(10)[None], ["horror"]))[0]
    nearest = pipe.model.encoder(**_encoder_inputs(tokenizer, [{"item_id": "film-5"}]))[0]
    pipe.set_catalogue(replace(table, titles=None, texts=None, lenders=np.array([[0, 3], [5, 1]])))
    scores = np.exp(pipe.score_items([HISTORY], np.arange(12)[None], ["horror"]))[0]
    assert scores[:10] == pytest.approx(own, rel=1e-4)
    assert scores[10:] == pytest.approx([own[[0, 3]].mean(), own[[5, 1]].mean()], rel=1e-4)
    found = pipe.search("horror", HISTORY, top_k=12)
    assert sorted(item_ids(found)) == sorted(table.item_ids)
    inputs = _encoder_inputs(tokenizer, [{"item_id": "film-11"}])
    assert inputs["event_items"].tolist() == [[-1, 5]]
    assert not torch.equal(pipe.model.encoder(**inputs)[0], nearest)  # its own identifier, the nearest one's vector


def test_vectors_of_another_number_of_items_are_refused(
    vectors_pipe: GenSARPipeline, make_generator: Callable, make_identifiers: Callable
) -> None:
    with pytest.raises(DataError, match="vectors of 5 items, the identifier table 12 items"):
        GenSARPipeline(make_generator(vectors_pipe.tokenizer, num_items=5), vectors_pipe.tokenizer)
    before = vectors_pipe.tokenizer.catalogue
    with pytest.raises(DataError, match="vectors of 12 items"):
        vectors_pipe.set_catalogue(make_identifiers(11))
    assert vectors_pipe.tokenizer.catalogue is before


def _encoder_inputs(tokenizer: GenSARTokenizer, history: list) -> dict[str, torch.Tensor]:
    inputs = tokenizer.encode_request(history)
    return {name: tensor for name, tensor in inputs.items() if name != "decoder_input_ids"}
