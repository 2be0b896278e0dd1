"""The trie against its definition: sets of prefixes of the sequences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.decoding import Trie

PROPERTY = settings(max_examples=20, deadline=None)
PREFIXES = st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=1, max_size=12)


@st.composite
def sequence_lists(draw):
    """Distinct sequences of one length, in any order."""
    length = draw(st.integers(1, 4))
    sequence = st.tuples(*[st.integers(0, 4)] * length)
    return draw(st.lists(sequence, min_size=1, max_size=25, unique=True))


def pad(rows, length=5):
    table = np.full((len(rows), length), -1)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = tokens
    return table


def all_prefixes(sequences):
    """The distinct prefixes, the empty one included, in the order of the trie's nodes."""
    prefixes = {sequence[:size] for sequence in sequences for size in range(len(sequence) + 1)}
    return sorted(prefixes, key=lambda prefix: (len(prefix), prefix))


def test_small_trie_by_hand():
    trie = Trie(np.array([[7, 1, 2], [7, 1, 3], [7, 0, 4], [8, 2, 2]]), values=np.array([5, 6, 5, 9]))

    # root, then 7 and 8, then 70, 71 and 82, then 704, 712, 713 and 822
    assert trie.num_nodes == 10
    assert trie.walk(np.array([[-1, -1], [7, -1], [8, -1], [7, 0], [7, 1], [8, 2], [8, 1]])).tolist() == [
        0, 1, 2, 3, 4, 5, trie.dead_node,
    ]  # fmt: skip
    rows, tokens, children = trie.allowed_tokens(torch.tensor([1, trie.dead_node, 4]))
    assert rows.tolist() == [0, 0, 2, 2]
    assert tokens.tolist() == [0, 1, 2, 3]
    assert children.tolist() == [3, 4, 7, 8]
    assert trie.lookup(np.array([[7, 1, 3], [7, 0, 4], [7, 1, -1], [8, 2, 3]])).tolist() == [6, 5, -1, -1]


@given(sequence_lists(), PREFIXES)
@PROPERTY
def test_children_equal_those_of_all_prefixes(sequences, prefixes):
    trie = Trie(sequences)

    rows, tokens, children = trie.allowed_tokens(trie.walk(pad(prefixes)))

    expected = [
        (row, sequence[len(prefix)])
        for row, prefix in enumerate(prefixes)
        for sequence in sorted({s[: len(prefix) + 1] for s in sequences})
        if len(sequence) > len(prefix) and list(sequence[: len(prefix)]) == prefix
    ]
    assert list(zip(rows.tolist(), tokens.tolist(), strict=True)) == expected
    reached = trie.walk(pad([[*prefixes[row], token] for row, token in expected], length=6))
    assert torch.equal(children, reached)


@given(sequence_lists(), PREFIXES)
@PROPERTY
def test_lookup_knows_every_sequence_and_no_other(sequences, others):
    trie = Trie(sequences)

    assert trie.lookup(pad(sequences)).tolist() == list(range(len(sequences)))
    expected = [sequences.index(tuple(other)) if tuple(other) in sequences else -1 for other in others]
    assert trie.lookup(pad(others)).tolist() == expected


@given(sequence_lists(), st.integers(-3, 9), st.integers(-3, 9))
@PROPERTY
def test_the_dead_node_is_never_left(sequences, first, second):
    trie = Trie(sequences)
    dead = torch.tensor([trie.dead_node])

    assert trie.step(trie.step(dead, torch.tensor([first])), torch.tensor([second])).item() == trie.dead_node
    if second >= 0:
        after_padding = torch.tensor([[*sequences[0][:1], -1, second]])
        assert trie.walk(after_padding).item() == trie.dead_node


@given(sequence_lists(), st.randoms(use_true_random=False))
@PROPERTY
def test_the_order_of_the_sequences_does_not_matter(sequences, random):
    order = list(range(len(sequences)))
    random.shuffle(order)
    one = Trie(np.array(sequences))
    other = Trie([sequences[i] for i in order], values=np.array(order))

    for left, right in zip(one.arrays(), other.arrays(), strict=True):
        assert torch.equal(left, right)


@given(sequence_lists(), st.booleans())
@PROPERTY
def test_padded_children_are_those_of_allowed_tokens(sequences, has_dead_node):
    trie = Trie(sequences)
    for level in range(trie.max_length):
        nodes = torch.arange(trie.level_starts[level], trie.level_starts[level + 1])
        nodes = torch.cat([nodes, torch.tensor([trie.dead_node])]) if has_dead_node else nodes
        children, codes = trie.padded_children(nodes, level)
        assert children.shape == codes.shape == (len(nodes), trie.max_children[level])
        rows, tokens, expected = trie.allowed_tokens(nodes)
        exists = children != trie.dead_node
        assert torch.equal(exists.nonzero()[:, 0], rows)
        assert torch.equal(children[exists], expected)
        assert torch.equal(codes[exists] + trie.token_ranges[level][0], tokens)
        assert (codes[~exists] == 0).all()
        assert max(tokens.tolist()) < trie.token_ranges[level][1]


@given(sequence_lists())
@PROPERTY
def test_sequences_below_and_at_every_node(sequences):
    trie, ordered, prefixes = Trie(sequences), sorted(sequences), all_prefixes(sequences)
    nodes = trie.walk(pad(prefixes))
    assert nodes.tolist() == list(range(trie.num_nodes))
    firsts, lasts = trie.sequences_below(nodes)
    for prefix, first, last, sequence in zip(
        prefixes, firsts.tolist(), lasts.tolist(), trie.sequences_at(nodes).tolist(), strict=True
    ):
        below = [position for position, sequence in enumerate(ordered) if sequence[: len(prefix)] == prefix]
        assert list(range(first, last)) == below
        assert sequence == (ordered.index(prefix) if prefix in ordered else -1)
    dead = torch.tensor([trie.dead_node])
    assert trie.sequences_at(dead).item() == -1
    first, last = trie.sequences_below(dead)
    assert first == last


@given(sequence_lists(), st.integers(1, 3))
@PROPERTY
def test_sequences_of_values(sequences, num_values):
    values = np.arange(len(sequences)) * 7 % num_values
    queries = [2, 0, -1, 5, 0]
    owners, found = Trie(sequences, values=values).sequences_of(torch.tensor(queries))
    order = sorted(range(len(sequences)), key=lambda row: sequences[row])
    expected = [
        (position, rank)
        for position, value in enumerate(queries)
        for rank, row in enumerate(order)
        if values[row] == value
    ]
    assert sorted(zip(owners.tolist(), found.tolist(), strict=True)) == expected


# ---- building


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (np.empty((0, 3), dtype=int), "at least one sequence"),
        ([], "at least one sequence"),
        ([[], []], "at least one sequence"),
        (np.array([[0.5, 1.0]]), "integer tokens"),
        (np.array([1, 2]), r"array of shape \(2,\)"),
        ([[1, 2], [3]], "must have the same number of tokens, .* sequence 0 has 2 and sequence 1 has 1"),
        (np.array([[3, 1], [4, -1]]), r"must not be negative, .* sequence 1 is \[4, -1\]"),
        (np.array([[4, 2], [1, 1], [4, 2]]), r"sequences 0 and 2 of the trie are the same, \[4, 2\]"),
    ],
)
def test_bad_sequences_are_named(sequences, message):
    with pytest.raises(ValueError, match=message):
        Trie(sequences)


@pytest.mark.parametrize("values", [[1], [0, -1], [[0], [1]]])
def test_bad_values_are_refused(values):
    with pytest.raises(ValueError, match="one nonnegative number"):
        Trie(np.array([[1, 2], [1, 3]]), values=np.array(values))


@given(sequence_lists())
@PROPERTY
def test_tokens_too_large_for_one_sorting_key_make_the_same_trie(sequences):
    """Two columns of tokens up to 4 * 10^12 need more than 63 bits."""
    far_apart = np.array(sequences) * 10**12
    one, other = Trie(sequences), Trie(far_apart)
    assert one.level_starts == other.level_starts
    assert torch.equal(one.arrays().child_starts, other.arrays().child_starts)
    assert torch.equal(one.arrays().values, other.arrays().values)
    assert other.lookup(far_apart).tolist() == list(range(len(sequences)))


def test_repeats_are_named_by_the_rows_of_the_input_whatever_the_size_of_the_tokens():
    for factor in (1, 10**13):
        table = factor * np.array([[9, 9, 9, 9, 9], [4, 2, 1, 7, 7], [1, 1, 1, 1, 1], [4, 2, 1, 7, 7]])
        with pytest.raises(ValueError, match=rf"sequences 1 and 3 of the trie are the same, \[{4 * factor}, "):
            Trie(table)


def sorted_identifiers(num_items, num_codes=256):
    """`(num_items, 5)`: a behavior token and four levels of codes, in ascending order."""
    numbers = np.unique(np.random.default_rng(0).integers(0, num_codes**4, num_items))
    codes = numbers[:, None] // num_codes ** np.arange(3, -1, -1) % num_codes
    return np.column_stack([np.full(len(codes), 32_100), codes + 32_103 + num_codes * np.arange(4)])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_sixty_thousand_sequences(dtype):
    sequences = sorted_identifiers(60_000).astype(dtype)
    trie = Trie(sequences)
    assert torch.equal(trie.lookup(sequences.astype(np.int64)), torch.arange(len(sequences)))
    shuffled = np.random.default_rng(1).permutation(len(sequences))
    other = Trie(sequences[shuffled])
    assert torch.equal(other.lookup(sequences.astype(np.int64)), torch.from_numpy(np.argsort(shuffled)))


def test_sorted_identifiers_take_one_byte_per_edge_and_four_per_inner_node():
    trie = Trie(sorted_identifiers(60_000))
    arrays = trie.arrays()
    assert arrays.child_tokens.nbytes == trie.num_nodes - 1
    assert arrays.child_starts.nbytes == 4 * (trie.level_starts[-2] + 1)
    assert len(arrays.values) == 0  # the value of each sequence is its row


# ---- rows of `generate`


def test_where_prompts_have_any_length_the_answer_begins_with_the_last_first_edge():
    trie = Trie([[7, 1, 2], [8, 2, 2]], free_text_token_id=6, start_length=None)
    rows = torch.tensor([[0, 7, 1, 2, 8, 2], [5, 5, 6, 3, 4, 1], [3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 7]])
    assert trie.prompt_lengths(rows).tolist() == [4, 2, 6, 5]
    assert trie.answers(rows).tolist() == [[8, 2, -1, -1], [6, 3, 4, 1], [-1] * 4, [7, -1, -1, -1]]
    trie.start_length = 1
    assert torch.equal(trie.answers(rows), rows[:, 1:])
