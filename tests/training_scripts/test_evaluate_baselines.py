import json

import pandas as pd
import pytest
import yaml

from gensar_hf.baselines import popularity
from gensar_hf.evaluation.candidates import CandidateSets


@pytest.fixture
def run_dir(script, tables, encoder, tmp_path):
    """A run whose data and text embeddings are there, which is all that baselines need."""
    options = ["--output_dir", tmp_path / "run"]
    assert script("prepare_data.py", *options, "--items", tables[0], "--interactions", tables[1])[0] == 0
    assert script("encode_items.py", *options, "--semantic.model", encoder)[0] == 0
    return tmp_path / "run"


@pytest.fixture
def config(tmp_path):
    """Writes a baseline's file; returns its path."""

    def write(name, **content):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_baselines_are_tuned_evaluated_and_not_run_twice(script, run_dir, config):
    files = [
        config("popular", baseline="popularity"),
        config("words", baseline="bm25", search={"k1": [0.9, 1.5], "b": [0.4, 0.8]}, max_trials=4),
    ]
    options = ["--output_dir", run_dir, "--results.num_negatives=9", "--baselines.seeds", 0, 1]
    options += ["--baselines.max_trials=1", '--baselines.trials={"words": 3}']
    status, printed, complaint = script("evaluate_baselines.py", *options, "--baselines.names", *files)
    assert status == 0, complaint
    assert "| Popularity |" in printed
    folder = run_dir / "baselines"
    content = json.loads((folder / "comparison.json").read_text())
    assert content["order"] == ["Popularity", "BM25"]
    assert content["variants"]["BM25"]["seeds"] == [0, 1]
    assert sorted(content["variants"]["BM25"]["tasks"]) == ["search"]
    search = json.loads((folder / "words" / "search.json").read_text())
    assert len(search["trials"]) == 3
    best = max(search["trials"], key=lambda trial: trial["score"])
    assert search["chosen"] == best["settings"] == content["variants"]["BM25"]["settings"]
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/stage.json")}
    assert len(made) == 2 + 3 + 2
    status, again, _ = script("evaluate_baselines.py", *options, "--baselines.names", *files)
    assert status == 0
    assert again == printed
    assert made == {path: path.stat().st_mtime_ns for path in folder.glob("*/*/stage.json")}
    # How the run's own model is evaluated beside them makes no difference to them.
    other = ["--results.baselines=false"]
    assert script("evaluate_baselines.py", *options, *other, "--baselines.names", *files)[0] == 0
    assert made == {path: path.stat().st_mtime_ns for path in folder.glob("*/*/stage.json")}


def test_all_systems_rank_the_same_candidates_for_the_same_requests(script, run_dir, config):
    files = [config("popular", baseline="popularity"), config("words", baseline="bm25")]
    options = ["--output_dir", run_dir, "--results.num_negatives=9", "--baselines.names", *files]
    assert script("evaluate_baselines.py", *options)[0] == 0
    first, second = (run_dir / "baselines" / name / "seed-0" for name in ("popular", "words"))
    left, right = (CandidateSets.load(folder / "candidates_search.safetensors") for folder in (first, second))
    assert left.protocol == right.protocol == "bm25-hard-9"
    assert (left.candidates == right.candidates).all()
    ranks = [pd.read_parquet(folder / "ranks.parquet").query("task == 'search'") for folder in (first, second)]
    assert (ranks[0][["user_id", "item_id"]].to_numpy() == ranks[1][["user_id", "item_id"]].to_numpy()).all()


def test_a_full_ranking_has_tables_of_its_own_and_passes_over_what_was_clicked(script, run_dir, config):
    options = ["--output_dir", run_dir, "--results.num_negatives=9", "--results.full_ranking=true"]
    options += ["--results.skip_clicked=true", "--baselines.names", config("popular", baseline="popularity")]
    assert script("evaluate_baselines.py", *options)[0] == 0
    folder = run_dir / "baselines"
    assert "random-9-unseen" in (folder / "popular" / "seed-0" / "metrics.json").read_text()
    content = json.loads((folder / "full_ranking" / "comparison.json").read_text())
    assert content["tasks"]["recommendation"]["protocol"] == "full-ranking-unseen"
    assert content["tasks"]["recommendation"]["num_candidates"] > 10


def test_a_baseline_that_fails_is_reported_and_the_others_go_on(script, run_dir, config, monkeypatch):
    def broken(*args):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(popularity, "fit", broken)
    files = [config("popular", baseline="popularity"), config("words", baseline="bm25")]
    options = ["--output_dir", run_dir, "--results.num_negatives=9", "--baselines.names", *files]
    status, printed, _ = script("evaluate_baselines.py", *options)
    assert status == 1
    assert "popular failed: RuntimeError: out of luck" in printed
    content = json.loads((run_dir / "baselines" / "comparison.json").read_text())
    assert content["order"] == ["BM25"]
    assert not (run_dir / "baselines" / "popular" / "seed-0").exists()


def test_numbers_of_trials_are_checked(script, tmp_path):
    status, _, said = script("evaluate_baselines.py", "--output_dir", tmp_path, '--baselines.trials={"jsr": 0}')
    assert status == 2
    assert "`trials` must give 'jsr' a number of at least 1; got 0" in said


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"baseline": "nothing"}, "There is no baseline 'nothing'; baselines are bm25, "),
        ({"module": "bm25"}, "the unknown entry 'module'"),
        ({"baseline": "bm25", "search": {"k1": 3}}, "must list the values of 'k1'"),
        ({"baseline": "bm25", "settings": {"k2": 3}}, "BM25 has no setting 'k2'"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(content, complaint, script, config, tmp_path):
    path = config("wrong", **content)
    status, _, said = script("evaluate_baselines.py", "--output_dir", tmp_path / "none", "--baselines.names", path)
    assert status == 2
    assert complaint in said


def test_an_unknown_name_lists_the_package_s_own(script, tmp_path):
    status, _, said = script("evaluate_baselines.py", "--output_dir", tmp_path, "--baselines.names", "oracle")
    assert status == 2
    assert "There is no baseline file" in said
    assert "those of the package are" in said
