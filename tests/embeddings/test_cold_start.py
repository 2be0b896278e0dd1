"""The map from text to collaborative embeddings: the regression it is, what it learns, and what it refuses."""

import numpy as np
import pytest

from gensar_hf.embeddings import cold_start
from gensar_hf.embeddings.cold_start import FULL_TRUST_CLICKS, RIDGE, CollaborativeMap
from gensar_hf.errors import InputError
from gensar_hf.files import load_arrays, save_arrays


def smooth_catalogue(num_items=200, seed=0):
    """Semantic embeddings, and collaborative ones that are a smooth function of their direction."""
    rng = np.random.default_rng(seed)
    semantic = rng.normal(size=(num_items, 6)).astype(np.float32)
    units = semantic / np.linalg.norm(semantic, axis=1, keepdims=True)
    weights = rng.normal(size=(6, 4))
    return semantic, (units @ weights + np.square(units) @ weights + 0.5).astype(np.float32)


def test_two_items_by_hand():
    # Two orthogonal items are at squared distance 2, which is the median: the kernel between them is exp(-2.5).
    semantic, collaborative = np.eye(2), np.array([[1.0, 3.0], [-1.0, 3.0]])

    predicted = CollaborativeMap.fit(semantic, collaborative, seed=0).predict(semantic)

    kernel = np.exp(-2.5)
    shrunk = (1 - kernel) / (1 + RIDGE - kernel)
    np.testing.assert_allclose(predicted, [[shrunk, 3], [-shrunk, 3]], rtol=1e-5)


@pytest.mark.parametrize("has_clicks", [False, True])
def test_it_is_weighted_kernel_ridge_regression(has_clicks):
    """In closed form: (K + ridge / weights)^-1 (v_c - mean)."""
    semantic, collaborative = smooth_catalogue()
    clicks = np.arange(200) % 40 + 1 if has_clicks else None
    trust = np.ones(200) if clicks is None else np.minimum(clicks / FULL_TRUST_CLICKS, 1)

    fitted = CollaborativeMap.fit(semantic[:150], collaborative[:150], 0, None if clicks is None else clicks[:150])

    units = semantic / np.linalg.norm(semantic, axis=1, keepdims=True)
    mean = np.average(collaborative[:150], axis=0, weights=trust[:150])
    distances = np.square(units[:, None] - units[None, :150]).sum(axis=2)
    kernel = np.exp(-float(fitted.sharpness) * distances)
    coefficients = np.linalg.solve(kernel[:150] + np.diag(RIDGE / trust[:150]), collaborative[:150] - mean)
    np.testing.assert_allclose(fitted.predict(semantic), kernel @ coefficients + mean, atol=3e-3)


def test_of_too_many_items_a_seeded_sample_is_taken(monkeypatch):
    monkeypatch.setattr(cold_start, "MAX_ITEMS", 50)
    semantic, collaborative = smooth_catalogue()
    maps = [CollaborativeMap.fit(semantic, collaborative, seed) for seed in (0, 0, 1)]

    assert maps[0].semantic.shape == (50, 6)
    np.testing.assert_array_equal(maps[0].coefficients, maps[1].coefficients)
    assert not np.array_equal(maps[0].semantic, maps[2].semantic)


def test_repeated_items_and_texts_without_an_embedding_are_no_problem():
    semantic, collaborative = smooth_catalogue(40)
    semantic[:20] = semantic[0]
    semantic[39] = 0
    fitted = CollaborativeMap.fit(semantic, collaborative, seed=0)
    assert np.isfinite(fitted.predict(semantic)).all()
    assert fitted.predict(semantic[:0]).shape == (0, 4)


def test_round_trip_is_exact(tmp_path):
    semantic, collaborative = smooth_catalogue(30)
    fitted = CollaborativeMap.fit(semantic, collaborative, seed=0)
    fitted.save(tmp_path / "map.safetensors")

    loaded = CollaborativeMap.load(tmp_path / "map.safetensors")

    np.testing.assert_array_equal(loaded.predict(semantic), fitted.predict(semantic))
    assert load_arrays(tmp_path / "map.safetensors")["semantic"].dtype == np.float16


def test_files_of_version_0_1_load(tmp_path):
    semantic, collaborative = smooth_catalogue(30)
    fitted = CollaborativeMap.fit(semantic, collaborative, seed=0)
    header = {"format": "gensar_hf.collaborative_map", "format_version": "1"}
    save_arrays(tmp_path / "map.safetensors", vars(fitted), header)  # with float32 rows
    loaded = CollaborativeMap.load(tmp_path / "map.safetensors")
    np.testing.assert_array_equal(loaded.predict(semantic), fitted.predict(semantic))


def test_files_that_hold_something_else_are_refused(tmp_path):
    semantic, collaborative = smooth_catalogue(30)
    path = tmp_path / "map.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        CollaborativeMap.load(path)
    CollaborativeMap.fit(semantic, collaborative, seed=0).save(path)
    good, header = load_arrays(path), {"format": "gensar_hf.collaborative_map", "format_version": "1"}
    for changed, metadata in (
        (good, {"format_version": "2"}),
        ({**good, "mean": good["mean"][:-1]}, header),
        ({**good, "semantic": good["semantic"][:-1]}, header),
        ({**good, "coefficients": np.full_like(good["coefficients"], np.nan)}, header),
        ({"semantic": good["semantic"]}, header),
    ):
        save_arrays(path, changed, metadata)
        with pytest.raises(InputError, match="holds no map of collaborative embeddings"):
            CollaborativeMap.load(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="is damaged"):
        CollaborativeMap.load(path)


GOOD = smooth_catalogue(20)
NOT_FINITE = GOOD[0].copy()
NOT_FINITE[3, 1] = np.nan


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((GOOD[0][0], GOOD[1]), r"semantic embeddings must be a table .* shape \(6,\)"),
        ((NOT_FINITE, GOOD[1]), r"semantic embedding of item 3 \(counted from 0\) is nan in dimension 1"),
        ((GOOD[0], np.full((20, 4), np.inf)), r"collaborative embedding of item 0 .* is inf"),
        ((GOOD[0][:7], GOOD[1]), "7 semantic but 20 collaborative embeddings"),
        ((GOOD[0][:1], GOOD[1][:1]), "at least 2; got 1"),
        ((np.ones((20, 6)), GOOD[1]), "All 20 semantic embeddings are equal"),
    ],
)
def test_bad_input_is_named(arguments, named):
    with pytest.raises(InputError, match=named):
        CollaborativeMap.fit(*arguments, seed=0)


def test_other_widths_are_refused_when_predicting():
    fitted = CollaborativeMap.fit(*GOOD, seed=0)
    with pytest.raises(InputError, match="have 5 dimensions, but the map was fitted on 6"):
        fitted.predict(GOOD[0][:, :5])
    with pytest.raises(InputError, match="item 3"):
        fitted.predict(NOT_FINITE)
