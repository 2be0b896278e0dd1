from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TokenizersBackend,
)
from transformers.modeling_outputs import BaseModelOutput

from gensar_hf.decoding import TrieBeamSearch, TrieLogitsProcessor
from gensar_hf.errors import InputError
from gensar_hf.generator.backbones import Backbone
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.initialization import (
    generator_from_causal_lm,
    generator_from_scratch,
    generator_from_t5,
    start_item_vectors,
)
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.identifiers import IdentifierTable

NUM_WORDS = 119


@pytest.fixture(scope="module")
def tokenizer(text_tokenizer: TokenizersBackend, identifiers: IdentifierTable) -> GenSARTokenizer:
    assert len(text_tokenizer) == NUM_WORDS
    return GenSARTokenizer.from_text_tokenizer(text_tokenizer, identifiers)


def save_t5(folder: Path, vocab_size: int, tied: bool = True) -> T5ForConditionalGeneration:
    """Untied as in T5 v1.1, which transformers builds tied, but loads with the output table that is in the file."""
    config = T5Config(
        vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tie_word_embeddings=tied,
        relative_attention_num_buckets=8, decoder_start_token_id=0, feed_forward_proj="relu" if tied else "gated-gelu",
    )  # fmt: skip
    torch.manual_seed(1)
    t5 = T5ForConditionalGeneration(config).eval()
    t5.save_pretrained(folder)
    if not tied:
        weights = load_file(folder / "model.safetensors")
        save_file(
            {**weights, "lm_head.weight": torch.randn(vocab_size, 16)}, folder / "model.safetensors", {"format": "pt"}
        )
        t5 = T5ForConditionalGeneration.from_pretrained(folder).eval()
        assert not torch.equal(t5.lm_head.weight, t5.shared.weight)
    return t5


def test_a_new_generator_fits_its_tokenizer(tokenizers: dict[str, GenSARTokenizer], encoding: str) -> None:
    tokenizer = tokenizers[encoding]
    model = generator_from_scratch(GenSARConfig(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2), tokenizer)
    assert model.config.history_encoding == encoding
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 1)
    generation = model.generation_config
    assert (generation.decoder_start_token_id, generation.pad_token_id, generation.eos_token_id) == (0, 0, 1)
    assert (generation.num_beams, generation.max_new_tokens, generation.length_penalty) == (30, 4, 0.0)


def test_a_new_generator_is_drawn_as_a_t5_is(tokenizers: dict[str, GenSARTokenizer]) -> None:
    """Including the encoder, although its class is not T5's."""
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    torch.manual_seed(0)
    model = generator_from_scratch(GenSARConfig(**sizes), tokenizers["events"])
    t5 = T5ForConditionalGeneration(T5Config(**sizes, vocab_size=len(tokenizers["events"])))
    theirs = dict(t5.named_parameters())
    ours = {name for name, _ in model.named_parameters() if "event_projection" not in name}
    assert ours == set(theirs)
    for name, parameter in model.named_parameters():
        if parameter.numel() > 1000 and name in theirs:
            assert parameter.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name


def test_the_event_projection_starts_as_the_identity(tokenizers: dict[str, GenSARTokenizer]) -> None:
    torch.manual_seed(0)
    model = generator_from_scratch(GenSARConfig(d_model=64, d_kv=16, num_heads=4, d_ff=128), tokenizers["events"])
    projection = model.encoder.event_projection
    pooled = torch.randn(2, 3, 64)
    assert torch.equal(projection(pooled), pooled)
    assert projection.wi.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
    projection(pooled).sum().backward()
    assert projection.wo.weight.grad.abs().sum() > 0  # and it learns from there


@pytest.mark.parametrize("vocab_size", [NUM_WORDS, NUM_WORDS + 9, NUM_WORDS + 40])
def test_t5_keeps_its_words_and_gets_distinct_new_rows(
    vocab_size: int, tokenizer: GenSARTokenizer, tmp_path: Path
) -> None:
    """T5's table has 28 rows more than its vocabulary has tokens; the new tokens take those first."""
    t5 = save_t5(tmp_path, vocab_size)
    model = generator_from_t5(tmp_path, tokenizer)
    assert type(model) is GenSARForConditionalGeneration
    weight, old = model.shared.weight.detach(), t5.shared.weight.detach()
    assert torch.equal(weight[:NUM_WORDS], old[:NUM_WORDS])
    new = weight[torch.from_numpy(tokenizer.code_token_ids)]
    assert not torch.isin(new, old).any()  # drawn, not left over
    distances = torch.cdist(new, new)[~torch.eye(len(new), dtype=torch.bool)]
    assert distances.min() > 1
    assert new.std().item() == pytest.approx(old.std().item(), rel=0.15)
    assert model.lm_head.weight is model.shared.weight
    assert len(weight) == max(vocab_size, len(tokenizer)) == model.config.vocab_size


@pytest.mark.parametrize("tied", [True, False])
def test_t5_answers_as_before_where_only_words_are_read(tied: bool, tokenizer: GenSARTokenizer, tmp_path: Path) -> None:
    t5 = save_t5(tmp_path, NUM_WORDS, tied)
    model = generator_from_t5(tmp_path, tokenizer).eval()
    assert model.config.history_encoding == "tokens"
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "decoder_input_ids": torch.tensor([[0, 9, 11]])}
    with torch.no_grad():
        expected = t5(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits[..., :NUM_WORDS], expected, atol=1e-6, rtol=0)


def test_an_untied_output_table_stays_untied_with_rows_of_its_own(tokenizer: GenSARTokenizer, tmp_path: Path) -> None:
    """T5 v1.1 and flan: resizing would tie the two tables silently."""
    t5 = save_t5(tmp_path / "t5", NUM_WORDS, tied=False)
    model = generator_from_t5(tmp_path / "t5", tokenizer)
    head = model.lm_head.weight.detach()
    assert not torch.isclose(head, model.shared.weight).all(dim=1).any()
    assert torch.equal(head[:NUM_WORDS], t5.lm_head.weight)
    new = head[NUM_WORDS:]
    assert torch.cdist(new, new)[~torch.eye(len(new), dtype=torch.bool)].min() > 1
    model.save_pretrained(tmp_path / "saved")
    loaded = GenSARForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.lm_head.weight, head)
    assert torch.equal(loaded.shared.weight, model.shared.weight)


def test_the_draw_follows_the_seed(tokenizer: GenSARTokenizer, tmp_path: Path) -> None:
    save_t5(tmp_path, NUM_WORDS)
    tables = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        tables.append(generator_from_t5(tmp_path, tokenizer).shared.weight)
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_an_untied_t5_finds_the_same_with_the_fast_search_and_when_loaded_again(
    tokenizer: GenSARTokenizer, tmp_path: Path
) -> None:
    """T5 v1.1 and flan: gated feed-forward layers, an output table of its own that is not scaled."""
    save_t5(tmp_path / "t5", NUM_WORDS + 3, tied=False)
    model = generator_from_t5(tmp_path / "t5", tokenizer).eval()
    model.save_pretrained(tmp_path / "saved")
    loaded = GenSARForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert loaded.config.is_gated_act
    assert not torch.isclose(loaded.lm_head.weight, loaded.shared.weight).all(dim=1).any()
    inputs = tokenizer.encode_request([[{"item_id": "film-2"}], []], [None, "comedy"], ["<R_I>", "<S_I>"])
    options = {"num_beams": 12, "num_return_sequences": 12, "return_dict_in_generate": True, "output_scores": True}
    expected = model.generate(**inputs, **options, logits_processor=[TrieLogitsProcessor(tokenizer.trie)])
    assert sorted(tokenizer.decode_item_rows(expected.sequences[:12])) == list(range(12))
    for own in (model, loaded):
        found = own.generate(**inputs, **options, custom_generate=TrieBeamSearch(tokenizer.trie))
        assert torch.equal(found.sequences, expected.sequences)
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0)


# ---- decoder-only models


def save_llama(folder: Path, vocab_size: int, tied: bool) -> LlamaForCausalLM:
    """With generation settings of a chat model, which would sample."""
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied, eos_token_id=5, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(1)
    llama = LlamaForCausalLM(config).eval()
    llama.generation_config = GenerationConfig(do_sample=True, temperature=0.6, eos_token_id=[5, 6], bos_token_id=7)
    llama.save_pretrained(folder)
    return llama


@pytest.mark.parametrize("vocab_size", [NUM_WORDS, NUM_WORDS + 40])
@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_only_model_keeps_its_words_and_gets_distinct_new_rows(
    vocab_size: int, tied: bool, text_tokenizer: TokenizersBackend, identifiers: IdentifierTable, tmp_path: Path
) -> None:
    llama = save_llama(tmp_path / "llama", vocab_size, tied)
    tokenizer = GenSARTokenizer.from_text_tokenizer(text_tokenizer, identifiers, decoder_only=True)
    model = generator_from_causal_lm(Backbone(str(tmp_path / "llama")).causal_model(), tokenizer).eval()
    model.save_pretrained(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert type(model) is LlamaForCausalLM
    tables = [own.get_input_embeddings().weight for own in (model, llama)]
    heads = [own.get_output_embeddings().weight for own in (model, llama)]
    assert (heads[0] is tables[0]) is tied
    for weight, old in (tables, heads):
        assert len(weight) == max(vocab_size, len(tokenizer)) == model.config.vocab_size
        assert torch.equal(weight[:NUM_WORDS], old[:NUM_WORDS])
        new = weight[torch.from_numpy(tokenizer.code_token_ids)].detach()
        assert torch.cdist(new, new)[~torch.eye(len(new), dtype=torch.bool)].min() > 0.3
        assert new.std().item() == pytest.approx(old.std().item(), rel=0.15)
    generation = model.generation_config
    assert (generation.do_sample, generation.temperature) in ((None, None), (False, 1.0))
    assert (generation.pad_token_id, generation.eos_token_id, generation.bos_token_id) == (0, 1, 7)
    assert (generation.num_beams, generation.max_new_tokens, generation.length_penalty) == (30, 4, 0.0)


def test_a_checkpoint_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"The checkpoint '.*nowhere' cannot be loaded \(.*\); give a folder, or a name"
    ):
        Backbone(str(tmp_path / "nowhere")).config()


def test_a_folder_with_one_gguf_file_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "model.Q4_1.gguf").touch()
    assert Backbone(str(tmp_path)).gguf_file == "model.Q4_1.gguf"
    (tmp_path / "other.gguf").touch()
    assert Backbone(str(tmp_path)).gguf_file is None
    (tmp_path / "other.gguf").unlink()
    (tmp_path / "config.json").touch()
    assert Backbone(str(tmp_path)).gguf_file is None
    assert Backbone("google-t5/t5-small").gguf_file is None


def test_item_vectors_begin_as_what_is_known_and_biases_as_popularity(tokenizers: dict[str, GenSARTokenizer]) -> None:
    rng = np.random.default_rng(0)
    embeddings = [5 + 3 * rng.normal(size=(12, dim)) for dim in (4, 6)]
    config = GenSARConfig(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_items=12)
    model = generator_from_scratch(config, tokenizers["events"])
    clicks = np.arange(12) ** 2
    start_item_vectors(model, embeddings, clicks)
    vectors, bias = model.encoder.items.table.weight.detach().numpy(), model.encoder.items.bias.detach().numpy()
    centred = [matrix - matrix.mean(axis=0) for matrix in embeddings]
    products = sum(matrix @ matrix.T / (matrix**2).mean() for matrix in centred)
    pairs = np.triu_indices(12)
    assert np.corrcoef((vectors @ vectors.T)[pairs], products[pairs])[0, 1] == pytest.approx(1, abs=1e-5)
    assert vectors.std() == pytest.approx(0.1, rel=1e-5)
    assert bias == pytest.approx(np.log1p(clicks) - np.log1p(clicks).mean(), abs=1e-6)
    with pytest.raises(ValueError, match="has no item vectors"):
        start_item_vectors(
            generator_from_scratch(GenSARConfig(d_model=8, d_kv=4, d_ff=8, num_layers=1), tokenizers["events"]),
            embeddings,
            clicks,
        )


def test_an_untrained_generator_copies_the_codes_that_its_encoder_shows(tokenizers: dict[str, GenSARTokenizer]) -> None:
    tokenizer = tokenizers["events"]
    model = generator_from_scratch(GenSARConfig(d_model=128, d_kv=32, d_ff=64, num_layers=1), tokenizer).eval()
    codes = torch.arange(len(tokenizer))
    shown = BaseModelOutput(last_hidden_state=model.get_input_embeddings()(codes)[:, None])
    start = torch.full((len(codes), 1), model.config.decoder_start_token_id)
    with torch.no_grad():
        logits = model(encoder_outputs=shown, decoder_input_ids=start).logits[:, 0]
    rank = (logits > logits[codes, codes][:, None]).sum(dim=1)
    assert rank.float().mean() < 0.05 * len(codes)


@pytest.mark.parametrize(
    ("model_type", "sizes", "reason"),
    [
        ("bart", {}, "of encoder-decoders only t5 and mt5 do"),
        ("bloom", {"n_layer": 1}, "its forward does not take a mask, positions and a cache"),
        ("mamba", {"num_hidden_layers": 1}, "its forward does not take a mask"),
        ("bert", {"num_hidden_layers": 1}, "it is no causal language model"),
        ("gpt2", {"n_positions": 128, "n_layer": 1}, "have room for 128 tokens of 512"),
        ("mistral", {"sliding_window": 128, "num_hidden_layers": 1}, "have room for 128 tokens of 512"),
        (
            "gpt_neo",
            {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
            "have room for 256 tokens of 512",
        ),
    ],
)
def test_a_checkpoint_that_cannot_become_a_generator_is_refused_by_its_configuration(
    model_type: str, sizes: dict[str, int], reason: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(model_type, **sizes).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"a {model_type}, cannot become a generator: .*{reason}"):
        Backbone(str(tmp_path)).check()


def test_a_long_prompt_loses_its_oldest_events_where_its_length_has_a_bound(
    text_tokenizer: TokenizersBackend, identifiers: IdentifierTable
) -> None:
    options = {"decoder_only": True, "num_positions": 300}
    tokenizer = GenSARTokenizer.from_text_tokenizer(text_tokenizer, identifiers, **options)
    history = [{"query": "space adventure " * 5}] * 30 + [{"item_id": "film-2"}]
    prompt = tokenizer.encode_request(history, "horror", "<S_I>")["input_ids"][0].tolist()
    assert len(prompt) <= 300 - 160
    last = tokenizer.encode_request(history[-1:], "horror", "<S_I>")["input_ids"][0].tolist()
    assert (prompt[:4], prompt[-9:]) == (last[:4], last[-9:])


def test_a_t5_s_own_generation_settings_do_not_stay(tokenizer: GenSARTokenizer, tmp_path: Path) -> None:
    t5 = save_t5(tmp_path, 200)
    t5.generation_config.update(no_repeat_ngram_size=3, min_length=30, repetition_penalty=2.0)
    t5.save_pretrained(tmp_path)
    settings = generator_from_t5(tmp_path, tokenizer).generation_config.to_diff_dict()
    assert not {"no_repeat_ngram_size", "min_length", "repetition_penalty"} & set(settings)
    assert settings["num_beams"] == 30


def test_a_t5_without_all_its_weights_is_refused(tokenizer: GenSARTokenizer, tmp_path: Path) -> None:
    t5 = save_t5(tmp_path, 200)
    state = {name: value for name, value in t5.state_dict().items() if "final_layer_norm" not in name}
    t5.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InputError, match=r"decoder\.final_layer_norm\.weight is missing"):
        generator_from_t5(tmp_path, tokenizer)
