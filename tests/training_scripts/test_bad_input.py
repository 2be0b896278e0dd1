"""Mistakes in a user's tables: exit status 2, one sentence, finished stages untouched."""

import pandas as pd
import pytest


def change(path, edit):
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    edit(frame).to_csv(path, index=False)
    return path


def with_cell(row, column, value):
    def edit(frame):
        frame.loc[row - 1, column] = value
        return frame

    return edit


# table, change, words of the sentence: file, row, column, value
MISTAKES = {
    "missing column": ("clicks.csv", lambda t: t.drop(columns="user_id"), ["clicks.csv", "user_id"]),
    "duplicate item": (
        "items.csv", with_cell(4, "item_id", "B004ZT0000"), ["items.csv", "row 4", "item_id", "B004ZT0000", "row 1"],
    ),
    "unknown item": (
        "clicks.csv", with_cell(18, "item_id", "B00NOWHERE"), ["clicks.csv", "row 18", "item_id", "B00NOWHERE"],
    ),
    "empty table": ("clicks.csv", lambda t: t[:0], ["clicks.csv", "no rows"]),
    "missing time": ("clicks.csv", with_cell(7, "timestamp", ""), ["clicks.csv", "row 7", "timestamp", "missing"]),
    "bad time": (
        "clicks.csv", with_cell(3, "timestamp", "yesterday"), ["clicks.csv", "row 3", "timestamp", "yesterday"],
    ),
}  # fmt: skip


def assert_one_sentence(status, complaint, words):
    assert status == 2
    last = [line for line in complaint.splitlines() if line][-1]
    assert last.startswith("error: ")
    assert "Traceback" not in complaint
    for word in words:
        assert word in last


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_table_is_named_and_finished_stages_stay(script, tables, tmp_path, mistake):
    argv = ["--items", tables[0], "--interactions", tables[1], "--output_dir", tmp_path / "run"]
    assert script("prepare_data.py", *argv)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "data").iterdir()}
    name, edit, words = MISTAKES[mistake]
    change(tmp_path / name, edit)
    status, _, complaint = script("run_pipeline.py", *argv)
    assert_one_sentence(status, complaint, words)
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "data").iterdir()} == before
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"data", "checkpoints"}


def test_a_nan_time_and_a_text_column_of_numbers_in_parquet(script, tables, tmp_path):
    items, clicks = (pd.read_csv(path) for path in tables)
    clicks["timestamp"] = [float(row) for row in range(len(clicks))]
    clicks.loc[6, "timestamp"] = float("nan")
    clicks.to_parquet(tmp_path / "clicks.parquet")
    argv = ["--output_dir", tmp_path / "run", "--interactions", tmp_path / "clicks.parquet"]
    status, _, complaint = script("run_pipeline.py", *argv, "--items", tables[0])
    assert_one_sentence(status, complaint, ["clicks.parquet", "row 7", "timestamp", "nan"])
    items["title"] = 0.5
    items.to_parquet(tmp_path / "items.parquet")
    status, _, complaint = script("run_pipeline.py", *argv, "--items", tmp_path / "items.parquet")
    assert_one_sentence(status, complaint, ["items.parquet", "row 1", "title", "0.5", "is not text"])


def test_a_file_that_is_missing_or_damaged(script, tables, tmp_path):
    argv = ["--interactions", tables[1], "--output_dir", tmp_path / "run"]
    status, _, complaint = script("run_pipeline.py", *argv, "--items", tmp_path / "nothing.csv")
    assert_one_sentence(status, complaint, ["nothing.csv", "does not exist"])
    pd.read_csv(tables[0]).to_parquet(tmp_path / "items.parquet")
    content = (tmp_path / "items.parquet").read_bytes()
    (tmp_path / "items.parquet").write_bytes(content[: len(content) // 2])
    status, _, complaint = script("run_pipeline.py", *argv, "--items", tmp_path / "items.parquet")
    assert_one_sentence(status, complaint, ["items.parquet", "cannot be read"])
    assert not (tmp_path / "run" / "data").exists()
    status, _, complaint = script("run_pipeline.py", *argv)
    assert_one_sentence(status, complaint, ["--items", "--interactions"])


def test_a_stage_whose_input_is_missing_or_truncated(script, tables, encoder, tmp_path):
    run_dir = tmp_path / "run"
    encode = ["encode_items.py", "--output_dir", run_dir, "--semantic.model", encoder]
    assert_one_sentence(*script(*encode)[::2], ["items.parquet", "does not exist"])
    assert script("prepare_data.py", "--items", tables[0], "--interactions", tables[1], "--output_dir", run_dir)[0] == 0
    assert script(*encode)[0] == 0
    split = run_dir / "data" / "split.safetensors"
    split.write_bytes(split.read_bytes()[:-20])
    finished = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    status, _, complaint = script("train_sasrec.py", "--output_dir", run_dir)
    assert_one_sentence(status, complaint, [str(split), "is damaged", "delete it and run the stage again"])
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == finished
    split.unlink()  # as the sentence says
    assert script("prepare_data.py", "--items", tables[0], "--interactions", tables[1], "--output_dir", run_dir)[0] == 0
    assert split.is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "name", "next_script"),
    [
        ("semantic", "item_embeddings.safetensors", "train_rqvae.py"),
        ("rqvae", "identifiers.parquet", "train_generator.py"),
        ("collaborative", "model.safetensors", "evaluate.py"),
        ("model", "model.safetensors", "evaluate.py"),
    ],
)
def test_a_truncated_file_of_an_earlier_stage(script, tables, encoder, tiny, tmp_path, stage, name, next_script):
    run_dir = tmp_path / "run"
    argv = ["--items", tables[0], "--interactions", tables[1], "--output_dir", run_dir, "--semantic.model", encoder]
    assert script("run_pipeline.py", *argv, *tiny())[0] == 0
    path = run_dir / stage / name
    path.write_bytes(path.read_bytes()[:-100])
    status, _, complaint = script(next_script, "--output_dir", run_dir)
    assert_one_sentence(status, complaint, [str(run_dir / stage)])
