"""Tree decoding: many continuations of one request in one forward pass, for T5 and for decoder-only models.

`generate` gives every beam a row of its batch, so it stores and reads the keys and values of the encoder, or of the
prompt, once per beam, and computes the tokens that all beams share once per beam as well. Here a row is a request, and
its beams (or candidates) are the nodes of one tree in that row. A node attends to its ancestors only, at the position
that its depth gives it, so it gets the states that it would get at the end of its own prefix. Beams are reordered by
index, without copies.

A `DecodingContext` holds a batch of requests that a model has read, a `TreeDecoder` reads the nodes of their trees, and
an `OutputHead` turns the nodes' states into log-probabilities.
"""

import inspect
from abc import ABC, abstractmethod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, T5ForConditionalGeneration

_SLICE_TOKENS = 2048  # tokens of the vocabulary that are scored at a time: their logits stay in the cache
_SLIDING = "sliding_attention"
_has_plain_logits: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class OutputHead:
    """Log-probabilities of a few tokens under the softmax over the whole vocabulary.

    The normalizer needs every logit once, so the logits are computed and summed in slices of the vocabulary, and the
    `(num_rows, vocab_size)` table is never written.

    Args:
        head: a language-model head. If it is more than a matrix (with a bias, a hook or an adapter, quantized), it is
            called, which computes the whole table.
        scale: factor of the states before the head; None: no factor.
    """

    def __init__(self, head: nn.Module, scale: float | None = None) -> None:
        self._head, self._scale = head, scale
        is_matrix = (
            type(head) is nn.Linear and head.bias is None and not head._forward_hooks and not head._forward_pre_hooks
        )
        self._weight: torch.Tensor | None = head.weight if is_matrix else None  # type: ignore[assignment]

    @classmethod
    def of_t5(cls, model: T5ForConditionalGeneration) -> "OutputHead":
        """The head of a T5, some of which scale their states."""
        return cls(model.lm_head, model.config.d_model**-0.5 if model.config.scale_decoder_outputs else None)

    def range_log_probabilities(self, states: torch.Tensor, first_token: int, end_token: int) -> torch.Tensor:
        """Log-probabilities of the tokens `first_token` … `end_token - 1` from `(..., d_model)` decoder states.

        Returns:
            `(..., end_token - first_token)` natural logarithms, float32.
        """
        states = self._scaled(states)
        if self._weight is None:
            return self._head(states).float().log_softmax(dim=-1)[..., first_token:end_token]
        logits = linear(states, self._weight[first_token:end_token]).float()
        return logits - self._log_normalizers(states, self._weight)[..., None]

    def token_log_probabilities(self, states: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probability of one token for each of the chosen states.

        Args:
            states: `(num_states, d_model)` decoder states.
            rows: `(...)` long, the state that each token is predicted from; several tokens may use one state.
            tokens: `(...)` long.

        Returns:
            `(...)` natural logarithms, float32.
        """
        states = self._scaled(states)
        if self._weight is None:
            return self._head(states).float().log_softmax(dim=-1)[rows, tokens]
        logits = (states[rows] * self._weight[tokens]).sum(dim=-1).float()
        return logits - self._log_normalizers(states, self._weight)[rows]

    def _scaled(self, states: torch.Tensor) -> torch.Tensor:
        return states if self._scale is None else states * self._scale

    @staticmethod
    def _log_normalizers(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`(...)` float32: the logarithm of the sum of all tokens' exponentials."""
        maxima, sums = [], []
        for rows in weight.split(_SLICE_TOKENS):
            # By hand, because torch's logsumexp takes as long as the matrix product before it.
            logits = linear(states, rows).float()
            maxima.append(logits.amax(dim=-1))
            sums.append(logits.sub_(maxima[-1][..., None]).exp_().sum(dim=-1))
        slice_maxima, slice_sums = torch.stack(maxima, dim=-1), torch.stack(sums, dim=-1)
        highest = slice_maxima.amax(dim=-1)
        return highest + (slice_sums * (slice_maxima - highest[..., None]).exp()).sum(dim=-1).log()


# ---- decoders


class TreeDecoder(ABC):
    """Reads the nodes of one tree per request, in one or several calls, parents before their children.

    Args:
        batch_size: number of requests.
        device: of the tokens.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._visible = torch.empty((batch_size, 0, 0), dtype=torch.bool, device=device)  # of the nodes read last
        self.num_nodes = 0

    def read(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Read new nodes; returns their `(batch_size, num_new, d_model)` states, the input of the output head.

        Args:
            tokens: `(batch_size, num_new)`.
            depths: `(batch_size, num_new)` or `(1, num_new)`, 0 for the root.
            visible: `(batch_size, num_new, num_nodes + num_new)` bool, the node itself and its ancestors among all
                nodes read in earlier calls and this one; at least one per node.
        """
        states = self._read(tokens, depths, visible)
        self.num_nodes, self._visible = self.num_nodes + tokens.shape[1], visible
        return states

    @abstractmethod
    def _read(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """As `read`; `num_nodes` does not count the new nodes yet."""

    def read_prefix(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read the tokens that all beams of a request begin with, `(batch_size, length)`, root first.

        Returns the `(batch_size, 1, d_model)` states of the last token, the only one that may get children.
        """
        depths = torch.arange(tokens.shape[1], device=tokens.device)
        states = self.read(tokens, depths[None], (depths <= depths[:, None]).expand(len(tokens), -1, -1))
        self._visible = self._visible[:, -1:]
        return states[:, -1:]

    def read_children(self, tokens: torch.Tensor, parents: torch.Tensor, depth: int) -> torch.Tensor:
        """Read children of the nodes that were read last; returns their `(batch_size, num_new, d_model)` states.

        Args:
            tokens: `(batch_size, num_new)`.
            parents: `(batch_size, num_new)` index of each child's parent among the nodes read last.
            depth: of the children.
        """
        batch_size, num_new = tokens.shape
        ancestors = self._visible.gather(1, parents[:, :, None].expand(-1, -1, self.num_nodes))
        selves = torch.eye(num_new, dtype=torch.bool, device=tokens.device).expand(batch_size, -1, -1)
        depths = torch.full((1, num_new), depth, device=tokens.device)
        return self.read(tokens, depths, torch.cat([ancestors, selves], dim=2))


class T5TreeDecoder(TreeDecoder):
    """Tree decoding for any T5 with a language-model head; the arguments are those of `EncoderContext.tree_decoder`.

    It calls the model's own layers except for attention, where T5's position bias depends on differences of depth.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        encoder_states: torch.Tensor,
        encoder_mask: torch.Tensor,
        max_nodes: int,
        max_depth: int,
    ) -> None:
        super().__init__(len(encoder_states), encoder_states.device)
        decoder: Any = model.decoder
        self._decoder, self._head_size = decoder, model.config.d_kv
        batch_size, device = len(encoder_states), encoder_states.device
        layers = [block.layer[1].EncDecAttention for block in decoder.block]
        self._cross = [(self._heads(layer.k(encoder_states)), self._heads(layer.v(encoder_states))) for layer in layers]
        dtype = self._cross[0][0].dtype
        self._cross_mask = torch.zeros(encoder_mask.shape, dtype=dtype, device=device)
        self._cross_mask = self._cross_mask.masked_fill(~encoder_mask, torch.finfo(dtype).min)[:, None, None, :]
        # (num_heads, max_depth² + 1): the bias from each depth to each other one, and last that of an invisible key.
        bias = decoder.block[0].layer[0].SelfAttention.compute_bias(max_depth, max_depth)[0].flatten(1)
        self._bias = torch.cat([bias, torch.full_like(bias[:, :1], torch.finfo(dtype).min)], dim=1)
        self._max_depth = max_depth
        shape = (batch_size, model.config.num_heads, max_nodes, self._head_size)
        self._self = [torch.empty((2, *shape), dtype=dtype, device=device) for _ in decoder.block]  # keys, values
        self._depths = torch.empty((batch_size, max_nodes), dtype=torch.long, device=device)

    def _read(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """The states after the last layer norm."""
        first, last = self.num_nodes, self.num_nodes + tokens.shape[1]
        self._depths[:, first:last] = depths
        self_mask = self._self_mask(depths, self._depths[: len(depths), :last], visible)
        states = self._decoder.embed_tokens(tokens)
        for block, buffers, cross in zip(self._decoder.block, self._self, self._cross, strict=True):
            layer = block.layer[0]
            normed = layer.layer_norm(states)
            for buffer, project in zip(buffers, (layer.SelfAttention.k, layer.SelfAttention.v), strict=True):
                buffer[:, :, first:last] = self._heads(project(normed))
            keys, values = (buffer[:, :, :last] for buffer in buffers)
            states = states + self._attend(layer.SelfAttention, normed, keys, values, self_mask)
            layer = block.layer[1]
            states = states + self._attend(layer.EncDecAttention, layer.layer_norm(states), *cross, self._cross_mask)
            states = block.layer[2](states)
        return self._decoder.final_layer_norm(states)

    def _self_mask(self, depths: torch.Tensor, key_depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_heads, num_new, num_keys)`: T5's position bias; very low for keys that are not visible."""
        indices = depths[:, :, None] * self._max_depth + key_depths[:, None, :]
        indices = torch.where(visible, indices, self._max_depth**2)
        return self._bias.index_select(1, indices.flatten()).view(-1, *indices.shape).transpose(0, 1)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length, num_heads * d_kv)` → `(batch_size, num_heads, length, d_kv)`."""
        return states.unflatten(-1, (-1, self._head_size)).transpose(1, 2)

    def _attend(
        self, layer: Any, states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """T5 does not scale the products of queries and keys."""
        attended = scaled_dot_product_attention(self._heads(layer.q(states)), keys, values, attn_mask=mask, scale=1.0)
        return layer.o(attended.transpose(1, 2).flatten(2))


class CausalTreeDecoder(TreeDecoder):
    """Tree decoding for decoder-only models (Llama, Qwen, …).

    It calls the model's own forward with a mask and positions under which a node sees the prompt and its ancestors.

    Args:
        model: a causal language model.
        cache: keys and values of the prompts' tokens; not modified.
        prompt_mask: `(batch_size, num_prompt_tokens)` bool, False for padding.
        returns_logits: return the model's logits in place of the states that its head takes.
    """

    def __init__(
        self, model: PreTrainedModel, cache: DynamicCache, prompt_mask: torch.Tensor, returns_logits: bool
    ) -> None:
        super().__init__(len(prompt_mask), prompt_mask.device)
        self._model, self._prompt_mask, self._returns_logits = model, prompt_mask, returns_logits
        self._first_positions = prompt_mask.sum(dim=1, keepdim=True)
        self._cache = _cache_rows(cache)

    def _read(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        prompt = self._prompt_mask[:, None].expand(-1, tokens.shape[1], -1)
        lowest = torch.finfo(self._model.dtype).min
        mask = torch.zeros((), dtype=self._model.dtype, device=tokens.device)
        mask = mask.where(torch.cat([prompt, visible], dim=2), lowest)[:, None]
        model = self._model if self._returns_logits else self._model.base_model
        positions = self._first_positions + depths
        output = model(input_ids=tokens, attention_mask=mask, position_ids=positions, cache=self._cache, use_cache=True)
        return output.logits if self._returns_logits else output.last_hidden_state


def _cache_rows(cache: DynamicCache, rows: torch.Tensor | None = None) -> DynamicCache:
    """A new cache that begins with the keys and values of some rows, `(num_rows,)` long, or of all."""
    copy = DynamicCache()
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        keys, values = (layer.keys, layer.values) if rows is None else (layer.keys[rows], layer.values[rows])
        copy.update(keys, values, number)
    return copy


# ---- contexts


class DecodingContext(ABC):
    """A model and a batch of requests that it has read.

    Args:
        model: the model.
        start_tokens: `(batch_size,)` long, the token before the trie's first edge: the root of each request's tree.
    """

    def __init__(self, model: PreTrainedModel, start_tokens: torch.Tensor) -> None:
        self.model, self.start_tokens = model, start_tokens

    def __len__(self) -> int:
        return len(self.start_tokens)

    @property
    def device(self) -> torch.device:
        """Device of the requests."""
        return self.start_tokens.device

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens that the model scores."""

    @abstractmethod
    def rows(self, rows: torch.Tensor) -> "DecodingContext":
        """Some of the requests: `(num_rows,)` long, with repetitions."""

    @abstractmethod
    def tree_decoder(self, max_nodes: int, max_depth: int) -> TreeDecoder:
        """A new decoder whose trees continue the requests.

        Args:
            max_nodes: tokens that will be read for one request, including its start token.
            max_depth: tokens on the longest path from the root, including the root.
        """

    @abstractmethod
    def output_head(self) -> OutputHead:
        """The head for the decoder's states."""


class EncoderContext(DecodingContext):
    """A T5, its encoder's `states` `(batch_size, num_positions, d_model)` and `mask` of the same positions (bool).

    `start_tokens` `(batch_size,)` default to the model's decoder start.

    Raises:
        ValueError: the model is not a T5.
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
                "Tree decoding supports T5 models and their subclasses as the only encoder-decoders; got a "
                f"{type(model).__name__}. Pass a TrieLogitsProcessor to `generate` instead."
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
        """The head for the decoder's states."""
        return OutputHead.of_t5(self.model)


class PromptContext(DecodingContext):
    """A decoder-only model and the keys and values of its prompts; see `of_prompts`.

    Args:
        model: a causal language model.
        start_tokens: `(batch_size,)` long, the last token of each prompt.
        cache: keys and values of all tokens before it.
        mask: `(batch_size, num_cached)` bool, the tokens in the cache that are not padding.
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
        """Run a model over prompts.

        Args:
            model: a causal language model whose attention takes masks.
            input_ids: `(batch_size, num_tokens)`, padded on the left; at least one token.
            attention_mask: `(batch_size, num_tokens)`, 0 for padding; default: no padding.

        Raises:
            ValueError: an empty prompt, or a model that does not support tree decoding.
        """
        check_model(model)
        if input_ids.shape[1] == 0:
            raise ValueError("A prompt needs at least one token before the behavior token; got none.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        cached, mask, cache = input_ids[:, :-1], mask[:, :-1], DynamicCache()
        if cached.shape[1] > 0:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            model.base_model(input_ids=cached, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True)
        return cls(model, input_ids[:, -1], cache, mask.bool())

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model scores."""
        return len(self.model.get_output_embeddings().weight)

    def rows(self, rows: torch.Tensor) -> "PromptContext":
        """Some of the requests."""
        return PromptContext(self.model, self.start_tokens[rows], _cache_rows(self.cache, rows), self.mask[rows])

    def tree_decoder(self, max_nodes: int, max_depth: int) -> TreeDecoder:
        """A new decoder whose trees continue the requests.

        Raises:
            ValueError: the prompts and their continuations do not fit into the window of the model's attention.
        """
        window = attention_window(self.model.config)
        if window is not None and (num_tokens := int(self.mask.sum(dim=1).max()) + max_depth) > window:
            raise ValueError(
                f"The prompts and their answers have {num_tokens} tokens, but the model's attention window has "
                f"{window}, which tree decoding does not support; shorten the histories, or pass a "
                "TrieLogitsProcessor to `generate` instead."
            )
        return CausalTreeDecoder(self.model, self.cache, self.mask, not _logits_are_plain(self.model))

    def output_head(self) -> OutputHead:
        """The head for the decoder's states."""
        return OutputHead(self.model.get_output_embeddings() if _logits_are_plain(self.model) else nn.Identity())


@torch.no_grad()
def _logits_are_plain(model: PreTrainedModel) -> bool:
    """Whether the logits are the head's output for the last states, neither scaled nor capped; tested on some tokens.

    One would not do: the padding token's embedding may be zero, and all its logits with it.
    """
    if model not in _has_plain_logits:
        embeddings: Any = model.get_input_embeddings()
        tokens = torch.linspace(0, len(embeddings.weight) - 1, 4, device=model.device).long()[None]
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        expected = model(input_ids=tokens, use_cache=False).logits
        logits = model.get_output_embeddings()(states)
        _has_plain_logits[model] = logits.shape == expected.shape and bool((logits == expected).all())
    return _has_plain_logits[model]


def check_model(model: PreTrainedModel) -> None:
    """Refuse models that depend on more than a mask and positions: they would read a tree wrongly."""
    config = model.config.get_text_config(decoder=True)
    parameters = inspect.signature(model.forward).parameters
    reason = None
    if not {"attention_mask", "position_ids", "cache"} <= set(parameters):
        reason = "its forward does not take a mask, positions and a cache"
    elif not set(getattr(config, "layer_types", None) or ()) <= {"full_attention", _SLIDING}:
        reason = "some of its layers are not attention over all earlier tokens"
    elif getattr(config, "alibi", False):
        reason = "its attention uses ALiBi positions"
    elif config._attn_implementation not in ("eager", "sdpa"):
        reason = f"its attention is '{config._attn_implementation}'; load it with attn_implementation='sdpa'"
    if reason is not None:
        raise ValueError(
            f"Tree decoding does not support this {type(model).__name__}: {reason}. Otherwise pass a "
            "TrieLogitsProcessor to `generate`."
        )


def attention_window(model_config: PreTrainedConfig) -> int | None:
    """Number of tokens that all layers of the model's attention cover; None: any number."""
    config = model_config.get_text_config(decoder=True)
    if "local" in (getattr(config, "attention_layers", None) or ()):  # GPT-Neo
        return config.window_size
    layer_types = getattr(config, "layer_types", None)
    return None if layer_types and _SLIDING not in layer_types else getattr(config, "sliding_window", None)
