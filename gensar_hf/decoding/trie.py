"""A trie of token sequences of one length, stored as sorted arrays and walked by many beams at once.

Nodes are numbered level by level, and within a level in the order of the sorted sequences. The children of a node are
then one slice of the edges (compressed sparse rows), and edge `e` leads to node `e + 1`, so no array of targets is
needed. The sequences below a node are a contiguous range of the sorted sequences, and sequence `s` ends at the `s`-th
node of the last level. Ten million identifiers of four codes take less than 100 MB.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

PADDING = -1
_MAX_KEY_BITS = 63


class TrieArrays(NamedTuple):
    """The arrays of a trie, in the smallest integer types that hold them.

    The edges of node `n` are `child_starts[n]:child_starts[n + 1]`. Nodes of the last level have none. The node after
    the last one is the dead node, which has no child and no value.
    """

    child_tokens: torch.Tensor  # (num_edges,) ascending within each node, minus the smallest token of the level
    child_starts: torch.Tensor  # (num_inner_nodes + 1,) for all nodes above the last level
    values: torch.Tensor  # (num_sequences,) the value of each sorted sequence; empty: the value is its position
    level_bounds: torch.Tensor  # (max_length + 1,) the node after the last one of each level
    first_tokens: torch.Tensor  # (max_length + 2,) the smallest token of the level below each level; 0 below the last


class Trie:
    """All token sequences that may be generated, and the value (the item's row) that each one stands for.

    Tensors may be on any device, and results are on the same device. The arrays are copied to a device once.

    Args:
        sequences: `(num_sequences, length)` integers, or a list of sequences of one length. All are distinct.
        values: `(num_sequences,)` nonnegative, not necessarily distinct (an item has two identifiers); default: the
            row.
        free_text_token_id: a first token after which any token may follow (`<S_Q>`, before the words of a query). The
            trie only stores it, like the next three arguments, for callers that read whole rows of tokens.
        start_length: tokens before the first edge in a row of `generate`: 1, the decoder start, for encoder-decoders.
            None, for decoder-only models: a prompt of any length; the answer begins at the row's last first edge.
        end_token_id: the token that ends a row. It must not occur in the trie.
        pad_token_id: the token after the end; None if there is none.

    Attributes:
        num_sequences, max_length: of the sequences.
        num_nodes: the root and all distinct prefixes; also the number of the dead node.
        level_starts: the first node of each level (the root is level 0), and `num_nodes`.
        token_ranges: per level from 1, the smallest token and the largest plus 1.
        max_children: per level from 0, the largest number of children of one node.
        token_limit: every token is below it.

    Raises:
        ValueError: no sequences, sequences of different lengths, a negative token, the same sequence twice, or values
            of the wrong shape.
    """

    root = 0

    def __init__(
        self,
        sequences: np.ndarray | torch.Tensor | Sequence[Any],
        values: np.ndarray | None = None,
        free_text_token_id: int | None = None,
        start_length: int | None = 1,
        end_token_id: int = 1,
        pad_token_id: int | None = 0,
    ) -> None:
        table = _token_table(sequences)
        values = None if values is None else np.asarray(values)
        if values is not None and (values.shape != (len(table),) or values.min() < 0):
            raise ValueError(
                f"`values` must hold one nonnegative number for each of the {len(table)} sequences; got the shape "
                f"{values.shape} and the smallest value {values.min(initial=0)}."
            )
        columns = np.ascontiguousarray(table.T)
        order = _sorting_order(columns)
        # A node is a maximal run of sorted sequences with the same first tokens; `starts` has the first of each run.
        is_new = np.zeros(len(table), dtype=bool)
        is_new[0] = True
        starts, codes, child_starts = np.zeros(1, dtype=np.int64), [], []
        level_starts, self.token_ranges = [0, 1], list[tuple[int, int]]()
        for column in columns:
            tokens = column if order is None else column[order]
            is_new[1:] |= tokens[1:] != tokens[:-1]
            child_starts.append((np.cumsum(is_new) - 1)[starts] + level_starts[-1] - 1)
            starts = np.flatnonzero(is_new)
            tokens = tokens[starts]
            low, high = int(tokens.min()), int(tokens.max())
            self.token_ranges.append((low, high + 1))
            codes.append((tokens - low).astype(_smallest_dtype(high - low + 1)))
            level_starts.append(level_starts[-1] + len(tokens))
        if not is_new.all():
            end = int(is_new.argmin())  # the sorted sequence that is the same as the one before
            pair = [end - 1, end] if order is None else sorted(order[end - 1 : end + 1].tolist())
            raise ValueError(
                f"The sequences {pair[0]} and {pair[1]} of the trie are the same, {table[pair[0]].tolist()}; each "
                "identifier must belong to one item, so make the identifiers unique first."
            )
        self.level_starts, self.num_nodes, self.dead_node = level_starts, level_starts[-1], level_starts[-1]
        self.num_sequences, self.max_length = table.shape
        self.token_limit = max(last for _, last in self.token_ranges)
        edges = np.concatenate([*child_starts, [self.num_nodes - 1]]).astype(_index_dtype(self.num_nodes))
        self.max_children = [
            int(np.diff(edges[first : last + 1]).max()) for first, last in itertools.pairwise(level_starts[:-1])
        ]
        arrays = [
            np.concatenate(codes),
            edges,
            _sorted_values(values, order),
            np.array(level_starts[1:]),
            np.array([low for low, _ in self.token_ranges] + [0, 0]),
        ]
        self._arrays_by_device = {torch.device("cpu"): TrieArrays(*map(torch.from_numpy, arrays))}
        self._sequences_by_value: tuple[torch.Tensor, torch.Tensor] | None = None
        self.free_text_token_id, self.start_length = free_text_token_id, start_length
        self.end_token_id, self.pad_token_id = end_token_id, pad_token_id

    def arrays(self, device: torch.device | str = "cpu") -> TrieArrays:
        """The trie's arrays on `device`."""
        device = torch.device(device)
        if device not in self._arrays_by_device:
            on_cpu = self._arrays_by_device[torch.device("cpu")]
            self._arrays_by_device[device] = TrieArrays(*(array.to(device) for array in on_cpu))
        return self._arrays_by_device[device]

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `ValueError` if a token of the trie is outside a model's vocabulary."""
        if self.token_limit > vocab_size:
            raise ValueError(
                f"The trie holds the token {self.token_limit - 1}, but the model scores only {vocab_size} tokens; "
                "resize the model's embeddings to the tokenizer that the trie was built with."
            )

    # ---- nodes and their children

    def step(self, nodes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The child of each node by a token; `dead_node` where there is none. All three have one shape."""
        nodes, tokens = torch.as_tensor(nodes), torch.as_tensor(tokens)
        arrays = self.arrays(nodes.device)
        low, end = self._edge_range(nodes)
        codes = tokens - self._first_tokens(nodes)
        high, last_edge = end, len(arrays.child_tokens) - 1
        for _ in range(max(self.max_children).bit_length()):  # binary search in each node's slice
            middle = (low + high) // 2
            is_below = (arrays.child_tokens[middle.clamp(max=last_edge)] < codes) & (low < high)
            low, high = torch.where(is_below, middle + 1, low), torch.where(is_below, high, middle)
        exists = (low < end) & (arrays.child_tokens[low.clamp(max=last_edge)] == codes)
        return torch.where(exists, low + 1, self.dead_node)

    def walk(self, prefixes: torch.Tensor) -> torch.Tensor:
        """Follow `(num_rows, length)` tokens from the root to nodes `(num_rows,)`, `dead_node` outside the trie.

        A negative token ends its row, and only negative tokens may follow it.
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
        """All children of `(num_rows,)` nodes, as one flat list sorted by row, then token.

        Returns:
            for every child its row, its token and its node, `(num_children,)` each.
        """
        nodes = torch.as_tensor(nodes)
        rows, edges = _expand_ranges(*self._edge_range(nodes))
        tokens = self.arrays(nodes.device).child_tokens[edges] + self._first_tokens(nodes)[rows]
        return rows, tokens, edges + 1

    def padded_children(self, nodes: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All children of nodes of one level, padded to that level's `max_children`.

        Args:
            nodes: any shape, nodes of `level` or dead nodes.
            level: below `max_length`.

        Returns:
            the children, `(*nodes.shape, max_children[level])`, `dead_node` for padding, and their tokens minus the
            smallest token of the next level, 0 for padding.
        """
        starts, ends = self._edge_range(nodes)
        edges = starts[..., None] + torch.arange(self.max_children[level], device=nodes.device)
        exists = edges < ends[..., None]
        codes = self.arrays(nodes.device).child_tokens[edges.masked_fill(~exists, 0)].long()
        return torch.where(exists, edges + 1, self.dead_node), codes.masked_fill(~exists, 0)

    def _edge_range(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two longs, the shape of `nodes`: the edges of each node are `start:end`."""
        starts = self.arrays(nodes.device).child_starts
        last = len(starts) - 1
        return starts[nodes.clamp(max=last)].long(), starts[(nodes + 1).clamp(max=last)].long()

    def _first_tokens(self, nodes: torch.Tensor) -> torch.Tensor:
        """Long, the shape of `nodes`: the smallest token of the level below each node."""
        arrays = self.arrays(nodes.device)
        return arrays.first_tokens[torch.bucketize(nodes, arrays.level_bounds, right=True)]

    # ---- sequences and values

    def lookup(self, sequences: torch.Tensor | np.ndarray) -> torch.Tensor:
        """`(num_rows,)` long: the value of each complete sequence (rows padded with -1), or -1 for an unknown one."""
        return self.values_at(self.walk(torch.as_tensor(sequences)))

    def values_at(self, nodes: torch.Tensor) -> torch.Tensor:
        """Long, the shape of `nodes`: the value of the sequence that ends at each node, or -1."""
        values, sequences = self.arrays(nodes.device).values, self.sequences_at(nodes)
        if len(values) == 0:
            return sequences
        return torch.where(sequences >= 0, values[sequences.clamp(min=0)].long(), -1)

    def sequences_at(self, nodes: torch.Tensor) -> torch.Tensor:
        """Long, the shape of `nodes`: the sorted sequence that ends at each node, or -1."""
        first_leaf = self.level_starts[-2]
        return torch.where((nodes >= first_leaf) & (nodes < self.dead_node), nodes - first_leaf, -1)

    def sequences_below(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two longs, the shape of `nodes`: the sorted sequences below each node are `first:last`."""
        starts, first_leaf = self.arrays(nodes.device).child_starts, self.level_starts[-2]
        # Follow the first child of the node, and of the node after it, down to the last level.
        firsts, lasts = nodes, nodes + (nodes < self.dead_node)
        for _ in range(self.max_length):
            is_inner = firsts < first_leaf
            next_firsts = starts[firsts.clamp(max=first_leaf)].long() + 1
            next_lasts = starts[lasts.clamp(max=first_leaf)].long() + 1
            firsts, lasts = torch.where(is_inner, next_firsts, firsts), torch.where(is_inner, next_lasts, lasts)
        return firsts - first_leaf, lasts - first_leaf

    def sequences_of(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sorted sequences that have each of the `(num_values,)` values: the value's position, the sequence."""
        sorted_values = self.arrays().values
        if len(sorted_values) == 0:
            is_known = (values >= 0) & (values < self.num_sequences)
            return is_known.nonzero()[:, 0], values[is_known]
        if self._sequences_by_value is None:  # needed for allow and deny lists only
            ascending, sequences = sorted_values.sort(stable=True)
            self._sequences_by_value = ascending, sequences.to(ascending.dtype)
        ascending, sequences = self._sequences_by_value
        values = values.to(ascending.dtype)
        starts, ends = torch.searchsorted(ascending, values), torch.searchsorted(ascending, values, right=True)
        owners, positions = _expand_ranges(starts, ends)
        return owners, sequences[positions].long()

    # ---- rows of `generate`

    def prompt_lengths(self, rows: torch.Tensor) -> torch.Tensor:
        """`(num_rows,)` long: the number of tokens before the answer, where prompts have any length.

        The answer begins with the last token that is a first edge, or the free-text token, because the events of a
        history begin with such tokens as well. A row without such a token is all prompt.

        Args:
            rows: `(num_rows, length)`.
        """
        root = torch.tensor([self.root], device=rows.device)
        _, firsts, _ = self.allowed_tokens(root)
        if self.free_text_token_id is not None:
            firsts = torch.cat([firsts, firsts.new_tensor([self.free_text_token_id])])
        positions = torch.isin(rows, firsts) * torch.arange(1, rows.shape[1] + 1, device=rows.device)
        last = positions.amax(dim=1) - 1
        return torch.where(last < 0, rows.shape[1], last)

    def answers(self, rows: torch.Tensor) -> torch.Tensor:
        """`(num_rows, longest)`: each row from its first edge on, padded with `PADDING`, end tokens included."""
        if self.start_length is not None:
            return rows[:, self.start_length :]
        starts, length = self.prompt_lengths(rows), rows.shape[1]
        longest = length - int(starts.min()) if len(rows) else 0
        positions = starts[:, None] + torch.arange(longest, device=rows.device)
        return rows.gather(1, positions.clamp(max=length - 1)).masked_fill(positions >= length, PADDING)


def _expand_ranges(starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """List the ranges `starts[i]:ends[i]` one after another: the owner `i` of each element, and the element."""
    lengths = ends - starts
    owners = torch.repeat_interleave(lengths)
    before = torch.cumsum(lengths, dim=0) - lengths
    elements = torch.arange(len(owners), device=starts.device) + (starts - before)[owners]
    return owners, elements


# ---- building


def _token_table(sequences: np.ndarray | torch.Tensor | Sequence[Any]) -> np.ndarray:
    """The sequences as one `(num_sequences, length)` table of nonnegative integers."""
    if isinstance(sequences, torch.Tensor):
        sequences = sequences.cpu().numpy()
    if not isinstance(sequences, np.ndarray):
        lengths = np.array([len(sequence) for sequence in sequences])
        if (lengths != lengths[:1]).any():
            row = int((lengths != lengths[0]).argmax())
            raise ValueError(
                "All sequences of a trie must have the same number of tokens, as all identifiers do; sequence 0 has "
                f"{lengths[0]} and sequence {row} has {lengths[row]}."
            )
        sequences = np.asarray(sequences)
    if sequences.ndim != 2 or sequences.size == 0 or not np.issubdtype(sequences.dtype, np.integer):
        raise ValueError(
            "A trie needs at least one sequence of integer tokens; got an array of shape "
            f"{sequences.shape} and dtype {sequences.dtype}."
        )
    if sequences.min() < 0:
        row = int((sequences < 0).any(axis=1).argmax())
        raise ValueError(
            f"Tokens must not be negative, and all sequences of a trie have the same length, without padding; sequence "
            f"{row} is {sequences[row].tolist()}."
        )
    return sequences


def _sorting_order(columns: np.ndarray) -> np.ndarray | None:
    """The rows in ascending order of their sequences, `(num_sequences,)`; None: the sequences are sorted already.

    Where the ranges of the `(length, num_sequences)` columns fit into 63 bits, as those of four levels of 256 codes do,
    one integer stands for a sequence: ten million are then sorted in two seconds.
    """
    lows, highs = columns.min(axis=1).tolist(), columns.max(axis=1).tolist()
    widths = [(high - low).bit_length() for low, high in zip(lows, highs, strict=True)]
    if sum(widths) > _MAX_KEY_BITS:
        return np.lexsort(columns[::-1])
    keys = np.zeros(columns.shape[1], dtype=np.int64)
    for column, low, width in zip(columns, lows, widths, strict=True):
        keys <<= width
        keys |= column.astype(np.int64) - low
    return None if (keys[1:] >= keys[:-1]).all() else np.argsort(keys)


def _sorted_values(values: np.ndarray | None, order: np.ndarray | None) -> np.ndarray:
    """The values in the order of the sorted sequences; empty where each value is its sequence's position."""
    if values is None:
        values = order
    elif order is not None:
        values = values[order]
    if values is None:
        return np.empty(0, np.int32)
    values = values.astype(_index_dtype(int(values.max()) + 1))
    return values[:0] if (values == np.arange(len(values))).all() else values


def _index_dtype(limit: int) -> type[np.integer]:
    """int32, or int64 where `limit` does not fit."""
    return np.int32 if limit < 1 << 31 else np.int64


def _smallest_dtype(limit: int) -> type[np.integer]:
    """The smallest dtype that holds 0 … limit - 1, of those that torch computes with."""
    return np.uint8 if limit <= 1 << 8 else np.int16 if limit <= 1 << 15 else _index_dtype(limit)
