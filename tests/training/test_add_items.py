"""New items from a model's folder alone, and items out of the catalogue and back."""

import shutil

import numpy as np
import pandas as pd
import pytest
import tiny_runs

from gensar_hf import GenSARPipeline, InputError

NEW = pd.DataFrame({"item_id": ["N1", "N2"], "title": ["red soap oil", "blue cream mask"]})


@pytest.fixture(scope="module")
def moved(tiny_run, tmp_path_factory):
    """`model/` alone, in another folder."""
    return shutil.copytree(tiny_run / "model", tmp_path_factory.mktemp("elsewhere") / "films")


@pytest.fixture
def pipe(moved):
    return GenSARPipeline.from_pretrained(moved, device="cpu")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_new_items_are_found_and_nothing_else_changes(pipe, moved, tmp_path):
    before, files = pipe.tokenizer.identifiers, contents(moved)
    added = pipe.add_items(NEW)
    assert [entry["item_id"] for entry in added] == ["N1", "N2"]
    assert all(len(entry["nearest"]) == len(set(entry["nearest"])) > 2 for entry in added)
    table = pipe.tokenizer.identifiers
    assert table.item_ids == [*before.item_ids, "N1", "N2"]
    np.testing.assert_array_equal(table.semantic_codes[:30], before.semantic_codes)
    np.testing.assert_array_equal(table.collaborative_codes[:30], before.collaborative_codes)
    ranked = pipe.rank(tiny_runs.HISTORY, ["N1", "B01", "N2"])
    assert {answer["item_id"] for answer in ranked} == {"N1", "B01", "N2"}
    assert {answer["title"] for answer in ranked} >= set(NEW["title"])
    assert {"N1", "N2"} <= {answer["item_id"] for answer in pipe.search("red", top_k=32)}
    assert len(pipe.recommend([{"item_id": "N1"}], top_k=3)) == 3  # new items are read in histories
    assert pipe.items["item_id"].tolist()[-2:] == ["N1", "N2"]
    assert contents(moved) == files  # until the pipeline is saved

    pipe.save_pretrained(tmp_path / "saved")
    again = GenSARPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.rank(tiny_runs.HISTORY, ["N1", "B01", "N2"]) == ranked
    again.add_items(pd.DataFrame({"item_id": ["N3"], "title": ["green gel"]}))  # and once more
    assert again.tokenizer.identifiers.item_ids[-3:] == ["N1", "N2", "N3"]


def test_a_new_item_is_found_by_its_title_and_by_a_misspelled_one(pipe):
    pipe.add_items(pd.DataFrame({"item_id": ["N1", "N2"], "title": ["Zebra Xylophone", "blue cream mask"]}))
    for query in ("zebra xylophone", "zbra", "xylophone zebra", "XYLOFONE"):
        for history in ([], tiny_runs.HISTORY):
            answers = pipe.search(query, history, top_k=pipe.tokenizer.identifiers.num_items, explain=True)
            by_text = {each["item_id"]: each["parts"]["words"] + each["parts"]["characters"] for each in answers}
            assert max(by_text, key=by_text.__getitem__) == "N1", query
            # After four steps of training the vector of another item may still weigh more than a misspelled word.
            assert "N1" in [each["item_id"] for each in answers[: 1 if "zebra" in query else 3]], query


def test_queries_and_new_items_share_one_text_encoder(pipe):
    assert pipe.load_item_encoder().text_encoder is pipe.tokenizer.catalogue.texts.encoder


def test_a_table_in_a_file(pipe, tmp_path):
    NEW.to_csv(tmp_path / "new.csv", index=False)
    assert [entry["title"] for entry in pipe.add_items(tmp_path / "new.csv")] == NEW["title"].tolist()


def test_a_removed_item_is_not_found_until_it_is_restored(pipe):
    everything = {answer["item_id"] for answer in pipe.recommend([], top_k=30)}
    pipe.remove_items(["B03"])
    assert {answer["item_id"] for answer in pipe.recommend([], top_k=30)} == everything - {"B03"}
    assert len(pipe.recommend([{"item_id": "B03"}], top_k=3)) == 3
    assert not pipe.items.set_index("item_id")["available"]["B03"]
    pipe.restore_items(["B03"])
    assert {answer["item_id"] for answer in pipe.recommend([], top_k=30)} == everything


MISTAKES = {
    "known": (NEW.replace("N2", "B07"), "The new item 'B07' is in the model's catalogue; leave it out."),
    "twice": (NEW.replace("N2", "N1"), "row 2, column item_id: 'N1' is already in row 1"),
    "no id": (NEW.replace("N2", ""), "row 2, column item_id: '' is not an item id"),
    "no column": (NEW.rename(columns={"title": "name"}), "has no column title"),
    "no text": (NEW.replace("red soap oil", ""), "row 1, column item_id: 'N1' has no text in title"),
    "no rows": (NEW[:0], "no rows"),
    "no table": (["N1"], "The items are a list"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_changes_nothing(pipe, mistake):
    items, words = MISTAKES[mistake]
    before = pipe.tokenizer.identifiers
    with pytest.raises(InputError) as error:
        pipe.add_items(items)
    assert words in str(error.value)
    assert len(str(error.value)) < 500
    assert pipe.tokenizer.identifiers is before


def test_unknown_and_repeated_ids_are_refused(pipe):
    for change in (pipe.remove_items, pipe.restore_items):
        with pytest.raises(InputError, match=r"'NOWHERE' cannot be re(moved|stored), because it is not in"):
            change(["NOWHERE"])
    with pytest.raises(InputError, match="B03"):
        pipe.remove_items(["B03", "B03"])
    with pytest.raises(InputError, match="it was not removed"):
        pipe.restore_items(["B03"])
    pipe.remove_items(["B03"])
    with pytest.raises(InputError, match=r"was removed from the model's catalogue; bring it back with `restore_items"):
        pipe.add_items(NEW.replace("N2", "B03"))


def test_a_model_without_an_item_encoder_says_so(moved, tmp_path):
    shutil.copytree(moved, tmp_path / "old", ignore=shutil.ignore_patterns("item_encoder"))
    pipe = GenSARPipeline.from_pretrained(tmp_path / "old", device="cpu")
    with pytest.raises(InputError, match="The model has no item encoder, so new items cannot get identifiers"):
        pipe.add_items(NEW)
    pipe.remove_items(["B03"])  # needs none


@pytest.mark.parametrize("name", ["item_encoder.json", "rqvae/model.safetensors", "collaborative_map.safetensors"])
def test_a_damaged_item_encoder_is_one_sentence(moved, tmp_path, name):
    shutil.copytree(moved, tmp_path / "damaged")
    path = tmp_path / "damaged" / "item_encoder" / name
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(InputError) as error:
        GenSARPipeline.from_pretrained(tmp_path / "damaged", device="cpu").add_items(NEW)
    assert name.partition("/")[0] in str(error.value)
