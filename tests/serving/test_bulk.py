"""Answers for a file of requests: every form of input, parts, and what happens after a kill."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pipeline_requests import HISTORIES, QUERIES, answers_in

from gensar_hf import GenSARPipeline, InputError
from gensar_hf.files import ASIDE_MARK
from gensar_hf.serving import bulk
from gensar_hf.serving.bulk import BulkAnswers, Request, write_answers

USERS = ["ann", "bob", "cem", "dan"]


def expected_rows(answers: list[list[dict]], users: list[str]) -> list[tuple]:
    return [
        (user, rank, answer["item_id"], pytest.approx(answer["score"], abs=1e-5), answer["title"])
        for user, own in zip(users, answers, strict=True)
        for rank, answer in enumerate(own, start=1)
    ]


def write_histories(path: Path, histories: list = HISTORIES, **columns: list) -> Path:
    """A row a user."""
    rows = {"user_id": USERS[: len(histories)], "history": histories, **columns}
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        lines = [json.dumps(dict(zip(rows, row, strict=True))) for row in zip(*rows.values(), strict=True)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["histories.parquet", "histories.jsonl", "folder"])
def test_a_row_a_user(events_pipe: GenSARPipeline, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        write_histories(path / "1.parquet")
    else:
        write_histories(path)
    answer = BulkAnswers(events_pipe, top_k=3, exclude_seen=True, among=[f"film-{row}" for row in range(2, 9)])
    assert write_answers(answer, path, tmp_path / "answers", part_size=3) == 4
    found = answers_in(tmp_path / "answers")
    assert list(found.columns) == ["user_id", "rank", "item_id", "score", "title"]
    assert len(list((tmp_path / "answers").iterdir())) == 3
    single = events_pipe.recommend(HISTORIES, 3, exclude_seen=True, among=[f"film-{row}" for row in range(2, 9)])
    assert list(found.itertuples(index=False, name=None)) == expected_rows(single, USERS)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_row_an_event_in_any_order(
    events_pipe: GenSARPipeline, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The users' events are put together and into the order of their times, also where they lie in several files."""
    monkeypatch.setattr(bulk, "_EVENTS_PER_FILE", 2)
    monkeypatch.setattr(bulk, "_CHUNK_ROWS", 3)
    histories = [history for history in HISTORIES if history]
    rows = pd.DataFrame(
        [
            {"user_id": user, "item_id": event.get("item_id"), "timestamp": place, "query": event.get("query")}
            for user, history in zip(USERS, histories, strict=False)
            for place, event in enumerate(history)
        ]
    ).sample(frac=1.0, random_state=3)
    path = tmp_path / f"events.{suffix}"
    if suffix == "parquet":
        rows.to_parquet(path)
    else:
        rows.to_json(path, orient="records", lines=True)
    assert write_answers(BulkAnswers(events_pipe, top_k=2), path, tmp_path / "answers") == len(histories)
    found = answers_in(tmp_path / "answers").sort_values(["user_id", "rank"])
    single = events_pipe.recommend(histories, top_k=2)
    assert list(found.itertuples(index=False, name=None)) == expected_rows(single, USERS[: len(histories)])
    assert {path.name[:5] for path in (tmp_path / "answers").iterdir()} == {"part-", "answe"}


def test_queries_with_and_without_users(events_pipe: GenSARPipeline, tmp_path: Path) -> None:
    pd.DataFrame({"query": QUERIES}).to_parquet(tmp_path / "queries.parquet")
    write_answers(BulkAnswers(events_pipe, "search", top_k=2), tmp_path / "queries.parquet", tmp_path / "one")
    found = answers_in(tmp_path / "one")
    assert list(found.columns) == ["user_id", "query", "rank", "item_id", "score", "title"]
    assert found["query"].tolist() == [query for query in QUERIES for _ in range(2)]
    path = write_histories(tmp_path / "queries.jsonl", query=QUERIES)
    write_answers(BulkAnswers(events_pipe, "search", top_k=2), path, tmp_path / "two")
    found = answers_in(tmp_path / "two").drop(columns="query")
    single = events_pipe.search(QUERIES, HISTORIES, top_k=2)
    assert list(found.itertuples(index=False, name=None)) == expected_rows(single, USERS)


def test_a_stopped_run_continues_and_another_run_is_refused(events_pipe: GenSARPipeline, tmp_path: Path) -> None:
    path, folder = write_histories(tmp_path / "histories.jsonl"), tmp_path / "answers"

    class Stopped(BulkAnswers):
        calls = 0

        def __call__(self, requests):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(requests)

    with pytest.raises(KeyboardInterrupt):
        write_answers(Stopped(events_pipe, top_k=2), path, folder, part_size=1)
    (folder / ".events-left").mkdir()  # as after kills
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / f".answers.json{ASIDE_MARK}0badcafe").touch()
    (folder / f".part-0000000002-0000000003.parquet{ASIDE_MARK}12345678").touch()
    before = {part: part.stat().st_mtime_ns for part in folder.glob("part-*")}
    assert len(before) == 2
    write_answers(BulkAnswers(events_pipe, top_k=2), path, folder, part_size=1)
    write_answers(BulkAnswers(events_pipe, top_k=2), path, tmp_path / "whole")
    pd.testing.assert_frame_equal(answers_in(folder), answers_in(tmp_path / "whole"))
    assert all(part.stat().st_mtime_ns == changed for part, changed in before.items())
    assert not list(folder.glob(".*"))

    files = {file: file.read_bytes() for file in folder.iterdir()}
    other = GenSARPipeline(events_pipe.model, events_pipe.tokenizer, num_beams=7)
    for answer, name in ((BulkAnswers(other, top_k=2), "model"), (BulkAnswers(events_pipe, top_k=3), "top_k")):
        with pytest.raises(InputError, match=f"holds answers with another {name}; name a new folder"):
            write_answers(answer, path, folder, part_size=1)
    write_histories(path, HISTORIES[::-1])
    with pytest.raises(InputError, match="holds answers with another input;"):
        write_answers(BulkAnswers(events_pipe, top_k=2), path, folder, part_size=1)
    with pytest.raises(InputError, match="is not empty and holds no answers to continue"):
        write_answers(BulkAnswers(events_pipe), path, tmp_path)
    assert files == {file: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (['{"user_id": "a", "history": ["film-1"]}', "{"], "histories.jsonl, line 2 is not JSON"),
        (["[1]"], "histories.jsonl, line 1 is not an object"),
        (['{"user": "a", "history": []}'], "histories.jsonl has no column user_id, only user, history"),
        (['{"user_id": "a"}'], "histories.jsonl has no column item_id"),
        (['{"user_id": "a", "history": "film-1"}'], "row 1, column history: 'film-1' is not a list of events"),
        (['{"user_id": "a", "history": []}', '{"user_id": "a", "history": [{"x": 1}]}'], "row 2, column history"),
        (['{"user_id": "a", "history": ["film-99"]}'], "User 'a': history[0]: item 'film-99' is not in the model's"),
        (['{"user_id": "", "item_id": "film-1", "timestamp": 1}'], "row 1, column user_id: '' is missing; give every"),
        (['{"user_id": "a", "item_id": "film-1", "timestamp": "soon"}'], "row 1, column timestamp: 'soon' is neither"),
        ([], "histories.jsonl has no column user_id, only none"),
    ],
)  # fmt: skip
def test_input_that_cannot_be_answered_is_one_sentence(
    events_pipe: GenSARPipeline, tmp_path: Path, lines: list[str], sentence: str
) -> None:
    (tmp_path / "histories.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError) as error:
        write_answers(BulkAnswers(events_pipe), tmp_path / "histories.jsonl", tmp_path / "answers")
    assert sentence in str(error.value)
    assert len(str(error.value)) < 500
    assert not list(tmp_path.glob("answers/part-*"))
    write_histories(tmp_path / "histories.jsonl")  # corrected, into the same folder
    assert write_answers(BulkAnswers(events_pipe, top_k=1), tmp_path / "histories.jsonl", tmp_path / "answers") == 4


def test_files_that_cannot_be_read_are_one_sentence(events_pipe: GenSARPipeline, tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "table.csv").write_text("user_id\n1\n")
    pd.DataFrame({"history": [["film-1"]]}).to_parquet(tmp_path / "queries.parquet")
    for name, task, sentence in (
        ("damaged.parquet", "recommend", "damaged.parquet cannot be read as Parquet"),
        ("nowhere.parquet", "recommend", "does not exist; give a .parquet or .jsonl file"),
        ("table.csv", "recommend", "is neither a Parquet nor a JSON Lines file"),
        ("queries.parquet", "search", "queries.parquet has no column query, only history"),
    ):
        with pytest.raises(InputError, match=sentence):
            write_answers(BulkAnswers(events_pipe, task), tmp_path / name, tmp_path / "answers")
    assert not (tmp_path / "answers").exists()


def test_unknown_items_can_be_skipped(events_pipe: GenSARPipeline, tmp_path: Path) -> None:
    path = write_histories(tmp_path / "h.jsonl", [["film-99", "film-1"], [242]])
    assert write_answers(BulkAnswers(events_pipe, on_unknown="skip"), path, tmp_path / "answers") == 2
    assert len(answers_in(tmp_path / "answers")) == 20


def test_one_run_at_a_time_writes_a_folder(events_pipe: GenSARPipeline, tmp_path: Path) -> None:
    path, folder = write_histories(tmp_path / "h.jsonl", [["film-1"]]), tmp_path / "answers"
    refused: list[str] = []

    class Twice(BulkAnswers):
        def __call__(self, requests: Sequence[Request]) -> pa.Table:
            second = threading.Thread(target=self.again)
            second.start()
            second.join()
            return super().__call__(requests)

        def again(self) -> None:
            try:
                write_answers(BulkAnswers(events_pipe), path, folder)
            except InputError as error:
                refused.append(str(error))

    assert write_answers(Twice(events_pipe), path, folder) == 1
    assert len(refused) == 1
    assert "is being written by another" in refused[0]
    assert len(answers_in(folder)) == 10


@pytest.mark.slow
def test_a_killed_command_continues(model_dirs: dict[str, Path], tmp_path: Path) -> None:
    """SIGKILL in the middle, the same command again: the same rows as without a kill."""
    rng, path = np.random.default_rng(0), tmp_path / "histories.jsonl"
    histories = [[f"film-{row}" for row in rng.integers(12, size=5)] for _ in range(3000)]
    rows = [json.dumps({"user_id": f"u{user}", "history": history}) for user, history in enumerate(histories)]
    path.write_text("\n".join(rows))

    def command(folder: Path) -> list[str]:
        words = ["recommend", model_dirs["events"], path, folder, "--part_size=100", "--top_k=3"]
        return [sys.executable, "-m", "gensar_hf", *map(str, words)]

    process = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((tmp_path / "killed").glob("part-*"))) < 4:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    parts = list((tmp_path / "killed").glob("part-*"))
    assert 4 <= len(parts) < 30
    for folder in ("killed", "whole"):
        done = subprocess.run(command(tmp_path / folder), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "3,000 requests are answered" in done.stdout
    pd.testing.assert_frame_equal(answers_in(tmp_path / "killed"), answers_in(tmp_path / "whole"))
