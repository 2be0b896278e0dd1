import numpy as np
import pytest
from scipy.sparse import csr_matrix

from gensar_hf.baselines import p5_cid
from gensar_hf.baselines.p5_cid import co_clicks, spectral_embedding, tree_codes
from gensar_hf.data import Behavior

R, Q, S = Behavior


def cliques(sizes, between=0.01):
    """Items of each group are co-clicked; others hardly."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    affinity = np.where(groups[:, None] == groups, 1.0, between)
    np.fill_diagonal(affinity, 0)
    return csr_matrix(affinity), groups


def test_users_who_clicked_both_are_counted_once(make_events):
    rows = {"ann": [(R, 0), (R, 1), (R, 0), (R, 1)], "bob": [(R, 1), (Q, 0), (S, 0, 0), (S, 2, 0)], "cem": [(R, 3)]}
    counts = co_clicks(make_events(rows, list("abcd"), ["red"])).toarray()
    assert counts.tolist() == [[0, 2, 1, 0], [2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_a_small_catalogue_is_numbered():
    assert tree_codes(csr_matrix((3, 3)), 3, seed=0).tolist() == [[0], [1], [2]]


def test_the_first_code_is_the_group_of_co_clicked_items():
    affinity, groups = cliques([3, 2, 3])
    order = np.random.default_rng(0).permutation(8)
    # As many codes as groups: a further eigenvector would be any one of those with the same eigenvalue.
    codes, own = tree_codes(affinity[order][:, order], 3, seed=0), groups[order]
    assert codes.shape == (8, 2)
    assert len({(group, code) for group, code in zip(own, codes[:, 0], strict=True)}) == 3
    for code in np.unique(codes[:, 0]):
        assert len(set(own[codes[:, 0] == code])) == 1
        members = codes[codes[:, 0] == code]
        assert members[:, 1].tolist() == list(range(len(members)))


@pytest.mark.parametrize("seed", [0, 1])
def test_all_paths_differ_also_without_clicks(seed):
    some = np.random.default_rng(seed).poisson(0.05, (60, 60)).astype(float)
    some[30:] = some[:, 30:] = 0  # half of the items were never clicked
    affinity = csr_matrix(np.triu(some, 1) + np.triu(some, 1).T)
    codes = tree_codes(affinity, 4, seed)
    assert len(np.unique(codes, axis=0)) == 60
    assert codes.min() == 0
    assert codes.max() <= 3
    assert codes.shape[1] <= 10
    np.testing.assert_array_equal(codes, tree_codes(affinity, 4, seed))


def test_eigenvectors_of_large_catalogues_are_the_same(monkeypatch):
    affinity, _ = cliques([5, 7, 9], between=0.1)
    dense = spectral_embedding(affinity, 3, seed=0)
    np.testing.assert_allclose(np.linalg.norm(dense, axis=1), 1, rtol=1e-5)
    monkeypatch.setattr(p5_cid, "DENSE_ITEMS", 0)
    sparse = spectral_embedding(affinity, 3, seed=0)
    np.testing.assert_allclose(
        np.abs(np.sum(dense * np.sign(dense[0]) * sparse * np.sign(sparse[0]), axis=1)), 1, atol=1e-4
    )


def test_items_that_nobody_clicked_get_the_same_paths_again():
    first, again = (tree_codes(csr_matrix((2100, 2100)), 32, seed=0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first, axis=0)) == 2100
