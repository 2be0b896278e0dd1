"""Item embeddings on disk: they come back exactly, and only for the items they were made for."""

import numpy as np
import pytest

from gensar_hf.embeddings.item_embeddings import load_item_embeddings, save_item_embeddings
from gensar_hf.errors import InputError
from gensar_hf.files import save_arrays

ITEM_IDS = ["B004ZT0SSG", "242", "ü"]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "item_embeddings.safetensors"
    embeddings = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    save_item_embeddings(path, embeddings, ITEM_IDS)
    return path, embeddings


def test_round_trip_is_exact(saved):
    path, embeddings = saved

    loaded = load_item_embeddings(path, ITEM_IDS)

    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, embeddings)


def test_a_transposed_float64_view_is_stored_row_by_row(tmp_path):
    table = np.arange(12.0).reshape(4, 3).T
    save_item_embeddings(tmp_path / "e.safetensors", table, ITEM_IDS)

    np.testing.assert_array_equal(load_item_embeddings(tmp_path / "e.safetensors", ITEM_IDS), table)


@pytest.mark.parametrize(
    "item_ids", [["242", "B004ZT0SSG", "ü"], ["B004ZT0SSG", "243", "ü"], ["B004ZT0SSG24", "2", "ü"]]
)
def test_other_items_are_refused(saved, item_ids):
    with pytest.raises(InputError, match="was made for other items"):
        load_item_embeddings(saved[0], item_ids)


def test_another_number_of_items_is_refused(saved):
    with pytest.raises(InputError, match=r"each of the 2 items, but the embeddings have the shape \(3, 4\)"):
        load_item_embeddings(saved[0], ITEM_IDS[:2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_when_saving_and_when_loading(tmp_path, saved, value):
    embeddings = saved[1].copy()
    embeddings[1, 2] = value
    with pytest.raises(InputError, match=r"item '242' \(row 2\) holds NaN or an infinity"):
        save_item_embeddings(tmp_path / "bad.safetensors", embeddings, ITEM_IDS)
    assert not (tmp_path / "bad.safetensors").exists()

    save_arrays(tmp_path / "foreign.safetensors", {"embeddings": embeddings})
    with pytest.raises(InputError, match=r"item '242' \(row 2\)"):
        load_item_embeddings(tmp_path / "foreign.safetensors", ITEM_IDS)


def test_missing_truncated_and_foreign_files_are_named(tmp_path, saved):
    path, embeddings = saved
    with pytest.raises(InputError, match=r"nothing\.safetensors does not exist"):
        load_item_embeddings(tmp_path / "nothing.safetensors", ITEM_IDS)

    save_arrays(tmp_path / "foreign.safetensors", {"weights": embeddings})
    with pytest.raises(InputError, match="holds no array named 'embeddings'"):
        load_item_embeddings(tmp_path / "foreign.safetensors", ITEM_IDS)
    save_arrays(tmp_path / "unsigned.safetensors", {"embeddings": embeddings})
    with pytest.raises(InputError, match="was made for other items"):
        load_item_embeddings(tmp_path / "unsigned.safetensors", ITEM_IDS)

    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="is damaged"):
        load_item_embeddings(path, ITEM_IDS)
