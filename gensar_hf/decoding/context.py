"""What a decoder continues from: the encoder's states, or the keys and values of a prompt."""

import inspect
from abc import ABC, abstractmethod
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, T5ForConditionalGeneration

from gensar_hf.decoding.causal_tree_decoder import CausalTreeDecoder, cache_rows
from gensar_hf.decoding.output_head import OutputHead
from gensar_hf.decoding.t5_tree_decoder import T5TreeDecoder
from gensar_hf.decoding.tree_decoder import TreeDecoder

_ATTENTION_WITH_MASKS = ("eager", "sdpa")
_SLIDING = "sliding_attention"
_LAYERS_WITH_MASKS = {"full_attention", _SLIDING}
_has_plain_logits: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class DecodingContext(ABC):
    """A model and the requests of a batch as it has read them.

    Args:
        model: that has read them.
        start_tokens: `(batch_size,)` long, the token before the trie's first edge: the root of each request's tree.
    """

    def __init__(self, model: PreTrainedModel, start_tokens: torch.Tensor) -> None:
        self.model, self.start_tokens = model, start_tokens

    def __len__(self) -> int:
        return len(self.start_tokens)

    @property
    def device(self) -> torch.device:
        """Of the requests."""
        return self.start_tokens.device

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens that the model scores."""

    @abstractmethod
    def rows(self, rows: torch.Tensor) -> "DecodingContext":
        """Some of the requests: `(num_rows,)` long, any number of times each."""

    @abstractmethod
    def tree_decoder(self, max_nodes: int, max_depth: int) -> TreeDecoder:
        """A new decoder whose trees continue the requests.

        Args:
            max_nodes: tokens that will be read for one request, its start token included.
            max_depth: tokens on the longest path from the root, the root included.
        """

    @abstractmethod
    def output_head(self) -> OutputHead:
        """For the decoder's states."""


class EncoderContext(DecodingContext):
    """A T5 and what its encoder has read.

    Args:
        model: any T5 with a language-model head.
        states: `(batch_size, num_positions, d_model)` of the encoder.
        mask: `(batch_size, num_positions)` bool, the positions that hold something.
        start_tokens: `(batch_size,)` long; default: the model's decoder start.

    Raises:
        ValueError: the model is no T5.
    """

    model: T5ForConditionalGeneration

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        states: torch.Tensor,
        mask: torch.Tensor,
        start_tokens: torch.Tensor | None = None,
    ) -> None:
        if not isinstance(model, T5ForConditionalGeneration):
            raise ValueError(
                "Of encoder-decoders, tries are decoded fast with T5 models and their subclasses; got a "
                f"{type(model).__name__}. Give `generate` a TrieLogitsProcessor instead."
            )
        if start_tokens is None:
            start_tokens = torch.full((len(states),), model.config.decoder_start_token_id, device=states.device)
        super().__init__(model, start_tokens)
        self.states, self.mask = states, mask

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model scores."""
        return self.model.config.vocab_size

    def rows(self, rows: torch.Tensor) -> "EncoderContext":
        """Some of the requests."""
        return EncoderContext(self.model, self.states[rows], self.mask[rows], self.start_tokens[rows])

    def tree_decoder(self, max_nodes: int, max_depth: int) -> TreeDecoder:
        """A new decoder whose trees continue the requests."""
        return T5TreeDecoder(self.model, self.states, self.mask, max_nodes, max_depth)

    def output_head(self) -> OutputHead:
        """For the decoder's states."""
        return OutputHead.of_t5(self.model)


class PromptContext(DecodingContext):
    """A decoder alone, and the keys and values of the prompts that it has read; see `of_prompts`.

    Args:
        model: a causal language model.
        start_tokens: `(batch_size,)` long, the last token of each prompt.
        cache: keys and values of all before it.
        mask: `(batch_size, num_cached)` bool, the tokens in the cache that are no padding.
    """

    def __init__(
        self, model: PreTrainedModel, start_tokens: torch.Tensor, cache: DynamicCache, mask: torch.Tensor
    ) -> None:
        super().__init__(model, start_tokens)
        self.cache, self.mask = cache, mask

    @classmethod
    @torch.no_grad()
    def of_prompts(
        cls, model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> "PromptContext":
        """Let a model read prompts.

        Args:
            model: a causal language model whose attention takes masks.
            input_ids: `(batch_size, num_tokens)`, padded on the left; at least one token.
            attention_mask: `(batch_size, num_tokens)`, 0 for padding; default: there is none.

        Raises:
            ValueError: an empty prompt, or a model that cannot be decoded in trees.
        """
        _refuse_model(model)
        if input_ids.shape[1] == 0:
            raise ValueError("A prompt needs a token at least before the behavior token; got none.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        cached, cached_mask, cache = input_ids[:, :-1], mask[:, :-1], DynamicCache()
        if cached.shape[1] > 0:
            positions = (cached_mask.cumsum(dim=1) - 1).clamp(min=0)
            model.base_model(
                input_ids=cached, attention_mask=cached_mask, position_ids=positions, cache=cache, use_cache=True
            )
        return cls(model, input_ids[:, -1], cache, cached_mask.bool())

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model scores."""
        return len(self.model.get_output_embeddings().weight)

    def rows(self, rows: torch.Tensor) -> "PromptContext":
        """Some of the requests."""
        return PromptContext(self.model, self.start_tokens[rows], cache_rows(self.cache, rows), self.mask[rows])

    def tree_decoder(self, max_nodes: int, max_depth: int) -> TreeDecoder:
        """A new decoder whose trees continue the requests.

        Raises:
            ValueError: the prompts and what follows them do not fit into the window of the model's attention.
        """
        window, num_tokens = _window(self.model.config), int(self.mask.sum(dim=1).max()) + max_depth
        if window is not None and num_tokens > window:
            raise ValueError(
                f"The prompts and their answers take {num_tokens} tokens, but the model's attention looks back "
                f"{window} only, which trees do not follow; shorten the histories, or give `generate` a "
                "TrieLogitsProcessor instead."
            )
        return CausalTreeDecoder(self.model, self.cache, self.mask, not _logits_are_plain(self.model))

    def output_head(self) -> OutputHead:
        """For the decoder's states."""
        return OutputHead(self.model.get_output_embeddings() if _logits_are_plain(self.model) else nn.Identity())


@torch.no_grad()
def _logits_are_plain(model: PreTrainedModel) -> bool:
    """Whether the logits are what the head makes of the last states, unscaled and not capped: asked of one token."""
    if model not in _has_plain_logits:
        token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        states = model.base_model(input_ids=token, use_cache=False).last_hidden_state
        own = model(input_ids=token, use_cache=False).logits
        logits = model.get_output_embeddings()(states)
        _has_plain_logits[model] = logits.shape == own.shape and bool((logits == own).all())
    return _has_plain_logits[model]


def _refuse_model(model: PreTrainedModel) -> None:
    """Where a mask and positions do not say all that a layer goes by, a tree would be read wrongly."""
    config = model.config.get_text_config(decoder=True)
    parameters = inspect.signature(model.forward).parameters
    reason = None
    if not {"attention_mask", "position_ids", "cache"} <= set(parameters):
        reason = "whose forward takes no mask, positions and cache"
    elif not set(getattr(config, "layer_types", None) or ()) <= _LAYERS_WITH_MASKS:
        reason = "some of whose layers are no attention over all that came before"
    elif getattr(config, "alibi", False):
        reason = "whose attention knows positions by ALiBi"
    elif config._attn_implementation not in _ATTENTION_WITH_MASKS:
        reason = f"whose attention is '{config._attn_implementation}'; load it with attn_implementation='sdpa'"
    if reason is not None:
        raise ValueError(
            f"Tries cannot be decoded in trees with a {type(model).__name__} {reason}. Give `generate` a "
            "TrieLogitsProcessor instead."
        )


def _window(model_config: PreTrainedConfig) -> int | None:
    """How far the model's attention looks back; None: to the beginning."""
    config = model_config.get_text_config(decoder=True)
    layer_types = getattr(config, "layer_types", None)
    return None if layer_types and _SLIDING not in layer_types else getattr(config, "sliding_window", None)
