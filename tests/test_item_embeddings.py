"""Tables of item embeddings: files come back exactly, and only for their items."""

import numpy as np
import pytest

from gensar_hf.errors import InputError
from gensar_hf.files import save_arrays
from gensar_hf.item_embeddings import (
    load_item_embeddings,
    row_chunks,
    save_item_embeddings,
)

ITEM_IDS = ["B004ZT0SSG", "242", "ü"]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "item_embeddings.safetensors"
    embeddings = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    save_item_embeddings(path, embeddings, ITEM_IDS)
    return path, embeddings


def test_chunks_cover_every_row_once():
    assert np.concatenate([np.arange(21)[part] for part in row_chunks(21, 10)]).tolist() == list(range(21))
    assert list(row_chunks(0)) == []


def test_round_trip_is_exact(saved, tmp_path):
    path, embeddings = saved
    loaded = load_item_embeddings(path, ITEM_IDS)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, embeddings)
    table = np.arange(12.0).reshape(4, 3).T  # a transposed float64 view is stored row by row
    save_item_embeddings(tmp_path / "e.safetensors", table, ITEM_IDS)
    np.testing.assert_array_equal(load_item_embeddings(tmp_path / "e.safetensors", ITEM_IDS), table)


@pytest.mark.parametrize(
    ("item_ids", "message"),
    [
        (["242", "B004ZT0SSG", "ü"], "was made for other items"),
        (["B004ZT0SSG24", "2", "ü"], "was made for other items"),
        (ITEM_IDS[:2], r"each of the 2 items, but the embeddings have the shape \(3, 4\)"),
    ],
)
def test_other_items_are_refused(saved, item_ids, message):
    with pytest.raises(InputError, match=message):
        load_item_embeddings(saved[0], item_ids)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
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
