"""Exact scores of given candidates in one decoder forward over their distinct prefixes.

The candidates of a request form a small tree. Its nodes stand behind one another in one decoder row; a node attends
to its ancestors only, and T5's relative positions are differences of depth, so every node computes what it would
compute at the end of its own prefix.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import T5ForConditionalGeneration


@dataclass(frozen=True)
class PrefixTree:
    """The distinct prefixes of one request's candidates, decoder start first.

    Attributes:
        tokens: `(num_nodes,)` the last token of each prefix.
        depths: `(num_nodes,)` 0 for the decoder start.
        ancestors: `(num_nodes, num_nodes)` bool: `ancestors[i, j]`, prefix j is a beginning of prefix i or i itself.
        nodes: `(num_candidates, length)` the node from which each token of each candidate is predicted.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ancestors: np.ndarray
    nodes: np.ndarray

    @classmethod
    def of_sequences(cls, sequences: np.ndarray, start_token_id: int) -> "PrefixTree":
        """Build the tree of `(num_candidates, length)` token sequences, which do not include the decoder start."""
        num_candidates, length = sequences.shape
        tokens, depths, parents = [np.array([start_token_id])], [np.zeros(1, dtype=np.int64)], [np.array([-1])]
        nodes = np.zeros((num_candidates, length), dtype=np.int64)
        num_nodes, token_limit = 1, int(sequences.max()) + 1
        for depth in range(1, length):  # the last token is predicted, never read
            keys = nodes[:, depth - 1] * token_limit + sequences[:, depth - 1]
            distinct, inverse = np.unique(keys, return_inverse=True)
            nodes[:, depth] = num_nodes + inverse
            tokens.append(distinct % token_limit)
            parents.append(distinct // token_limit)
            depths.append(np.full(len(distinct), depth))
            num_nodes += len(distinct)
        ancestors = np.eye(num_nodes, dtype=bool)
        first = 1
        for level_parents in parents[1:]:
            ancestors[first : first + len(level_parents)] |= ancestors[level_parents]
            first += len(level_parents)
        return cls(np.concatenate(tokens), np.concatenate(depths), ancestors, nodes)


@torch.inference_mode()
def score_candidates(
    model: T5ForConditionalGeneration,
    encoder_states: torch.Tensor,
    encoder_mask: torch.Tensor,
    sequences: np.ndarray,
    num_forced_tokens: int = 1,
) -> torch.Tensor:
    """Log-probability of each candidate's tokens, equal to teacher forcing them one by one.

    Args:
        model: any T5 with a language-model head.
        encoder_states: `(batch_size, num_positions, d_model)`.
        encoder_mask: `(batch_size, num_positions)` bool.
        sequences: `(batch_size, num_candidates, length)` token ids, the behavior token first, no decoder start.
        num_forced_tokens: leading tokens that do not count (the behavior token is given, not predicted).

    Returns:
        `(batch_size, num_candidates)` sums of natural logarithms, full-vocabulary softmax.
    """
    device = encoder_states.device
    start_token_id = model.config.decoder_start_token_id
    trees = [PrefixTree.of_sequences(rows, start_token_id) for rows in sequences]
    states = _decode_trees(model, encoder_states, encoder_mask, trees)
    if model.config.scale_decoder_outputs:
        states = states * (model.config.d_model**-0.5)
    logits = model.lm_head(states).float()  # (batch_size, num_nodes, vocab_size)
    log_normalizers = logits.logsumexp(dim=-1)
    nodes = torch.from_numpy(np.stack([tree.nodes for tree in trees])).to(device)[:, :, num_forced_tokens:]
    tokens = torch.from_numpy(sequences).to(device)[:, :, num_forced_tokens:]
    batch = torch.arange(len(trees), device=device)[:, None, None]
    return (logits[batch, nodes, tokens] - log_normalizers[batch, nodes]).sum(dim=-1)


def _decode_trees(
    model: T5ForConditionalGeneration,
    encoder_states: torch.Tensor,
    encoder_mask: torch.Tensor,
    trees: list[PrefixTree],
) -> torch.Tensor:
    """`(batch_size, num_nodes, d_model)` decoder states of all nodes, padded to the largest tree."""
    decoder, device, dtype = model.decoder, encoder_states.device, encoder_states.dtype
    num_nodes = max(len(tree.tokens) for tree in trees)
    tokens = np.zeros((len(trees), num_nodes), dtype=np.int64)
    depths = np.zeros((len(trees), num_nodes), dtype=np.int64)
    visible = np.zeros((len(trees), num_nodes, num_nodes), dtype=bool)
    visible[:, :, 0] = True  # padding sees the root, so that no row of the softmax is empty
    for row, tree in enumerate(trees):
        size = len(tree.tokens)
        tokens[row, :size], depths[row, :size], visible[row, :size, :size] = tree.tokens, tree.depths, tree.ancestors
    forbidden = torch.finfo(dtype).min
    self_mask = torch.from_numpy(np.where(visible, 0.0, forbidden)[:, None]).to(device, dtype)
    cross_mask = torch.where(encoder_mask, 0.0, forbidden).to(dtype)[:, None, None, :]
    position_bias = _depth_bias(model, torch.from_numpy(depths).to(device))
    cross_bias = None
    states = decoder.embed_tokens(torch.from_numpy(tokens).to(device))
    for block in decoder.block:
        states, _, cross_bias = block(states, self_mask, position_bias, encoder_states, cross_mask, cross_bias)
    return decoder.final_layer_norm(states)


def _depth_bias(model: T5ForConditionalGeneration, depths: torch.Tensor) -> torch.Tensor:
    """T5's relative position bias with depths for positions, `(batch_size, num_heads, num_nodes, num_nodes)`."""
    first_block: Any = model.decoder.block[0]
    attention = first_block.layer[0].SelfAttention
    buckets = attention._relative_position_bucket(
        depths[:, None, :] - depths[:, :, None],
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return attention.relative_attention_bias(buckets).permute(0, 3, 1, 2)
