"""Items held out of a run, added to a finished one, taken out of it and brought back; nothing is trained."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from gensar_hf import GenSARPipeline
from gensar_hf.data import InteractionLog
from gensar_hf.errors import InputError
from gensar_hf.identifiers import IdentifierTable

NEW = pd.DataFrame({"item_id": ["new-1", "new-2"], "title": ["red soap oil", "blue cream mask"]})


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, tables_of, encoder, tiny):
    """All stages up to the generator, with a tenth of the items held out; read only, copy before changing."""
    import evaluate_new_items
    import run_pipeline
    from settings import parse_settings
    from stages import STAGES

    folder = tmp_path_factory.mktemp("finished")
    items, clicks = tables_of(num_users=16, num_items=40, num_clicks=20)
    items.loc[items.index[:3], "title"] = "red soap oil"
    items.to_parquet(folder / "items.parquet")
    clicks.to_parquet(folder / "clicks.parquet")
    argv = ["--output_dir", folder / "run", "--items", folder / "items.parquet", "--data.held_out_items", "0.1"]
    argv += ["--interactions", folder / "clicks.parquet", "--semantic.model", encoder, *tiny()]
    sections = [script.SECTION for script in run_pipeline.SCRIPTS]
    settings = parse_settings(sections, STAGES, "", list(map(str, argv)))
    for script in evaluate_new_items.STAGE_SCRIPTS:
        script.run(settings)
    return folder / "run", list(map(str, argv))


@pytest.fixture
def run_dir(finished_run, tmp_path):
    shutil.copytree(finished_run[0], tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(frame, folder):
    frame.to_csv(folder / "new.csv", index=False)
    return folder / "new.csv"


# ---- prepare_data.py


def test_held_out_items_and_their_clicks_are_a_part_of_the_log_of_their_own(tables_of):
    from prepare_data import hold_out_items

    from gensar_hf.data import load_log

    log = load_log(*tables_of(num_items=30))
    left, held_out = hold_out_items(log, 0.2, seed=0)

    assert (len(left.items), len(held_out.items)) == (24, 6)
    for part in (left, held_out):
        inside = log.items["item_id"].isin(part.items["item_id"])
        pd.testing.assert_frame_equal(part.items, log.items[inside].reset_index(drop=True))
        rows = log.interactions[log.interactions["item_id"].isin(part.items["item_id"])].reset_index(drop=True)
        pd.testing.assert_frame_equal(part.interactions, rows)
    assert not set(left.items["item_id"]) & set(held_out.items["item_id"])
    again, other = (set(hold_out_items(log, 0.2, seed)[1].items["item_id"]) for seed in (0, 1))
    assert again == set(held_out.items["item_id"]) != other
    assert len(hold_out_items(log, 0.001, 0)[1].items) == 1
    assert len(hold_out_items(log, 0.999, 0)[0].items) == 1


def test_searches_without_a_click_stay(tables_of):
    from prepare_data import hold_out_items

    from gensar_hf.data import load_log

    items, clicks = tables_of()
    clicks.loc[::3, ["item_id", "query"]] = ["", "red"]
    log = load_log(items, clicks)
    left, held_out = hold_out_items(log, 0.5, seed=0)
    assert (left.interactions["item_id"] == "").sum() == (log.interactions["item_id"] == "").sum() > 0
    assert (held_out.interactions["item_id"] != "").all()


def test_no_stage_has_seen_what_is_held_out(finished_run):
    run_dir, _ = finished_run
    held_out = set(pd.read_parquet(run_dir / "data" / "held_out_items.parquet")["item_id"])
    assert len(held_out) == 4
    assert set(pd.read_parquet(run_dir / "data" / "held_out_interactions.parquet")["item_id"]) == held_out
    log = InteractionLog.load(run_dir / "data")
    assert not held_out & set(log.items["item_id"])
    assert not held_out & set(log.interactions["item_id"])
    assert not held_out & set(IdentifierTable.load(run_dir / "model").item_ids)


def test_without_the_option_nothing_is_held_out(script, tables, tmp_path):
    argv = ["--items", tables[0], "--interactions", tables[1], "--output_dir", tmp_path / "run"]
    assert script("prepare_data.py", *argv)[0] == 0
    assert not list((tmp_path / "run" / "data").glob("held_out*"))
    assert len(pd.read_parquet(tmp_path / "run" / "data" / "items.parquet")) == 30
    status, _, complaint = script("prepare_data.py", *argv, "--data.held_out_items", "1")
    assert (status, "`held_out_items` is a share, at least 0 and below 1; got 1.0" in complaint) == (2, True)


# ---- add_items.py


def test_new_items_get_identifiers_and_everything_else_stays(script, run_dir, tmp_path):
    before, files = IdentifierTable.load(run_dir / "model"), contents(run_dir)
    status, printed, complaint = script("add_items.py", "--output_dir", run_dir, "--items", write(NEW, tmp_path))
    assert status == 0, complaint

    table, n = IdentifierTable.load(run_dir / "model"), before.num_items
    assert table.item_ids == [*before.item_ids, "new-1", "new-2"]
    assert table.titles[n:] == table.texts[n:] == NEW["title"].tolist()
    np.testing.assert_array_equal(table.semantic_codes[:n], before.semantic_codes)
    np.testing.assert_array_equal(table.collaborative_codes[:n], before.collaborative_codes)
    changed = {str(name) for name, content in contents(run_dir).items() if files.get(name) != content}
    assert changed == {os.path.join("model", "identifiers.parquet")}

    for row in (n, n + 1):
        for tokens in (table.semantic_tokens(row), table.collaborative_tokens(row)):
            assert "".join(tokens) in printed
    assert printed.count("red soap oil") >= 2  # the new one, and a known one with the same text beside it
    assert f"{n + 2} items that can be found" in printed
    pipe = GenSARPipeline.from_pretrained(run_dir / "model")
    found = pipe.recommend([{"item_id": "new-1"}], top_k=n + 2)
    assert {"new-1", "new-2"} <= {answer["item_id"] for answer in found}


def test_items_can_be_added_again_and_again(script, run_dir, tmp_path):
    for number in range(2):
        path = write(NEW.iloc[[number]], tmp_path)
        assert script("add_items.py", "--output_dir", run_dir, "--items", path)[0] == 0
    assert IdentifierTable.load(run_dir / "model").item_ids[-2:] == ["new-1", "new-2"]


def test_a_removed_item_is_not_found_until_it_is_restored(script, run_dir):
    table = IdentifierTable.load(run_dir / "model")
    item_id = table.item_ids[3]

    def found():
        answers = GenSARPipeline.from_pretrained(run_dir / "model").recommend([], top_k=table.num_items)
        return {answer["item_id"] for answer in answers}

    status, printed, complaint = script("add_items.py", "--output_dir", run_dir, "--catalogue.remove", item_id)
    assert status == 0, complaint
    assert f"Removed: {item_id}" in printed
    assert found() == set(table.item_ids) - {item_id}
    assert script("add_items.py", "--output_dir", run_dir, "--catalogue.restore", item_id)[0] == 0
    assert found() == set(table.item_ids)


# new items, further options, words of the sentence
MISTAKES = {
    "known item": (NEW.replace("new-2", "B004ZT0007"), [], ["'B004ZT0007'", "is in the model's catalogue already"]),
    "item given twice": (NEW.replace("new-2", "new-1"), [], ["new.csv, row 2", "item_id", "new-1", "earlier row"]),
    "item without an id": (NEW.replace("new-2", ""), [], ["new.csv, row 2", "item_id", "missing"]),
    "no text column": (NEW.rename(columns={"title": "name"}), [], ["new.csv has no column title"]),
    "item without a text": (NEW.replace("red soap oil", ""), [], ["new.csv, row 1", "new-1", "no text in title"]),
    "no item": (NEW[:0], [], ["new.csv holds no rows"]),
    "unknown item removed": (NEW, ["--catalogue.remove", "B00NOWHERE"], ["B00NOWHERE", "cannot be removed"]),
    "item removed twice": (None, ["--catalogue.remove", "B004ZT0007", "B004ZT0007"], ["B004ZT0007", "2 times"]),
    "restored without need": (None, ["--catalogue.restore", "B004ZT0007"], ["B004ZT0007", "was not removed"]),
    "nothing asked for": (None, [], ["Nothing was asked for", "--items", "--catalogue.remove"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_changed(script, finished_run, tmp_path, mistake):
    run_dir, (items, options, words) = finished_run[0], MISTAKES[mistake]
    before = contents(run_dir)
    argv = ["--output_dir", run_dir, *options]
    argv += [] if items is None else ["--items", write(items, tmp_path)]
    status, printed, complaint = script("add_items.py", *argv)
    assert (status, printed) == (2, "")
    assert "Traceback" not in complaint
    last = complaint.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last
    assert contents(run_dir) == before


def test_removed_items_are_restored_not_added_anew(script, run_dir, tmp_path):
    assert script("add_items.py", "--output_dir", run_dir, "--catalogue.remove", "B004ZT0007")[0] == 0
    path = write(NEW.replace("new-2", "B004ZT0007"), tmp_path)
    status, _, complaint = script("add_items.py", "--output_dir", run_dir, "--items", path)
    assert status == 2
    assert "was removed from the model's catalogue; bring it back with --catalogue.restore B004ZT0007" in complaint


@pytest.mark.parametrize("stage", ["data", "rqvae", "model"])
def test_an_unfinished_run_is_refused(script, run_dir, tmp_path, stage):
    (run_dir / stage / "stage.json").unlink()
    status, _, complaint = script("add_items.py", "--output_dir", run_dir, "--items", write(NEW, tmp_path))
    assert status == 2
    assert f"{run_dir} is no finished run: its stage {stage} is missing" in complaint


def test_a_run_that_dies_while_it_saves_leaves_the_old_catalogue(script, run_dir, tmp_path, monkeypatch):
    before = contents(run_dir)

    def dies(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    assert script("add_items.py", "--output_dir", run_dir, "--items", write(NEW, tmp_path))[0] == 130
    assert contents(run_dir) == before


# ---- evaluate_new_items.py


@pytest.mark.slow
@pytest.mark.parametrize("item_vectors", [True, False])
def test_held_out_items_are_added_and_asked_for_and_the_model_stays(script, finished_run, run_dir, tiny, item_vectors):
    import evaluate_new_items

    argv = [str(run_dir) if each == str(finished_run[0]) else each for each in finished_run[1]]
    if not item_vectors:
        argv.append("--model.item_vectors=false")
        assert script("train_generator.py", "--output_dir", run_dir, *tiny("model"), argv[-1])[0] == 0
    before = contents(run_dir)
    options = ["--new_items.max_beam_requests=4", "--new_items.nums_neighbors", "2", "3", "--results.num_negatives=9"]
    status, printed, complaint = script("evaluate_new_items.py", *argv, *options)
    assert status == 0, complaint
    assert {name: content for name, content in contents(run_dir).items() if name in before} == before

    result = json.loads((run_dir / "results" / "new_items.json").read_text())
    assert (result["num_known_items"], result["num_new_items"]) == (36, 4)
    clicks = pd.read_parquet(run_dir / "data" / "held_out_interactions.parquet")
    search = result["tasks"]["search"]
    assert search["num_requests"] == (clicks["query"] != "").sum()
    assert result["tasks"]["recommendation"]["num_requests"] == (clicks["query"] == "").sum()
    assert search["systems"]["Chance"]["HR@5"]["value"] == 0.5  # the target and 9 others
    assert set(search["systems"]) >= {"BM25", "Dense retrieval", "GenSAR, borrowed"}
    # Where items have vectors, a new one has none to rely on.
    assert ("GenSAR, own identifiers" in search["systems"]) == (not item_vectors)
    assert search["num_neighbors"] in (2, 3)
    for shares in search["whole_catalogue"].values():
        assert shares["requests@100"] == shares["items@100"] == 1  # more answers than items
    written = (run_dir / "results" / "new_items.md").read_text()
    for text in (printed, written):
        assert "Search of 4 new items" in text
        assert "GenSAR, borrowed" in text
    assert evaluate_new_items.DEPTHS == (10, 100)


def test_a_run_without_held_out_items_is_refused(script, tables, tmp_path):
    argv = ["--items", tables[0], "--interactions", tables[1], "--output_dir", tmp_path / "run"]
    status, _, complaint = script("evaluate_new_items.py", *argv)
    assert status == 2
    assert "No items are held out; name a share of them, such as --data.held_out_items 0.05." in complaint
    assert not (tmp_path / "run").exists()


def test_shares_of_a_search_over_all_items():
    from evaluate_new_items import reach

    # requests for the items 5, 5 and 6; known items are 0 to 4
    answers = [np.array([0, 5, 6]), np.array([0, 1]), np.array([1, 2, 3])]
    found = reach(answers, np.array([5, 5, 6]), num_known=5)
    assert found["requests@10"] == pytest.approx(1 / 3)
    assert found["items@10"] == pytest.approx(1 / 2)
    assert found["places@10"] == pytest.approx(2 / 8)


def test_held_out_files_that_are_missing_are_named(finished_run, tmp_path):
    from evaluate_new_items import load_held_out

    with pytest.raises(InputError, match="has no held-out items"):
        load_held_out(tmp_path, InteractionLog.load(finished_run[0] / "data"))


def test_figures_are_written_with_the_protocol_the_interval_and_the_number_of_neighbors():
    from new_items_report import markdown_tables

    figure = {"value": 0.25, "low": 0.2, "high": 0.4}
    metrics = ("HR@1", "HR@5", "HR@10", "NDCG@10")
    shares = {f"{what}@{depth}": 0.5 for what in ("requests", "items", "places") for depth in (10, 100)}
    task = {
        "num_neighbors": 20, "protocol": "bm25-hard-99", "num_requests": 1234, "num_items": 5, "known_items": None,
        "systems": {"Chance": {name: {"value": 0.1} for name in metrics}, "GenSAR": dict.fromkeys(metrics, figure)},
        "whole_catalogue": {"New, borrowed": shares},
    }  # fmt: skip
    recall = {"recall": 0.2, "mean_embedding": 0.1, "chance": 0.01}
    result = {"num_known_items": 95, "num_new_items": 5, "tasks": {"search": task}, "neighbours": recall}

    written = markdown_tables(result)

    assert "| Chance | 0.100 | 0.100 | 0.100 | 0.100 |" in written
    assert "| GenSAR | 0.250 ± 0.100 |" in written
    assert "(bm25-hard-99, 1,234 requests for 5 items)" in written
    assert "the 20 known items with the nearest identifiers" in written
    assert "| New, borrowed | 50.0% |" in written
    assert "which are 5.0% of the catalogue" in written
    assert "| Map from the text | 0.200 |" in written
