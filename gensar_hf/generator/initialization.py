"""New generators: from scratch, or on top of the pretrained weights of a T5 or of a decoder alone."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, T5Config

from gensar_hf.data import Behavior
from gensar_hf.generator.backbones import Backbone
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.item_vectors import ITEM_VECTOR_STD, ItemVectors, share_features
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


def generator_from_t5(
    name_or_path: str | os.PathLike, tokenizer: GenSARTokenizer, **options: Any
) -> GenSARForConditionalGeneration:
    """A generator that starts from T5 weights; the new tokens' embeddings are drawn anew.

    Args:
        name_or_path: a T5 checkpoint, a folder or a name on the Hub.
        tokenizer: made from the checkpoint's own by `GenSARTokenizer.from_text_tokenizer`.
        options: of `GenSARConfig` that T5 does not have.
    """
    pretrained = T5Config.from_pretrained(name_or_path).to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        pretrained.pop(name, None)
    config = GenSARConfig(**{**pretrained, "history_encoding": tokenizer.history_encoding, **options})
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


def generator_from_causal_lm(backbone: Backbone, tokenizer: GenSARTokenizer) -> PreTrainedModel:
    """A decoder alone with rows for the new tokens; it stays what it is, any `AutoModelForCausalLM`.

    Args:
        backbone: its checkpoint.
        tokenizer: made from the checkpoint's own by `GenSARTokenizer.from_text_tokenizer(…, decoder_only=True)`.
    """
    model = backbone.causal_model()
    inputs: Any = model.get_input_embeddings()
    if len(tokenizer) > len(inputs.weight):
        model.config.tie_word_embeddings = model.get_output_embeddings().weight is inputs.weight
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    _draw_new_rows(model, tokenizer)
    # What the checkpoint came with may sample, or end at the tokens of a chat.
    model.generation_config = GenerationConfig(bos_token_id=model.generation_config.bos_token_id)
    model.config.pad_token_id = tokenizer.pad_token_id
    _set_generation_defaults(model, tokenizer)
    return model


def _draw_new_rows(model: PreTrainedModel, tokenizer: GenSARTokenizer) -> None:
    """Rows for the behavior and code tokens, spread like those of the words.

    T5's tables are larger than its vocabulary; what the new tokens find there was never trained and is drawn, too.

    Those of a decoder alone are spread around the words' mean, dimension by dimension: its states lean far towards some
    dimensions, which the words' rows balance. Of SmolLM2-135M the first loss on identifiers was 13 and not 26, log of
    the vocabulary being 11.
    """
    new_ids = torch.from_numpy(tokenizer.code_token_ids)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in [inputs] if outputs is inputs else [inputs, outputs]:
            is_word = torch.ones(len(weight), dtype=torch.bool)
            is_word[new_ids] = False
            drawn = torch.randn(len(new_ids), weight.shape[1], dtype=weight.dtype)
            words = weight[is_word]
            if tokenizer.decoder_only:
                weight[new_ids] = words.mean(dim=0) + drawn * words.std(dim=0)
            else:
                weight[new_ids] = drawn * words.std()


def _set_generation_defaults(model: PreTrainedModel, tokenizer: GenSARTokenizer) -> None:
    """So that plain `model.generate` with the trie finds items: stop after the last code, rank by the sum of logs."""
    generation = model.generation_config
    if not tokenizer.decoder_only:
        generation.decoder_start_token_id = tokenizer.pad_token_id
    generation.pad_token_id, generation.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    generation.num_beams = DEFAULT_NUM_BEAMS
    generation.max_new_tokens = tokenizer.identifiers.num_levels
    generation.length_penalty = 0.0


def start_codes_near_their_items(
    model: PreTrainedModel,
    tokenizer: GenSARTokenizer,
    item_embeddings: Sequence[np.ndarray],
    information: float | torch.Tensor = 1.0,
    noise: float = 1.0,
    seed: int = 0,
) -> None:
    """Let the sum of an identifier's code embeddings begin near what is known of the item.

    Drawn at random, codes know nothing of the items that they stand for, and a generator spends its first epochs on
    finding out. The item vectors are the leading principal components of each kind of embedding, an equal share of the
    model's width each, turned at random. As in residual quantization, a code's vector is the mean, over its items, of
    what the codes of the levels before have left over.

    Args:
        model: its input table is changed in place.
        tokenizer: with the identifiers of all items.
        item_embeddings: `(num_items, dim)` each, in the order of the identifier table, such as the semantic and the
            collaborative ones.
        information: standard deviation of the code vectors, in all dimensions or, `(width,)`, in each. A T5's
            embeddings have one of 1 when it is new, those of other models a smaller one.
        noise: what is kept of the embeddings that are there.
        seed: of the turn.
    """
    inputs: Any = model.get_input_embeddings()
    weight = inputs.weight
    width = weight.shape[1]
    items = _principal_components(item_embeddings, width)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))
    vectors: dict[int, np.ndarray] = {}
    for behavior in (Behavior.SEARCHED_ITEM, Behavior.RECOMMENDED_ITEM):
        residuals = items @ turn
        for codes in tokenizer.item_token_ids[behavior][:, 1:].T:
            tokens, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
            means = np.zeros((len(tokens), width))
            np.add.at(means, places, residuals)
            means /= counts[:, None]
            residuals = residuals - means[places]
            vectors.update(zip(tokens.tolist(), means, strict=True))
    rows = torch.tensor(list(vectors), device=weight.device)
    begun = torch.from_numpy(np.stack(list(vectors.values()))).to(weight)
    with torch.no_grad():
        weight[rows] = noise * weight[rows] + information * begun / begun.std()


def start_item_vectors(
    model: GenSARForConditionalGeneration,
    item_embeddings: Sequence[np.ndarray],
    num_clicks: np.ndarray,
    seed: int = 0,
) -> None:
    """Let the item vectors begin as what is known of the items, and their biases as the items' popularity.

    Args:
        model: with item vectors, which are changed in place.
        item_embeddings: as for `start_codes_near_their_items`.
        num_clicks: `(num_items,)` in training.
        seed: of the turn.

    Raises:
        ValueError: the model has no item vectors.
    """
    items = _item_vectors(model)
    features, feature_map = _item_features(item_embeddings, model.config.d_model, seed)
    popularity = np.log1p(num_clicks)
    with torch.no_grad():
        items.table.weight.copy_(torch.from_numpy(features @ feature_map))
        items.bias.copy_(torch.from_numpy(popularity - popularity.mean()))


def share_item_features(
    model: GenSARForConditionalGeneration, item_embeddings: Sequence[np.ndarray], seed: int = 0
) -> None:
    """Let the item vectors be trained as a map of what is known of the items, and a part of each item's own.

    They keep their values.

    Args:
        model: with item vectors, begun by `start_item_vectors` with the same embeddings and seed.
        item_embeddings: their leading components are the features.
        seed: of the turn.

    Raises:
        ValueError: the model has no item vectors.
    """
    features, feature_map = _item_features(item_embeddings, model.config.d_model, seed)
    share_features(_item_vectors(model), torch.from_numpy(features), torch.from_numpy(feature_map))


def _item_vectors(model: GenSARForConditionalGeneration) -> ItemVectors:
    if model.encoder.items is None:
        raise ValueError("The model has no item vectors; give it `num_items`.")
    return model.encoder.items


def _item_features(item_embeddings: Sequence[np.ndarray], width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`(num_items, width)` of variance 1, and `(width, width)`, which turns and scales them into new item vectors."""
    features = _principal_components(item_embeddings, width)
    features /= features.std()
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))
    return features, turn * ITEM_VECTOR_STD / (features @ turn).std()


def _principal_components(item_embeddings: Sequence[np.ndarray], width: int) -> np.ndarray:
    """`(num_items, width)`: of each matrix the leading components, scaled to one variance; zeros where they run out."""
    parts = []
    for embeddings in item_embeddings:
        centred = embeddings.astype(np.float64) - embeddings.mean(axis=0)
        # By the covariance: a catalogue has far more items than embeddings have dimensions.
        _, axes = np.linalg.eigh(centred.T @ centred)
        projected = centred @ axes[:, ::-1][:, : width // len(item_embeddings)]
        parts.append(projected / max(projected.std(), np.finfo(np.float64).tiny))
    items = np.concatenate(parts, axis=1)
    return np.pad(items, ((0, 0), (0, width - items.shape[1])))
