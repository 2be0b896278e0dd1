"""Exact scores of candidates in one decoder forward over their distinct prefixes.

The candidates of a request form a small tree, which is decoded in one row (`TreeDecoder`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gensar_hf.decoding.tree_decoder import DecodingContext

# The cost of attention grows with the square of a tree's size, so many candidates are split into several trees.
_MAX_CANDIDATES = 256
_MAX_PAIRS = 1 << 21  # pairs of nodes in the attention of one forward over several requests; bounds its memory


@dataclass(frozen=True)
class PrefixTree:
    """The distinct prefixes of one request's candidates, decoder start first."""

    tokens: np.ndarray  # (num_nodes,) the last token of each prefix
    depths: np.ndarray  # (num_nodes,) 0 for the decoder start
    ancestors: np.ndarray  # (num_nodes, num_nodes) bool: prefix i begins with prefix j, or is prefix j
    nodes: np.ndarray  # (num_candidates, length) the node from which each token of each candidate is predicted

    @classmethod
    def of_sequences(cls, sequences: np.ndarray, start_token_id: int) -> "PrefixTree":
        """The tree of `(num_candidates, length)` token sequences, without the decoder start."""
        num_candidates, length = sequences.shape
        tokens, depths, parents = [np.array([start_token_id])], [np.zeros(1, dtype=np.int64)], [np.array([-1])]
        nodes = np.zeros((num_candidates, length), dtype=np.int64)
        num_nodes, token_limit = 1, int(sequences.max(initial=0)) + 1
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
    context: DecodingContext, sequences: np.ndarray | Sequence[np.ndarray], num_forced_tokens: int = 1
) -> torch.Tensor:
    """Log-probability of each candidate's tokens, equal to teacher forcing them one by one.

    Args:
        context: the requests.
        sequences: `(batch_size, num_candidates, length)` token ids, the behavior token first, no decoder start; or
            one `(num_candidates, length)` array per request, with different numbers of candidates.
        num_forced_tokens: leading tokens that do not count (the behavior token is in the prompt, not predicted).

    Returns:
        `(batch_size, num_candidates)` sums of natural logarithms; padded with -inf for requests with fewer candidates.
    """
    device = context.device
    scores = torch.full(
        (len(sequences), max(map(len, sequences), default=0)), -torch.inf, dtype=torch.float32, device=device
    )
    head = context.output_head()
    for pieces in _forwards(sequences, context.start_tokens.tolist()):
        rows = torch.tensor([piece.row for piece in pieces], device=device)
        trees = [piece.tree for piece in pieces]
        states = _decode_trees(context.rows(rows), trees)
        # All candidates of all trees, concatenated; node numbers count on from tree to tree.
        nodes = np.concatenate([tree.nodes + index * states.shape[1] for index, tree in enumerate(trees)])
        tokens = np.concatenate([sequences[piece.row][piece.candidates] for piece in pieces])
        log_probabilities = head.token_log_probabilities(
            states.flatten(0, 1),
            torch.from_numpy(nodes[:, num_forced_tokens:]).to(device),
            torch.from_numpy(tokens[:, num_forced_tokens:].astype(np.int64)).to(device),
        )
        owners = torch.repeat_interleave(rows, torch.tensor([len(piece.candidates) for piece in pieces], device=device))
        columns = torch.from_numpy(np.concatenate([piece.candidates for piece in pieces])).to(device)
        scores[owners, columns] = log_probabilities.sum(dim=-1)
    return scores


class _Piece(NamedTuple):
    row: int
    candidates: np.ndarray  # of this request
    tree: PrefixTree


def _forwards(sequences: np.ndarray | Sequence[np.ndarray], start_tokens: list[int]) -> Iterator[list[_Piece]]:
    """Split the candidates into pieces, and yield the pieces that are decoded together."""
    waiting: list[_Piece] = []
    for row, candidates in enumerate(sequences):
        # Candidates are sorted before they are split, because sorted neighbors share prefixes.
        is_split = len(candidates) > _MAX_CANDIDATES
        order = np.lexsort(candidates.T[::-1]) if is_split else np.arange(len(candidates))
        for start in range(0, len(order), _MAX_CANDIDATES):
            chosen = order[start : start + _MAX_CANDIDATES]
            piece = _Piece(row, chosen, PrefixTree.of_sequences(candidates[chosen], start_tokens[row]))
            num_nodes = max(len(other.tree.tokens) for other in [*waiting, piece])
            if waiting and (len(waiting) + 1) * num_nodes**2 > _MAX_PAIRS:
                yield waiting
                waiting = []
            waiting.append(piece)
    if waiting:
        yield waiting


def _decode_trees(context: DecodingContext, trees: list[PrefixTree]) -> torch.Tensor:
    """`(num_trees, num_nodes, d_model)` decoder states of all nodes, padded to the largest tree."""
    num_nodes = max(len(tree.tokens) for tree in trees)
    tokens = np.zeros((len(trees), num_nodes), dtype=np.int64)
    depths = np.zeros_like(tokens)
    visible = np.zeros((len(trees), num_nodes, num_nodes), dtype=bool)
    visible[:, :, 0] = True  # padding attends to the root, so no row of the softmax is empty
    for row, tree in enumerate(trees):
        size = len(tree.tokens)
        tokens[row, :size], depths[row, :size], visible[row, :size, :size] = tree.tokens, tree.depths, tree.ancestors
    decoder = context.tree_decoder(num_nodes, int(depths.max()) + 1)
    return decoder.read(*(torch.from_numpy(array).to(context.device) for array in (tokens, depths, visible)))
