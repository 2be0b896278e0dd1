from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gensar_hf.errors import InputError
from gensar_hf.identifiers.assignment import (
    JointCodes,
    assign_unique_identifiers,
    collision_rate,
)


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


def assert_valid(codes: JointCodes, taken: tuple[np.ndarray, np.ndarray] | None = None) -> None:
    """Together with what is taken, each kind's identifiers are distinct, in range and equal on the shared levels."""
    given = None if taken is None else tuple(kind.copy() for kind in taken)
    unique = assign_unique_identifiers(codes, taken)
    new = (unique.semantic_codes, unique.collaborative_codes)
    shared = slice(codes.num_shared_levels)
    assert np.array_equal(new[0][:, shared], new[1][:, shared])
    for index, kind in enumerate(new):
        assert kind.shape == (codes.num_items, codes.num_levels)
        assert kind.min() >= 0
        assert kind.max() < codes.codebook_size
        everything = kind if taken is None else np.concatenate([taken[index], kind])
        assert len(np.unique(everything, axis=0)) == len(everything)
        assert taken is None or np.array_equal(taken[index], given[index])
    assert unique.report["semantic"]["collision_rate_after"] == 0


def random_taken(num_shared: int, num_specific: int, size: int, num_taken: int, seed: int) -> tuple:
    """Any valid set of taken identifiers: random semantic ones, and random suffixes under the same shared prefixes."""
    generator = np.random.default_rng(seed)
    semantic = np.array(list(product(range(size), repeat=num_shared + num_specific)))
    semantic = semantic[generator.permutation(len(semantic))[:num_taken]]
    suffixes = np.array(list(product(range(size), repeat=num_specific)), dtype=np.int64)
    collaborative = semantic.copy()
    for prefix in {tuple(row) for row in semantic[:, :num_shared]}:
        rows = np.flatnonzero((semantic[:, :num_shared] == prefix).all(axis=1))
        collaborative[rows, num_shared:] = suffixes[generator.permutation(len(suffixes))[: len(rows)]]
    return semantic, collaborative


LEVELS = st.sampled_from([(2, 2), (1, 2), (2, 1), (1, 1), (0, 2), (0, 3), (2, 0), (0, 1), (1, 0)])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_new_identifiers_are_free_whatever_is_taken(data: st.DataObject):
    num_shared, num_specific = data.draw(LEVELS)
    size = data.draw(st.integers(2, 4))
    num_identifiers = size ** (num_shared + num_specific)
    num_taken = data.draw(st.integers(0, num_identifiers - 1))
    num_free = num_identifiers - num_taken
    num_items = data.draw(st.one_of(st.just(num_free), st.integers(1, num_free)))  # often exactly full
    seed, num_distinct = data.draw(st.integers(0, 1000)), data.draw(st.integers(1, 6))
    points = np.random.default_rng(seed).standard_normal((num_distinct, 6)).astype(np.float32)
    codes = random_codes(points[np.arange(num_items) % num_distinct], num_shared, num_specific, size, seed)
    assert_valid(codes, random_taken(num_shared, num_specific, size, num_taken, seed))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_new_items_on_free_identifiers_keep_them(seed: int):
    latents = np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32)
    codes = random_codes(latents, 1, 2, size=6, seed=seed)
    taken = random_taken(1, 2, 6, num_taken=20, seed=seed)
    prefixes = np.concatenate([taken[0], codes.semantic_codes])[:, :2]
    assume(np.unique(prefixes, axis=0, return_counts=True)[1].max() <= 6)  # no prefix overflows
    after = assign_unique_identifiers(codes, taken).semantic_codes
    used = Counter(map(tuple, np.concatenate([taken[0], codes.semantic_codes])))
    alone = np.array([used[tuple(row)] == 1 for row in codes.semantic_codes])
    assert np.array_equal(codes.semantic_codes[alone], after[alone])
    assert np.array_equal(codes.semantic_codes[:, :2], after[:, :2])
    assert (codes.semantic_codes[~alone] != after[~alone]).any() or alone.all()


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


@pytest.mark.parametrize("num_taken", [0, 1, 2])
@pytest.mark.parametrize("num_items", [2, 3, 4])  # with 6 codes: few of the codes that are left, most of them, all
def test_last_level_has_the_least_distortion_of_all_permutations(num_items: int, num_taken: int):
    generator = np.random.default_rng(5)
    latents = 0.1 * np.tile(generator.standard_normal((num_items, 2)), 2).astype(np.float32)
    codebook = generator.standard_normal((1, 6, 2))
    codebook[0, 0] = 0  # the nearest code of all items
    codes = joint_codes(latents, np.zeros((0, 6, 4)), codebook, codebook)
    assert set(codes.semantic_codes[:, 0]) == {0}
    taken = np.array([[0], [3]])[:num_taken]
    unique = assign_unique_identifiers(codes, (taken, taken))
    costs = ((latents[:, None, :2] - codebook[0][None]) ** 2).sum(-1)
    free = sorted(set(range(6)) - set(taken[:, 0].tolist()))
    choices = permutations(free, num_items)
    best = min(sum(costs[row, code] for row, code in enumerate(choice)) for choice in choices)
    assert sum(costs[row, code] for row, code in enumerate(unique.semantic_codes[:, 0])) == pytest.approx(best)
    assert set(unique.semantic_codes[:, 0]) <= set(free)


def test_new_item_on_a_taken_code_takes_the_next_by_hand():
    """Code 0 is taken, code 1 is free at 1.0, code 2 taken in one kind only: the other kind may use it."""
    latents = np.array([[0.1, 0.9], [0.2, 2.9]], dtype=np.float32)
    codebook = np.array([[[0.0], [1.0], [3.0], [-9.0]]])
    codes = joint_codes(latents, np.zeros((0, 4, 2)), codebook, codebook)
    unique = assign_unique_identifiers(codes, (np.array([[0], [2]]), np.array([[3], [1]])))
    assert unique.semantic_codes.tolist() == [[3], [1]]  # (0.1 + 9)² + 0.8² is less than 0.9² + (0.2 + 9)²
    assert unique.collaborative_codes.tolist() == [[0], [2]]
    report = unique.report
    assert report["semantic"]["collision_rate_before"] == 1  # neither is a new identifier
    assert report["collaborative"]["collision_rate_before"] == 1 / 2
    assert report["collaborative"]["items_moved"] == 1
    assert report["semantic"]["distortion_after"] == pytest.approx((9.1**2 + 0.8**2) / 2)


def test_taken_items_fill_a_shared_prefix_by_hand():
    """With one specific level of two codes, a shared prefix that two taken items fill is closed to new ones."""
    latents = np.array([[0.1, 0.0], [0.9, 0.0]], dtype=np.float32)
    shared = np.array([[[0.0, 0.0], [1.0, 0.0]]])
    specific = np.array([[[0.0], [0.2]]])
    codes = joint_codes(latents, shared, specific, specific)
    assert codes.semantic_codes[:, 0].tolist() == [0, 1]
    taken = np.array([[0, 0], [0, 1]])
    unique = assign_unique_identifiers(codes, (taken, taken))
    assert unique.semantic_codes[:, 0].tolist() == unique.collaborative_codes[:, 0].tolist() == [1, 1]
    assert unique.report["prefixes_moved"] == 1


def test_equal_items_fill_the_nearest_codes_first():
    """Seven items at 0.0 and three codes of three items each: 3 stay, 3 go to 1.0, 1 to −2.0; one place was taken."""
    codebook = np.array([[[0.0], [-2.0], [1.0]], [[0.0], [0.1], [0.2]]])
    codes = joint_codes(np.zeros((7, 2), dtype=np.float32), np.zeros((0, 3, 2)), codebook, codebook)
    unique = assign_unique_identifiers(codes)
    assert np.bincount(unique.semantic_codes[:, 0]).tolist() == [3, 1, 3]
    taken = np.array([[2, 1]])
    unique = assign_unique_identifiers(codes, (taken, taken))
    assert np.bincount(unique.semantic_codes[:, 0]).tolist() == [3, 2, 2]


def test_more_levels_than_fit_in_one_integer():
    """256^10 identifiers are more than int64 counts."""
    generator = np.random.default_rng(2)
    latents = np.repeat(generator.standard_normal((40, 4)), 3, axis=0).astype(np.float32)
    codes = random_codes(latents, 5, 5, size=256, seed=2)
    taken = tuple(kind[::2] for kind in (codes.semantic_codes, codes.collaborative_codes))
    keep = np.unique(taken[0], axis=0, return_index=True)[1]
    assert_valid(codes, (taken[0][keep], taken[1][keep]))


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


def test_same_input_same_identifiers_and_input_untouched():
    codes = random_codes(np.ones((20, 4), dtype=np.float32), 1, 2, size=3, seed=1)
    before = codes.semantic_codes.copy()
    first, second = assign_unique_identifiers(codes), assign_unique_identifiers(codes)
    assert np.array_equal(first.semantic_codes, second.semantic_codes)
    assert np.array_equal(codes.semantic_codes, before)


def test_quantized_and_distortions_by_hand():
    """Codes add up: shared (1, 10) + semantic 0.5 and + collaborative −1."""
    codes = np.array([[0, 0], [0, 0], [1, 1]])
    latents = np.array([[1.0, 7.0]] * 3, dtype=np.float32)
    shared = np.array([[[1.0, 10.0], [0.0, 0.0]]], dtype=np.float32)
    semantic, collaborative = (np.array([[[value], [3.0]]], dtype=np.float32) for value in (0.5, -1.0))
    joint = JointCodes(codes, codes, latents, shared, semantic, collaborative)
    assert joint.quantized(codes, codes).tolist() == [[1.5, 9.0], [1.5, 9.0], [3.0, 3.0]]
    expected = {"semantic": pytest.approx((2 * 0.25 + 4) / 3), "collaborative": pytest.approx((2 * 4 + 16) / 3)}
    assert joint.distortions(codes, codes) == expected


def test_collision_rate_by_hand():
    codes = np.array([[0, 1], [0, 1], [2, 1], [0, 2]])
    assert collision_rate(codes) == 1 / 4
    assert collision_rate(codes, taken=np.array([[2, 1], [5, 5]])) == 1 / 2


def test_more_items_than_identifiers_says_what_would_do():
    assert_valid(random_codes(np.ones((16, 4), dtype=np.float32), 1, 1, size=4, seed=0))
    with pytest.raises(InputError, match=r"17 items, but 2 levels of 4 codes make only 16 .* 3 levels .* 5 codes"):
        assign_unique_identifiers(random_codes(np.ones((17, 4), dtype=np.float32), 1, 1, size=4, seed=0))
