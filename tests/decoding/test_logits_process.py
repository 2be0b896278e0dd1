"""The logits processor against its definition and inside `generate`; lists of items by request."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from gensar_hf.decoding import Trie, TrieLogitsProcessor
from gensar_hf.decoding.logits_process import DEAD_SCORE, ItemLists, ValueList

PAD, EOS, FREE_TEXT, RECOMMENDED, SEARCHED = range(5)
VOCAB_SIZE = 12
START = PAD  # as in T5
ITEM_LISTS = st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=3)


@st.composite
def sequence_lists(draw):
    """Distinct `[behavior, code 1 … code L]`."""
    codes = st.tuples(st.just(RECOMMENDED), *[st.integers(5, 8)] * draw(st.integers(1, 3)))
    return draw(st.lists(codes, min_size=1, max_size=15, unique=True))


def identifiers(num_items, seed=0):
    """Two identifiers per item, `(2 * num_items, 3)`: a behavior token and two codes, distinct."""
    pairs = np.stack(np.meshgrid(np.arange(5, 12), np.arange(5, 12)), axis=-1).reshape(-1, 2)
    rng = np.random.default_rng(seed)
    codes = np.concatenate([rng.permutation(pairs)[:num_items] for _ in range(2)])
    return np.column_stack([np.repeat([RECOMMENDED, SEARCHED], num_items), codes])


def item_trie(num_items, **options):
    return Trie(identifiers(num_items), values=np.tile(np.arange(num_items), 2), **options)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=START,
        initializer_factor=3.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def generate(model, processor, behaviors, num_beams, **options):
    """Constrained beam search from `[start, behavior]`: tokens after the start `(rows, length)`, and scores
    `(rows,)`."""
    inputs = torch.arange(5, 5 + 3 * len(behaviors)).reshape(len(behaviors), 3) % VOCAB_SIZE
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        decoder_input_ids=torch.tensor([[START, behavior] for behavior in behaviors]),
        logits_processor=[processor],
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=options.pop("max_new_tokens", 3),
        return_dict_in_generate=True,
        output_scores=True,
        length_penalty=0.0,
        **options,
    )
    return output.sequences[:, 1:], output.sequences_scores


def lookup_generated(trie, sequences):
    return trie.lookup(sequences.masked_fill((sequences == EOS) | (sequences == PAD), -1))


def naive_allowed(sequences, forbidden, prefix):
    """Tokens that may follow a prefix, and whether it is a complete sequence, from the definition."""
    prefix = tuple(prefix)
    if EOS in prefix or PAD in prefix:
        end = min(prefix.index(token) for token in (EOS, PAD) if token in prefix)
        is_known = prefix[:end] in sequences and set(prefix[end:]) <= {EOS, PAD}
        is_known = is_known and sequences.index(prefix[:end]) not in forbidden
        return set(), is_known
    below = [s for i, s in enumerate(sequences) if i not in forbidden and s[: len(prefix)] == prefix]
    return {s[len(prefix)] for s in below if len(s) > len(prefix)}, prefix in below


def expected_row(scores, allowed, is_complete):
    expected = torch.full_like(scores, -torch.inf)
    expected[list(allowed)] = scores[list(allowed)]
    if is_complete:
        expected[EOS] = 0.0
    elif not allowed:
        expected[EOS] = DEAD_SCORE
    return expected


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_scores_equal_the_definition(data):
    sequences = data.draw(sequence_lists())
    trie = Trie(sequences)
    length = data.draw(st.integers(1, 5))
    known = st.sampled_from(sequences).map(lambda sequence: (*sequence, EOS, PAD, PAD, PAD)[:length])
    tokens = st.sampled_from([PAD, EOS, RECOMMENDED, 5, 6, 7, 8])
    anything = st.lists(tokens, min_size=length, max_size=length).map(tuple)
    prefixes = data.draw(st.lists(known | anything, min_size=1, max_size=3))
    num_beams = data.draw(st.integers(1, 2))
    excluded = data.draw(st.lists(st.sets(st.integers(0, 15)), min_size=len(prefixes), max_size=len(prefixes)))
    rows = [prefix for prefix in prefixes for _ in range(num_beams)]
    input_ids = torch.tensor([(START, *prefix) for prefix in rows])
    scores = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(0))

    result = TrieLogitsProcessor(trie, excluded=excluded)(input_ids, scores)

    for row, prefix in enumerate(rows):
        allowed, is_complete = naive_allowed(sequences, excluded[row // num_beams], prefix)
        expected = expected_row(scores[row], allowed, is_complete)
        assert torch.equal(result[row], expected), (prefix, allowed, is_complete)


def test_free_text_is_not_constrained():
    trie = item_trie(4, free_text_token_id=FREE_TEXT)
    scores = torch.randn(2, VOCAB_SIZE)

    result = TrieLogitsProcessor(trie)(torch.tensor([[START, FREE_TEXT, 11], [START, RECOMMENDED, 99]]), scores)

    assert torch.equal(result[0], scores[0])
    assert result[1].isfinite().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_dead_row_keeps_one_finite_score_in_every_precision(dtype):
    result = TrieLogitsProcessor(item_trie(4))(torch.tensor([[START, 11]]), torch.zeros(1, VOCAB_SIZE, dtype=dtype))

    assert result.dtype == dtype
    assert result.isfinite().nonzero().tolist() == [[0, EOS]]
    assert result[0, EOS] < -60_000


def test_at_the_root_the_behavior_tokens_are_allowed():
    trie = item_trie(4, free_text_token_id=FREE_TEXT)

    result = TrieLogitsProcessor(trie)(torch.tensor([[START]]), torch.zeros(1, VOCAB_SIZE))

    assert result[0].isfinite().nonzero().flatten().tolist() == [FREE_TEXT, RECOMMENDED, SEARCHED]


def test_nan_a_small_vocabulary_and_a_wrong_number_of_requests_are_named():
    trie, ids = item_trie(3), torch.tensor([[START, RECOMMENDED]] * 3)
    scores = torch.zeros(3, VOCAB_SIZE)
    scores[1, 4] = torch.nan

    with pytest.raises(ValueError, match="NaN or infinite in row 1 of 3"):
        TrieLogitsProcessor(trie)(ids, scores)
    with pytest.raises(ValueError, match="scores only 5 tokens"):
        TrieLogitsProcessor(trie)(ids, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="`excluded` has lists for 2 requests, but `generate` works on 3 rows"):
        TrieLogitsProcessor(trie, excluded=[{1}, {2}])(ids, torch.zeros(3, VOCAB_SIZE))


@pytest.mark.parametrize("max_new_tokens", [2, 3])
def test_enough_beams_rank_the_whole_catalogue_by_its_exact_scores(model, max_new_tokens):
    num_items, behaviors = 20, [RECOMMENDED, SEARCHED, RECOMMENDED]
    trie, table = item_trie(num_items), torch.from_numpy(identifiers(num_items))

    sequences, scores = generate(model, TrieLogitsProcessor(trie), behaviors, 20, max_new_tokens=max_new_tokens)

    found = lookup_generated(trie, sequences).reshape(3, num_items)
    for request, behavior in enumerate(behaviors):
        rows = table[:num_items] if behavior == RECOMMENDED else table[num_items:]
        inputs = (torch.arange(5 + 3 * request, 8 + 3 * request) % VOCAB_SIZE).expand(num_items, 3)
        decoder_inputs = torch.column_stack([torch.full((num_items,), START), rows[:, :-1]])
        with torch.no_grad():
            log_probs = model(input_ids=inputs, decoder_input_ids=decoder_inputs).logits.log_softmax(dim=-1)
        exact = log_probs[:, 1:].gather(2, rows[:, 1:, None]).sum(dim=(1, 2))
        assert found[request].tolist() == exact.argsort(descending=True).tolist()
        torch.testing.assert_close(scores.reshape(3, -1)[request], exact.sort(descending=True).values)


def test_fewer_items_than_beams_returns_each_item_once_and_the_rest_far_below(model):
    trie = item_trie(3)

    sequences, scores = generate(model, TrieLogitsProcessor(trie), [RECOMMENDED, SEARCHED], num_beams=8)

    found, scores = lookup_generated(trie, sequences).reshape(2, 8), scores.reshape(2, 8)
    assert found[:, :3].sort(dim=1).values.tolist() == [[0, 1, 2]] * 2
    assert (scores[:, :3] > -100).all()
    assert (scores[:, 3:] < DEAD_SCORE / 10).all()
    assert not scores.isnan().any()


@given(num_beams=st.integers(2, 12), excluded=st.lists(st.sets(st.integers(0, 9)), min_size=2, max_size=2))
@settings(max_examples=15, deadline=None)
def test_beams_are_distinct_items_and_none_is_excluded(model, num_beams, excluded):
    trie = item_trie(10)
    processor = TrieLogitsProcessor(trie, excluded=excluded)

    sequences, scores = generate(model, processor, [RECOMMENDED, SEARCHED], num_beams)

    for request in range(2):
        rows = slice(request * num_beams, (request + 1) * num_beams)
        found = lookup_generated(trie, sequences[rows])[scores[rows] > DEAD_SCORE / 10].tolist()
        # A beam may die only where too few items are left, never at the cost of one that is allowed.
        assert len(found) == min(num_beams, 10 - len(excluded[request]))
        assert len(set(found)) == len(found)
        assert not set(found) & excluded[request]
        assert -1 not in found


def test_greedy_decoding_reaches_an_item_and_then_only_pads(model):
    trie = item_trie(10)
    inputs = torch.tensor([[5, 6], [7, 8]])

    sequences = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        decoder_input_ids=torch.tensor([[START, RECOMMENDED], [START, SEARCHED]]),
        logits_processor=[TrieLogitsProcessor(trie)],
        max_new_tokens=6,
    )

    assert (lookup_generated(trie, sequences[:, 1:]) >= 0).all()
    assert sequences.shape[1] == 5  # start, behavior, two codes, end


def test_everything_excluded_ends_at_once_with_no_item(model):
    trie = item_trie(4)

    sequences, scores = generate(model, TrieLogitsProcessor(trie, excluded=[set(range(4))]), [RECOMMENDED], num_beams=3)

    assert (lookup_generated(trie, sequences) == -1).all()
    assert (scores < DEAD_SCORE / 10).all()


# ---- lists of items by request


def below(sequences, values, prefix):
    """The values of all sequences that begin with a prefix."""
    return {values[row] for row, sequence in enumerate(sequences) if sequence[: len(prefix)] == prefix}


@given(sequence_lists(), ITEM_LISTS, st.sets(st.integers(0, 30)))
@settings(max_examples=20, deadline=None)
def test_a_node_is_forbidden_if_no_sequence_below_it_is_allowed_and_not_excluded(sequences, lists, other):
    values = np.arange(len(sequences)) // 2  # two sequences per value, like the two identifiers of an item
    trie = Trie(sequences, values=values)
    prefixes = sorted({sequence[:size] for sequence in sequences for size in range(1, len(sequence) + 1)})
    padded = [(*prefix, -1, -1, -1, -1)[:4] for prefix in prefixes]
    nodes = trie.walk(torch.tensor(padded))
    prepared = ValueList(trie, other)  # one list that all requests share
    values_below = [below(sequences, values, prefix) for prefix in prefixes]

    for request, items in enumerate(lists):
        requests = torch.full_like(nodes, request)
        for arguments, is_open in (
            ({"excluded": lists}, lambda own, items=items: own - items),
            ({"allowed": lists}, lambda own, items=items: own & items),
            ({"allowed": lists, "excluded": [prepared] * len(lists)}, lambda own, items=items: own & items - other),
            ({"allowed": [prepared] * len(lists), "excluded": lists}, lambda own, items=items: own & other - items),
            ({"allowed": [None] * len(lists), "excluded": lists}, lambda own, items=items: own - items),
        ):
            forbidden = ItemLists(trie, **arguments).forbid(nodes, requests).tolist()
            assert forbidden == [not is_open(own) for own in values_below]
