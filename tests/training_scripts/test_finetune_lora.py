"""A finished run's model goes on with newer interactions and new items, as an adapter."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from gensar_hf import GenSARPipeline
from gensar_hf.data import InteractionLog
from gensar_hf.errors import InputError
from gensar_hf.identifiers import IdentifierTable

OPTIONS = ["--finetune.max_steps=4", "--finetune.per_device_train_batch_size=2", "--finetune.num_negatives=9"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, tables_of, encoder, tiny):
    """All stages up to the generator, on the first two thirds of the interactions; read only, copy before changing."""
    import evaluate_new_items
    import run_pipeline
    from settings import parse_settings
    from stages import STAGES

    folder = tmp_path_factory.mktemp("finished")
    items, clicks = tables_of(num_users=16, num_items=40, num_clicks=21)
    is_late = pd.to_datetime(clicks["timestamp"]).dt.day > 14
    late_items = set(items["item_id"][:4])
    clicks = clicks[is_late | ~clicks["item_id"].isin(late_items)]
    later_share = is_late.sum() / len(clicks)
    items.to_parquet(folder / "items.parquet")
    clicks.to_parquet(folder / "clicks.parquet")
    argv = ["--output_dir", folder / "run", "--items", folder / "items.parquet", "--data.later_share", later_share]
    argv += ["--interactions", folder / "clicks.parquet", "--semantic.model", encoder, *tiny()]
    sections = [script.SECTION for script in run_pipeline.SCRIPTS]
    settings = parse_settings(sections, STAGES, "", list(map(str, argv)))
    for script in evaluate_new_items.STAGE_SCRIPTS:
        script.run(settings)
    return folder / "run"


@pytest.fixture
def run_dir(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def later(run_dir):
    return pd.read_parquet(run_dir / "data" / "later_interactions.parquet")


@pytest.mark.slow
def test_no_stage_has_seen_what_is_later(finished_run):
    log, newer = InteractionLog.load(finished_run / "data"), later(finished_run)
    new_items = set(pd.read_parquet(finished_run / "data" / "later_items.parquet")["item_id"])
    assert new_items == {"B004ZT0000", "B004ZT0001", "B004ZT0002", "B004ZT0003"}
    assert log.interactions["timestamp"].max() < newer["timestamp"].min()
    assert not new_items & set(log.items["item_id"])
    assert not new_items & set(IdentifierTable.load(finished_run / "model").item_ids)


@pytest.mark.slow
def test_a_model_is_fine_tuned_and_asked_before_and_after(script, run_dir):
    base = GenSARPipeline.from_pretrained(run_dir / "model")
    files = {path: path.read_bytes() for path in (run_dir / "model").iterdir()}
    status, printed, complaint = script("finetune_lora.py", "--output_dir", run_dir, *OPTIONS)
    assert status == 0, complaint
    assert {path: path.read_bytes() for path in (run_dir / "model").iterdir()} == files

    tuned = GenSARPipeline.from_pretrained(run_dir / "adapter")
    known, table = base.tokenizer.identifiers, tuned.tokenizer.identifiers
    assert table.item_ids[: known.num_items] == known.item_ids
    assert set(table.item_ids[known.num_items :]) == {f"B004ZT000{number}" for number in range(4)}
    assert table.num_trained == known.num_trained
    assert tuned.model.config.num_items == known.num_trained + table.num_marked > known.num_trained
    found = tuned.recommend([{"item_id": table.item_ids[-1]}], top_k=50)
    assert {answer["item_id"] for answer in found} == set(table.item_ids)
    weights = dict(base.model.named_parameters())
    for name, parameter in tuned.model.named_parameters():
        # Queries and values, the tokens' table, and the rows of new items; nothing else has been trained.
        is_trained = name == "shared.weight" or name.rpartition(".")[0].endswith(("Attention.q", "Attention.v"))
        same = np.array_equal(parameter.detach()[: len(weights[name])], weights[name].detach())
        assert same != is_trained, name

    result = json.loads((run_dir / "adapter" / "finetune.json").read_text())
    assert result["systems"] == ["before", "after"]
    newer = later(run_dir)
    cut = np.sort(newer["timestamp"])[round(0.5 * len(newer))]
    asked = newer[newer["timestamp"] >= cut]
    for task, is_search in (("search", True), ("recommendation", False)):
        groups = result["tasks"][task]
        num_asked = ((asked["query"] != "") == is_search).sum()
        assert sum(group["num_requests"] for group in groups.values()) == num_asked
        for group in groups.values():
            after, before = (group["systems"][name]["NDCG@10"]["value"] for name in ("after", "before"))
            assert group["difference"]["NDCG@10"]["value"] == pytest.approx(after - before)
    clicked = set(newer["item_id"][newer["timestamp"] < cut])
    assert set(table.item_ids[known.num_items :][: table.num_marked]) == clicked - set(known.item_ids)
    written = (run_dir / "adapter" / "finetune.md").read_text()
    for text in (printed, written):
        assert "Recommendation of still newer clicks" in text
        assert "known items (" in text

    status, again, _ = script("finetune_lora.py", "--output_dir", run_dir, *OPTIONS)
    assert (status, "known items (" in again) == (0, True)
    (run_dir / "model").rename(run_dir / "elsewhere")
    with pytest.raises(InputError, match=r"holds an adapter for the model in .*/model, which cannot be loaded"):
        GenSARPipeline.from_pretrained(run_dir / "adapter")
    moved = GenSARPipeline.from_pretrained(run_dir / "adapter", base_model=run_dir / "elsewhere")
    assert moved.recommend([], top_k=5) == tuned.recommend([], top_k=5)


@pytest.mark.slow
def test_tables_can_be_named_and_validation_looks_at_nothing_newest(script, run_dir, tmp_path):
    items = pd.read_parquet(run_dir / "data" / "later_items.parquet")
    items.to_csv(tmp_path / "new.csv", index=False)
    newer = later(run_dir)
    newer.to_parquet(tmp_path / "newer.parquet")
    argv = ["--output_dir", run_dir, "--items", tmp_path / "new.csv", "--interactions", tmp_path / "newer.parquet"]
    options = [*OPTIONS, "--finetune.part=validation", "--finetune.name=trial"]
    status, _, complaint = script("finetune_lora.py", *argv, *options)
    assert status == 0, complaint
    times = np.sort(newer["timestamp"])
    test = times[round(0.5 * len(times))]
    first = times[times < test][round(0.5 * (times < test).sum())]
    result = json.loads((run_dir / "trial" / "finetune.json").read_text())
    num_asked = sum(group["num_requests"] for groups in result["tasks"].values() for group in groups.values())
    assert num_asked == ((newer["timestamp"] >= first) & (newer["timestamp"] < test)).sum()


MISTAKES = {
    "not newer": (lambda rows: rows.assign(timestamp=0.0), "are not newer: user user"),
    "unknown item": (lambda rows: rows.assign(item_id="nothing"), "newer.csv, row 1, column item_id: 'nothing' is not"),
    "no rows": (lambda rows: rows[:0], "newer.csv holds no rows"),
    "one row": (lambda rows: rows[:1], "too few newer interactions"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(script, finished_run, tmp_path, mistake):
    change, words = MISTAKES[mistake]
    rows = later(finished_run)
    rows = change(rows[~rows["item_id"].isin([f"B004ZT000{number}" for number in range(4)])])
    rows.to_csv(tmp_path / "newer.csv", index=False)
    argv = ["--output_dir", finished_run, "--interactions", tmp_path / "newer.csv", *OPTIONS]
    status, _, complaint = script("finetune_lora.py", *argv)
    assert status == 2
    assert complaint.strip().splitlines()[-1].startswith("error: ")
    assert words in complaint
    assert not (finished_run / "adapter").exists()


def test_a_run_without_a_model_is_refused(script, tmp_path):
    status, _, complaint = script("finetune_lora.py", "--output_dir", tmp_path, "--interactions", "newer.csv")
    assert (status, "is no finished run: its stage data is missing" in complaint) == (2, True)


@pytest.mark.slow
def test_an_interrupted_training_goes_on_from_its_checkpoint(script, run_dir, monkeypatch):
    from gensar_hf.generator import adapters

    argv = ["--output_dir", run_dir, *OPTIONS, "--finetune.save_steps=2", "--finetune.save_total_limit=2"]
    whole = [*argv, "--finetune.name=whole"]
    assert script("finetune_lora.py", *whole)[0] == 0

    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(adapters, "save_adapter", dies)
        assert script("finetune_lora.py", *argv)[0] == 130
    (last,) = (run_dir / "checkpoints").glob("adapter-*/checkpoint-4")
    shutil.rmtree(last)
    status, _, complaint = script("finetune_lora.py", *argv)
    assert (status, "Going on from" in complaint) == (0, True)
    weights = [load_file(run_dir / name / "adapter_model.safetensors") for name in ("adapter", "whole")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(tensor, weights[1][name], atol=1e-6, err_msg=name)
