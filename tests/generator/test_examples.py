"""The six tasks on event sequences that are short enough to write down every possible example."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data import Behavior, Split, UserEvents
from gensar_hf.data.text_queries import TextQueries
from gensar_hf.errors import InputError
from gensar_hf.generator.examples import (
    DEFAULT_TASK_WEIGHTS,
    Example,
    ExampleCollator,
    ExampleSampler,
    TrainingExamples,
)
from gensar_hf.generator.prompts import PROMPTS, Task
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable

R, Q, S = Behavior.RECOMMENDED_ITEM, Behavior.SEARCH_QUERY, Behavior.SEARCHED_ITEM
# recommended 0 · query 0 → searched 1, 2 · recommended 3 · held out: query 1 → searched 4
ONE_USER = {"ann": [(R, 0), (Q, 0), (S, 1, 0), (S, 2, 0), (R, 3), (Q, 1), (S, 4, 1)]}
TRAIN_LENGTH = 5


@pytest.fixture
def make_log(tokenizers: dict[str, GenSARTokenizer], identifiers: IdentifierTable, make_events: Callable) -> Callable:
    """Users and the number of training events of each → training examples."""

    def build(
        users: dict[str, list[tuple]], *lengths: int, encoding: str = "events", **options: list
    ) -> TrainingExamples:
        events = make_events(users, identifiers.item_ids, **options)
        return TrainingExamples(tokenizers[encoding], events, events.offsets[:-1] + list(lengths))

    return build


def read(log: TrainingExamples, tokens: np.ndarray) -> str:
    """Tokens as text: `R3` and `S3` for identifiers with their behavior token, `r3`, `s3` without, else the words."""
    names = {}
    for behavior, letter in ((R, "R"), (S, "S")):
        for item, ids in enumerate(log.tokenizer.item_token_ids[behavior]):
            names[tuple(ids)], names[tuple(ids[1:])] = f"{letter}{item}", f"{letter.lower()}{item}"
    return names.get(tuple(tokens)) or log.tokenizer.decode(tokens)


def unroll(log: TrainingExamples, example: Example) -> set[tuple[str, ...]]:
    """Every (event, …, response) of an example, without the instruction."""
    events = [read(log, event) for event in example.events[1:]]
    return {(*events[: target.end - 1], read(log, target.response)) for target in example.targets}


def draws(sampler: ExampleSampler, task: Task, number: int = 80) -> Iterator[Example]:
    for index in range(number):
        yield sampler.draw(task, np.random.default_rng(index))


def all_of(sampler: ExampleSampler, task: Task, number: int = 80) -> set[tuple[str, ...]]:
    return set().union(*(unroll(sampler.examples, example) for example in draws(sampler, task, number)))


QUERY = "<S_Q> comedy 1990s"


@pytest.mark.parametrize("max_target_tokens", [0, 120])
@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Task.NEXT_RECOMMENDED_ITEM, {("R0",), ("R0", QUERY, "S1", "S2", "R3")}),
        (Task.NEXT_QUERY, {("R0", f"{QUERY}</s>")}),
        (Task.NEXT_SEARCHED_ITEM, {("R0", QUERY, "S1"), ("R0", QUERY, "S1", "S2")}),
        (Task.AD_HOC_SEARCH, {(QUERY, "S1"), (QUERY, "S2")}),
    ],
)
def test_tasks_of_the_log(task: Task, expected: set, max_target_tokens: int, make_log: Callable) -> None:
    sampler = ExampleSampler(make_log(ONE_USER, TRAIN_LENGTH), max_target_tokens=max_target_tokens)
    assert all_of(sampler, task) == expected


def item_targets(sampler: ExampleSampler, task: Task) -> set[tuple[str, ...]]:
    """Every (event, …, clicked item) of the item targets, without the instruction."""
    log, found = sampler.examples, set()
    for example in draws(sampler, task):
        events = [read(log, event) for event in example.events[1:]]
        for target in example.item_targets:
            found.add((*events[: target.end - 1], f"{'S' if target.behavior == S else 'R'}{target.item}"))
    return found


def test_every_click_is_an_item_target_whatever_the_task(make_log: Callable) -> None:
    """Even where few response tokens are allowed; and know the item of every click they see.

    To recommendation a click right after its query is a target before the query as well.
    """
    log = make_log(ONE_USER, TRAIN_LENGTH)
    sampler = ExampleSampler(log, max_target_tokens=5)
    expected = {("R0",), ("R0", QUERY, "S1"), ("R0", QUERY, "S1", "S2"), ("R0", QUERY, "S1", "S2", "R3")}
    for task in (Task.NEXT_RECOMMENDED_ITEM, Task.NEXT_SEARCHED_ITEM):
        is_recommendation = task is Task.NEXT_RECOMMENDED_ITEM
        assert item_targets(sampler, task) == expected | ({("R0", "R1")} if is_recommendation else set())
        for example in draws(sampler, task):
            names = [read(log, event) for event in example.events[1:]]
            clicked = [-1 if name == QUERY else int(name[1:]) for name in names]
            assert example.event_items.tolist() == [-1, *clicked]
    assert item_targets(ExampleSampler(log), Task.NEXT_QUERY) == expected
    assert item_targets(sampler, Task.AD_HOC_SEARCH) == {(QUERY, "S1"), (QUERY, "S2")}
    assert {target[-1] for target in item_targets(sampler, Task.DESCRIPTION_TO_IDENTIFIER)} == {
        f"S{item}" for item in range(12)
    }
    assert item_targets(sampler, Task.IDENTIFIER_TO_DESCRIPTION) == set()
    without = ExampleSampler(log, item_vectors=False)
    assert not any(example.item_targets for task in without.tasks for example in draws(without, task, 10))


def test_tasks_of_the_items_know_both_identifiers(make_log: Callable, identifiers: IdentifierTable) -> None:
    sampler = ExampleSampler(make_log(ONE_USER, TRAIN_LENGTH))
    pairs = {(text.lower(), f"{letter}{item}") for item, text in enumerate(identifiers.texts) for letter in "rs"}
    assert all_of(sampler, Task.DESCRIPTION_TO_IDENTIFIER, 400) == pairs
    responses = all_of(sampler, Task.IDENTIFIER_TO_DESCRIPTION, 400)
    assert responses == {(identifier, f"{text}</s>") for text, identifier in pairs}


def test_the_instruction_names_the_kind_of_identifier(make_log: Callable) -> None:
    sampler = ExampleSampler(make_log(ONE_USER, TRAIN_LENGTH))
    for example in draws(sampler, Task.DESCRIPTION_TO_IDENTIFIER):
        kind = {"r": "collaborative", "s": "semantic"}[read(sampler.examples, example.targets[0].response)[0]]
        assert kind in read(sampler.examples, example.events[0])


@pytest.mark.parametrize("task", Task)
def test_every_wording_is_drawn(task: Task, make_log: Callable) -> None:
    sampler = ExampleSampler(make_log(ONE_USER, TRAIN_LENGTH))
    seen = {read(sampler.examples, example.events[0]) for example in draws(sampler, task)}
    kinds = ("semantic", "collaborative")
    wanted = {PROMPTS[task].instruction(i, kind) for i in range(len(PROMPTS[task].templates)) for kind in kinds}
    assert {text.replace(" ", "") for text in seen} == {text.replace(" ", "") for text in wanted}


def test_the_window_is_the_longest_history(make_log: Callable) -> None:
    users = {"ann": [(R, item) for item in range(12)]}
    sampler = ExampleSampler(make_log(users, 12), window=4)
    unrolled = all_of(sampler, Task.NEXT_RECOMMENDED_ITEM, 200)
    assert max(map(len, unrolled)) == 4
    for example in unrolled:
        items = [int(name[1:]) for name in example]
        assert items == list(range(items[0], items[0] + len(items)))
    assert {example[-1] for example in unrolled} == {f"R{item}" for item in range(12)}


def test_one_target_at_least_is_kept(make_log: Callable) -> None:
    """Even where no response fits."""
    sampler = ExampleSampler(make_log({"ann": [(R, item) for item in range(12)]}, 12), max_target_tokens=2)
    assert {len(example.targets) for example in draws(sampler, Task.NEXT_RECOMMENDED_ITEM)} == {1}


def test_targets_over_the_limit_are_left_out(make_log: Callable) -> None:
    sampler = ExampleSampler(
        make_log({"ann": [(R, item) for item in range(12)]}, 12), window=50, max_target_tokens=17, item_vectors=False
    )  # three identifiers of five tokens
    examples = list(draws(sampler, Task.NEXT_RECOMMENDED_ITEM))
    assert max(len(example.targets) for example in examples) == 3
    assert {target.end for example in examples for target in example.targets} == set(range(1, 13))
    for example in examples:
        ends = [target.end for target in example.targets]
        assert ends == sorted(set(ends))
        assert len(example.events) == ends[-1]  # nothing is encoded that no target sees


@pytest.mark.parametrize("max_target_tokens", [0, 120])
def test_histories_may_all_end_at_the_last_target(make_log: Callable, max_target_tokens: int) -> None:
    log = make_log({"ann": [(R, item) for item in range(12)]}, 12)
    sampler = ExampleSampler(log, window=4, max_target_tokens=max_target_tokens, recent_share=1)
    for example in draws(sampler, Task.NEXT_RECOMMENDED_ITEM, 50):
        assert example.targets[-1].response.tolist() == log.event_tokens(log.event_arrays(np.array([11])))[0].tolist()
        assert example.targets[-1].end == 4


def test_single_targets_are_drawn_uniformly(make_log: Callable) -> None:
    """`history_encoding="tokens"`: the middle of a history trains as much as its end."""
    log = make_log({"ann": [(R, item) for item in range(12)]}, 12)
    sampler = ExampleSampler(log, window=50, max_target_tokens=0, recent_share=0)
    ends = [example.targets[0].end for example in draws(sampler, Task.NEXT_RECOMMENDED_ITEM, 600)]
    assert np.bincount(ends, minlength=13)[1:] == pytest.approx(np.full(12, 50), abs=30)


# ---- pure, weighted


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**40), task=st.sampled_from(list(Task)))
def test_a_draw_is_a_function_of_the_generator_it_is_given(
    shared_sampler: ExampleSampler, seed: int, task: Task
) -> None:
    one, other = (shared_sampler.draw(task, np.random.default_rng(seed)) for _ in range(2))
    assert one.task == other.task == task
    assert [event.tolist() for event in one.events] == [event.tolist() for event in other.events]
    assert [(t.end, t.response.tolist()) for t in one.targets] == [(t.end, t.response.tolist()) for t in other.targets]


@pytest.fixture(scope="module")
def shared_sampler(
    tokenizers: dict[str, GenSARTokenizer], tiny_events: UserEvents, tiny_split: Split
) -> ExampleSampler:
    return ExampleSampler(TrainingExamples(tokenizers["events"], tiny_events, tiny_split.train_ends))


def drawn_tasks(sampler: ExampleSampler, number: int = 300) -> list[Task]:
    return [sampler.draw_task(np.random.default_rng(index)) for index in range(number)]


def test_the_weights_are_the_shares_of_the_draws(make_log: Callable) -> None:
    weights = {Task.NEXT_QUERY: 3.0, Task.AD_HOC_SEARCH: 1.0}
    sampler = ExampleSampler(make_log(ONE_USER, TRAIN_LENGTH), weights)
    tasks = drawn_tasks(sampler, 2000)
    assert tasks.count(Task.NEXT_QUERY) / 2000 == pytest.approx(3 / 4, abs=0.03)
    assert tasks.count(Task.AD_HOC_SEARCH) / 2000 == pytest.approx(1 / 4, abs=0.03)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**40))
def test_a_task_is_what_numpy_would_choose(shared_sampler: ExampleSampler, seed: int) -> None:
    """And the generator is left where numpy would leave it."""
    ours, numpys = np.random.default_rng(seed), np.random.default_rng(seed)
    chosen = numpys.choice(len(shared_sampler.tasks), p=shared_sampler.probabilities)
    assert shared_sampler.draw_task(ours) == shared_sampler.tasks[chosen]
    assert ours.random() == numpys.random()


@pytest.mark.parametrize("task", Task)
def test_a_weight_of_zero_switches_a_task_off(task: Task, make_log: Callable) -> None:
    log = make_log(ONE_USER, TRAIN_LENGTH)
    sampler = ExampleSampler(log, {**DEFAULT_TASK_WEIGHTS, task: 0.0})
    assert set(drawn_tasks(sampler)) == set(Task) - {task}
    missing = {other: weight for other, weight in DEFAULT_TASK_WEIGHTS.items() if other is not task}
    assert drawn_tasks(ExampleSampler(log, missing)) == drawn_tasks(sampler)


# ---- logs that hold less


def test_a_log_without_searches_has_three_tasks(make_log: Callable) -> None:
    users = {"ann": [(R, 0), (R, 1), (R, 2)], "bob": [(R, 3), (R, 4)]}
    sampler = ExampleSampler(make_log(users, 2, 2, queries=[]))
    assert set(drawn_tasks(sampler)) == {
        Task.NEXT_RECOMMENDED_ITEM,
        Task.DESCRIPTION_TO_IDENTIFIER,
        Task.IDENTIFIER_TO_DESCRIPTION,
    }


def test_users_without_the_behavior_are_not_drawn_for_it(make_log: Callable) -> None:
    users = {"ann": ONE_USER["ann"], "none": [], "bob": [(R, 5), (R, 6)], "cem": [(Q, 2), (S, 7, 2)], "last": []}
    log = make_log(users, TRAIN_LENGTH, 0, 2, 2, 0)
    sampler = ExampleSampler(log)
    assert sampler.users[Task.NEXT_RECOMMENDED_ITEM].tolist() == [0, 2]
    assert sampler.users[Task.NEXT_QUERY].tolist() == [0, 3]
    assert sampler.users[Task.NEXT_SEARCHED_ITEM].tolist() == [0, 3]
    assert all_of(sampler, Task.NEXT_QUERY) == {("R0", f"{QUERY}</s>"), ("<S_Q> crime drama</s>",)}


def test_searches_without_a_click_train_queries_only(make_log: Callable) -> None:
    sampler = ExampleSampler(make_log({"ann": [(Q, 0), (Q, 1), (R, 3)]}, 3))
    assert Task.NEXT_SEARCHED_ITEM not in sampler.tasks
    assert Task.AD_HOC_SEARCH not in sampler.tasks
    assert (QUERY, "<S_Q> space adventure</s>") in all_of(sampler, Task.NEXT_QUERY)


def test_a_log_without_any_example_is_refused(make_log: Callable) -> None:
    log = make_log({"ann": [(R, 0), (R, 1)]}, 0)
    with pytest.raises(ValueError, match="None of the tasks next_recommended_item, next_query has an example"):
        ExampleSampler(log, {Task.NEXT_RECOMMENDED_ITEM: 1.0, Task.NEXT_QUERY: 1.0})


# ---- no leak


def test_twins_are_never_targets(make_log: Callable) -> None:
    """The same item at the same moment, as a recommendation and as a search, as in the authors' Amazon data."""
    users = {"ann": [(R, 1), (R, 2), (Q, 0), (S, 2, 0), (R, 3)]}
    log = make_log(users, 5, timestamps=[0, 1, 1, 1, 2])
    assert log.is_target.tolist() == [True, True, True, False, True]
    sampler = ExampleSampler(log, {Task.NEXT_RECOMMENDED_ITEM: 1, Task.NEXT_SEARCHED_ITEM: 1})
    assert sampler.tasks == [Task.NEXT_RECOMMENDED_ITEM]
    recommended = all_of(sampler, Task.NEXT_RECOMMENDED_ITEM)
    assert recommended == {("R1",), ("R1", "R2"), ("R1", "R2", QUERY, "S2", "R3")}


def test_the_same_item_at_another_moment_is_no_twin(make_log: Callable) -> None:
    users = {"ann": [(R, 1), (R, 1), (Q, 0), (Q, 0)], "bob": [(R, 1)]}
    log = make_log(users, 4, 1, timestamps=[0, 1, 1, 1, 1])
    assert log.is_target.all()


def test_events_before_target_starts_are_history_only(make_log: Callable) -> None:
    log = make_log(ONE_USER, TRAIN_LENGTH)
    newer = TrainingExamples(log.tokenizer, log.events, log.train_ends, log.events.offsets[:-1] + 3)
    sampler = ExampleSampler(newer)
    assert all_of(sampler, Task.NEXT_RECOMMENDED_ITEM) == {("R0", QUERY, "S1", "S2", "R3")}
    assert all_of(sampler, Task.NEXT_SEARCHED_ITEM) == {("R0", QUERY, "S1", "S2")}
    assert {read(log, t.response) for e in draws(sampler, Task.AD_HOC_SEARCH) for t in e.targets} == {"S2"}
    item_ends = {(t.end, t.item) for e in draws(sampler, Task.NEXT_SEARCHED_ITEM) for t in e.item_targets}
    assert item_ends == {(4, 2), (5, 3)}  # the instruction is the first position
    assert newer.num_clicks().nonzero()[0].tolist() == [2, 3]


def test_items_that_are_not_marked_as_trained_are_not_described(
    make_log: Callable, model_dirs: dict, identifiers: IdentifierTable
) -> None:
    log = make_log(ONE_USER, TRAIN_LENGTH)
    tokenizer = GenSARTokenizer.from_pretrained(model_dirs["events"])
    tokenizer.attach_identifiers(replace(identifiers, neighbors=np.array([[0, 3], [5, 1]])))
    examples = TrainingExamples(tokenizer, log.events, log.train_ends)
    assert examples.described.tolist() == list(range(10))


def test_added_items_are_read_as_their_neighbor_and_are_no_targets(
    make_log: Callable, model_dirs: dict, identifiers: IdentifierTable
) -> None:
    log = make_log({"ann": [(R, 0), (R, 11), (R, 10), (R, 1)]}, 4)
    tokenizer = GenSARTokenizer.from_pretrained(model_dirs["events"])
    tokenizer.attach_identifiers(replace(identifiers, neighbors=np.array([[10, 3], [5, 1]])))  # 10 is marked as trained
    examples = TrainingExamples(tokenizer, log.events, log.train_ends)
    assert examples.is_target.tolist() == [True, False, True, True]
    assert examples.read_items(examples.event_arrays(slice(0, 4))).tolist() == [0, 5, 10, 1]
    assert all_of(ExampleSampler(examples), Task.NEXT_RECOMMENDED_ITEM) == {
        ("R0",), ("R0", "R11", "R10"), ("R0", "R11", "R10", "R1"),
    }  # fmt: skip


# ---- queries from the items' texts


class Titles(TextQueries):
    """Always asks for the item's title, in lower case."""

    def draw(self, item: int, rng: np.random.Generator) -> str:
        return self.title(item).lower()


@pytest.fixture
def typed_log(tokenizers: dict[str, GenSARTokenizer], identifiers: IdentifierTable, make_events: Callable) -> Callable:
    """As `make_log`, with text queries; film-11 has no title."""

    def build(users: dict[str, list[tuple]], length: int) -> TrainingExamples:
        events = make_events(users, identifiers.item_ids)
        titles = [*identifiers.titles[:11], ""]
        return TrainingExamples(tokenizers["events"], events, np.array([length]), text_queries=Titles(titles, {}))

    return build


def test_ad_hoc_searches_are_of_the_log_and_for_every_title(
    typed_log: Callable, tokenizers: dict[str, GenSARTokenizer], identifiers: IdentifierTable
) -> None:
    log = typed_log(ONE_USER, TRAIN_LENGTH)
    made = {
        (read(log, tokenizers["events"].query_tokens(title.lower())), f"S{item}")
        for item, title in enumerate(identifiers.titles[:11])
    }
    of_log = {(QUERY, "S1"), (QUERY, "S2")}
    assert all_of(ExampleSampler(log), Task.AD_HOC_SEARCH, 400) == of_log | made
    assert all_of(ExampleSampler(log, text_query_share=0), Task.AD_HOC_SEARCH) == of_log
    for example in draws(ExampleSampler(log), Task.AD_HOC_SEARCH, 20):
        assert [read(log, tokenizers["events"].query_tokens(query)) for query in example.queries[1:]] == [
            read(log, event) for event in example.events[1:]
        ]


def test_recommended_clicks_become_searches_behind_a_history(typed_log: Callable) -> None:
    """With the query before the click; the log's own sessions stay as they are."""
    log = typed_log(ONE_USER, TRAIN_LENGTH)
    found = all_of(ExampleSampler(log), Task.NEXT_SEARCHED_ITEM, 300)
    assert {("R0", QUERY, "S1"), ("R0", QUERY, "S1", "S2")} <= found
    assert ("<S_Q> toy story", "S0") in found
    assert ("R0", QUERY, "S1", "S2", "<S_Q> the godfather", "S3") in found
    assert {events[-1] for events in found} <= {"S0", "S1", "S2", "S3"}
    for example in draws(ExampleSampler(log), Task.NEXT_SEARCHED_ITEM, 100):
        for place, event in enumerate(example.events):
            name = read(log, event)
            assert bool(example.queries[place]) == (place > 0 and name.startswith("<S_Q>"))
            assert example.event_items[place] == (int(name[1:]) if place > 0 and name[0] in "RS" else -1)
        targets = {(target.end, target.behavior is S) for target in example.item_targets}
        assert {(target.end, True) for target in example.targets} <= targets
    assert item_targets(ExampleSampler(log), Task.NEXT_RECOMMENDED_ITEM) >= {("R0",)}


def test_a_log_without_queries_trains_search(typed_log: Callable) -> None:
    log = typed_log({"ann": [(R, item) for item in range(5)]}, 5)
    sampler = ExampleSampler(log)
    assert {Task.AD_HOC_SEARCH, Task.NEXT_SEARCHED_ITEM} <= set(sampler.tasks)
    assert ("R0", "R1", "<S_Q> alien", "S2") in all_of(sampler, Task.NEXT_SEARCHED_ITEM, 400)
    assert Task.NEXT_SEARCHED_ITEM not in ExampleSampler(log, text_query_share=0).tasks


@pytest.mark.parametrize("task", [Task.AD_HOC_SEARCH, Task.NEXT_SEARCHED_ITEM, Task.NEXT_RECOMMENDED_ITEM])
def test_batches_hold_the_texts_scores_of_the_answered_queries(
    pipelines: dict, tiny_events: UserEvents, tiny_split: Split, task: Task
) -> None:
    tokenizer = pipelines["texts"].tokenizer
    texts = TextQueries(tokenizer.identifiers.titles, {})
    examples = TrainingExamples(tokenizer, tiny_events, tiny_split.train_ends, text_queries=texts)
    assert set(examples.encoded_queries) == set(range(12))
    sampler, index = ExampleSampler(examples), tokenizer.catalogue.texts
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = [[sampler.draw(task, rng), sampler.draw(task, rng)], [sampler.draw(task, rng)]]
        batch = ExampleCollator(tokenizer)(rows)
        for place, row in enumerate(rows):
            queries = [query for example in row for query in [*example.queries, ""][: len(example.events)]]
            for position, query in enumerate(queries):
                expected = index.match([query], encode=False)[0].vectors[0] if query else 0
                np.testing.assert_allclose(batch["query_vectors"][place, position], expected, atol=1e-6)
            searched, first = [], 0
            for example in row:
                for target in example.item_targets:
                    before = [query for query in example.queries[: target.end] if query]
                    searched.append(before[-1] if target.behavior is S and before else "")
                first += len(example.events)
            for column, query in enumerate(searched):
                own = int(batch["item_queries"][place, column]) if "item_queries" in batch else -1
                assert (own >= 0) == bool(query)
                if query:
                    scores = index.scores([query], encode=False)[0]
                    np.testing.assert_allclose(batch["text_scores"][place, own], scores, atol=1e-5)


# ---- items are matched by id


def test_items_in_another_order_than_the_identifier_table_train_as_themselves(
    tokenizers: dict[str, GenSARTokenizer], identifiers: IdentifierTable, make_events: Callable
) -> None:
    """Position 0 of the events is film-11; the table's further items are absent."""
    backwards = identifiers.item_ids[:1:-1]
    events = make_events({"ann": [(R, 0), (Q, 0), (S, 1, 0), (R, 2)]}, backwards)
    examples = TrainingExamples(tokenizers["events"], events, events.offsets[1:])
    sampler = ExampleSampler(examples)
    assert all_of(sampler, Task.NEXT_RECOMMENDED_ITEM) == {("R11",), ("R11", QUERY, "S10", "R9")}
    assert all_of(sampler, Task.AD_HOC_SEARCH) == {(QUERY, "S10")}
    assert item_targets(sampler, Task.NEXT_SEARCHED_ITEM) == {
        ("R11",), ("R11", QUERY, "S10"), ("R11", QUERY, "S10", "R9"),
    }  # fmt: skip
    for example in draws(sampler, Task.NEXT_SEARCHED_ITEM, 20):
        assert example.event_items.tolist() == [-1, 11, -1, 10][: len(example.event_items)]
    assert examples.num_clicks().nonzero()[0].tolist() == [9, 10, 11]


def test_items_that_the_identifier_table_lacks_are_refused(
    tokenizers: dict[str, GenSARTokenizer], identifiers: IdentifierTable, make_events: Callable
) -> None:
    events = make_events({"ann": [(R, 0)]}, [*identifiers.item_ids, "new-1", "new-2"])
    with pytest.raises(
        InputError, match=r"2 of the 14 items are not in .* first 'new-1'; add them with `pipe\.add_items`"
    ):
        TrainingExamples(tokenizers["events"], events, events.offsets[1:])


def test_ad_hoc_search_knows_training_clicks_only(make_log: Callable) -> None:
    users = {"ann": ONE_USER["ann"], "bob": [(Q, 3), (S, 9, 3), (Q, 2), (S, 10, 2)]}
    sampler = ExampleSampler(make_log(users, TRAIN_LENGTH, 2))
    assert all_of(sampler, Task.AD_HOC_SEARCH) == {(QUERY, "S1"), (QUERY, "S2"), ("<S_Q> horror classics", "S9")}


@settings(deadline=None, max_examples=20)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_nothing_held_out_is_ever_drawn(
    tokenizers: dict[str, GenSARTokenizer],
    identifiers: IdentifierTable,
    make_events: Callable,
    data: st.DataObject,
    seed: int,
) -> None:
    """Held-out events carry marked items (8 to 11) and a marked query; no example of a log task may hold one."""
    rows = st.one_of(
        st.builds(lambda i: [(R, i)], st.integers(0, 7)),
        st.builds(lambda i, q: [(Q, q), (S, i, q)], st.integers(0, 7), st.integers(0, 1)),
    )
    marked = st.one_of(
        st.builds(lambda i: [(R, i)], st.integers(8, 11)),
        st.builds(lambda i: [(Q, 2), (S, i, 2)], st.integers(8, 11)),
    )
    users, lengths = {}, []
    for user in range(data.draw(st.integers(1, 3))):
        training = list(chain(*data.draw(st.lists(rows, max_size=4))))
        held_out = list(chain(*data.draw(st.lists(marked, min_size=1, max_size=3))))
        users[f"user {user}"] = training + held_out
        lengths.append(len(training))
    queries = ["comedy", "space adventure", "zzzz horror"]
    events = make_events(users, identifiers.item_ids, queries=queries)
    log = TrainingExamples(tokenizers["events"], events, events.offsets[:-1] + lengths)
    marks = {tuple(ids) for behavior in (R, S) for ids in log.tokenizer.item_token_ids[behavior][8:]}
    marks.add((log.tokenizer.behavior_ids[Q], *log.tokenizer.text_ids(queries[2])))
    max_target_tokens = data.draw(st.sampled_from([0, 12]))
    sampler = ExampleSampler(log, window=5, max_target_tokens=max_target_tokens, seed=seed)
    rng = np.random.default_rng(seed)
    of_the_log = set(sampler.tasks) - {Task.DESCRIPTION_TO_IDENTIFIER, Task.IDENTIFIER_TO_DESCRIPTION}
    for task in sorted(of_the_log) * 10:
        example = sampler.draw(task, rng)
        pieces = [*example.events, *(target.response for target in example.targets)]
        read_tokens = {tuple(piece[piece != log.tokenizer.eos_token_id]) for piece in pieces}
        assert not read_tokens & marks
        assert all(target.item < 8 for target in example.item_targets)
        assert example.event_items is None or (example.event_items < 8).all()


def test_held_out_queries_are_not_even_tokenized(make_log: Callable) -> None:
    assert set(make_log(ONE_USER, TRAIN_LENGTH).query_tokens) == {"comedy 1990s"}
