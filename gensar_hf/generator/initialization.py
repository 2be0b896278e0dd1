"""New generators: from scratch, or on top of pretrained T5 weights."""

import os

import torch
from transformers import T5Config

from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

DEFAULT_NUM_BEAMS = 30  # the paper's


def generator_from_scratch(config: GenSARConfig, tokenizer: GenSARTokenizer) -> GenSARForConditionalGeneration:
    """A randomly initialised generator (torch's global generator: call `transformers.set_seed` before).

    Args:
        config: sizes; the vocabulary and the special tokens are taken from the tokenizer.
        tokenizer: with the catalogue's identifiers.
    """
    config.vocab_size = len(tokenizer)
    config.pad_token_id = config.decoder_start_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.history_encoding = tokenizer.history_encoding
    model = GenSARForConditionalGeneration(config)
    _set_generation_defaults(model, tokenizer)
    return model


def generator_from_t5(name_or_path: str | os.PathLike, tokenizer: GenSARTokenizer) -> GenSARForConditionalGeneration:
    """A generator that starts from T5 weights; the new tokens' embeddings are drawn anew.

    Args:
        name_or_path: a T5 checkpoint, a folder or a name on the Hub.
        tokenizer: made from the checkpoint's own by `GenSARTokenizer.from_text_tokenizer`.
    """
    pretrained = T5Config.from_pretrained(name_or_path).to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        pretrained.pop(name, None)
    config = GenSARConfig(**{**pretrained, "history_encoding": tokenizer.history_encoding})
    config.decoder_start_token_id = config.pad_token_id
    model = GenSARForConditionalGeneration.from_pretrained(name_or_path, config=config)
    # T5 v1.1 has an output table of its own, but says "tied" all the same, and resizing would then drop that table.
    model.config.tie_word_embeddings = model.lm_head.weight is model.shared.weight
    if len(tokenizer) > model.config.vocab_size:
        # transformers' default draws all new rows from one narrow Gaussian, near copies of one another.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    _draw_new_rows(model, tokenizer)
    _set_generation_defaults(model, tokenizer)
    return model


def _draw_new_rows(model: GenSARForConditionalGeneration, tokenizer: GenSARTokenizer) -> None:
    """Rows for the behavior and code tokens, spread like those of the words.

    T5's tables are larger than its vocabulary; what the new tokens find there was never trained and is drawn, too.
    """
    new_ids = torch.from_numpy(tokenizer.code_token_ids)
    is_tied = model.lm_head.weight is model.shared.weight
    with torch.no_grad():
        for weight in [model.shared.weight] if is_tied else [model.shared.weight, model.lm_head.weight]:
            is_word = torch.ones(len(weight), dtype=torch.bool)
            is_word[new_ids] = False
            weight[new_ids] = torch.randn(len(new_ids), weight.shape[1], dtype=weight.dtype) * weight[is_word].std()


def _set_generation_defaults(model: GenSARForConditionalGeneration, tokenizer: GenSARTokenizer) -> None:
    """So that plain `model.generate` with the trie finds items: stop after the last code, rank by the sum of logs."""
    generation = model.generation_config
    generation.decoder_start_token_id = tokenizer.pad_token_id
    generation.pad_token_id, generation.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    generation.num_beams = DEFAULT_NUM_BEAMS
    generation.max_new_tokens = tokenizer.identifiers.num_levels
    generation.length_penalty = 0.0
