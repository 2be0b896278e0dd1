"""A trie of token sequences as sorted arrays, walked by many beams at once.

Nodes are numbered level by level, and inside a level in the order of the sorted sequences. The children of a node are
then one sorted slice of the edges (compressed sparse rows), and edge `e` leads to node `e + 1`, so that no second array
is needed. The sequences below a node are a contiguous range of the sorted sequences; where all sequences have one
length, sequence `s` ends at the `s`-th node of the last level, so that neither needs an array.
"""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gensar_hf.decoding.trie_building import (
    PADDING,
    SortedSequences,
    TokenSequences,
    padded_table,
    smallest_dtype,
    sort_sequences,
)
from gensar_hf.files import atomic_path

__all__ = ["PADDING", "Trie", "TrieArrays"]

_ROW_FORMAT = ("free_text_token_id", "start_length", "end_token_id", "pad_token_id")


class TrieArrays(NamedTuple):
    """The arrays of a trie, in the smallest integers that hold them; an array that is not needed is empty.

    The edges of node `n` are `child_starts[n]:child_starts[n + 1]`; nodes from `len(child_starts) - 1` on have none.
    The node after the last real one is the dead node: no child, no value, nothing below.
    """

    child_tokens: torch.Tensor  # (num_edges,) ascending inside each node's slice, less the level's smallest token
    child_starts: torch.Tensor  # (num_inner_nodes + 1,) for all nodes above the last level
    values: torch.Tensor  # (num_sequences,) the value of each sorted sequence; empty: its number
    # Only where sequences differ in length, all (num_nodes + 1,):
    sequences: torch.Tensor  # the sorted sequence that ends at the node, or -1
    first_sequences: torch.Tensor  # those below the node: first_sequences[n]:last_sequences[n]
    last_sequences: torch.Tensor


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
            trie only carries it, and what follows here, for those who read whole rows of tokens (`answers`), so that
            the trie alone says everything that may be generated, and where.
        start_length: tokens before the first edge in a row: 1, the decoder start of an encoder-decoder. None: a prompt
            of any length, as a decoder alone continues it; the answer begins at the row's last first edge.
        end_token_id: what ends a row. It must not occur in the trie.
        pad_token_id: what stands behind the end; None if there is no such token.

    Attributes:
        num_sequences, max_length: of the sequences.
        num_nodes: the root and all distinct prefixes; also the number of the dead node.
        is_uniform: whether all sequences have the same length.
        level_starts: the first node of each level (the root is level 0), and `num_nodes`.
        token_ranges: per level from 1, the smallest token and the largest plus 1.
        max_children: per level from 0, the largest number of children of one node.
        token_limit: every token is below it.

    Raises:
        ValueError: no sequence, an empty sequence, a hole in one, the same sequence twice, or values of the wrong
            shape.
    """

    root = 0

    def __init__(
        self,
        sequences: TokenSequences,
        values: np.ndarray | None = None,
        free_text_token_id: int | None = None,
        start_length: int | None = 1,
        end_token_id: int = 1,
        pad_token_id: int | None = 0,
    ) -> None:
        table = padded_table(sequences)
        given = None if values is None else np.asarray(values)
        if given is not None and (given.shape != (len(table),) or given.min() < 0):
            raise ValueError(
                f"`values` must hold one number that is not negative for each of the {len(table)} sequences; got the "
                f"shape {given.shape} and the smallest value {given.min(initial=0)}."
            )
        ordered = sort_sequences(table)
        sizes = [1, *(len(level.codes) for level in ordered.levels)]
        level_starts = np.cumsum([0, *sizes]).tolist()
        arrays = [
            np.concatenate([level.codes for level in ordered.levels]),
            _child_starts(ordered, level_starts),
            _sorted_values(given, ordered.order),
            *_ranges_below(ordered, level_starts, len(table)),
        ]
        token_ranges = [(level.first_token, level.first_token + int(level.codes.max()) + 1) for level in ordered.levels]
        self._set((torch.from_numpy(array) for array in arrays), len(table), level_starts, token_ranges)
        self.free_text_token_id, self.start_length = free_text_token_id, start_length
        self.end_token_id, self.pad_token_id = end_token_id, pad_token_id

    def _set(
        self,
        arrays: Iterable[torch.Tensor],
        num_sequences: int,
        level_starts: list[int],
        token_ranges: list[tuple[int, int]],
    ) -> None:
        on_cpu = TrieArrays(*arrays)
        self._arrays_by_device = {torch.device("cpu"): on_cpu}
        self._rows_by_value: tuple[torch.Tensor, torch.Tensor] | None = None
        self._level_tokens: dict[tuple[int, torch.device], torch.Tensor] = {}
        self.num_sequences, self.max_length = num_sequences, len(token_ranges)
        self.level_starts, self.token_ranges = level_starts, token_ranges
        self.num_nodes = self.dead_node = level_starts[-1]
        self.is_uniform = len(on_cpu.sequences) == 0
        self.token_limit = max(last for _, last in token_ranges)
        starts = on_cpu.child_starts
        bounds = itertools.pairwise(level_starts[:-1])
        self.max_children = [int(starts[first : last + 1].diff().max()) for first, last in bounds]

    # ---- the arrays

    def arrays(self, device: torch.device | str = "cpu") -> TrieArrays:
        """The trie's arrays on `device`."""
        device = torch.device(device)
        if device not in self._arrays_by_device:
            on_cpu = self._arrays_by_device[torch.device("cpu")]
            self._arrays_by_device[device] = TrieArrays(*(array.to(device) for array in on_cpu))
        return self._arrays_by_device[device]

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays on one device; asking for the values of exclusion adds two more."""
        return sum(array.nbytes for array in self.arrays())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the arrays to a safetensors file, aside first."""
        metadata = {
            "num_sequences": str(self.num_sequences),
            "level_starts": " ".join(map(str, self.level_starts)),
            "token_ranges": " ".join(str(bound) for bounds in self.token_ranges for bound in bounds),
            **{name: "" if (value := getattr(self, name)) is None else str(value) for name in _ROW_FORMAT},
        }
        with atomic_path(path) as aside:
            save_file(self.arrays()._asdict(), aside, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trie":
        """Read what `save` wrote: as fast as the file can be read, nothing is sorted again."""
        with safe_open(Path(path), framework="pt") as file:
            metadata = file.metadata()
            arrays = [file.get_tensor(name) for name in TrieArrays._fields]
        bounds = list(map(int, metadata["token_ranges"].split()))
        trie = cls.__new__(cls)
        trie._set(
            arrays,
            int(metadata["num_sequences"]),
            list(map(int, metadata["level_starts"].split())),
            list(zip(bounds[::2], bounds[1::2], strict=True)),
        )
        for name in _ROW_FORMAT:
            setattr(trie, name, int(metadata[name]) if metadata[name] else None)
        return trie

    # ---- downwards

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
        low, end = self._edge_range(nodes)
        codes = tokens - self._first_tokens(nodes)
        high, last_edge = end, len(arrays.child_tokens) - 1
        for _ in range(max(self.max_children).bit_length()):  # bisection inside each node's slice
            middle = (low + high) // 2
            is_below = (arrays.child_tokens[middle.clamp(max=last_edge)] < codes) & (low < high)
            low, high = torch.where(is_below, middle + 1, low), torch.where(is_below, high, middle)
        exists = (low < end) & (arrays.child_tokens[low.clamp(max=last_edge)] == codes)
        return torch.where(exists, low + 1, self.dead_node)

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
        rows, edges = expand_ranges(*self._edge_range(nodes))
        tokens = self.arrays(nodes.device).child_tokens[edges] + self._first_tokens(nodes)[rows]
        return rows, tokens, edges + 1

    def padded_children(self, nodes: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All children of nodes of one level, padded to the largest number there: no size depends on the nodes.

        Args:
            nodes: any shape, nodes of `level` or dead ones.
            level: below `max_length`.

        Returns:
            the children, `(*nodes.shape, max_children[level])`, `dead_node` for padding, and their tokens less the
            smallest token of the next level, 0 for padding.
        """
        starts, ends = self._edge_range(nodes)
        edges = starts[..., None] + torch.arange(self.max_children[level], device=nodes.device)
        exists = edges < ends[..., None]
        codes = self.arrays(nodes.device).child_tokens[edges.masked_fill(~exists, 0)].long()
        return torch.where(exists, edges + 1, self.dead_node), codes.masked_fill(~exists, 0)

    def level_tokens(self, level: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """The tokens of a level, for each first token of the trie: the codebook behind each behavior.

        Args:
            level: from 1.
            device: of the answer.

        Returns:
            `(num_first_tokens, num_tokens)` bool, in the order of level 1's nodes: which tokens of the level's range
            occur in a sequence that begins with the first token.
        """
        device = torch.device(device)
        if (level, device) not in self._level_tokens:
            arrays, first_token_nodes = self.arrays(), range(1, self.level_starts[2])
            mask = torch.zeros(
                len(first_token_nodes), self.token_ranges[level - 1][1] - self.token_ranges[level - 1][0]
            )
            mask = mask.bool()
            for row, node in enumerate(first_token_nodes):
                first, last = node, node + 1  # nodes of one level below the first token are neighbours
                for _ in range(level - 1):
                    first, last = (int(arrays.child_starts[bound]) + 1 for bound in (first, last))
                mask[row, arrays.child_tokens[first - 1 : last - 1].unique().long()] = True
            self._level_tokens[level, device] = mask.to(device)
        return self._level_tokens[level, device]

    def children_mask(self, nodes: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """`(num_rows, vocab_size)` bool: the tokens that lead from each of the `(num_rows,)` nodes to a child."""
        rows, tokens, _ = self.allowed_tokens(nodes)
        mask = torch.zeros((len(nodes), vocab_size), dtype=torch.bool, device=rows.device)
        mask[rows, tokens] = True
        return mask

    # ---- sequences and values

    def values_at(self, nodes: torch.Tensor) -> torch.Tensor:
        """Long, the shape of `nodes`: the value of the sequence that ends at each node, or -1."""
        arrays = self.arrays(nodes.device)
        sequences = self.sequences_at(nodes)
        if len(arrays.values) == 0:
            return sequences
        return torch.where(sequences >= 0, arrays.values[sequences.clamp(min=0)].long(), -1)

    def lookup(self, sequences: torch.Tensor | np.ndarray) -> torch.Tensor:
        """`(num_rows,)` long: the value of each complete sequence (rows padded with -1), or -1 for an unknown one."""
        return self.values_at(self.walk(torch.as_tensor(sequences)))

    def sequences_at(self, nodes: torch.Tensor) -> torch.Tensor:
        """Long, the shape of `nodes`: the sorted sequence that ends at each node, or -1."""
        if not self.is_uniform:
            return self.arrays(nodes.device).sequences[nodes].long()
        first_leaf = self.level_starts[-2]
        return torch.where((nodes >= first_leaf) & (nodes < self.dead_node), nodes - first_leaf, -1)

    def sequences_below(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two longs, the shape of `nodes`: the sorted sequences below each node are `first:last`."""
        arrays = self.arrays(nodes.device)
        if not self.is_uniform:
            return arrays.first_sequences[nodes].long(), arrays.last_sequences[nodes].long()
        # Down along the first child, for the node and for the one after it: the children of a level lie in its order.
        firsts, lasts = nodes, nodes + (nodes < self.dead_node)
        first_leaf = self.level_starts[-2]
        for _ in range(self.max_length):
            is_inner = firsts < first_leaf
            next_firsts = arrays.child_starts[firsts.clamp(max=first_leaf)].long() + 1
            next_lasts = arrays.child_starts[lasts.clamp(max=first_leaf)].long() + 1
            firsts, lasts = torch.where(is_inner, next_firsts, firsts), torch.where(is_inner, next_lasts, lasts)
        return firsts - first_leaf, lasts - first_leaf

    def sequences_of(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sorted sequences that stand for each of the `(num_values,)` values: the owner's place, the sequence."""
        if len(self.arrays().values) == 0:
            is_known = (values >= 0) & (values < self.num_sequences)
            return is_known.nonzero()[:, 0], values[is_known]
        if self._rows_by_value is None:  # only who excludes items needs it
            ascending, rows = self.arrays().values.sort(stable=True)
            self._rows_by_value = ascending, rows.to(ascending.dtype)
        ascending, rows = self._rows_by_value
        values = values.to(ascending.dtype)
        starts, ends = torch.searchsorted(ascending, values), torch.searchsorted(ascending, values, right=True)
        owners, positions = expand_ranges(starts, ends)
        return owners, rows[positions].long()

    # ---- rows of `generate`

    def prompt_lengths(self, rows: torch.Tensor) -> torch.Tensor:
        """`(num_rows,)` long: the tokens of each row before its answer, where prompts are of any length.

        The answer begins with the last token that can be a first edge, or free text's: the events of a history begin
        with such tokens, too. A row that holds none is all prompt.

        Args:
            rows: `(num_rows, length)`.
        """
        root = torch.tensor([self.root], device=rows.device)
        _, firsts, _ = self.allowed_tokens(root)
        if self.free_text_token_id is not None:
            firsts = torch.cat([firsts, firsts.new_tensor([self.free_text_token_id])])
        places = torch.isin(rows, firsts) * torch.arange(1, rows.shape[1] + 1, device=rows.device)
        last = places.amax(dim=1) - 1
        return torch.where(last < 0, rows.shape[1], last)

    def answers(self, rows: torch.Tensor) -> torch.Tensor:
        """`(num_rows, longest)`: each row from its first edge on, filled up with `PADDING`; end tokens still in it."""
        if self.start_length is not None:
            return rows[:, self.start_length :]
        starts, length = self.prompt_lengths(rows), rows.shape[1]
        longest = length - int(starts.min()) if len(rows) else 0
        places = starts[:, None] + torch.arange(longest, device=rows.device)
        return rows.gather(1, places.clamp(max=length - 1)).masked_fill(places >= length, PADDING)

    # ---- inside

    def _edge_range(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two longs, the shape of `nodes`: the edges of each node are `start:end`."""
        starts = self.arrays(nodes.device).child_starts
        last = len(starts) - 1
        return starts[nodes.clamp(max=last)].long(), starts[(nodes + 1).clamp(max=last)].long()

    def _first_tokens(self, nodes: torch.Tensor) -> torch.Tensor:
        """Long, the shape of `nodes`: the smallest token of the level below each node."""
        firsts = torch.tensor([first for first, _ in self.token_ranges] + [0, 0], device=nodes.device)
        bounds = torch.tensor(self.level_starts[1:], device=nodes.device)
        return firsts[torch.bucketize(nodes, bounds, right=True)]


def expand_ranges(starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """List the ranges `starts[i]:ends[i]` one after another: the owner `i` of each element, and the element."""
    lengths = ends - starts
    owners = torch.repeat_interleave(lengths)
    before = torch.cumsum(lengths, dim=0) - lengths
    elements = torch.arange(len(owners), device=starts.device) + (starts - before)[owners]
    return owners, elements


def _child_starts(ordered: SortedSequences, level_starts: list[int]) -> np.ndarray:
    """The edge at which each inner node's children begin, and the number of edges."""
    dtype = smallest_dtype(max(level_starts[-1], 1 << 16))
    starts = [np.zeros(1, dtype)]
    for level, child_level, first_child in zip(ordered.levels[:-1], ordered.levels[1:], level_starts[2:], strict=False):
        if child_level.first_sequences is not None:
            # Both are ascending: a node's first child is the first that begins no earlier than the node itself.
            before = np.searchsorted(child_level.first_sequences, level.first_sequences)
        elif level.first_sequences is not None:
            before = level.first_sequences  # each child is one sequence
        else:
            before = np.arange(len(level.codes))
        starts.append(before.astype(dtype) + dtype(first_child - 1))
    return np.concatenate([*starts, np.array([level_starts[-1] - 1], dtype)])


def _sorted_values(values: np.ndarray | None, order: np.ndarray | None) -> np.ndarray:
    """The values in the order of the sorted sequences; empty where each is its sequence's number."""
    if values is None:
        values = order
    elif order is not None:
        values = values[order]
    if values is None:
        return np.empty(0, np.int32)
    values = values.astype(smallest_dtype(max(int(values.max()) + 1, 1 << 16)))
    return values[:0] if (values[1:] == values[:-1] + 1).all() and values[0] == 0 else values


def _ranges_below(
    ordered: SortedSequences, level_starts: list[int], num_sequences: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`sequences`, `first_sequences` and `last_sequences` of `TrieArrays`; empty where all have one length."""
    if ordered.lengths is None:
        return np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32)
    ends, firsts = np.full(level_starts[-1] + 1, PADDING), np.zeros(level_starts[-1] + 1, np.int64)
    counts = np.zeros_like(firsts)
    counts[Trie.root] = num_sequences
    for length, level in enumerate(ordered.levels, start=1):
        longer = np.flatnonzero(ordered.lengths >= length)
        nodes = np.searchsorted(level.first_sequences, longer, side="right") - 1 + level_starts[length]
        counts += np.bincount(nodes, minlength=len(counts))
        firsts[level_starts[length] : level_starts[length + 1]] = level.first_sequences
        is_end = ordered.lengths[longer] == length
        ends[nodes[is_end]] = longer[is_end]
    return ends, firsts, firsts + counts
