"""The scripts and their configurations: settings that exist, and short runs of each script."""

import inspect
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from compare import merged, read_comparison
from movielens_wheel import fetch_movielens_100k, write_tables

from gensar_hf import GenSARPipeline
from gensar_hf.baselines.tuning import configure
from gensar_hf.cli import dataset_and_arguments, main, read_settings, training_parser
from gensar_hf.data import load_movielens_100k
from gensar_hf.errors import InputError
from gensar_hf.evaluation import Evaluation

SCRIPTS = Path(__file__).parents[2] / "training_scripts"
CONFIGS = {path.stem: path for path in sorted((SCRIPTS / "configs").glob("*.yaml"))}
CONTENTS = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in CONFIGS.items()}
COMPARISONS = [name for name, content in CONTENTS.items() if {"variants", "baselines"} & set(content)]
OF_SCRIPTS = {"later_share", "newest_share", "held_out_items", "max_requests", "finetune"}
WORDS = ["red", "blue", "green", "cream", "soap", "lotion", "brush", "shampoo", "gel", "mask", "oil", "balm"]
TINY = {
    "text_encoder": "null", "sasrec_epochs": "1", "sasrec_config": "{hidden_size: 8, max_length: 8}",
    "codebook_size": "8", "rqvae_epochs": "2", "rqvae_config": "{latent_dim: 8, hidden_sizes: [16]}", "max_steps": "3",
    "per_device_train_batch_size": "2", "text_vocab_size": "60", "num_negatives": "9",
    "generator_config": "{d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_decoder_layers: 1, num_heads: 2}",
}  # fmt: skip


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """Options that name two tables with the text columns of all configurations, and clicks of 40 users."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    titles = [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(60)]
    items = pd.DataFrame({"item_id": [f"i{row}" for row in range(60)], "title": titles})
    items = items.assign(year="1999", genres="Soap", brand="A", categories=items["title"].str.replace(" ", " > "))
    clicks = [(f"u{user}", f"i{rng.integers(60)}", 100 * time + user) for user in range(40) for time in range(14)]
    items.to_csv(folder / "items.csv", index=False)
    clicks = pd.DataFrame(clicks, columns=["user_id", "item_id", "timestamp"])
    clicks.to_csv(folder / "clicks.csv", index=False)
    return {"items": str(folder / "items.csv"), "interactions": str(folder / "clicks.csv")}


@pytest.fixture
def script(monkeypatch, capfd):
    """Runs a script in this process; returns its exit status and what it printed."""

    def run(name, *argv, **options):
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv), *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        captured = capfd.readouterr()
        return ended.value.code, captured.out + captured.err

    return run


@pytest.mark.parametrize("path", [*SCRIPTS.glob("*.py"), *SCRIPTS.glob("paper/*.py")], ids=lambda path: path.stem)
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in COMPARISONS])
def test_a_configuration_is_what_gensar_train_reads(name, tables, tmp_path):
    content = CONTENTS[name]
    settings = {key: value for key, value in content.items() if key not in OF_SCRIPTS} | tables
    _, args = dataset_and_arguments(settings)
    assert args.max_steps > 0
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    argv = ["--config", str(tmp_path / "config.yaml"), "--max_steps", "7"]
    _, args = dataset_and_arguments(read_settings(training_parser("train", ""), argv).as_dict())
    assert args.max_steps == 7
    for key, value in settings.items():
        assert key == "max_steps" or not hasattr(args, key) or getattr(args, key) == value


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_names_settings_and_baselines_that_exist(name, tables):
    _, calls = read_comparison(CONFIGS[name], tables)
    known = {"full_ranking", "query_kinds", *inspect.signature(Evaluation).parameters}
    for call in {name.partition(", seed ")[0]: call for name, call in calls.items()}.values():  # one seed
        settings = next(value for value in call.args if isinstance(value, dict))
        assert set(settings.pop("evaluation")) <= known
        dataset_and_arguments({**settings, "output_dir": "runs/x"})
        if call.func.__name__ == "run_baseline":
            search = yaml.safe_load((SCRIPTS / "configs" / "baselines" / f"{call.args[0]}.yaml").read_text())
            configure(
                search.get("baseline", call.args[0]),
                {setting: values[0] for setting, values in search["space"].items()},
            )


def test_variants_differ_from_the_base_in_what_they_name():
    base = {"max_steps": 5, "rqvae_config": {"latent_dim": 8}, "task_weights": {"next_query": 1.0}}
    changes = {"rqvae_config": {"embeddings": "semantic"}, "task_weights": {"ad_hoc_search": 1.0}}
    assert merged(base, None, changes) == {
        "max_steps": 5,
        "rqvae_config": {"latent_dim": 8, "embeddings": "semantic"},
        "task_weights": {"ad_hoc_search": 1.0},
    }
    assert base["rqvae_config"] == {"latent_dim": 8}


@pytest.mark.parametrize("content", ["variants: {A: {}}", "output_dir: x\nsweep: 1", "- 1"])
def test_a_file_that_is_no_comparison_is_refused(content, tmp_path):
    (tmp_path / "file.yaml").write_text(content)
    with pytest.raises(InputError, match=r"file.yaml is not a comparison: a YAML file with `output_dir`"):
        read_comparison(tmp_path / "file.yaml", {})


@pytest.mark.slow
def test_variants_share_stages_and_what_fails_is_reported(script, tables, tmp_path):
    content = {
        "output_dir": str(tmp_path / "runs"),
        "settings": {**{name: yaml.safe_load(value) for name, value in TINY.items()}, "search_fraction": 0.4},
        "evaluation": {"num_negatives": 9, "full_ranking": True, "query_kinds": 4},
        "seeds": [0, 1],
        "variants": {
            "Both kinds": None,
            "Semantic alone": {"rqvae_config": {"embeddings": "semantic"}},
            "Too few": {"num_shared_levels": 0, "num_specific_levels": 1},
        },
        "baselines": {"popularity": None, "bm25": 2, "nothing": None},
    }
    path, folder = tmp_path / "comparison.yaml", tmp_path / "runs"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    status, _ = script("paper/compare.py", path, **tables)
    assert status == 1
    result = json.loads((folder / "results" / "comparison.json").read_text())
    assert result["order"] == ["Both kinds", "Semantic alone", "Popularity", "BM25"]
    assert result["variants"]["Semantic alone"]["seeds"] == [0, 1]
    assert list(result["failures"]) == [
        "Too few, seed 0", "Too few, seed 1", "nothing, seed 0", "nothing, seed 1",
    ]  # fmt: skip
    assert "60 items" in result["failures"]["Too few, seed 0"]
    assert (folder / "results" / "full_ranking" / "comparison.md").is_file()
    kinds = result["query_kinds"]
    assert {*kinds["kinds"]["title"]["systems"]} == {*kinds["systems"]}
    rows = ["", ", no history", ", identifiers alone", ", vectors alone", ", texts alone"]
    of_variants = {name + row for name in ("Both kinds", "Semantic alone") for row in rows}
    assert set(kinds["systems"]) == {*of_variants, "Popularity", "BM25"}
    assert kinds["num_seeds"] == 2
    first = folder / "both-kinds-seed-0"
    assert (folder / "semantic-alone-seed-0" / "collaborative").resolve() == (first / "collaborative").resolve()
    assert not (folder / "semantic-alone-seed-0" / "rqvae").is_symlink()

    written = (first / "model" / "stage.json").stat().st_mtime_ns
    assert script("paper/compare.py", path, **tables)[0] == 1
    assert (first / "model" / "stage.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_finetune_compares_before_and_after_on_the_newest_clicks(script, tables, tmp_path):
    options = {**TINY, **tables, "search_fraction": 0.4, "held_out_items": 0.2, "finetune": "{max_steps: 3}"}
    status, printed = script("finetune.py", output_dir=tmp_path, **options)
    assert status == 0, printed
    result = json.loads((tmp_path / "adapter" / "finetune.json").read_text())
    assert result["systems"] == ["before", "after"]
    assert result["tasks"]["recommendation"]["new items"]["num_items"] > 1
    assert (tmp_path / "adapter" / "finetune.md").is_file()
    assert len(GenSARPipeline.from_pretrained(tmp_path / "adapter").items) == 60


@pytest.mark.slow
def test_new_items_are_added_and_ranked(script, tables, tmp_path):
    status, printed = script(
        "paper/new_items.py", output_dir=tmp_path, held_out_items=0.1, search_fraction=0.4, **TINY, **tables
    )
    assert status == 0, printed
    result = json.loads((tmp_path / "results" / "new_items.json").read_text())
    assert (result["num_known_items"], result["num_new_items"]) == (54, 6)
    assert set(result["tasks"]["search"]["systems"]) == {"GenSAR", "BM25"}
    assert 0 <= result["titles"]["HR@1"] <= result["titles"]["HR@10"] <= 1


@pytest.mark.slow
def test_the_tables_of_movielens_make_the_dataset_of_the_loader(tmp_path):
    write_tables(tmp_path)
    settings = CONTENTS["ml-100k"]
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("items", "interactions")}
    dataset, _ = dataset_and_arguments({**settings, **paths})
    loaded = load_movielens_100k(fetch_movielens_100k())
    pd.testing.assert_frame_equal(dataset.items, loaded.items)
    pd.testing.assert_frame_equal(dataset.interactions, loaded.interactions)
    assert dataset.item_texts() == loaded.item_texts()


@pytest.mark.slow
def test_the_demo_trains_evaluates_and_skips_what_is_finished(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"sasrec_epochs": 0.1, "rqvae_epochs": 1, "max_steps": 3, "text_encoder": "null", "output_dir": "short"}
    status, printed = script("demo.py", **sizes)
    assert status == 0, printed
    results = tmp_path / "short" / "demo"
    assert {path.name for path in results.iterdir()} >= {
        "metrics.json", "ranks.parquet", "tables.md", "stage.json", "query_kinds.json", "query_kinds.md",
    }  # fmt: skip
    assert printed.index("by kind of query") < printed.index("(random-")
    assert "by kind of query" in (tmp_path / "short" / "model" / "README.md").read_text()
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["systems"] == ["GenSAR", "SASRec", "Popularity", "BM25", "Dense retrieval", "Hybrid (RRF)"]
    assert "MovieLens-100k" in (tmp_path / "short" / "model" / "README.md").read_text()
    assert "gensar search short/model" in printed
    assert main(["evaluate", "short", "--max_users", "5", "--queries_per_kind", "2"]) == 0
    status, again = script("demo.py", **sizes)
    assert status == 0
    assert again.count("already finished") >= 6
