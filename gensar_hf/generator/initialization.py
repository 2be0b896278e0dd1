"""New generators: from scratch, or from the pretrained weights of a T5 or of a decoder-only model."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from gensar_hf.generator.backbones import Backbone
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.item_vectors import ITEM_VECTOR_STD, item_vectors_of, share_features
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.item_embeddings import row_chunks

DEFAULT_NUM_BEAMS = 30  # the paper's
_CHUNK_ROWS = 65_536  # of embeddings in float64 at once


def generator_from_scratch(config: GenSARConfig, tokenizer: GenSARTokenizer) -> GenSARForConditionalGeneration:
    """A randomly initialized generator (by torch's global generator: call `transformers.set_seed` before).

    Args:
        config: sizes; the vocabulary, the special tokens and the history encoding are set from the tokenizer.
        tokenizer: with the catalogue's identifiers.
    """
    config.vocab_size = len(tokenizer)
    config.pad_token_id = config.decoder_start_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.history_encoding = tokenizer.history_encoding
    model = GenSARForConditionalGeneration(config)
    # Cross-attention starts by passing on what it attends to. The codes of clicked items, and of items whose texts fit
    # a query, stand in the encoder's states as they are embedded, so the decoder can copy them before it has learned.
    with torch.no_grad():
        blocks: Any = model.decoder.block
        for block in blocks:
            attention = block.layer[1].EncDecAttention
            torch.nn.init.orthogonal_(attention.v.weight)
            attention.o.weight.copy_(attention.v.weight.T)
    set_generation_defaults(model, tokenizer)
    return model


def generator_from_t5(
    name_or_path: str | os.PathLike, tokenizer: GenSARTokenizer, **options: Any
) -> GenSARForConditionalGeneration:
    """A generator with T5 weights and random embeddings of the new tokens.

    Args:
        name_or_path: a T5 checkpoint, a folder or a name on the Hub; its sizes replace the defaults of `GenSARConfig`.
        tokenizer: made from the checkpoint's tokenizer by `GenSARTokenizer.from_text_tokenizer`.
        options: fields of `GenSARConfig` that T5 does not have.
    """
    t5: Any = Backbone(os.fspath(name_or_path)).t5_model()
    pretrained = t5.config.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "dtype"):
        pretrained.pop(name, None)
    config = GenSARConfig(**{**pretrained, "history_encoding": tokenizer.history_encoding, **options})
    config.decoder_start_token_id = config.pad_token_id
    model = GenSARForConditionalGeneration(config)
    is_tied = t5.lm_head.weight is t5.shared.weight
    if not is_tied:  # as in T5 v1.1, whose configuration may say otherwise
        model.lm_head.weight = torch.nn.Parameter(t5.lm_head.weight.detach())
    model.load_state_dict(t5.state_dict(), strict=False)  # the parts that T5 does not have stay new
    _add_new_rows(model, tokenizer)
    set_generation_defaults(model, tokenizer)
    return model


def generator_from_causal_lm(model: PreTrainedModel, tokenizer: GenSARTokenizer) -> PreTrainedModel:
    """A decoder-only model with embeddings of the new tokens, in place.

    Args:
        model: `Backbone.causal_model`.
        tokenizer: made from the checkpoint's tokenizer by `GenSARTokenizer.from_text_tokenizer(…, decoder_only=True)`.
    """
    _add_new_rows(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    set_generation_defaults(model, tokenizer)
    return model


def _add_new_rows(model: PreTrainedModel, tokenizer: GenSARTokenizer) -> None:
    """Add embeddings of the behavior and code tokens, drawn with the spread of the words' embeddings.

    T5's tables are larger than its vocabulary; rows there that new tokens take over were never trained and are drawn as
    well.

    In a decoder-only model the rows are drawn around the words' mean, dimension by dimension, because the states lean
    towards some dimensions that the words' rows balance. With SmolLM2-135M the first loss on identifiers was 13 instead
    of 26 (log of the vocabulary: 11).
    """
    new_ids = torch.from_numpy(tokenizer.code_token_ids)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    # T5 v1.1 has a separate output table although its configuration says "tied"; resizing would drop that table.
    model.config.tie_word_embeddings = outputs is inputs
    if len(tokenizer) > len(inputs):  # type: ignore[arg-type]
        # transformers' default draws all new rows from one narrow Gaussian, near copies of one another.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
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


def set_generation_defaults(model: PreTrainedModel, tokenizer: GenSARTokenizer) -> None:
    """Defaults of `model.generate` for items: stop after the last code, rank by the sum of log-probabilities.

    They replace those of a checkpoint, which may sample, ban n-grams or end at the tokens of a chat.
    """
    generation = GenerationConfig(bos_token_id=model.generation_config.bos_token_id)
    model.generation_config = generation
    if not tokenizer.decoder_only:
        generation.decoder_start_token_id = tokenizer.pad_token_id
    generation.pad_token_id, generation.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    generation.num_beams = DEFAULT_NUM_BEAMS
    generation.max_new_tokens = tokenizer.identifiers.num_levels
    generation.length_penalty = 0.0


def start_item_vectors(
    model: GenSARForConditionalGeneration,
    item_embeddings: Sequence[np.ndarray],
    num_clicks: np.ndarray,
    seed: int = 0,
) -> None:
    """Set the item vectors to the leading principal components of the items' embeddings, turned at random, in place.

    Each kind of embedding gets an equal share of the width. The biases become the items' log popularity.

    Args:
        model: with item vectors.
        item_embeddings: `(num_items, dim)` each, in the order of the identifier table, such as the semantic and the
            collaborative ones.
        num_clicks: `(num_items,)` training clicks.
        seed: of the random rotation.

    Raises:
        ValueError: the model has no item vectors.
    """
    items = item_vectors_of(model)
    features, feature_map = _item_features(item_embeddings, model.config.d_model, seed)
    popularity = np.log1p(num_clicks)
    with torch.no_grad():
        items.table.weight.copy_(torch.from_numpy(features @ feature_map))
        items.bias.copy_(torch.from_numpy(popularity - popularity.mean()))


def share_item_features(
    model: GenSARForConditionalGeneration, item_embeddings: Sequence[np.ndarray], seed: int = 0
) -> None:
    """Train the item vectors as a linear map of the items' embeddings plus a rest (`item_vectors.share_features`).

    The vectors were set by `start_item_vectors` with the same embeddings and seed. Raises `ValueError` if the model has
    none.
    """
    features, feature_map = _item_features(item_embeddings, model.config.d_model, seed)
    share_features(item_vectors_of(model), torch.from_numpy(features), torch.from_numpy(feature_map))


def _item_features(item_embeddings: Sequence[np.ndarray], width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features `(num_items, width)` of variance 1 and the map `(width, width)` from them to new item vectors.

    The features are the leading principal components of each matrix, an equal share of `width` each, scaled to one
    variance; zeros fill the rest.
    """
    num_items, share = len(item_embeddings[0]), width // len(item_embeddings)
    # A large catalogue's features are float32: in float64 those of a million items would take gigabytes.
    features = np.zeros((num_items, width), dtype=np.float64 if num_items <= _CHUNK_ROWS else np.float32)
    for place, embeddings in enumerate(item_embeddings):
        mean, chunks = embeddings.mean(axis=0), list(row_chunks(num_items, _CHUNK_ROWS))
        # By the covariance: a catalogue has far more items than embeddings have dimensions.
        covariance = np.zeros((embeddings.shape[1], embeddings.shape[1]))
        for rows in chunks:
            centered = embeddings[rows].astype(np.float64) - mean
            covariance += centered.T @ centered
        _, axes = np.linalg.eigh(covariance)
        axes = axes[:, ::-1][:, :share]
        projected = features[:, place * share : place * share + axes.shape[1]]
        for rows in chunks:
            projected[rows] = (embeddings[rows].astype(np.float64) - mean) @ axes
        projected /= max(projected.std(), np.finfo(np.float64).tiny)
    features /= features.std()
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))
    turn = turn.astype(features.dtype)
    return features, turn * ITEM_VECTOR_STD / (features @ turn).std()
