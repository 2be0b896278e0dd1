"""`TrieBeamSearch` against `generate` with `TrieLogitsProcessor`, which defines its results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MinLengthLogitsProcessor,
    T5Config,
    T5ForConditionalGeneration,
)

from gensar_hf.decoding import Trie, TrieBeamSearch, TrieLogitsProcessor
from gensar_hf.decoding.logits_process import DEAD_SCORE
from gensar_hf.decoding.tree_decoder import EncoderContext
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

PAD, EOS, FREE_TEXT, RECOMMENDED, SEARCHED = range(5)
FIRST_CODE, VOCAB_SIZE = 5, 40
SHAPES: dict[str, dict[str, Any]] = {
    "t5 v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "t5 v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def build_t5(shape: str, seed: int = 0, num_layers: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    """Few position buckets with large weights, so that wrong positions change the scores."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=num_layers, num_heads=2, dropout_rate=0.0,
        relative_attention_num_buckets=8, relative_attention_max_distance=6, decoder_start_token_id=PAD,
        **SHAPES[shape],
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.mul_(8)
    return model


@pytest.fixture(scope="module", params=list(SHAPES))
def t5(request: pytest.FixtureRequest) -> T5ForConditionalGeneration:
    return build_t5(request.param)


def random_trie(num_items: int, num_levels: int, num_codes: int, seed: int = 0) -> Trie:
    """Two identifiers per item, each `[behavior, code 1 … code L]`; every level draws from the same tokens."""
    rng = np.random.default_rng(seed)
    tables = []
    for behavior in (RECOMMENDED, SEARCHED):
        numbers = rng.choice(num_codes**num_levels, size=num_items, replace=False)
        codes = numbers[:, None] // num_codes ** np.arange(num_levels) % num_codes
        tables.append(np.column_stack([np.full(num_items, behavior), FIRST_CODE + codes]))
    return Trie(np.concatenate(tables), np.tile(np.arange(num_items), 2), free_text_token_id=FREE_TEXT)


def inputs_of(prompts: Sequence[Sequence[int]], seed: int = 0, is_padded: bool = True) -> dict[str, torch.Tensor]:
    """Encoder inputs of different lengths and the decoder's prompts."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(FIRST_CODE, VOCAB_SIZE, (len(prompts), 7), generator=generator)
    lengths = torch.randint(1, 8, (len(prompts), 1), generator=generator) if is_padded else torch.tensor([[7]])
    mask = (torch.arange(7) < lengths).long().expand(len(prompts), -1)
    return {
        "input_ids": input_ids.masked_fill(mask == 0, PAD), "attention_mask": mask,
        "decoder_input_ids": torch.tensor(prompts),
    }  # fmt: skip


def both(model: Any, inputs: dict, trie: Trie, num_beams: int, excluded: Any = None, **options: Any) -> tuple[Any, Any]:
    """The reference's output and ours."""
    options = {
        "num_beams": num_beams, "num_return_sequences": num_beams, "max_new_tokens": trie.max_length - 1,
        "length_penalty": 0.0, "return_dict_in_generate": True, "output_scores": True, **options,
    }  # fmt: skip
    processor = TrieLogitsProcessor(trie, excluded=excluded)
    expected = model.generate(**inputs, **options, logits_processor=[processor])
    found = model.generate(**inputs, **options, custom_generate=TrieBeamSearch(trie, excluded=excluded))
    return expected, found


def assert_same(expected: Any, found: Any, tolerance: float = 1e-4) -> int:
    """Equal sequences, order and scores, except for dead beams; returns the number of live beams.

    Beams whose scores differ by less than float32's precision may swap.
    """
    is_live = expected.sequences_scores > DEAD_SCORE / 10
    assert torch.equal(is_live, found.sequences_scores > DEAD_SCORE / 10)
    scores, own_scores = expected.sequences_scores[is_live], found.sequences_scores[is_live]
    torch.testing.assert_close(own_scores, scores, atol=tolerance, rtol=0)
    if is_live.any():
        sequences, own_sequences = expected.sequences[is_live], found.sequences[is_live]
        differs = (sequences != own_sequences).any(dim=1)
        gaps = torch.minimum(
            (scores - scores.roll(1)).abs().nan_to_num(), (scores - scores.roll(-1)).abs().nan_to_num()
        )
        assert not (differs & (gaps > 1e-6)).any(), (sequences[differs], own_sequences[differs])
    return int(is_live.sum())


# ---- the same as generate


@pytest.mark.parametrize("num_beams", [2, 5, 30])
@pytest.mark.parametrize("is_padded", [False, True])
def test_sequences_order_and_scores_are_those_of_generate(
    t5: T5ForConditionalGeneration, num_beams: int, is_padded: bool
) -> None:
    prompts = [[PAD, RECOMMENDED], [PAD, SEARCHED], [PAD, SEARCHED], [PAD, RECOMMENDED]]  # mixed in one batch
    inputs = inputs_of(prompts, is_padded=is_padded)
    expected, found = both(t5, inputs, random_trie(60, 3, 6), num_beams)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("max_new_tokens", [3, 4, 6])
def test_length_penalty_and_end_token_are_those_of_generate(
    t5: T5ForConditionalGeneration, length_penalty: float, max_new_tokens: int
) -> None:
    """With room for it an end token follows, and counts for the length."""
    options = {"length_penalty": length_penalty, "max_new_tokens": max_new_tokens, "num_return_sequences": 3}
    inputs = inputs_of([[PAD, RECOMMENDED], [PAD, SEARCHED]])
    expected, found = both(t5, inputs, random_trie(30, 3, 5), 6, **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("prompt", "num_found"),
    [([PAD], 4), ([PAD, RECOMMENDED, FIRST_CODE], 4), ([PAD, SEARCHED, FIRST_CODE, FIRST_CODE + 1], 3)],
)
def test_any_prefix_may_be_in_the_prompt(t5: T5ForConditionalGeneration, prompt: list[int], num_found: int) -> None:
    """With the decoder start alone, the behavior is searched as well."""
    trie = random_trie(27, 3, 3)  # all there can be
    trie.free_text_token_id = None
    expected, found = both(t5, inputs_of([prompt] * 2), trie, 4, max_new_tokens=1 + trie.max_length - len(prompt))
    assert assert_same(expected, found) == 2 * num_found


def test_a_complete_identifier_is_its_own_answer(t5: T5ForConditionalGeneration) -> None:
    trie = Trie([[RECOMMENDED, 5, 6], [RECOMMENDED, 5, 7]])
    context = EncoderContext(t5, torch.zeros(1, 2, 16), torch.ones(1, 2).bool())
    found = TrieBeamSearch(trie).search(context, torch.tensor([[RECOMMENDED, 5, 7]]), 3)
    assert (found.tokens.tolist(), found.scores.tolist(), found.values.tolist()) == ([[[3, 5, 7]]], [[0.0]], [[1]])


def test_bf16_finds_the_same_up_to_its_precision() -> None:
    model = build_t5("t5 v1.0", dtype=torch.bfloat16)
    expected, found = both(model, inputs_of([[PAD, RECOMMENDED], [PAD, SEARCHED]]), random_trie(20, 2, 6), 20)
    assert found.sequences_scores.dtype == torch.float32
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=0.1, rtol=0)
    for rows in (slice(0, 20), slice(20, 40)):  # all items: the same ones, perhaps in another order
        assert {*map(tuple, found.sequences[rows].tolist())} == {*map(tuple, expected.sequences[rows].tolist())}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same() -> None:
    model = build_t5("t5 v1.1")
    inputs, trie = inputs_of([[PAD, RECOMMENDED], [PAD, SEARCHED]]), random_trie(60, 3, 6)
    expected, _ = both(model, inputs, trie, 10, excluded=[{1, 2}, set()])
    on_gpu = {name: tensor.cuda() for name, tensor in inputs.items()}
    _, found = both(model.cuda(), on_gpu, trie, 10, excluded=[{1, 2}, set()])
    assert torch.equal(found.sequences.cpu(), expected.sequences)
    torch.testing.assert_close(found.sequences_scores.cpu(), expected.sequences_scores, atol=1e-4, rtol=0)


def random_case(models: list[Any], seed: int) -> int:
    """A random trie, batch, exclusion and number of beams; returns the number of beams compared."""
    rng = np.random.default_rng(seed)
    num_levels = int(rng.integers(1, 6))
    num_codes = int(rng.integers(1, min(7, round(400 ** (1 / num_levels))) + 1))
    num_items = int(rng.integers(1, min(num_codes**num_levels, 80) + 1))
    trie = random_trie(num_items, num_levels, num_codes, seed)
    prompts = [[PAD, int(rng.choice([RECOMMENDED, SEARCHED, SEARCHED, EOS]))] for _ in range(rng.integers(1, 5))]
    excluded = [set(rng.integers(0, num_items, rng.integers(0, 2 * num_items)).tolist()) for _ in prompts]
    expected, found = both(
        models[seed % len(models)], inputs_of(prompts, seed), trie, int(rng.integers(2, 34)),
        excluded=excluded if rng.random() < 0.5 else None, max_new_tokens=num_levels + int(rng.integers(0, 3)),
        length_penalty=float(rng.choice([0.0, 1.0])),
    )  # fmt: skip
    return assert_same(expected, found)


def test_random_tries_and_models_give_what_generate_gives() -> None:
    models = [build_t5(shape, seed, num_layers=1) for seed, shape in enumerate([*SHAPES, *SHAPES])]
    assert sum(random_case(models, seed) for seed in range(30)) > 300


@pytest.mark.slow
def test_a_thousand_random_tries_and_models_give_what_generate_gives() -> None:
    models = [build_t5(shape, seed) for seed in range(20) for shape in SHAPES]
    assert sum(random_case(models, seed) for seed in range(1000, 2000)) > 10_000


Parts = tuple[GenSARForConditionalGeneration, GenSARTokenizer]


@pytest.mark.parametrize("num_beams", [3, 30])
def test_the_generator_s_encodings_give_the_same(
    generators: dict[str, GenSARForConditionalGeneration],
    tokenizers: dict[str, GenSARTokenizer],
    encoding: str,
    num_beams: int,
) -> None:
    model, tokenizer = generators[encoding], tokenizers[encoding]
    histories = [[{"item_id": f"film-{item}"} for item in items] for items in ([1, 4, 9], [], [2])]
    inputs = tokenizer.encode_request(histories, [None, "space adventure", "a comedy"], ["<R_I>", "<S_I>", "<S_I>"])
    for excluded in (None, [{3}, set(range(11)), {0, 1, 2}]):
        expected, found = both(model, inputs, tokenizer.trie, num_beams, excluded=excluded)
        assert assert_same(expected, found) > 3
        live = found.sequences_scores > DEAD_SCORE / 10
        rows = tokenizer.decode_item_rows(found.sequences)
        assert ((rows >= 0) == live.numpy()).all()


# ---- few items, many beams


def test_one_item_and_no_item(t5: T5ForConditionalGeneration) -> None:
    trie = Trie([[RECOMMENDED, 7, 9]])
    inputs = inputs_of([[PAD, RECOMMENDED], [PAD, SEARCHED]])  # no searched item
    expected, found = both(t5, inputs, trie, 4)
    assert assert_same(expected, found) == 1
    assert found.sequences[0].tolist() == [PAD, RECOMMENDED, 7, 9]
    assert found.sequences[1:4].tolist() == [[PAD, RECOMMENDED, EOS, PAD]] * 3
    assert found.sequences[4:].tolist() == [[PAD, SEARCHED, EOS, PAD]] * 4
    assert (found.sequences_scores[1:] == DEAD_SCORE).all()


def test_everything_excluded_leaves_no_item(t5: T5ForConditionalGeneration) -> None:
    trie = random_trie(10, 2, 4)
    _, found = both(t5, inputs_of([[PAD, RECOMMENDED]]), trie, 5, excluded=[range(10)])
    assert (found.sequences_scores == DEAD_SCORE).all()
    assert (trie.lookup(found.sequences[:, 1:]) == -1).all()


def test_one_beam_is_a_greedy_search_with_a_score(t5: T5ForConditionalGeneration) -> None:
    trie, inputs = random_trie(40, 3, 5), inputs_of([[PAD, RECOMMENDED], [PAD, SEARCHED]])
    greedy = t5.generate(**inputs, logits_processor=[TrieLogitsProcessor(trie)], num_beams=1, max_new_tokens=3)
    found = t5.generate(
        **inputs, custom_generate=TrieBeamSearch(trie), num_beams=1, max_new_tokens=3, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert torch.equal(found.sequences, greedy)
    with torch.no_grad():
        decoder_inputs = {"decoder_input_ids": greedy[:, :-1], "attention_mask": inputs["attention_mask"]}
        log_probabilities = t5(input_ids=inputs["input_ids"], **decoder_inputs).logits.log_softmax(dim=-1)
    exact = log_probabilities[:, 1:].gather(2, greedy[:, 2:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(found.sequences_scores, exact, atol=1e-5, rtol=0)


def test_only_allowed_items_are_found_in_the_order_of_their_scores(t5: T5ForConditionalGeneration) -> None:
    trie, inputs = random_trie(50, 3, 5), inputs_of([[PAD, RECOMMENDED], [PAD, SEARCHED]])
    allowed = [{3, 8, 21, 49, 1000}, {0}]
    search = TrieBeamSearch(trie, allowed=allowed)
    options = {"num_beams": 5, "num_return_sequences": 5, "max_new_tokens": 3, "length_penalty": 0.0}
    sequences = t5.generate(**inputs, **options, custom_generate=search)
    found = trie.lookup(sequences[:, 1:].masked_fill(sequences[:, 1:] <= EOS, -1)).view(2, 5)
    everything = t5.generate(
        **inputs, **{**options, "num_beams": 50, "num_return_sequences": 50}, custom_generate=TrieBeamSearch(trie)
    )
    order = trie.lookup(everything[:, 1:]).view(2, 50)
    for request, items in enumerate(allowed):
        expected = [item for item in order[request].tolist() if item in items]
        assert found[request].tolist() == expected + [-1] * (5 - len(expected))


def test_beams_have_the_values_of_distinct_items(t5: T5ForConditionalGeneration) -> None:
    trie = random_trie(50, 2, 8)
    states, prefixes = torch.randn(3, 4, 16), torch.tensor([[RECOMMENDED]] * 3)
    mask = torch.tensor([[True] * 4, [True] + [False] * 3, [True] * 2 + [False] * 2])
    beams = TrieBeamSearch(trie).search(EncoderContext(t5, states, mask), prefixes, 30)
    assert beams.values.shape == (3, 30)
    assert torch.equal(beams.values, trie.lookup(beams.tokens.flatten(0, 1)).view(3, 30))
    assert all(len(set(row)) == 30 for row in beams.values.tolist())
    assert (beams.scores.diff(dim=1) <= 0).all()


@pytest.mark.slow
def test_all_of_a_hundred_thousand_beams_are_items() -> None:
    model, trie = build_t5("t5 v1.0"), random_trie(300, 4, 6)
    num_beams = num_invalid = 0
    for seed in range(60):
        prompts = [[PAD, RECOMMENDED if row % 2 else SEARCHED] for row in range(64)]
        found = model.generate(
            **inputs_of(prompts, seed), custom_generate=TrieBeamSearch(trie), num_beams=30, num_return_sequences=30,
            max_new_tokens=4,
        ).view(64, 30, -1)  # fmt: skip
        values = trie.lookup(found[:, :, 1:].flatten(0, 1)).view(64, 30)
        num_beams += values.numel()
        num_invalid += int((values < 0).sum()) + sum(30 - len(set(row)) for row in values.tolist())
    assert num_beams >= 100_000
    assert num_invalid == 0


# ---- what is refused


def refused(match: str, model: Any, trie: Trie, inputs: dict | None = None, **options: Any) -> None:
    options = {"num_beams": 3, "max_new_tokens": trie.max_length - 1, **options}
    search = options.pop("search", None) or TrieBeamSearch(trie)
    with pytest.raises(ValueError, match=match):
        model.generate(**(inputs or inputs_of([[PAD, RECOMMENDED]] * 2)), custom_generate=search, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"do_sample": True}, r"does not support .*do_sample=True; leave this out"),
        ({"logits_processor": [MinLengthLogitsProcessor(3, EOS)]}, "does not support MinLengthLogitsProcessor"),
        ({"repetition_penalty": 1.5}, "does not support RepetitionPenaltyLogitsProcessor"),
        ({"max_time": 3.0}, "does not support MaxTimeCriteria"),
        ({"output_logits": True, "return_dict_in_generate": True}, "does not support output_logits=True"),
        ({"max_new_tokens": 2}, "have 3 more tokens after the prompt, but only 2 may be generated; set max_new_tokens"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    t5: T5ForConditionalGeneration, options: dict[str, Any], match: str
) -> None:
    refused(match, t5, random_trie(20, 3, 5), **options)


def test_a_request_for_free_text_is_named(t5: T5ForConditionalGeneration) -> None:
    inputs = inputs_of([[PAD, RECOMMENDED], [PAD, FREE_TEXT]])
    refused("Request 1 asks for free text", t5, random_trie(20, 3, 5), inputs)


def test_a_vocabulary_too_small_and_wrong_numbers_of_requests_are_named(t5: T5ForConditionalGeneration) -> None:
    trie = random_trie(20, 3, 5)
    refused("holds the token 40, but the model scores only 40", t5, Trie([[RECOMMENDED, 40, 3, 3]]))
    for name in ("excluded", "allowed"):
        search = TrieBeamSearch(trie, **{name: [{1}, {2}, {3}]})
        refused("has lists for 3 requests, but the batch has 2", t5, trie, search=search)
    with pytest.raises(ValueError, match="`excluded` has lists for 2 requests, `allowed` for 1; pass one list"):
        TrieBeamSearch(trie, excluded=[{1}, {2}], allowed=[{1}])


@pytest.mark.parametrize("place", ["encoder", "decoder", "head"])
def test_nan_is_named_and_no_list_is_returned(place: str) -> None:
    model = build_t5("t5 v1.1")
    weight = {
        "encoder": model.encoder.block[0].layer[1].DenseReluDense.wo.weight,
        "decoder": model.decoder.block[1].layer[0].SelfAttention.k.weight,
        "head": model.lm_head.weight,
    }[place]
    with torch.no_grad():
        weight[3, 3] = torch.nan
    refused("scores are NaN or infinite for request 0 of 2", model, random_trie(20, 3, 5))


def test_one_request_with_nan_is_named(t5: T5ForConditionalGeneration) -> None:
    states = torch.randn(3, 4, 16)
    states[1, 2, 5] = torch.nan
    context, prefixes = EncoderContext(t5, states, torch.ones(3, 4).bool()), torch.tensor([[RECOMMENDED]] * 3)
    with pytest.raises(ValueError, match="NaN or infinite for request 1 of 3"):
        TrieBeamSearch(random_trie(20, 3, 5)).search(context, prefixes, 4)


def test_other_encoder_decoders_are_refused() -> None:
    sizes = {"vocab_size": 40, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8,
             "decoder_ffn_dim": 8, "encoder_attention_heads": 1, "decoder_attention_heads": 1}  # fmt: skip
    bart = BartForConditionalGeneration(BartConfig(**sizes, decoder_start_token_id=PAD, forced_eos_token_id=None))
    refused("supports T5 models .* got a BartForConditionalGeneration", bart, random_trie(20, 3, 5))
