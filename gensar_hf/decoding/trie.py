"""A trie of token sequences as sorted arrays, walked by many beams at once.

Nodes are numbered level by level, and inside a level in the order of the sorted sequences. Two things follow. The
children of a node are one sorted slice of the edge arrays (compressed sparse rows), and edge `e` leads to node `e +
1`, so that no second array is needed. And the sequences below a node are a contiguous range of the sorted sequences,
so that counting the excluded ones below it is a subtraction.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

PADDING = -1

TokenSequences = np.ndarray | torch.Tensor | Sequence[Any]


class TrieArrays(NamedTuple):
    """The arrays of a trie. The node after the last real one is the dead node: no child, no value, nothing below.

    The edges of node `n` are `child_starts[n]:child_starts[n + 1]`; the sequences below it, in sorted order, are
    `first_leaves[n]:last_leaves[n]`.
    """

    child_tokens: torch.Tensor  # (num_edges,) ascending inside each node's slice
    child_starts: torch.Tensor  # (num_nodes + 2,)
    edge_keys: torch.Tensor  # (num_edges,) ascending, parent * token_limit + token
    leaf_values: torch.Tensor  # (num_nodes + 1,) value of the sequence that ends at the node, or -1
    first_leaves: torch.Tensor  # (num_nodes + 1,)
    last_leaves: torch.Tensor  # (num_nodes + 1,)
    sorted_values: torch.Tensor  # (num_sequences,) the values, ascending
    leaves_by_value: torch.Tensor  # (num_sequences,) the sorted sequence that each of them belongs to


class Trie:
    """All token sequences that may be generated, and the value (the item's index) that each stands for.

    Every method takes tensors on any device (or what `torch.as_tensor` accepts) and answers on the same device; the
    arrays are copied to a device once.

    Args:
        sequences: `(num_sequences, length)` integers padded with -1 on the right, or a list of sequences of
            different lengths. Every sequence occurs once; one may be the beginning of another.
        values: `(num_sequences,)` not negative, not necessarily distinct (an item has two identifiers); default: the
            row.
        free_text_token_id: a first token after which anything may follow (`<S_Q>`, before the words of a query). The
            trie only carries it for `TrieLogitsProcessor`, so that the trie alone says everything that may be
            generated.

    Raises:
        ValueError: no sequence, an empty sequence, a hole in one, the same sequence twice, or values of the wrong
            shape.
    """

    root = 0

    def __init__(
        self, sequences: TokenSequences, values: np.ndarray | None = None, free_text_token_id: int | None = None
    ) -> None:
        table = _padded_table(sequences)
        row_values = np.arange(len(table)) if values is None else np.asarray(values, dtype=np.int64)
        if row_values.shape != (len(table),) or row_values.min() < 0:
            raise ValueError(
                f"`values` must hold one number that is not negative for each of the {len(table)} sequences; got the "
                f"shape {row_values.shape} and the smallest value {row_values.min(initial=0)}."
            )
        order = np.lexsort(table.T[::-1])
        self.token_limit = int(table.max()) + 1  # every token of the trie is below it
        self.num_sequences, self.max_length = table.shape
        self.free_text_token_id = free_text_token_id
        arrays = _build_arrays(table[order], row_values[order], order, self.token_limit)
        self.num_nodes = len(arrays.leaf_values) - 1
        self.dead_node = self.num_nodes
        self._arrays_by_device = {torch.device("cpu"): arrays}

    def arrays(self, device: torch.device | str = "cpu") -> TrieArrays:
        """The trie's arrays on `device`."""
        device = torch.device(device)
        if device not in self._arrays_by_device:
            on_cpu = self._arrays_by_device[torch.device("cpu")]
            self._arrays_by_device[device] = TrieArrays(*(array.to(device) for array in on_cpu))
        return self._arrays_by_device[device]

    def step(self, nodes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Follow one token from each node.

        Args:
            nodes: any shape.
            tokens: the same shape.

        Returns:
            the nodes reached, the same shape; `dead_node` where there is no such child, and from the dead node.
        """
        nodes, tokens = torch.as_tensor(nodes), torch.as_tensor(tokens)
        arrays = self.arrays(nodes.device)
        keys = nodes * self.token_limit + tokens
        edges = torch.searchsorted(arrays.edge_keys, keys).clamp_(max=len(arrays.edge_keys) - 1)
        # A token outside 0 … token_limit - 1 would alias the key of another node's edge.
        exists = (arrays.edge_keys[edges] == keys) & (tokens >= 0) & (tokens < self.token_limit)
        return torch.where(exists, edges + 1, self.dead_node)

    def walk(self, prefixes: torch.Tensor) -> torch.Tensor:
        """Follow each row from the root.

        Args:
            prefixes: `(num_rows, length)`; a negative token ends its row, and only negative tokens may follow it.

        Returns:
            the nodes reached `(num_rows,)`; a row that leaves the trie ends, for good, at `dead_node`.
        """
        prefixes = torch.as_tensor(prefixes)
        nodes = torch.full(prefixes.shape[:1], self.root, dtype=torch.long, device=prefixes.device)
        ended = torch.zeros_like(nodes, dtype=torch.bool)
        for tokens in prefixes.long().unbind(dim=1):
            is_end = tokens < 0
            after_step = self.step(nodes, tokens).masked_fill(ended, self.dead_node)
            nodes = torch.where(is_end, nodes, after_step)
            ended = ended | is_end
        return nodes

    def allowed_tokens(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All children of each node, flat.

        Args:
            nodes: `(num_rows,)`.

        Returns:
            for every allowed pair its row, its token and the node that it leads to, three `(num_pairs,)` tensors,
            sorted by row, then token.
        """
        nodes = torch.as_tensor(nodes)
        arrays = self.arrays(nodes.device)
        rows, edges = _expand_ranges(arrays.child_starts[nodes], arrays.child_starts[nodes + 1])
        return rows, arrays.child_tokens[edges], edges + 1

    def children_mask(self, nodes: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """`(num_rows, vocab_size)` bool: the tokens that lead from each of the `(num_rows,)` nodes to a child."""
        rows, tokens, _ = self.allowed_tokens(nodes)
        mask = torch.zeros((len(nodes), vocab_size), dtype=torch.bool, device=rows.device)
        mask[rows, tokens] = True
        return mask

    def lookup(self, sequences: torch.Tensor | np.ndarray) -> torch.Tensor:
        """`(num_rows,)` long: the value of each complete sequence (rows padded with -1), or -1 for an unknown one."""
        nodes = self.walk(torch.as_tensor(sequences))
        return self.arrays(nodes.device).leaf_values[nodes]


class ExcludedItems:
    """For each request the values that must not be generated, as one sorted array of (request, sorted sequence) keys.

    Args:
        trie: the trie that is decoded with.
        excluded: one collection of values a request; values that the trie does not hold are ignored.
    """

    def __init__(self, trie: Trie, excluded: Sequence[Collection[int] | np.ndarray]) -> None:
        self.num_requests = len(excluded)
        self._trie = trie
        requests = np.repeat(np.arange(len(excluded)), [len(values) for values in excluded])
        flat = [np.fromiter(values, dtype=np.int64, count=len(values)) for values in excluded]
        values = torch.from_numpy(np.concatenate([*flat, np.empty(0, dtype=np.int64)]))
        arrays = trie.arrays()
        starts = torch.searchsorted(arrays.sorted_values, values)
        ends = torch.searchsorted(arrays.sorted_values, values, right=True)
        pairs, positions = _expand_ranges(starts, ends)
        keys = torch.from_numpy(requests)[pairs] * trie.num_sequences + arrays.leaves_by_value[positions]
        self._keys = keys.unique()  # sorted, and a value named twice counts once

    def covers(self, nodes: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
        """Bool, the shape of `nodes`: is every sequence below the node excluded for its request?"""
        arrays = self._trie.arrays(nodes.device)
        first, last = arrays.first_leaves[nodes], arrays.last_leaves[nodes]
        return self._count(first, last, requests) == last - first

    def contains(self, nodes: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
        """Bool, the shape of `nodes`: is the sequence that ends at the node excluded for its request?"""
        # A sequence sorts before its extensions, so it is the first of the sequences below its node.
        arrays = self._trie.arrays(nodes.device)
        first = arrays.first_leaves[nodes]
        return (arrays.leaf_values[nodes] >= 0) & (self._count(first, first + 1, requests) == 1)

    def _count(self, first: torch.Tensor, last: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
        """How many of the sorted sequences `first` … `last - 1` are excluded for each request."""
        self._keys = self._keys.to(first.device)
        offsets = requests * self._trie.num_sequences
        return torch.searchsorted(self._keys, offsets + last) - torch.searchsorted(self._keys, offsets + first)


def _padded_table(sequences: TokenSequences) -> np.ndarray:
    """The sequences as one `(num_sequences, max_length)` int64 table padded with -1, checked."""
    if isinstance(sequences, torch.Tensor):
        sequences = sequences.cpu().numpy()
    if not isinstance(sequences, np.ndarray) or sequences.ndim != 2:
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
        table = np.full((len(lengths), lengths.max(initial=0)), PADDING, dtype=np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = np.concatenate([*sequences, []])
        sequences = table
    if sequences.size == 0 or not np.issubdtype(sequences.dtype, np.integer):
        raise ValueError(
            "A trie needs at least one sequence of integer tokens; got an array of shape "
            f"{sequences.shape} and dtype {sequences.dtype}."
        )
    is_padding = sequences < 0
    holed = is_padding[:, 0] | (is_padding[:, :-1] & ~is_padding[:, 1:]).any(axis=1)
    if holed.any():
        row = int(holed.argmax())
        raise ValueError(
            f"Sequence {row} of the trie is empty or has a negative token before its end: {sequences[row].tolist()}; "
            "-1 may only pad it on the right."
        )
    return np.where(is_padding, PADDING, sequences).astype(np.int64)


def _build_arrays(table: np.ndarray, values: np.ndarray, rows: np.ndarray, token_limit: int) -> TrieArrays:
    """Number the nodes of the sorted `(num_sequences, max_length)` table; `rows`: the caller's, for messages."""
    num_sequences = len(table)
    differs = np.ones(table.shape, dtype=bool)  # from the sequence before, in this or an earlier token
    differs[1:] = np.logical_or.accumulate(table[1:] != table[:-1], axis=1)
    if not differs[:, -1].all():
        second = int(differs[:, -1].argmin())
        raise ValueError(
            f"The sequences {rows[second - 1]} and {rows[second]} of the trie are the same, "
            f"{table[second].tolist()}; each identifier must belong to one item, so make the identifiers unique "
            "first."
        )
    opens_node = differs & (table >= 0)
    nodes_before_level = 1 + np.cumsum(opens_node.sum(axis=0)) - opens_node.sum(axis=0)
    nodes = nodes_before_level + np.cumsum(opens_node, axis=0) - 1  # node of each prefix; meaningless under padding
    parents = np.column_stack([np.zeros(num_sequences, dtype=np.int64), nodes[:, :-1]])

    levels, leaves = np.nonzero(opens_node.T)  # level by level, so edge e opens node e + 1
    edge_parents, child_tokens = parents[leaves, levels], table[leaves, levels]
    num_nodes = len(child_tokens) + 1
    num_leaves_below = np.bincount(nodes[table >= 0], minlength=num_nodes + 1)
    num_leaves_below[0] = num_sequences
    first_leaves = np.concatenate([[0], leaves, [0]])
    leaf_values = np.full(num_nodes + 1, -1)
    last_levels = (table >= 0).sum(axis=1) - 1
    leaf_values[nodes[np.arange(num_sequences), last_levels]] = values
    leaves_by_value = np.argsort(values, kind="stable")
    arrays = (
        child_tokens,
        np.searchsorted(edge_parents, np.arange(num_nodes + 2)),
        edge_parents * token_limit + child_tokens,
        leaf_values,
        first_leaves,
        first_leaves + num_leaves_below,
        values[leaves_by_value],
        leaves_by_value,
    )
    return TrieArrays(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))


def _expand_ranges(starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """List the ranges `starts[i]:ends[i]` one after another: the owner `i` of each element, and the element."""
    lengths = ends - starts
    owners = torch.repeat_interleave(lengths)
    before = torch.cumsum(lengths, dim=0) - lengths
    elements = torch.arange(len(owners), device=starts.device) + (starts - before)[owners]
    return owners, elements
