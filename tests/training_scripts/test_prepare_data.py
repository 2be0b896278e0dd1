"""The data stage on Amazon's files: read, split, run again only when a file or a setting in force has changed."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from gensar_hf.errors import InputError

CONFIG = Path(__file__).parents[2] / "training_scripts" / "configs" / "amazon-electronics.yaml"
NUM_USERS, NUM_ITEMS, NUM_REVIEWS = 6, 8, 5


@pytest.fixture
def amazon(tmp_path):
    """The files of a tiny category in the published formats; returns the options that name them."""
    reviews = [
        {"reviewerID": f"U{user}", "asin": f"B{(user + day) % NUM_ITEMS}", "unixReviewTime": 86_400 * day}
        for user in range(NUM_USERS)
        for day in range(NUM_REVIEWS)
    ]
    items = [
        {"asin": f"B{item}", "title": f"Item {item}", "categories": [["Electronics", f"Kind {item % 3}"]]}
        for item in range(NUM_ITEMS)
    ]
    contents = {
        "reviews.gz": [json.dumps(review) for review in reviews],
        "meta.gz": [repr(item) for item in items],
        "query_text.txt.gz": ["a kind", "another kind"],
        "train.qrels.gz": [f"{review['reviewerID']}_0 0 {review['asin']} 1" for review in reviews[::2]],
        "test.qrels.gz": [f"{review['reviewerID']}_1 0 {review['asin']} 1" for review in reviews[1::2]],
    }
    for name, lines in contents.items():
        (tmp_path / name).write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    files = ["--data.reviews", tmp_path / "reviews.gz", "--data.metadata", tmp_path / "meta.gz"]
    return ["--output_dir", tmp_path / "run", "--data.dataset", "amazon", *files]


def load(run_dir):
    from stages import load_data

    return load_data(run_dir)


def test_reviews_become_a_split_log_with_searches(script, amazon, tmp_path):
    assert script("prepare_data.py", *amazon, "--data.search_fraction", "0.5")[0] == 0
    log, events, split = load(tmp_path / "run")
    assert (events.num_users, events.num_items, len(log.interactions)) == (NUM_USERS, NUM_ITEMS, 30)
    assert log.items["title"].tolist() == [f"Item {item}" for item in range(NUM_ITEMS)]
    assert set(events.query_texts) <= {f"electronics kind {kind}" for kind in range(3)}
    num_searches = int((log.interactions["query"] != "").sum())
    assert 0 < num_searches < 30
    assert len(split.test["recommendation"]) > 0


def test_published_queries_as_both_and_what_makes_the_stage_run_again(script, amazon, tmp_path):
    argv = [*amazon, "--data.query_dir", tmp_path, "--data.reviews_are", "both"]
    assert script("prepare_data.py", *argv)[0] == 0
    log, events, _ = load(tmp_path / "run")
    assert len(log.interactions) == 60
    assert set(events.query_texts) == {"a kind", "another kind"}
    written = (tmp_path / "run" / "data" / "stage.json").stat().st_mtime_ns
    (tmp_path / "unrelated.txt").write_text("not read")
    assert script("prepare_data.py", *argv)[0] == 0
    assert (tmp_path / "run" / "data" / "stage.json").stat().st_mtime_ns == written
    (tmp_path / "query_text.txt.gz").write_bytes(gzip.compress(b"changed\nanother kind\n"))
    assert script("prepare_data.py", *argv)[0] == 0
    assert set(load(tmp_path / "run")[1].query_texts) == {"changed", "another kind"}


def test_a_damaged_line_is_one_sentence(script, amazon, tmp_path):
    (tmp_path / "reviews.gz").write_bytes(gzip.compress(b'{"reviewerID": "U1", "asin": "B1"}\n'))
    status, _, complaint = script("prepare_data.py", *amazon)
    last = [line for line in complaint.splitlines() if line][-1]
    assert status == 2
    assert last.startswith("error: reviews.gz, line 1: it has nothing as unixReviewTime")
    assert "Traceback" not in complaint
    assert not (tmp_path / "run" / "data").exists()


@pytest.fixture
def read():
    """`DataArguments` and `RunArguments` from options, with or without a YAML file before them."""
    import prepare_data
    from settings import parse_settings
    from stages import STAGES

    def read(*argv):
        settings = parse_settings([prepare_data.SECTION], STAGES, "", [*map(str, argv)])
        return settings["data"][0], settings.run

    return read


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--data.dataset", "amazon"], "`dataset: amazon` needs the files `reviews` and `metadata`"),
        (["--data.dataset", "amazon", "--data.reviews", "r.gz"], "needs the files `reviews` and `metadata`"),
        (["--data.reviews", "r.gz"], "`reviews` is a setting of `dataset: amazon`"),
        (["--data.dataset", "ml-100k", "--data.reviews_are", "both"], "`reviews_are` is a setting of"),
        (["--data.reviews_are", "all"], "invalid choice: 'all'"),
        (
            ["--data.dataset=amazon", "--data.reviews=r", "--data.metadata=m", "--data.query_dir=q"],
            "set `search_fraction` above 0, or `reviews_are` to both",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(read, options, named):
    with pytest.raises(InputError) as raised:
        read("--output_dir", "run", *options)
    assert named in str(raised.value)


def test_inputs_are_the_settings_in_force_and_local_files(read):
    from prepare_data import AMAZON_SETTINGS, stage_inputs

    values, *files = stage_inputs(*read("--output_dir", "run", "--data.dataset", "ml-100k"))
    assert not set(AMAZON_SETTINGS) & set(values), "runs of other data sets do not depend on them"
    assert files == []
    values, *files = stage_inputs(*read(CONFIG, "--data.query_dir", "q"))
    assert set(AMAZON_SETTINGS) <= set(values)
    expected = ["reviews_Electronics_5.json.gz", "meta_Electronics.json.gz"]
    expected += ["q/query_text.txt.gz", "q/train.qrels.gz", "q/test.qrels.gz"]
    assert files == [Path(name) for name in expected]
    assert stage_inputs(*read(CONFIG, "--data.repository", "me/amazon"))[1:] == []


def test_the_configuration_of_the_paper_holds_for_every_stage():
    import run_pipeline
    from settings import parse_settings
    from stages import STAGES

    sections = [script.SECTION for script in run_pipeline.SCRIPTS]
    settings = parse_settings(sections, STAGES, "", [str(CONFIG)])
    rqvae, training = settings["rqvae"]
    assert (rqvae.codebook_size, rqvae.num_shared_levels, rqvae.num_specific_levels) == (256, 2, 2)
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (500, 1024)
    assert settings["model"][0].model_name_or_path == "google-t5/t5-small"
    assert settings["semantic"][0].model == "BAAI/bge-base-en-v1.5"


def test_what_is_later_is_kept_apart_and_held_out_items_are_new_in_it(script, tables, tmp_path):
    argv = ["--items", tables[0], "--interactions", tables[1], "--output_dir", tmp_path / "run"]
    assert script("prepare_data.py", *argv, "--data.later_share=0.3", "--data.held_out_items=0.2")[0] == 0
    data = tmp_path / "run" / "data"
    earlier, held_out, later = (
        pd.read_parquet(data / f"{name}interactions.parquet") for name in ("", "held_out_", "later_")
    )
    items, new_items = (set(pd.read_parquet(data / f"{name}items.parquet")["item_id"]) for name in ("", "later_"))
    assert len(earlier) + len(held_out) + len(later) == 120
    assert max(earlier["timestamp"].max(), held_out["timestamp"].max()) < later["timestamp"].min()
    assert len(items | new_items) == 30
    assert not items & new_items
    assert set(held_out["item_id"]) <= new_items
    assert set(later["item_id"]) <= items | new_items
    status, _, complaint = script("prepare_data.py", *argv, "--data.later_share=1")
    assert (status, "`later_share` is a share, at least 0 and below 1; got 1.0" in complaint) == (2, True)
