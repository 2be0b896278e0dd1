import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data import (
    RECOMMENDATION,
    SEARCH,
    TASKS,
    Behavior,
    InteractionDataset,
    Requests,
    Split,
    UserEvents,
    chronological_cut,
    leave_one_out,
    training_events,
    training_mask,
)
from gensar_hf.data.user_events import user_events
from gensar_hf.errors import InputError

ITEM_IDS = list("abcdefgh")


def make_events(rows: list[tuple]) -> UserEvents:
    """rows: (user, item or "", timestamp, query or "")."""
    items = pd.DataFrame({"item_id": ITEM_IDS, "title": "t"})
    return InteractionDataset(items, pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "query"])).events


def items_of(requests: Requests) -> str:
    return "".join(ITEM_IDS[item] for item in requests.target_items)


def described(events: UserEvents, positions) -> str:
    """One letter per event: the item, or ? for a query."""
    return "".join("?" if events.items[event] < 0 else ITEM_IDS[events.items[event]] for event in positions)


MIXED = [  # one user; events: a b c ?x d ?y e f g ?z h
    ("u", "a", 1, ""),
    ("u", "b", 2, ""),
    ("u", "c", 3, ""),
    ("u", "d", 4, "x"),
    ("u", "e", 5, "y"),
    ("u", "f", 6, ""),
    ("u", "g", 7, ""),
    ("u", "h", 8, "z"),
]


def test_leave_one_out_holds_out_the_last_two_clicks_of_each_task():
    split = leave_one_out(make_events(MIXED))
    assert {task: items_of(split.test[task]) for task in TASKS} == {RECOMMENDATION: "g", SEARCH: "h"}
    assert {task: items_of(split.validation[task]) for task in TASKS} == {RECOMMENDATION: "f", SEARCH: "e"}
    # the earliest held-out event is e, and its query ?y goes with it
    assert described(split.events, np.flatnonzero(training_mask(split))) == "abc?d"
    assert split.train_ends.tolist() == [5]
    assert split.test[SEARCH].query_texts == ["z"]
    assert split.test[RECOMMENDATION].query_texts == [""]
    assert split.test[SEARCH].users.tolist() == [0]


def test_histories_stop_before_the_target_and_its_query():
    split = leave_one_out(make_events(MIXED))
    assert described(split.events, split.test[SEARCH].history(0)) == "abc?d?efg"
    assert described(split.events, split.test[RECOMMENDATION].history(0)) == "abc?d?ef"
    assert described(split.events, split.validation[SEARCH].history(0)) == "abc?d"


def test_earlier_clicks_of_the_same_session_stay_in_the_history():
    rows = [("u", "a", 1, "x"), ("u", "b", 2, "y"), ("u", "c", 3, "y"), ("u", "d", 4, "y")]
    split = leave_one_out(make_events(rows))
    assert described(split.events, split.test[SEARCH].history(0)) == "?abc"
    # all of the session y is held out, because its query is
    assert described(split.events, np.flatnonzero(training_mask(split))) == "?a"


@pytest.mark.parametrize(
    ("clicks", "validation", "test"), [("a", "", ""), ("ab", "", "b"), ("abc", "b", "c"), ("abcd", "c", "d")]
)
@pytest.mark.parametrize("task", TASKS)
def test_a_click_of_the_task_stays_before_the_requests(task, clicks, validation, test):
    query = {"recommendation": "", "search": "q"}[task]
    rows = [("u", "h", 0, "other" if task == RECOMMENDATION else "")]
    rows += [("u", item, time, query) for time, item in enumerate(clicks, start=1)]
    split = leave_one_out(make_events(rows), min_train_events=0)
    assert items_of(split.validation[task]) == validation
    assert items_of(split.test[task]) == test
    other = SEARCH if task == RECOMMENDATION else RECOMMENDATION
    assert len(split.validation[other]) == len(split.test[other]) == 0


def test_events_at_the_time_of_a_held_out_event_are_not_training_events():
    rows = [("u", "a", 1, ""), ("u", "b", 2, ""), ("u", "c", 3, ""), ("u", "d", 3, ""), ("u", "e", 3, "")]
    split = leave_one_out(make_events(rows))
    assert items_of(split.validation[RECOMMENDATION]) == "d"
    assert described(split.events, np.flatnonzero(training_mask(split))) == "ab"
    # a user before that at the same time is another matter
    split = leave_one_out(make_events([("t", "h", 3, ""), *rows]))
    assert described(split.events, np.flatnonzero(training_mask(split))) == "hab"


@pytest.mark.parametrize(
    ("min_train_events", "kept", "validation", "test"),
    [
        # events: a ?x b ?y c | d e f g h; the search test c begins at 3, the search validation b would at 1
        (1, "a", {RECOMMENDATION: "g", SEARCH: "b"}, {RECOMMENDATION: "h", SEARCH: "c"}),
        (2, "a?b", {RECOMMENDATION: "", SEARCH: ""}, {RECOMMENDATION: "h", SEARCH: "c"}),
        (4, "a?b?cdefg", {RECOMMENDATION: "", SEARCH: ""}, {RECOMMENDATION: "h", SEARCH: ""}),
        (9, "a?b?cdefg", {RECOMMENDATION: "", SEARCH: ""}, {RECOMMENDATION: "h", SEARCH: ""}),
        (10, "a?b?cdefgh", {RECOMMENDATION: "", SEARCH: ""}, {RECOMMENDATION: "", SEARCH: ""}),
    ],
)
def test_a_user_gives_up_requests_in_the_stated_order(min_train_events, kept, validation, test):
    rows = [("u", "a", 1, "w"), ("u", "b", 2, "x"), ("u", "c", 3, "y")]
    rows += [("u", item, 4 + time, "") for time, item in enumerate("defgh")]
    events = make_events(rows)
    assert described(events, range(events.num_events)) == "?a?b?cdefgh"
    split = leave_one_out(events, min_train_events + 1)  # the query ?w before a is kept as well
    assert described(events, np.flatnonzero(training_mask(split))) == "?" + kept
    assert {task: items_of(split.validation[task]) for task in TASKS} == validation
    assert {task: items_of(split.test[task]) for task in TASKS} == test


def test_search_gives_way_in_a_tie_and_stays_when_it_is_longer():
    tie = [("u", "a", 1, "w"), ("u", "b", 1, ""), ("u", "c", 2, "x"), ("u", "d", 3, "")]
    split = leave_one_out(make_events(tie), min_train_events=4)
    assert (items_of(split.test[RECOMMENDATION]), items_of(split.test[SEARCH])) == ("d", "")
    longer = [("u", "a", 1, ""), ("u", "b", 2, ""), ("u", "c", 3, "w"), ("u", "d", 4, "x"), ("u", "e", 5, "y")]
    split = leave_one_out(make_events(longer), min_train_events=5)
    assert (items_of(split.test[RECOMMENDATION]), items_of(split.test[SEARCH])) == ("", "e")


def test_all_at_one_time_is_all_training():
    split = leave_one_out(make_events([("u", item, 5, "") for item in "abcd"]))
    assert training_mask(split).all()
    assert len(split.test[RECOMMENDATION]) == 0


def test_a_twin_and_the_query_of_a_twin_are_not_in_the_history():
    # every review is a recommendation and a search at the same moment, as in the authors' Amazon data
    rows = []
    for time, item in enumerate("abcd"):
        rows += [("u", item, time, f"query of {item}"), ("u", item, time, "")]
    split = leave_one_out(make_events(rows), min_train_events=0)
    recommendation, search = split.test[RECOMMENDATION], split.test[SEARCH]
    assert described(split.events, recommendation.history(0)) == "?aa?bb?cc"
    assert described(split.events, search.history(0)) == "?aa?bb?cc"
    # the other way round in the file: the recommendation comes before the search
    swapped = [rows[position ^ 1] for position in range(len(rows))]
    split = leave_one_out(make_events(swapped), min_train_events=0)
    assert described(split.events, split.test[SEARCH].history(0)) == "a?ab?bc?c"


def test_the_query_of_a_twin_stays_if_it_was_typed_earlier():
    rows = [("u", "a", 1, ""), ("u", "b", 2, "x"), ("u", "c", 3, "x"), ("u", "c", 3, "")]
    split = leave_one_out(make_events(rows), min_train_events=0)
    assert described(split.events, split.test[RECOMMENDATION].history(0)) == "a?b"


def test_an_item_clicked_before_at_another_time_stays():
    rows = [("u", "a", 1, ""), ("u", "b", 2, ""), ("u", "a", 3, "")]
    split = leave_one_out(make_events(rows), min_train_events=0)
    assert described(split.events, split.test[RECOMMENDATION].history(0)) == "ab"


def test_subsets_keep_their_order():
    rows = [(user, item, time, "") for user in "uvw" for time, item in enumerate("abc")]
    requests = leave_one_out(make_events(rows)).test[RECOMMENDATION]
    assert requests.users.tolist() == [0, 1, 2]
    assert requests.subset([2, 0]).users.tolist() == [2, 0]
    assert requests.subset(np.array([False, True, False])).users.tolist() == [1]
    assert len(requests.subset([])) == 0


def test_chronological_cut_by_hand():
    rows = [("u" if time % 2 else "v", ITEM_IDS[time % 8], time, "") for time in range(20)]
    split = chronological_cut(make_events(rows))
    assert split.events.timestamps[training_mask(split)].max() == 15
    assert training_mask(split).sum() == 16
    assert sorted(split.events.timestamps[split.validation[RECOMMENDATION].targets].tolist()) == [16, 17]
    assert sorted(split.events.timestamps[split.test[RECOMMENDATION].targets].tolist()) == [18, 19]
    assert len(split.test[SEARCH]) == 0


def test_a_session_across_the_cut_is_not_training_material():
    rows = [("u", "a", 0, ""), ("u", "b", 1, "x"), ("u", "c", 9, "x")]
    rows += [("v", "d", time, "") for time in range(2, 8)]
    split = chronological_cut(make_events(rows), (0.8, 0.1, 0.1))
    assert described(split.events, np.flatnonzero(training_mask(split))) == "addddd"
    assert items_of(split.test[SEARCH]) + items_of(split.validation[SEARCH]) == "c"


def test_chronological_cut_refusals():
    events = make_events([("u", item, 5, "") for item in "abcd"])
    with pytest.raises(InputError, match=r"No event is earlier than the first cut at timestamp 5\.0"):
        chronological_cut(events)
    for fractions in ((0.8, 0.1), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (0, 0.5, 0.5)):
        with pytest.raises(ValueError, match="three shares whose sum is 1"):
            chronological_cut(events, fractions)
    with pytest.raises(ValueError, match="cannot be negative"):
        leave_one_out(events, -1)


ROWS = st.lists(
    st.tuples(
        st.sampled_from("uvw"),
        st.sampled_from(["", *ITEM_IDS]),
        st.integers(0, 9),
        st.sampled_from(["", "", "x", "y"]),
    ).filter(lambda row: row[1] or row[3]),
    min_size=1,
    max_size=60,
)


def sorted_rows(rows: list[tuple]) -> pd.DataFrame:
    """`InteractionDataset.interactions` of these rows, without its checks, which take longer than all else here."""
    users = list(dict.fromkeys(row[0] for row in rows))
    in_order = sorted(rows, key=lambda row: (users.index(row[0]), row[2]))
    frame = pd.DataFrame(in_order, columns=["user_id", "item_id", "timestamp", "query"])
    return frame.astype({"timestamp": "float64"})


def cut_or_none(events: UserEvents, kind: str, min_train_events: int) -> Split | None:
    if kind == "leave one out":
        return leave_one_out(events, min_train_events)
    try:
        return chronological_cut(events, (0.6, 0.2, 0.2))
    except InputError:
        return None


def held_out_events(split: Split) -> list[int]:
    """Every target of every part, and the query that a searched target answers, found by walking back."""
    events, held_out = split.events, []
    for requests in (*split.validation.values(), *split.test.values()):
        for target in requests.targets.tolist():
            held_out.append(target)
            if events.behaviors[target] == Behavior.SEARCHED_ITEM:
                query = target
                while events.behaviors[query] != Behavior.SEARCH_QUERY:
                    query -= 1
                held_out.append(query)
    return held_out


@settings(max_examples=20, deadline=None)
@given(ROWS, st.sampled_from(["leave one out", "chronological"]), st.integers(0, 5))
def test_nothing_at_or_after_a_held_out_event_is_training_material(rows, kind, min_train_events):
    events = user_events(ITEM_IDS, sorted_rows(rows))
    split = cut_or_none(events, kind, min_train_events)
    if split is None:
        return
    users, mask = events.event_users(), training_mask(split)
    held_out = held_out_events(split)
    for user in range(events.num_users):
        start, end = events.offsets[user], events.offsets[user + 1]
        assert start <= split.train_ends[user] <= end
        own = [event for event in held_out if users[event] == user]
        first = min((events.timestamps[event] for event in own), default=np.inf)
        trained = np.flatnonzero(mask & (users == user))
        assert trained.tolist() == list(range(start, split.train_ends[user]))
        assert (events.timestamps[trained] < first).all()
        if kind == "leave one out":  # and no event is dropped without need
            assert len(trained) == (events.timestamps[start:end] < first).sum()
            assert not own or len(trained) >= min_train_events


@settings(max_examples=20, deadline=None)
@given(ROWS, st.sampled_from(["leave one out", "chronological"]), st.integers(0, 3))
def test_training_events_have_no_trace_of_held_out_events(rows, kind, min_train_events):
    events = user_events(ITEM_IDS, sorted_rows(rows))
    split = cut_or_none(events, kind, min_train_events)
    if split is None:
        return
    training, mask = training_events(split), training_mask(split)
    assert (training.user_ids, training.item_ids) == (events.user_ids, events.item_ids)
    assert training.event_users().tolist() == events.event_users()[mask].tolist()
    for name in ("behaviors", "items", "queries", "timestamps"):
        assert np.array_equal(getattr(training, name), getattr(events, name)[mask])
    typed = {events.query_texts[query] for query in events.queries[mask] if query >= 0}
    assert set(training.query_texts) - {""} == typed


@settings(max_examples=20, deadline=None)
@given(ROWS, st.integers(0, 3), st.randoms(use_true_random=False))
def test_training_material_is_blind_to_what_is_held_out(rows, min_train_events, random):
    frame = sorted_rows(rows)
    events = user_events(ITEM_IDS, frame)
    split = leave_one_out(events, min_train_events)
    first = np.full(events.num_users, np.inf)
    np.minimum.at(first, events.event_users()[held_out_events(split)], events.timestamps[held_out_events(split)])
    row_users = pd.Index(events.user_ids).get_indexer(frame["user_id"])
    late = (frame["timestamp"].to_numpy() >= first[row_users]) & (frame["item_id"] != "")
    items = frame["item_id"].mask(late, random.choice(ITEM_IDS))
    changed = user_events(ITEM_IDS, frame.assign(item_id=items))
    other = leave_one_out(changed, min_train_events)
    assert other.train_ends.tolist() == split.train_ends.tolist()
    mask = training_mask(split)
    for name in ("behaviors", "items", "queries", "timestamps"):
        assert np.array_equal(getattr(changed, name)[mask], getattr(events, name)[mask])


@settings(max_examples=20, deadline=None)
@given(ROWS, st.sampled_from(["leave one out", "chronological"]), st.integers(0, 2))
def test_requests_are_clicks_of_their_task_and_histories_do_not_contain_them(rows, kind, min_train_events):
    events = user_events(ITEM_IDS, sorted_rows(rows))
    split = cut_or_none(events, kind, min_train_events)
    if split is None:
        return
    wanted = {RECOMMENDATION: Behavior.RECOMMENDED_ITEM, SEARCH: Behavior.SEARCHED_ITEM}
    for task in TASKS:
        assert not set(split.validation[task].targets) & set(split.test[task].targets)
        for requests in (split.validation[task], split.test[task]):
            assert (events.behaviors[requests.targets] == wanted[task]).all()
            for row, target in enumerate(requests.targets):
                history = requests.history(row)
                own = set(range(events.offsets[requests.users[row]], target))
                assert set(history.tolist()) <= own
                assert (np.diff(history) > 0).all()
                at_once = events.timestamps[history] == events.timestamps[target]
                assert not (at_once & (events.items[history] == events.items[target])).any()
                for gone in own - set(history.tolist()):  # only queries and twins may be missing
                    assert events.items[gone] in (-1, events.items[target])


@settings(max_examples=20, deadline=None)
@given(ROWS, st.integers(0, 3))
def test_leave_one_out_agrees_with_a_plain_loop(rows, min_train_events):
    events = user_events(ITEM_IDS, sorted_rows(rows))
    split = leave_one_out(events, min_train_events)
    expected: dict[tuple[str, str], list[int]] = {(part, task): [] for part in ("validation", "test") for task in TASKS}
    for user in range(events.num_users):
        own = range(events.offsets[user], events.offsets[user + 1])
        clicks = {
            RECOMMENDATION: [event for event in own if events.behaviors[event] == Behavior.RECOMMENDED_ITEM],
            SEARCH: [event for event in own if events.behaviors[event] == Behavior.SEARCHED_ITEM],
        }
        tests = {("test", task): found[-1] for task, found in clicks.items() if len(found) >= 2}
        validations = {("validation", task): found[-2] for task, found in clicks.items() if len(found) >= 3}
        longest_first = sorted(tests, key=lambda key: (-len(clicks[key[1]]), key[1] == SEARCH))
        for chosen in (tests | validations, tests, {key: tests[key] for key in longest_first[:1]}, {}):
            limit = np.inf
            for event in chosen.values():
                if events.behaviors[event] == Behavior.SEARCHED_ITEM:
                    event = max(q for q in own if q < event and events.behaviors[q] == Behavior.SEARCH_QUERY)
                limit = min(limit, events.timestamps[event])
            if sum(events.timestamps[event] < limit for event in own) >= min_train_events or not chosen:
                break
        for key, event in chosen.items():
            expected[key].append(event)
    for (part, task), targets in expected.items():
        assert getattr(split, part)[task].targets.tolist() == targets


def test_save_and_load_round_trip(tmp_path):
    events = make_events(MIXED)
    split = leave_one_out(events)
    split.save(tmp_path)
    loaded = Split.load(tmp_path, events)
    assert loaded.train_ends.tolist() == split.train_ends.tolist()
    for task in TASKS:
        assert loaded.validation[task].targets.tolist() == split.validation[task].targets.tolist()
        assert loaded.test[task].targets.tolist() == split.test[task].targets.tolist()
        assert loaded.test[task].task == task
    assert described(events, loaded.test[SEARCH].history(0)) == "abc?d?efg"


def test_a_split_of_other_interactions_is_refused(tmp_path):
    leave_one_out(make_events(MIXED)).save(tmp_path)
    with pytest.raises(InputError, match=r"split\.safetensors was made from other interactions"):
        Split.load(tmp_path, make_events([*MIXED[:-1], ("u", "a", 8, "z")]))
    with pytest.raises(InputError, match="does not exist"):
        Split.load(tmp_path / "elsewhere", make_events(MIXED))
