"""The trie against dictionaries of prefixes."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.decoding import ExcludedItems, Trie

SEQUENCES = st.sets(st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=25).map(list)
PROPERTY = settings(max_examples=40, deadline=None)
PREFIXES = st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=1, max_size=12)


def pad(rows, length=5):
    table = np.full((len(rows), length), -1)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = tokens
    return table


def naive_children(sequences, prefix):
    """The tokens that may follow a prefix, from the definition."""
    prefix, size = tuple(prefix), len(prefix)
    return {sequence[size] for sequence in sequences if len(sequence) > size and sequence[:size] == prefix}


def test_small_trie_by_hand():
    trie = Trie(np.array([[7, 1, 2], [7, 1, 3], [7, 0, -1], [8, 2, 2]]), values=np.array([5, 6, 5, 9]))

    # root, then 7 and 8, then 70, 71 and 82, then 712, 713 and 822
    assert trie.num_nodes == 9
    assert trie.walk(np.array([[-1, -1], [7, -1], [8, -1], [7, 0], [7, 1], [8, 2], [8, 1]])).tolist() == [
        0, 1, 2, 3, 4, 5, trie.dead_node,
    ]  # fmt: skip
    rows, tokens, children = trie.allowed_tokens(torch.tensor([1, trie.dead_node, 4]))
    assert rows.tolist() == [0, 0, 2, 2]
    assert tokens.tolist() == [0, 1, 2, 3]
    assert children.tolist() == [3, 4, 6, 7]
    assert trie.lookup(np.array([[7, 1, 3], [7, 0, -1], [7, 1, -1], [8, 2, 3]])).tolist() == [6, 5, -1, -1]


@given(SEQUENCES, PREFIXES)
@PROPERTY
def test_children_equal_those_of_all_prefixes(sequences, prefixes):
    trie = Trie([np.array(sequence) for sequence in sequences])

    mask = trie.children_mask(trie.walk(torch.from_numpy(pad(prefixes))), vocab_size=6)

    expected = torch.zeros_like(mask)
    for row, prefix in enumerate(prefixes):
        expected[row, list(naive_children(sequences, prefix))] = True
    assert torch.equal(mask, expected)


@given(SEQUENCES, PREFIXES)
@PROPERTY
def test_lookup_knows_every_sequence_and_no_other(sequences, others):
    trie = Trie(pad(sequences))

    assert trie.lookup(pad(sequences)).tolist() == list(range(len(sequences)))
    expected = [sequences.index(tuple(other)) if tuple(other) in sequences else -1 for other in others]
    assert trie.lookup(pad(others)).tolist() == expected


@given(SEQUENCES, st.integers(-3, 9), st.integers(-3, 9))
@PROPERTY
def test_the_dead_node_is_never_left(sequences, first, second):
    trie = Trie(pad(sequences))
    dead = torch.tensor([trie.dead_node])

    assert trie.step(trie.step(dead, torch.tensor([first])), torch.tensor([second])).item() == trie.dead_node
    if second >= 0:
        after_padding = torch.tensor([[*sequences[0][:1], -1, second]])
        assert trie.walk(after_padding).item() == trie.dead_node


@given(SEQUENCES, st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=3))
@PROPERTY
def test_exclusion_covers_a_node_exactly_when_all_below_it_is_excluded(sequences, excluded):
    values = np.arange(len(sequences)) // 2  # two sequences a value, as the two identifiers of an item
    trie = Trie(pad(sequences), values=values)
    items = ExcludedItems(trie, excluded)
    prefixes = sorted({sequence[:size] for sequence in sequences for size in range(1, len(sequence) + 1)})
    nodes = trie.walk(pad(prefixes))

    for request, forbidden in enumerate(excluded):
        requests = torch.full_like(nodes, request)
        below = [
            {values[i] for i, sequence in enumerate(sequences) if sequence[: len(prefix)] == prefix}
            for prefix in prefixes
        ]
        assert items.covers(nodes, requests).tolist() == [own <= forbidden for own in below]
        ends_here = [prefix in sequences and values[sequences.index(prefix)] in forbidden for prefix in prefixes]
        assert items.contains(nodes, requests).tolist() == ends_here


@given(SEQUENCES, st.randoms(use_true_random=False))
@PROPERTY
def test_the_order_of_the_sequences_does_not_matter(sequences, random):
    order = list(range(len(sequences)))
    random.shuffle(order)
    one = Trie(pad(sequences))
    other = Trie([sequences[i] for i in order], values=np.array(order))

    for left, right in zip(one.arrays(), other.arrays(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (np.empty((0, 3), dtype=int), "at least one sequence"),
        ([], "at least one sequence"),
        (np.array([[0.5, 1.0]]), "integer tokens"),
        (np.array([[1, 2], [-1, -1]]), "Sequence 1 of the trie is empty"),
        ([[1], []], "Sequence 1 of the trie is empty"),
        (np.array([[3, -1, 2]]), "Sequence 0 of the trie is empty or has a negative token before its end"),
        (np.array([[4, 2], [1, 1], [4, 2]]), r"sequences 0 and 2 of the trie are the same, \[4, 2\]"),
    ],
)
def test_bad_sequences_are_named(sequences, message):
    with pytest.raises(ValueError, match=message):
        Trie(sequences)


@pytest.mark.parametrize("values", [[1], [0, -1], [[0], [1]]])
def test_bad_values_are_refused(values):
    with pytest.raises(ValueError, match="one number that is not negative"):
        Trie(np.array([[1, 2], [1, 3]]), values=np.array(values))


def test_sixty_thousand_sequences_build_fast():
    sequences = np.unique(np.random.default_rng(0).integers(10, 1034, size=(60_000, 5)), axis=0)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        trie = Trie(sequences)
        seconds.append(time.perf_counter() - start)

    # 0.09 s alone on the machine; a Python loop over sequences takes 1 s at the least.
    assert min(seconds) < 0.5
    assert torch.equal(trie.lookup(sequences), torch.arange(len(sequences)))
