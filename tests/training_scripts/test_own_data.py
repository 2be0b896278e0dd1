"""A user's own two tables through run_pipeline.py, every stage real."""

import json
import re
import shlex

import pandas as pd
import pytest
from huggingface_hub import ModelCard

from gensar_hf import GenSARPipeline

STAGES = ["data", "semantic", "collaborative", "rqvae", "model", "results"]


def write(frame, path):
    writers = {".csv": frame.to_csv, ".parquet": frame.to_parquet}
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        writers[path.suffix](path, index=False)
    return path


def test_titles_string_ids_dates_and_queries_give_a_model_and_are_not_run_twice(
    script, tables, encoder, tiny, tmp_path
):
    items, clicks = tables
    run_dir = tmp_path / "run"
    argv = ["--items", items, "--interactions", clicks, "--output_dir", run_dir, "--semantic.model", encoder, *tiny()]
    status, printed, complaint = script("run_pipeline.py", *argv)
    assert status == 0, complaint
    for stage in STAGES:
        assert (run_dir / stage / "stage.json").is_file()
    assert set(json.loads((run_dir / "results" / "metrics.json").read_text())["tasks"]) == {"recommendation", "search"}
    assert "GenSAR" in printed
    assert "recommend(history, top_k=5, exclude_seen=True)" in printed
    for noise in ("DEBUG", "pin_memory", "Writing model shards", "Loading weights", "train_runtime", "Traceback"):
        assert noise not in complaint
        assert noise not in printed
    pickles = [path for path in run_dir.rglob("*") if path.suffix in {".pt", ".pth", ".bin", ".pkl"}]
    assert pickles == []
    assert not any((run_dir / "checkpoints").iterdir())

    answers = GenSARPipeline.from_pretrained(run_dir / "model").recommend([{"item_id": "B004ZT0007"}], top_k=5)
    assert len({answer["item_id"] for answer in answers}) == 5
    assert {answer["item_id"] for answer in answers} <= set(pd.read_csv(items)["item_id"])

    card = ModelCard.load(run_dir / "model" / "README.md")
    assert {"gensar", "t5"} <= set(card.data.tags)
    assert GenSARPipeline.from_pretrained(run_dir / "model").card == card.content
    metrics = json.loads((run_dir / "results" / "metrics.json").read_text())["tasks"]
    figures = {(each.task_type, each.metric_name): each.metric_value for each in card.data.eval_results}
    assert len(figures) == 10
    ndcg = metrics["search"]["systems"]["GenSAR"]["NDCG@10"]["value"]
    assert figures["search", "NDCG@10 (bm25-hard-9)"] == pytest.approx(ndcg, abs=1e-4)
    assert "random-9, 10 candidates" in card.text
    assert shlex.join(map(str, argv)) in card.text
    assert not re.search(r"user \d", card.text)  # the ids of the people in the log
    for stage in ("rqvae", "collaborative"):
        assert ModelCard.load(run_dir / stage / "README.md").data.library_name == "gensar-hf"

    written = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    status, printed, complaint = script("run_pipeline.py", *argv)
    assert status == 0, complaint
    assert printed.count("already finished") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()} == written

    # A model that scores in another way is evaluated again.
    config = json.loads((run_dir / "model" / "config.json").read_text())
    assert config["item_weight"] == json.loads((run_dir / "model" / "stage.json").read_text())["details"]["item weight"]
    (run_dir / "model" / "config.json").write_text(json.dumps({**config, "item_weight": config["item_weight"] + 1}))
    status, printed, _ = script("run_pipeline.py", *argv)
    assert (status, printed.count("already finished")) == (0, 5)

    # Another setting of the fifth stage: it and the one behind it run again, the first four do not.
    status, printed, _ = script("run_pipeline.py", *argv, "--model.seed", "1")
    assert (status, printed.count("already finished")) == (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("extension", [".csv", ".parquet", ".jsonl"])
def test_without_queries_recommendation_works_and_the_rest_is_said(
    script, tables_of, encoder, tiny, tmp_path, extension
):
    items, clicks = tables_of(query_share=0)
    clicks["order"] = range(len(clicks))
    clicks = clicks.drop(columns=["query", "timestamp"])
    paths = write(items, tmp_path / f"items{extension}"), write(clicks, tmp_path / f"clicks{extension}")
    argv = ["--items", paths[0], "--interactions", paths[1], "--output_dir", tmp_path / "run"]
    status, printed, complaint = script("run_pipeline.py", *argv, "--semantic.model", encoder, *tiny())
    assert status == 0, complaint
    assert "nothing to learn search from" in complaint
    assert "nothing to learn search from" in printed
    assert set(json.loads((tmp_path / "run/results/metrics.json").read_text())["tasks"]) == {"recommendation"}
    assert len(GenSARPipeline.from_pretrained(tmp_path / "run/model").recommend([], top_k=3)) == 3


@pytest.mark.slow
def test_defaults_hold_for_thousands_of_users(start_script, tables_of, encoder, tmp_path):
    """3,000 users, 2,000 items: the default sizes, but few steps."""
    items, clicks = tables_of(num_users=3000, num_items=2000, num_clicks=20)
    paths = write(items, tmp_path / "items.parquet"), write(clicks, tmp_path / "clicks.parquet")
    argv = ["--items", paths[0], "--interactions", paths[1], "--output_dir", tmp_path / "run"]
    few = ["--collaborative.max_steps=20", "--rqvae.num_train_epochs=20", "--model.max_steps=10"]
    process = start_script("run_pipeline.py", *argv, "--semantic.model", encoder, *few)
    _, complaint = process.communicate(timeout=600)
    assert process.returncode == 0, complaint
    assert "Traceback" not in complaint
    metrics = json.loads((tmp_path / "run/results/metrics.json").read_text())
    assert {task: metrics["tasks"][task]["num_candidates"] for task in metrics["tasks"]} == {
        "recommendation": 100,
        "search": 100,
    }
    assert metrics["failures"] == {}
