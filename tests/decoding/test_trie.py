"""The trie against dictionaries of prefixes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.decoding import AllowedItems, ExcludedItems, Trie

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


@given(SEQUENCES, st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=3))
@PROPERTY
def test_allowed_items_miss_a_node_exactly_when_none_of_them_is_below_it(sequences, allowed):
    values = np.arange(len(sequences)) // 2
    trie = Trie(pad(sequences), values=values)
    items = AllowedItems(trie, allowed)
    prefixes = sorted({sequence[:size] for sequence in sequences for size in range(len(sequence) + 1)})
    nodes = trie.walk(pad(prefixes))

    for request, own in enumerate(allowed):
        expected = [
            not any(values[i] in own for i, sequence in enumerate(sequences) if sequence[: len(prefix)] == prefix)
            for prefix in prefixes
        ]
        assert items.misses(nodes, torch.full_like(nodes, request)).tolist() == expected


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


# ---- arrays


@given(SEQUENCES, st.booleans())
@PROPERTY
def test_padded_children_are_those_of_allowed_tokens(sequences, has_dead_node):
    trie = Trie(pad(sequences))
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
        assert max(tokens.tolist(), default=0) < trie.token_ranges[level][1]


@given(SEQUENCES, st.booleans())
@PROPERTY
def test_sequences_below_and_at_every_node(sequences, is_uniform):
    """By definition, from the sorted sequences; also where all have one length and nothing is stored for it."""
    if is_uniform:
        length = min(map(len, sequences))
        sequences = [sequence for sequence in sequences if len(sequence) == length]
    trie = Trie(sequences)
    assert trie.is_uniform == (len({len(sequence) for sequence in sequences}) == 1)
    ordered = sorted(sequences)
    prefixes = sorted({s[:size] for s in sequences for size in range(len(s) + 1)}, key=lambda s: (len(s), s))
    nodes = trie.walk(pad(prefixes))
    assert nodes.tolist() == list(range(trie.num_nodes))
    firsts, lasts = trie.sequences_below(nodes)
    for prefix, first, last, own in zip(
        prefixes, firsts.tolist(), lasts.tolist(), trie.sequences_at(nodes).tolist(), strict=True
    ):
        below = [place for place, sequence in enumerate(ordered) if sequence[: len(prefix)] == prefix]
        assert list(range(first, last)) == below
        assert own == (ordered.index(prefix) if prefix in ordered else -1)
    dead = torch.tensor([trie.dead_node])
    assert trie.sequences_at(dead).item() == -1
    first, last = trie.sequences_below(dead)
    assert first == last


@given(SEQUENCES, st.integers(1, 3))
@PROPERTY
def test_sequences_of_values(sequences, num_values):
    values = np.arange(len(sequences)) * 7 % num_values
    trie = Trie(pad(sequences), values=values)
    asked = torch.tensor([2, 0, -1, 5, 0])
    owners, found = trie.sequences_of(asked)
    order = sorted(range(len(sequences)), key=lambda row: sequences[row])
    expected = [
        (place, rank)
        for place, value in enumerate(asked.tolist())
        for rank, row in enumerate(order)
        if values[row] == value
    ]
    assert sorted(zip(owners.tolist(), found.tolist(), strict=True)) == expected


@given(SEQUENCES)
@PROPERTY
def test_tokens_too_large_to_be_packed_into_one_number_make_the_same_trie(sequences):
    """Five columns of tokens up to 4 * 10^12 need more than 63 bits."""
    far_apart = [tuple(token * 10**12 for token in sequence) for sequence in sequences]
    one, other = Trie(pad(sequences)), Trie(pad(far_apart))
    assert one.level_starts == other.level_starts
    assert torch.equal(one.arrays().child_starts, other.arrays().child_starts)
    prefixes = torch.from_numpy(pad(sequences))
    assert torch.equal(one.lookup(prefixes), other.lookup(torch.where(prefixes < 0, -1, prefixes * 10**12)))


def test_repeats_are_named_by_the_caller_s_rows_whatever_the_size_of_the_tokens():
    for factor in (1, 10**13):
        table = factor * np.array([[9, 9, 9, 9, 9], [4, 2, 1, 7, 7], [1, 1, 1, 1, 1], [4, 2, 1, 7, 7]])
        with pytest.raises(ValueError, match=rf"sequences 1 and 3 of the trie are the same, \[{4 * factor}, "):
            Trie(table)


@given(SEQUENCES)
@PROPERTY
def test_tokens_of_a_level_behind_each_first_token(sequences):
    length = min(map(len, sequences))
    sequences = sorted(sequence for sequence in sequences if len(sequence) == length)
    trie = Trie(sequences)
    for level in range(1, length + 1):
        lowest = trie.token_ranges[level - 1][0]
        found = [
            [first, lowest + code]
            for first, row in zip(sorted({s[0] for s in sequences}), trie.level_tokens(level).tolist(), strict=True)
            for code, occurs in enumerate(row)
            if occurs
        ]
        assert found == sorted([first, token] for first, token in {(s[0], s[level - 1]) for s in sequences})


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


def test_sorted_identifiers_take_a_byte_an_edge_and_four_an_inner_node():
    trie = Trie(sorted_identifiers(60_000))
    num_inner = trie.level_starts[-2]
    assert trie.num_bytes == trie.num_nodes - 1 + 4 * (num_inner + 1)
    assert trie.arrays().child_tokens.dtype == torch.uint8
    assert len(trie.arrays().values) == 0  # each sequence stands for its row


@pytest.mark.parametrize("free_text", [None, 7])
@pytest.mark.parametrize("is_uniform", [True, False])
def test_a_trie_that_is_saved_and_loaded_is_the_same(tmp_path, free_text, is_uniform):
    sequences = [[7, 1, 2], [7, 1, 3], [7, 0, 4] if is_uniform else [7, 0], [8, 2, 2]]
    row_format = {"free_text_token_id": free_text, "start_length": free_text, "end_token_id": 3, "pad_token_id": None}
    trie = Trie(sequences, values=np.array([5, 6, 5, 9]), **row_format)
    trie.save(tmp_path / "trie.safetensors")
    loaded = Trie.load(tmp_path / "trie.safetensors")
    for left, right in zip(trie.arrays(), loaded.arrays(), strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    names = ("num_sequences", "num_nodes", "dead_node", "max_length", "is_uniform", "level_starts", "token_ranges",
             "max_children", "token_limit", *row_format)  # fmt: skip
    assert [getattr(trie, name) for name in names] == [getattr(loaded, name) for name in names]
    assert loaded.lookup(pad(sequences)).tolist() == [5, 6, 5, 9]
    assert ExcludedItems(loaded, [{5}]).contains(loaded.walk(pad(sequences)), torch.zeros(4).long()).tolist() == [
        True, False, True, False,
    ]  # fmt: skip


def test_the_answer_of_a_row_begins_with_the_last_first_edge_where_prompts_are_of_any_length():
    trie = Trie([[7, 1, 2], [8, 2, 2]], free_text_token_id=6, start_length=None)
    rows = torch.tensor([[0, 7, 1, 2, 8, 2], [5, 5, 6, 3, 4, 1], [3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 7]])
    assert trie.prompt_lengths(rows).tolist() == [4, 2, 6, 5]
    assert trie.answers(rows).tolist() == [[8, 2, -1, -1], [6, 3, 4, 1], [-1] * 4, [7, -1, -1, -1]]
    trie.start_length = 1
    assert torch.equal(trie.answers(rows), rows[:, 1:])
