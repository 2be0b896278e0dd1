"""A run's log as a dataset folder."""

import pandas as pd
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from gensar_hf.data import InteractionLog, load_log


@pytest.fixture
def run_dir(script, tables, tmp_path):
    argv = ["--output_dir", tmp_path / "run", "--items", tables[0], "--interactions", tables[1]]
    assert script("prepare_data.py", *argv)[0] == 0
    return tmp_path / "run"


def test_an_exported_log_is_the_same_log_again(script, run_dir, tmp_path):
    folder = tmp_path / "exported"
    status, printed, complaint = script("export_log.py", "--output_dir", run_dir, "--export.folder", folder)
    assert (status, printed.strip()) == (0, f"Written: {folder}"), complaint
    log = InteractionLog.load(run_dir / "data")
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    tables = [load_dataset(str(folder), name, **options) for name in ("items", "interactions")]
    for again in (InteractionLog.load(folder), load_log(*tables, log.text_columns)):
        pd.testing.assert_frame_equal(again.items, log.items)
        pd.testing.assert_frame_equal(again.interactions, log.interactions)
        assert again.text_columns == log.text_columns
    card = DatasetCard.load(folder / "README.md")
    assert [each["config_name"] for each in card.data.configs] == ["items", "interactions"]
    assert f"| 12 | {len(log.items)} |" in card.text

    status, _, complaint = script("export_log.py", "--output_dir", run_dir, "--export.folder", folder)
    assert status == 2
    assert f"{folder} is there already" in complaint


def test_where_the_log_goes_has_to_be_said(script, run_dir):
    status, _, complaint = script("export_log.py", "--output_dir", run_dir)
    assert status == 2
    assert "name a `folder` to write, a `repo_id` to push to, or both" in complaint
