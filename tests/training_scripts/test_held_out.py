"""Two logs that differ in their held-out events alone: whatever is trained must be the same to the last bit."""

import pandas as pd
import pytest
import yaml
from stages import load_data

from gensar_hf.data import training_mask
from gensar_hf.embeddings import sasrec_training

MARKED_ITEM, MARKED_QUERY = "B004ZTMARK", "zzmarker"
TRAINED = ("popularity", "markov", "sasrec", "gru4rec", "jsr", "jsr_personalized", "qem")


@pytest.fixture
def train(script, encoder, tiny, tmp_path, monkeypatch):
    """Trains everything on two tables; returns the run's folder."""
    monkeypatch.setattr(sasrec_training, "MIN_STEPS", 4)
    files = []
    for name in TRAINED:
        module = name.partition("_")[0]
        settings = {} if name in ("popularity", "markov") else {"num_train_epochs": 1, "hidden_size": 8}
        settings |= {"personalized_search": True} if name == "jsr_personalized" else {}
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump({"baseline": module, "settings": settings}))

    def run(name, items, interactions):
        folder = tmp_path / name
        folder.mkdir()
        items.to_parquet(folder / "items.parquet")
        interactions.to_parquet(folder / "clicks.parquet")
        tables = ["--items", folder / "items.parquet", "--interactions", folder / "clicks.parquet"]
        for stage, options in (
            ("prepare_data.py", tables),
            ("encode_items.py", ["--semantic.model", encoder]),
            ("train_sasrec.py", tiny("collaborative")),
            ("train_rqvae.py", tiny("rqvae")),
            ("train_generator.py", tiny("model")),
            ("evaluate_baselines.py", ["--results.num_negatives=9", "--baselines.names", *files]),
        ):
            status, _, complaint = script(stage, "--output_dir", folder / "run", *options)
            assert status == 0, complaint
        return folder / "run"

    return run


def with_marks(items, interactions, run_dir):
    """The interactions, each held-out one being a click on the marked item, for the marked query if for any."""
    _, events, split = load_data(run_dir)
    is_training = training_mask(split)
    starts = {}
    for row in (~is_training).nonzero()[0]:
        user = events.user_ids[events.event_users()[row]]
        starts[user] = min(starts.get(user, float("inf")), events.timestamps[row])
    times = pd.to_datetime(interactions["timestamp"]).astype("datetime64[ns]").astype("int64") / 1e9
    is_held_out = times >= interactions["user_id"].map(starts).fillna(float("inf"))
    marked = interactions.copy()
    marked.loc[is_held_out, "item_id"] = MARKED_ITEM
    marked.loc[is_held_out & (interactions["query"] != ""), "query"] = MARKED_QUERY
    assert 0 < is_held_out.sum() < len(marked)
    return marked


def test_nothing_held_out_is_read_by_any_stage_that_trains(train, tables_of):
    items, interactions = tables_of(num_users=40, num_clicks=14)
    items = pd.concat([items, pd.DataFrame({"item_id": [MARKED_ITEM], "title": ["red soap balm"]})], ignore_index=True)
    plain = train("plain", items, interactions)
    marked = train("marked", items, with_marks(items, interactions, plain))
    _, events, split = load_data(marked)
    assert MARKED_QUERY in events.query_texts
    held_out = events.items[~training_mask(split)]
    assert {events.item_ids[item] for item in held_out if item >= 0} == {MARKED_ITEM}

    compared = []
    for stage in ("collaborative", "rqvae", "model", "baselines"):
        for path in sorted((plain / stage).rglob("*")):
            is_made = path.suffix in (".safetensors", ".parquet") or path.name in ("tokenizer.json", "vocabulary.json")
            if is_made and not path.name.startswith(("candidates", "ranks")):
                other = marked / path.relative_to(plain)
                assert path.read_bytes() == other.read_bytes(), path.relative_to(plain)
                assert MARKED_QUERY.encode() not in other.read_bytes()
                compared.append(path.relative_to(plain).as_posix())
    assert {"collaborative/model.safetensors", "model/model.safetensors", "model/tokenizer.json"} < set(compared)
    fitted = {name for name in TRAINED if f"baselines/{name}/seed-0/model.safetensors" in compared}
    assert fitted >= {"sasrec", "gru4rec", "jsr", "jsr_personalized", "qem"}, compared
