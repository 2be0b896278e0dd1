from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gensar_hf.artifacts import DataError
from gensar_hf.identifiers.assignment import assign_unique_identifiers, collision_rate, require_capacity
from gensar_hf.identifiers.joint_codes import JointCodes


def greedy(latents: np.ndarray, codebooks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    residual, codes = latents.astype(np.float64), np.zeros((len(latents), len(codebooks)), dtype=np.int64)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = ((residual[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
        residual = residual - codebook[codes[:, level]]
    return codes, residual


def joint_codes(latents: np.ndarray, shared: np.ndarray, semantic: np.ndarray, collaborative: np.ndarray) -> JointCodes:
    """Nearest codes of given latents under given codebooks."""
    dim = latents.shape[1] // 2
    shared_codes, residual = greedy(latents, shared)
    semantic_codes, _ = greedy(residual[:, :dim], semantic)
    collaborative_codes, _ = greedy(residual[:, dim:], collaborative)
    return JointCodes(
        np.concatenate([shared_codes, semantic_codes], axis=1),
        np.concatenate([shared_codes, collaborative_codes], axis=1),
        latents,
        shared,
        semantic,
        collaborative,
    )


def random_codes(latents: np.ndarray, num_shared: int, num_specific: int, size: int, seed: int) -> JointCodes:
    generator, dim = np.random.default_rng(seed), latents.shape[1] // 2
    return joint_codes(
        latents,
        generator.standard_normal((num_shared, size, 2 * dim)),
        generator.standard_normal((num_specific, size, dim)),
        generator.standard_normal((num_specific, size, dim)),
    )


def assert_valid(codes: JointCodes) -> None:
    unique = assign_unique_identifiers(codes)
    shared = slice(codes.num_shared_levels)
    for kind in (unique.semantic_codes, unique.collaborative_codes):
        assert len(np.unique(kind, axis=0)) == codes.num_items
        assert kind.min() >= 0
        assert kind.max() < codes.codebook_size
    assert np.array_equal(unique.semantic_codes[:, shared], unique.collaborative_codes[:, shared])
    assert unique.report["semantic"]["collision_rate_after"] == 0


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_identifiers_are_unique_for_any_latents(data: st.DataObject):
    num_shared, num_specific = data.draw(st.sampled_from([(2, 2), (1, 2), (2, 1), (1, 1), (0, 2), (0, 3), (2, 0)]))
    size = data.draw(st.integers(2, 4))
    most = min(size ** (num_shared + num_specific), 64)
    num_distinct = data.draw(st.integers(1, 6))  # 1: all latents equal
    num_items = data.draw(st.integers(1, most))
    seed = data.draw(st.integers(0, 1000))
    points = np.random.default_rng(seed).standard_normal((num_distinct, 6)).astype(np.float32)
    latents = points[np.arange(num_items) % num_distinct]
    assert_valid(random_codes(latents, num_shared, num_specific, size, seed))


@pytest.mark.parametrize(("num_shared", "num_specific"), [(2, 1), (1, 2), (0, 3), (3, 0)])
def test_every_identifier_is_given_when_there_are_as_many_items(num_shared: int, num_specific: int):
    latents = np.ones((4**3, 6), dtype=np.float32)
    assert_valid(random_codes(latents, num_shared, num_specific, size=4, seed=0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_items_that_do_not_collide_keep_their_codes(seed: int):
    latents = np.random.default_rng(seed).standard_normal((24, 8)).astype(np.float32)
    codes = random_codes(latents, 1, 2, size=6, seed=seed)
    before = codes.semantic_codes
    assume(np.unique(before[:, :2], axis=0, return_counts=True)[1].max() <= 6)  # no prefix overflows
    after = assign_unique_identifiers(codes).semantic_codes
    _, inverse, counts = np.unique(before, axis=0, return_inverse=True, return_counts=True)
    alone = counts[inverse] == 1
    assert np.array_equal(before[alone], after[alone])
    assert np.array_equal(before[:, :2], after[:, :2])


def test_unique_codes_are_left_alone():
    latents = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], dtype=np.float32)
    codebook = np.array([[[0.0], [1.0], [2.0]]])
    codes = joint_codes(latents, np.zeros((0, 3, 2)), codebook, codebook)
    unique = assign_unique_identifiers(codes)
    assert np.array_equal(unique.semantic_codes, codes.semantic_codes)
    assert unique.report["semantic"]["items_moved"] == 0
    assert unique.report["semantic"]["distortion_after"] == unique.report["semantic"]["distortion_before"] == 0


def test_last_level_by_hand():
    """Items at 0.0 and 0.4 share code 0; moving the second to code 1 costs 0.6² − 0.4², the first 1² − 0²."""
    latents = np.array([[0.4, 0.0], [0.0, 1.0], [3.0, 3.0]], dtype=np.float32)
    codebook = np.array([[[0.0], [1.0], [3.0]]])
    unique = assign_unique_identifiers(joint_codes(latents, np.zeros((0, 3, 2)), codebook, codebook))
    assert unique.semantic_codes.tolist() == [[1], [0], [2]]
    assert unique.collaborative_codes.tolist() == [[0], [1], [2]]
    assert unique.report["semantic"] == {
        "collision_rate_before": pytest.approx(1 / 3),
        "collision_rate_after": 0.0,
        "items_moved": 1,
        "distortion_before": pytest.approx(0.16 / 3),
        "distortion_after": pytest.approx(0.36 / 3),
    }
    assert unique.report["collaborative"]["items_moved"] == 0


def test_last_level_has_the_least_distortion_of_all_permutations():
    generator = np.random.default_rng(5)
    latents = np.repeat(generator.standard_normal((4, 2)), 2, axis=1).astype(np.float32)[:, [0, 2, 0, 2]] * 0.1
    codebook = generator.standard_normal((1, 6, 2))
    codebook[0, 0] = 0  # the nearest code of all four items
    codes = joint_codes(latents, np.zeros((0, 6, 4)), codebook, codebook)
    assert set(codes.semantic_codes[:, 0]) == {0}
    unique = assign_unique_identifiers(codes)
    costs = ((latents[:, None, :2] - codebook[0][None]) ** 2).sum(-1)
    best = min(sum(costs[row, code] for row, code in enumerate(choice)) for choice in permutations(range(6), 4))
    assert sum(costs[row, code] for row, code in enumerate(unique.semantic_codes[:, 0])) == pytest.approx(best)


def test_overflow_goes_to_the_nearest_prefix_of_that_kind_only():
    """Three items on a prefix of two codes: semantic ones overflow on their first specific level, nothing shared."""
    latents = np.zeros((3, 2), dtype=np.float32)
    latents[:, 0] = [0.0, 0.2, 0.4]
    latents[:, 1] = [0.0, 5.0, 9.0]
    shared = np.array([[[0.0, 0.0], [99.0, 99.0]]])
    semantic = np.array([[[0.0], [1.0]], [[0.0], [0.1]]])
    collaborative = np.array([[[0.0], [6.0]], [[0.0], [3.0]]])
    unique = assign_unique_identifiers(joint_codes(latents, shared, semantic, collaborative))
    assert unique.semantic_codes.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]  # 0.4 loses least by going to 1.0
    assert unique.report["prefixes_moved"] == 0
    assert unique.report["collaborative"]["items_moved"] == 0


def test_overflow_with_one_specific_level_changes_the_shared_prefix_of_both():
    latents = np.zeros((3, 2), dtype=np.float32)
    latents[:, 0] = [0.0, 0.1, 0.4]
    shared = np.array([[[0.0, 0.0], [1.0, 0.0]]])
    specific = np.array([[[0.0], [0.2]]])
    unique = assign_unique_identifiers(joint_codes(latents, shared, specific, specific))
    assert unique.semantic_codes[:, 0].tolist() == [0, 0, 1]
    assert unique.collaborative_codes[:, 0].tolist() == [0, 0, 1]
    assert unique.report["prefixes_moved"] == 1


def test_without_specific_levels_both_identifiers_are_equal():
    latents = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    unique = assign_unique_identifiers(random_codes(latents, 2, 0, size=3, seed=0))
    assert np.array_equal(unique.semantic_codes, unique.collaborative_codes)
    assert collision_rate(unique.semantic_codes) == 0


def test_same_input_same_identifiers_and_input_untouched():
    codes = random_codes(np.ones((20, 4), dtype=np.float32), 1, 2, size=3, seed=1)
    before = codes.semantic_codes.copy()
    first, second = assign_unique_identifiers(codes), assign_unique_identifiers(codes)
    assert np.array_equal(first.semantic_codes, second.semantic_codes)
    assert np.array_equal(codes.semantic_codes, before)


def test_collision_rate_by_hand():
    assert collision_rate(np.array([[0, 1], [0, 1], [2, 1], [0, 2]])) == 1 / 4


def test_more_items_than_identifiers_says_what_would_do():
    require_capacity(16, 4, 2)
    with pytest.raises(DataError, match=r"17 items, but 2 levels of 4 codes make only 16 .* 3 levels .* 5 codes"):
        assign_unique_identifiers(random_codes(np.ones((17, 4), dtype=np.float32), 1, 1, size=4, seed=0))


def test_ten_thousand_items_take_no_time():
    latents = np.random.default_rng(0).standard_normal((10_000, 16)).astype(np.float32)
    assert_valid(random_codes(latents, 2, 2, size=32, seed=0))
