"""T5's decoder over trees of tokens."""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import T5ForConditionalGeneration

from gensar_hf.decoding.tree_decoder import TreeDecoder


class T5TreeDecoder(TreeDecoder):
    """Calls the model's own layers; only attention is put together here: T5 knows positions as differences of depth.

    Args:
        model: any T5 with a language-model head.
        encoder_states: `(batch_size, num_positions, d_model)`.
        encoder_mask: `(batch_size, num_positions)` bool.
        max_nodes: tokens that will be read for one example.
        max_depth: tokens on the longest path from the root, the root included.
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
        self._decoder = decoder
        self._head_size = model.config.d_kv
        batch_size, device = len(encoder_states), encoder_states.device
        cross_layers = [block.layer[1].EncDecAttention for block in decoder.block]
        self._cross = [
            (self._heads(layer.k(encoder_states)), self._heads(layer.v(encoder_states))) for layer in cross_layers
        ]
        dtype = self._cross[0][0].dtype
        self._cross_mask = torch.zeros(encoder_mask.shape, dtype=dtype, device=device)
        self._cross_mask = self._cross_mask.masked_fill(~encoder_mask, torch.finfo(dtype).min)[:, None, None, :]
        # (num_heads, max_depth² + 1): the bias of a query at one depth for a key at another, and that of a key it
        # must not see.
        bias = decoder.block[0].layer[0].SelfAttention.compute_bias(max_depth, max_depth)[0].flatten(1)
        self._bias = torch.cat([bias, torch.full_like(bias[:, :1], torch.finfo(dtype).min)], dim=1)
        self._max_depth = max_depth
        shape = (batch_size, model.config.num_heads, max_nodes, self._head_size)
        self._self = [
            (torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in decoder.block
        ]
        self._depths = torch.empty((batch_size, max_nodes), dtype=torch.long, device=device)

    def _read(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """The states after the last layer norm."""
        first, last = self.num_nodes, self.num_nodes + tokens.shape[1]
        self._depths[:, first:last] = depths
        self_mask = self._self_mask(depths, self._depths[: len(depths), :last], visible)
        states = self._decoder.embed_tokens(tokens)
        for block, own, cross in zip(self._decoder.block, self._self, self._cross, strict=True):
            layer = block.layer[0]
            normed = layer.layer_norm(states)
            for buffer, project in zip(own, (layer.SelfAttention.k, layer.SelfAttention.v), strict=True):
                buffer[:, :, first:last] = self._heads(project(normed))
            keys, values = (buffer[:, :, :last] for buffer in own)
            states = states + self._attend(layer.SelfAttention, normed, keys, values, self_mask)
            layer = block.layer[1]
            states = states + self._attend(layer.EncDecAttention, layer.layer_norm(states), *cross, self._cross_mask)
            states = block.layer[2](states)
        return self._decoder.final_layer_norm(states)

    def _self_mask(self, depths: torch.Tensor, key_depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_heads, num_new, num_keys)`: T5's position bias, very low for keys that are not visible."""
        places = depths[:, :, None] * self._max_depth + key_depths[:, None, :]
        places = torch.where(visible, places, self._max_depth**2)
        return self._bias.index_select(1, places.flatten()).view(-1, *places.shape).transpose(0, 1)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length, num_heads * d_kv)` → `(batch_size, num_heads, length, d_kv)`."""
        return states.unflatten(-1, (-1, self._head_size)).transpose(1, 2)

    def _attend(
        self, layer: Any, states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """T5 does not scale the products of queries and keys."""
        attended = scaled_dot_product_attention(self._heads(layer.q(states)), keys, values, attn_mask=mask, scale=1.0)
        return layer.o(attended.transpose(1, 2).flatten(2))
