"""The output head against the whole table of log-probabilities; decoder-only models against `generate`.

Tree decoding with T5 is tested in `test_beam_search.py` and `test_candidate_scoring.py`.
"""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from gensar_hf.decoding import Trie, TrieBeamSearch, TrieLogitsProcessor
from gensar_hf.decoding.candidate_scoring import score_candidates
from gensar_hf.decoding.logits_process import DEAD_SCORE
from gensar_hf.decoding.tree_decoder import OutputHead, PromptContext

END, FREE_TEXT, RECOMMENDED, SEARCHED = 1, 2, 3, 4
FIRST_CODE, VOCAB_SIZE = 5, 40
PROMPT_LENGTHS = [7, 1, 4, 7]
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": END, "eos_token_id": END, "bos_token_id": None,
}  # fmt: skip
GPT2_SIZES = {"vocab_size": VOCAB_SIZE, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
NEOX_SIZES = {name: size for name, size in SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES),
    "gpt-neox": GPTNeoXConfig(**NEOX_SIZES),
    "gpt2": GPT2Config(**GPT2_SIZES, eos_token_id=END, bos_token_id=None),
    # The row of the padding token is zero, and so are its logits, capped, scaled or not.
    "capped logits": Gemma2Config(**SIZES | {"pad_token_id": 0}, final_logit_softcapping=0.5, sliding_window=32),
    "scaled logits": Cohere2Config(**SIZES | {"pad_token_id": 0}, logit_scale=3.0, sliding_window=32),
}


def build(config: Any, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """Large weights, so that wrong positions and masks change the scores."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(6 if "embed" in name or "wte" in name else 10)
    return model


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(CONFIGS[request.param])


def item_trie(num_items: int = 50, num_levels: int = 3, num_codes: int = 6) -> Trie:
    rng = np.random.default_rng(0)
    tables = []
    for behavior in (RECOMMENDED, SEARCHED):
        numbers = rng.choice(num_codes**num_levels, size=num_items, replace=False)
        codes = numbers[:, None] // num_codes ** np.arange(num_levels) % num_codes
        tables.append(np.column_stack([np.full(num_items, behavior), FIRST_CODE + codes]))
    rows = np.tile(np.arange(num_items), 2)
    row_format = {"start_length": None, "end_token_id": END, "pad_token_id": END}
    return Trie(np.concatenate(tables), rows, free_text_token_id=FREE_TEXT, **row_format)


def prompts_of(behaviors: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, padded on the left, that contain behavior tokens as well."""
    rng = np.random.default_rng(seed)
    input_ids = torch.full((len(behaviors), max(PROMPT_LENGTHS) + 1), END)
    mask = torch.zeros_like(input_ids)
    for row, (behavior, length) in enumerate(zip(behaviors, PROMPT_LENGTHS, strict=False)):
        tokens = [*rng.integers(FREE_TEXT, VOCAB_SIZE, length).tolist(), behavior]
        input_ids[row, -len(tokens) :], mask[row, -len(tokens) :] = torch.tensor(tokens), 1
    return {"input_ids": input_ids, "attention_mask": mask}


def both(model: Any, inputs: dict, trie: Trie, num_beams: int, excluded: Any = None, **options: Any) -> tuple[Any, Any]:
    """The output of `generate` with the logits processor, which defines the result, and ours."""
    options = {
        "num_beams": num_beams, "num_return_sequences": num_beams, "max_new_tokens": trie.max_length - 1,
        "length_penalty": 0.0, "return_dict_in_generate": True, "output_scores": True, "eos_token_id": END,
        "pad_token_id": END, **options,
    }  # fmt: skip
    processor = TrieLogitsProcessor(trie, excluded=excluded)
    expected = model.generate(**inputs, **options, logits_processor=[processor])
    return expected, model.generate(**inputs, **options, custom_generate=TrieBeamSearch(trie, excluded=excluded))


# ---- output head


def build_t5(vocab_size: int = 5000, tied: bool = True) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocab_size, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, tie_word_embeddings=tied
    )
    return T5ForConditionalGeneration(config).eval()


def whole_table(model: T5ForConditionalGeneration, states: torch.Tensor) -> torch.Tensor:
    scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
    return model.lm_head(states * scale).double().log_softmax(dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab_size", [7, 2048, 2049, 5000])
def test_ranges_and_tokens_of_any_vocabulary(vocab_size: int, tied: bool) -> None:
    model = build_t5(vocab_size, tied)
    states = 5 * torch.randn(3, 4, 8)
    expected = whole_table(model, states)
    head = OutputHead.of_t5(model)
    for first, end in ((0, vocab_size), (3, 5), (vocab_size - 2, vocab_size)):
        found = head.range_log_probabilities(states, first, end)
        torch.testing.assert_close(found.double(), expected[..., first:end], atol=1e-4, rtol=0)
    rows, tokens = torch.randint(0, 12, (5, 6)), torch.randint(0, vocab_size, (5, 6))
    found = head.token_log_probabilities(states.flatten(0, 1), rows, tokens)
    torch.testing.assert_close(found.double(), expected.flatten(0, 1)[rows, tokens], atol=1e-4, rtol=0)


@torch.no_grad()
def test_large_logits_do_not_overflow() -> None:
    model = build_t5(tied=False)
    states = 300 * torch.randn(2, 8)
    assert model.lm_head(states).max() > 500
    expected = whole_table(model, states)[:, :10]
    found = OutputHead.of_t5(model).range_log_probabilities(states, 0, 10)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hook", "bias", "subclass"])
def test_a_head_that_is_more_than_a_matrix_is_called(kind: str) -> None:
    model = build_t5(vocab_size=50, tied=False)
    shift = torch.linspace(-3, 3, 50)
    if kind == "hook":
        model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + shift)
    elif kind == "bias":
        model.lm_head.bias = torch.nn.Parameter(shift)
    else:
        head = type("ShiftedHead", (torch.nn.Linear,), {"forward": lambda self, x: x @ self.weight.T + shift})(8, 50)
        model.lm_head = head
    states = torch.randn(6, 8)
    expected, head = whole_table(model, states), OutputHead.of_t5(model)
    torch.testing.assert_close(head.range_log_probabilities(states, 5, 9).double(), expected[:, 5:9], atol=1e-5, rtol=0)
    rows, tokens = torch.tensor([0, 5, 5]), torch.tensor([49, 0, 7])
    found = head.token_log_probabilities(states, rows, tokens)
    torch.testing.assert_close(found.double(), expected[rows, tokens], atol=1e-5, rtol=0)


# ---- decoder-only models: the same as generate


@pytest.mark.parametrize("num_beams", [2, 30])
def test_sequences_order_and_scores_are_those_of_generate(model: PreTrainedModel, num_beams: int) -> None:
    trie, inputs = item_trie(), prompts_of([RECOMMENDED, SEARCHED, SEARCHED, RECOMMENDED])
    expected, found = both(model, inputs, trie, num_beams)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0)
    values = trie.lookup(trie.answers(found.sequences)).view(4, num_beams)
    assert all(len(set(row)) == num_beams and min(row) >= 0 for row in values.tolist())


def test_eager_attention_finds_the_same() -> None:
    inputs = prompts_of([RECOMMENDED, SEARCHED])
    expected, _ = both(build(CONFIGS["llama"]), inputs, item_trie(), 5)
    _, found = both(build(CONFIGS["llama"], attention="eager"), inputs, item_trie(), 5)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("max_new_tokens", [3, 5])
def test_length_penalty_and_end_token_are_those_of_generate(length_penalty: float, max_new_tokens: int) -> None:
    options = {"length_penalty": length_penalty, "max_new_tokens": max_new_tokens, "num_return_sequences": 3}
    expected, found = both(build(CONFIGS["qwen3"]), prompts_of([RECOMMENDED, SEARCHED]), item_trie(), 6, **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0)


def test_excluded_items_and_few_items_are_as_with_generate() -> None:
    excluded = [set(range(47)), {1, 2}]
    expected, found = both(build(CONFIGS["llama"]), prompts_of([RECOMMENDED, SEARCHED]), item_trie(), 5, excluded)
    live = expected.sequences_scores > DEAD_SCORE / 10
    assert live.tolist() == [True] * 3 + [False] * 2 + [True] * 5
    assert torch.equal(live, found.sequences_scores > DEAD_SCORE / 10)
    assert torch.equal(found.sequences[live], expected.sequences[live])


def test_a_prompt_may_end_inside_the_trie_or_before_its_first_edge() -> None:
    trie = Trie([[RECOMMENDED, 5, 6], [RECOMMENDED, 5, 7], [RECOMMENDED, 8, 6], [SEARCHED, 5, 6]], start_length=None)
    for prompt, num_found in (([9, 11], 4), ([9, 11, RECOMMENDED, 5], 2)):
        options = {"max_new_tokens": 5 - len(prompt)}
        expected, found = both(build(CONFIGS["llama"]), {"input_ids": torch.tensor([prompt])}, trie, 4, **options)
        assert torch.equal(found.sequences[:num_found], expected.sequences[:num_found])
        scores = found.sequences_scores, expected.sequences_scores
        torch.testing.assert_close(*(own[:num_found] for own in scores), atol=1e-4, rtol=0)


def test_free_text_is_left_as_the_model_writes_it() -> None:
    model, trie, inputs = build(CONFIGS["llama"]), item_trie(), prompts_of([FREE_TEXT, FREE_TEXT])
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [FREE_TEXT, RECOMMENDED, SEARCHED]}
    free = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, logits_processor=[TrieLogitsProcessor(trie)]), free)


# ---- exact scores


def one_by_one(model: PreTrainedModel, inputs: dict, sequences: np.ndarray) -> np.ndarray:
    """Teacher forcing of one candidate at a time, without padding; the behavior token is in the prompt."""
    scores = np.zeros(sequences.shape[:2])
    for row, candidate in np.ndindex(*scores.shape):
        prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        codes = sequences[row, candidate, 1:].tolist()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *codes[:-1]]])).logits[0, len(prompt) - 1 :]
        log_probabilities = logits.double().log_softmax(dim=-1)
        scores[row, candidate] = sum(row[code].item() for row, code in zip(log_probabilities, codes, strict=True))
    return scores


def test_scores_equal_those_of_each_candidate_alone(model: PreTrainedModel) -> None:
    inputs, rng = prompts_of([RECOMMENDED, SEARCHED, RECOMMENDED]), np.random.default_rng(1)
    sequences = np.concatenate(
        [np.array([[[RECOMMENDED]] * 6, [[SEARCHED]] * 6, [[RECOMMENDED]] * 6]), rng.integers(5, 8, (3, 6, 3))], axis=2
    )
    context = PromptContext.of_prompts(model, inputs["input_ids"][:, :-1], inputs["attention_mask"][:, :-1])
    scores = score_candidates(context, sequences)
    np.testing.assert_allclose(scores.numpy(), one_by_one(model, inputs, sequences), atol=1e-4)
    again = score_candidates(context, sequences)  # the prompts' keys and values are left as they were
    torch.testing.assert_close(again, scores, atol=0, rtol=0)


def test_some_rows_of_a_context_are_scored_as_all_are() -> None:
    inputs = prompts_of([RECOMMENDED, SEARCHED, RECOMMENDED])
    context = PromptContext.of_prompts(build(CONFIGS["qwen2"]), inputs["input_ids"], inputs["attention_mask"])
    sequences = np.random.default_rng(2).integers(5, 9, (3, 5, 4))
    whole = score_candidates(context, sequences)
    part = score_candidates(context.rows(torch.tensor([2, 0])), sequences[[2, 0]])
    torch.testing.assert_close(part, whole[[2, 0]], atol=1e-4, rtol=0)


# ---- windows, and what is refused


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SIZES | {"sliding_window": 11}),
        GPTNeoConfig(
            vocab_size=VOCAB_SIZE, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=64,
            attention_types=[[["global", "local"], 1]], window_size=11, eos_token_id=END, bos_token_id=None,
        ),
    ],
)  # fmt: skip
def test_a_window_that_is_wide_enough_makes_no_difference_and_a_narrow_one_is_refused(config: Any) -> None:
    model, trie = build(config), item_trie()
    inputs = prompts_of([RECOMMENDED, SEARCHED])  # 8 tokens and 2 codes that are read: 10
    expected, found = both(model, inputs, trie, 4)
    assert torch.equal(found.sequences, expected.sequences)
    longer = {name: torch.cat([tensor[:, :4], tensor], dim=1) for name, tensor in inputs.items()}
    with pytest.raises(ValueError, match="have 14 tokens, but the model's attention window has 11"):
        model.generate(**longer, custom_generate=TrieBeamSearch(trie), num_beams=2, max_new_tokens=3)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=8, n_layer=1, n_head=1),
            "its forward does not take a mask",
        ),
        (
            MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=8, num_hidden_layers=1),
            "its forward does not take a mask",
        ),
        (
            Qwen3Config(**SIZES, layer_types=["full_attention", "linear_attention"]),
            "some of its layers are not attention",
        ),
    ],
)
def test_models_that_depend_on_more_than_a_mask_are_refused(config: Any, reason: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=rf"does not support this \w+: {reason}.* TrieLogitsProcessor"):
        PromptContext.of_prompts(model, torch.tensor([[5, 6]]))


def test_attention_without_masks_is_refused() -> None:
    model = build(CONFIGS["llama"])
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="its attention is 'flash_attention_2'; load it with"):
        PromptContext.of_prompts(model, torch.tensor([[5, 6]]))


def test_prompts_padded_on_the_right_or_empty_are_refused() -> None:
    model, search = build(CONFIGS["llama"]), TrieBeamSearch(item_trie())
    options = {"custom_generate": search, "num_beams": 2, "max_new_tokens": 3, "pad_token_id": END}
    rows = torch.tensor([[7, 8, RECOMMENDED], [7, SEARCHED, END]])
    with pytest.raises(ValueError, match=r"begin at the same position in all rows .*; pad the prompts on the left"):
        model.generate(input_ids=rows, attention_mask=(rows != END).long(), **options)
    with pytest.raises(ValueError, match="A prompt needs at least one token before the behavior token; got none"):
        model.generate(input_ids=rows[:1, 2:], **options)


def test_nan_is_named() -> None:
    model = build(CONFIGS["llama"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    inputs = prompts_of([RECOMMENDED, SEARCHED])
    with pytest.raises(ValueError, match="scores are NaN or infinite for request 0 of 2"):
        model.generate(**inputs, custom_generate=TrieBeamSearch(item_trie()), num_beams=3, max_new_tokens=3)
