import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.identifiers.joint_codes import CHUNK_ROWS, JointCodes, chunks, num_distinct, row_keys


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 30), st.sampled_from([2, 3, 256, 2**31]), st.integers(0, 1000))
def test_row_keys_order_and_tell_apart_as_rows_do(num_columns: int, num_rows: int, limit: int, seed: int):
    generator = np.random.default_rng(seed)
    codes = generator.integers(-2, limit, size=(num_rows, num_columns))[generator.integers(num_rows, size=num_rows)]
    inverse = np.unique(codes, axis=0, return_inverse=True)[1]  # the reference: rows compared as rows
    assert np.array_equal(np.unique(row_keys(codes), return_inverse=True)[1], inverse)
    assert num_distinct(codes) == inverse.max() + 1


def test_no_rows_and_no_columns():
    assert num_distinct(np.zeros((0, 3), dtype=np.int64)) == 0
    assert num_distinct(np.zeros((5, 0), dtype=np.int64)) == 1  # rows of nothing are equal


def test_quantized_and_distortions_by_hand():
    """Codes add up: shared (1, 10) + semantic 0.5 and + collaborative −1, over more rows than are worked on at once."""
    num_items = CHUNK_ROWS + 3
    codes = np.zeros((num_items, 2), dtype=np.int64)
    codes[-1] = [1, 1]  # one item in the last, short chunk
    latents = np.tile(np.array([[1.0, 7.0]], dtype=np.float32), (num_items, 1))
    shared = np.array([[[1.0, 10.0], [0.0, 0.0]]], dtype=np.float32)
    semantic, collaborative = (np.array([[[value], [3.0]]], dtype=np.float32) for value in (0.5, -1.0))
    joint = JointCodes(codes, codes, latents, shared, semantic, collaborative)
    quantized = joint.quantized(codes, codes)
    assert (quantized[:-1] == [1.5, 9.0]).all()
    assert quantized[-1].tolist() == [3.0, 3.0]
    assert joint.distortions(codes, codes) == {
        "semantic": pytest.approx((0.25 * (num_items - 1) + 4) / num_items),
        "collaborative": pytest.approx((4 * (num_items - 1) + 16) / num_items),
    }


def test_chunks_cover_every_row_once():
    rows = np.concatenate([np.arange(2 * CHUNK_ROWS + 1)[part] for part in chunks(2 * CHUNK_ROWS + 1)])
    assert np.array_equal(rows, np.arange(2 * CHUNK_ROWS + 1))
    assert list(chunks(0)) == []
