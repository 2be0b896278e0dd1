"""Logs that are grouped on disk: the same events and splits as in memory, the same sentences, and the form itself."""

import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import arguments, make_tables

from gensar_hf.data import TASKS, InteractionDataset, large_log, splits, tables
from gensar_hf.errors import InputError
from gensar_hf.evaluation.protocol import evaluate_pipeline
from gensar_hf.training.stages import StageReport, train

ITEM_IDS = ["7", "a", "é-東京", "b c"]
ITEMS = pd.DataFrame({"item_id": ITEM_IDS, "title": ["Lip balm", "Cream", "Soap", "Comb"]})
QUERIES = [None, "", "soap", "lip  balm", "東京 köln", "x" * 1200]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many borders of pieces, parts and blocks as a small log can have."""
    pytest.importorskip("duckdb", reason="needs the extra [duckdb]")
    monkeypatch.setattr(tables, "_PIECE_ROWS", 3)
    monkeypatch.setattr(splits, "_BLOCK_EVENTS", 2)
    for name, size in (("_SORTED_ROWS", 2048), ("_PART_ROWS", 4), ("_USERS_AT_A_TIME", 2)):
        monkeypatch.setattr(large_log, name, size)


def write_parts(folder: Path, parts: list[pd.DataFrame]) -> Path:
    folder.mkdir(parents=True)
    for number, part in enumerate(parts):
        part.to_parquet(folder / f"part-{number}.parquet", index=False)
    return folder


def assert_same(in_memory: InteractionDataset, on_disk: InteractionDataset) -> None:
    assert repr(in_memory) == repr(on_disk)
    expected, found = in_memory.events, on_disk.events
    for name in ("offsets", "behaviors", "items", "queries", "timestamps"):
        array = getattr(found, name)
        assert array.dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(array, getattr(expected, name), err_msg=name)
    for name in ("user_ids", "item_ids", "query_texts"):
        assert [*getattr(found, name)] == [*getattr(expected, name)], name
    for method in ("leave_one_out", "chronological", "none", "held_out"):
        try:
            split = in_memory.with_split(method).split
        except InputError as error:
            with pytest.raises(InputError, match=re.escape(str(error))):
                _ = on_disk.with_split(method).split
            continue
        other = on_disk.with_split(method).split
        for name in ("train_ends", "target_starts"):
            np.testing.assert_array_equal(getattr(split, name), getattr(other, name))
        for task in TASKS:
            np.testing.assert_array_equal(split.validation[task].targets, other.validation[task].targets)
            np.testing.assert_array_equal(split.test[task].targets, other.test[task].targets)
    pd.testing.assert_frame_equal(in_memory.interactions, on_disk.interactions)


rows = st.lists(
    st.tuples(
        st.sampled_from(["u", "ü東", "7", "7.0", " u "]),
        st.sampled_from([*ITEM_IDS, None]),
        st.integers(0, 4),
        st.sampled_from(QUERIES),
    ).filter(lambda row: row[1] is not None or bool(row[3])),
    min_size=1,
    max_size=40,
)
times: list[Callable[[pd.Series], Any]] = [
    lambda values: values,
    lambda values: values * 1e9 + 0.5,
    lambda values: values.astype(str),
    lambda values: pd.to_datetime(values, unit="D"),
    lambda values: "2024-05-0" + (values + 1).astype(str),
]
# Numbers as ids: integers, floats, integers with missing ones, and floats that were saved as text.
ids: list[Callable[[pd.Series], Any]] = [
    lambda values: values,
    lambda values: values.astype("Int64"),
    lambda values: values.astype(float),
    lambda values: values.map(lambda value: f"{value}.0"),
]


def check_both_ways(
    folder: Path, found: list[tuple], cuts: list[int], of_time: Callable, of_id: Callable | None, name: str
) -> None:
    frame = pd.DataFrame(found, columns=["user_id", "item_id", name, "query"])
    frame[name] = of_time(frame[name])
    if of_id is not None:
        codes = pd.Series(pd.factorize(frame["user_id"])[0] + 1)
        frame["user_id"] = of_id(codes)
    borders = sorted({0, len(frame), *(cut % len(frame) for cut in cuts)})
    parts = [frame.iloc[start:end] for start, end in pairwise(borders)]
    log = write_parts(folder / "log", parts)
    on_disk = InteractionDataset(ITEMS, log, log_dir=folder / "grouped")
    assert_same(InteractionDataset(ITEMS, log), on_disk)


LOGS = (
    rows, st.lists(st.integers(0, 100), max_size=3), st.sampled_from(times), st.sampled_from([None, *ids]),
    st.sampled_from(["timestamp", "order"]),
)  # fmt: skip


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(*LOGS)
def test_events_and_splits_are_those_of_the_log_in_memory(tmp_path_factory, found, cuts, of_time, of_id, name) -> None:
    check_both_ways(tmp_path_factory.mktemp("log"), found, cuts, of_time, of_id, name)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(*LOGS)
def test_more_logs_are_those_in_memory(tmp_path_factory, found, cuts, of_time, of_id, name) -> None:
    check_both_ways(tmp_path_factory.mktemp("log"), found, cuts, of_time, of_id, name)


CLICKS = pd.DataFrame(
    {
        "user_id": ["v", "u", "u", "u", "v"],
        "item_id": ["a", "7", "a", "b c", None],
        "timestamp": [9, 3, 2, 1, 4],
        "query": [None, "soap", None, None, "köln"],
    }
)


def with_value(column: str, value: Any, row: int = 3) -> list[pd.DataFrame]:
    """Two parts, the second of which has a bad value in its second row."""
    frame = CLICKS.astype({column: object})
    frame.at[row, column] = value
    return [CLICKS[:2], frame[2:]]


@pytest.mark.parametrize(
    "parts",
    [
        with_value("item_id", "gone"),
        with_value("item_id", None),
        with_value("user_id", None),
        with_value("timestamp", None),
        [CLICKS[:2], CLICKS[2:].assign(timestamp=[1, float("inf"), 2])],
        [CLICKS.astype({"timestamp": str})[:2], CLICKS[2:].assign(timestamp=["1", "soon", "2"])],
        [CLICKS.astype({"timestamp": str})[:2], CLICKS[2:].assign(timestamp=["2024-05-01", "1", "2"])],
        [CLICKS.assign(timestamp=1.3e9)[:3], CLICKS.assign(timestamp=1.3e12)[3:4]],
        [CLICKS.assign(user_id=1e17)[:2]],
        [CLICKS[:0]],
        [CLICKS[:2], CLICKS[2:].drop(columns="query")],
        [CLICKS.rename(columns={"user_id": "userid"})],
    ],
    ids=lambda parts: None,
)
def test_what_cannot_be_used_is_the_same_sentence(tmp_path: Path, parts: list[pd.DataFrame]) -> None:
    log = write_parts(tmp_path / "log", parts)
    with pytest.raises(InputError) as expected:
        InteractionDataset(ITEMS, log)
    with pytest.raises(InputError) as raised:
        InteractionDataset(ITEMS, log, log_dir=tmp_path / "grouped")
    if len(parts[0]):
        assert str(raised.value) == str(expected.value)
    else:
        assert str(raised.value) == "The interactions hold no rows; give a table with at least one."
    assert not (tmp_path / "grouped" / "users").exists()


def test_csv_parts_and_tables_in_memory_are_grouped_alike(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    CLICKS[:2].to_csv(tmp_path / "log" / "a.csv", index=False)
    CLICKS[2:].to_csv(tmp_path / "log" / "b.csv", index=False)
    dataset = datasets.Dataset.from_pandas(CLICKS)
    sources = (tmp_path / "log", CLICKS, dataset, dataset.to_iterable_dataset(num_shards=2))
    for number, source in enumerate(sources):
        on_disk = InteractionDataset(ITEMS, source, log_dir=tmp_path / f"grouped-{number}")
        assert_same(InteractionDataset(ITEMS, CLICKS), on_disk)


def test_a_grouped_log_is_found_again_and_made_again_when_the_tables_change(tmp_path: Path, monkeypatch) -> None:
    log, folder = write_parts(tmp_path / "log", [CLICKS[:3], CLICKS[3:]]), tmp_path / "grouped"
    first = InteractionDataset(ITEMS, log, log_dir=folder)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "duckdb", None)
        assert_same(first, InteractionDataset(ITEMS, log, log_dir=folder))
        assert_same(first, InteractionDataset(ITEMS, folder))  # as a source it needs no DuckDB either
        with pytest.raises(InputError, match=r"needs the package duckdb.*pip install 'gensar-hf\[duckdb\]'"):
            InteractionDataset(ITEMS, log, log_dir=tmp_path / "other")
    CLICKS[3:4].to_parquet(log / "part-1.parquet", index=False)
    assert len(InteractionDataset(ITEMS, log, log_dir=folder)) == 4


def test_events_follow_a_log_that_is_written_again_in_the_same_size(tmp_path: Path) -> None:
    folder = tmp_path / "grouped"
    before = InteractionDataset(ITEMS, CLICKS[:2].assign(item_id=["a", "7"]), log_dir=folder).events.items.tolist()
    (part,) = (folder / "users").iterdir()
    table = pq.read_table(part)
    swapped = table.set_column(1, "items", pa.array(table["items"].to_pylist()[::-1], table["items"].type))
    pq.write_table(swapped, part)
    written = part.stat().st_size
    pq.write_table(table, part)
    assert part.stat().st_size == written
    InteractionDataset(ITEMS, folder)
    pq.write_table(swapped, part)
    assert InteractionDataset(ITEMS, folder).events.items.tolist() == before[::-1]


def test_the_files_of_a_url_are_fetched_once(tmp_path: Path, monkeypatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(write_parts(tmp_path / "log", with_value("item_id", "gone"))), "/large/log", recursive=True)
    fetched, get_file = [], type(memory).get_file
    monkeypatch.setattr(
        type(memory), "get_file", lambda self, name, *rest: (fetched.append(name), get_file(self, name, *rest))
    )
    with pytest.raises(InputError, match=r"^part-1\.parquet, row 2, column item_id: 'gone' is not an item"):
        InteractionDataset(ITEMS, "memory://large/log", log_dir=tmp_path / "grouped")
    assert fetched == ["/large/log/part-0.parquet", "/large/log/part-1.parquet"]


def test_a_log_that_does_not_fit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch) -> None:
    log = write_parts(tmp_path / "log", [CLICKS[:3], CLICKS[3:]])
    monkeypatch.setattr(tables, "machine_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"^5 interactions need about 0\.0 GiB .* name a folder .*`log_dir`"):
        InteractionDataset(ITEMS, log)
    assert len(InteractionDataset(ITEMS, log, log_dir=tmp_path / "grouped")) == 5


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grouped").mkdir()
    (tmp_path / "grouped" / "queries.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"would be replaced, but it was not written here"):
        InteractionDataset(ITEMS, CLICKS, log_dir=tmp_path / "grouped")


def test_a_dataset_with_a_grouped_log_saves_and_loads(tmp_path: Path) -> None:
    dataset = InteractionDataset(ITEMS, CLICKS, split="chronological", log_dir=tmp_path / "grouped")
    dataset.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "interactions.parquet").exists()
    loaded = InteractionDataset.load(tmp_path / "saved")
    assert_same(dataset, loaded)
    assert loaded.split_method == "chronological"
    np.testing.assert_array_equal(loaded.split.train_ends, dataset.split.train_ends)
    (tmp_path / "grouped" / "events" / "items.npy").unlink()
    assert len(InteractionDataset.load(tmp_path / "saved").events.items) == dataset.events.num_events
    kept, held_out = loaded.hold_out_items(0.3)
    assert len(kept) + len(held_out) == len(CLICKS)


@pytest.mark.parametrize("argument", [{"min_interactions": 2}, {"search_fraction": 0.5}, {"history": None}])
def test_what_needs_the_log_in_memory_is_refused(tmp_path: Path, argument: dict[str, Any]) -> None:
    argument = {name: value or InteractionDataset(ITEMS, CLICKS) for name, value in argument.items()}
    with pytest.raises(ValueError, match=r"cannot be combined with `log_dir`"):
        InteractionDataset(ITEMS, CLICKS, log_dir=tmp_path / "grouped", **argument)


@pytest.mark.slow
def test_a_training_on_a_grouped_log_gives_the_model_of_the_log_in_memory(tmp_path: Path) -> None:
    items, clicks = make_tables()
    in_memory = InteractionDataset(items, clicks)
    on_disk = InteractionDataset(items, clicks, log_dir=tmp_path / "grouped")
    assert_same(in_memory, on_disk)
    weights = []
    for name, dataset in (("memory", in_memory), ("disk", on_disk), ("loaded", None)):
        dataset = dataset or InteractionDataset.load(tmp_path / "disk" / "data")
        pipe = train(dataset, arguments(tmp_path / name))
        weights.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
        result = evaluate_pipeline(pipe, dataset, num_negatives=9)
        weights[-1] += repr(result.metrics()).encode()
    assert weights[0] == weights[1] == weights[2]
    reports: list[StageReport] = []
    train(
        InteractionDataset(items, clicks, log_dir=tmp_path / "grouped"),
        arguments(tmp_path / "disk"),
        on_stage=reports.append,
    )
    assert all(report.skipped for report in reports)


# ---- the form, as another engine writes it

USERS: dict[str, list] = {
    "user_id": ["v", "u"],
    "items": [[-1, 1], [3, 1, 0]],
    "queries": [[0, -1], [-1, -1, 1]],
    "timestamps": [[4.0, 9.0], [1.0, 2.0, 3.0]],
}


def write_grouped(folder: Path, users: dict[str, list] = USERS, queries: tuple[str, ...] = ("köln", "soap")) -> Path:
    """Numbers of queries in any order, narrow integers, marks beside the parts."""
    (folder / "users").mkdir(parents=True)
    pq.write_table(pa.table({"query": pa.array(queries)}), folder / "queries.parquet")
    types = {"user_id": pa.string(), "timestamps": pa.list_(pa.float64())}
    columns = {name: pa.array(values, types.get(name, pa.list_(pa.int32()))) for name, values in users.items()}
    pq.write_table(pa.table(columns), folder / "users" / "part-0.parquet")
    (folder / "users" / "_SUCCESS").touch()
    return folder


def test_a_log_grouped_by_another_engine_is_read(tmp_path: Path) -> None:
    on_disk = InteractionDataset(ITEMS, write_grouped(tmp_path / "log"))
    assert_same(InteractionDataset(ITEMS, CLICKS), on_disk)


def test_a_log_of_other_items_is_refused(tmp_path: Path) -> None:
    log = write_grouped(tmp_path / "log")
    ITEMS.to_parquet(log / "items.parquet", index=False)
    assert len(InteractionDataset(ITEMS, log)) == 5
    for other in (ITEMS[::-1], ITEMS[:3], pd.concat([ITEMS, ITEMS.assign(item_id=["e", "f", "g", "h"])])):
        with pytest.raises(InputError, match=r"was grouped with other items.*give .*items\.parquet as the items"):
            InteractionDataset(other, log)


def test_mapped_texts_are_a_list_of_texts(tmp_path: Path) -> None:
    texts = InteractionDataset(ITEMS, CLICKS, log_dir=tmp_path / "grouped").events.query_texts
    assert [*texts] == ["köln", "soap"]
    assert (texts[-1], [*texts[1:]], [*texts[2:]], [*texts[:5]]) == ("soap", ["soap"], [], ["köln", "soap"])
    with pytest.raises(IndexError):
        _ = texts[2]


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("user_id", ["v", None], r"^part-0\.parquet, row 2 \(user None\): the user id is missing; write"),
        ("user_id", ["v", "v"], r"holds a user twice"),
        ("items", [[-1, 1], [3, 1, 4]], r"^part-0\.parquet, row 2 \(user 'u'\): `items` holds a number outside -1 … 3"),
        ("items", [[-1, 1], None], r"row 2 .*`items` is missing or empty"),
        ("items", [[-1, 1], [3, None, 1]], r"row 2 .*`items` holds a number outside"),
        ("items", [[-1, 1], [-1, 1, 0]], r"row 2 .*neither an item nor a query"),
        ("queries", [[2, -1], [-1, -1, 1]], r"row 1 .*`queries` holds a number outside -1 … 1"),
        ("queries", [[0, -1], [-1, 1]], r"row 2 .*the lists differ in length"),
        ("timestamps", [[4.0, 9.0], [1.0, 3.0, 2.0]], r"row 2 .*`timestamps` are not in order"),
        ("timestamps", [[4.0, None], [1.0, 2.0, 3.0]], r"row 1 .*missing or not finite"),
    ],
)
def test_a_broken_form_is_one_sentence(tmp_path: Path, column: str, values: list, sentence: str) -> None:
    log = write_grouped(tmp_path / "log", {**USERS, column: values})
    with pytest.raises(InputError, match=sentence):
        InteractionDataset(ITEMS, log)
    assert not (log / "events").exists()


def test_a_damaged_part_and_a_missing_column_are_one_sentence(tmp_path: Path) -> None:
    log = write_grouped(tmp_path / "log", {name: USERS[name] for name in ("user_id", "items", "queries")})
    with pytest.raises(InputError, match=r"part-0\.parquet cannot be loaded .*write the log again"):
        InteractionDataset(ITEMS, log)
    (log / "users" / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"part-0\.parquet cannot be loaded .*write the log again"):
        InteractionDataset(ITEMS, log)
