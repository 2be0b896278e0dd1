"""Items that must not be generated, or that alone may be, request by request."""

from collections.abc import Collection, Sequence

import numpy as np
import torch

from gensar_hf.decoding.trie import Trie

ItemCollections = Sequence[Collection[int] | np.ndarray]


class _ItemsByRequest:
    """For each request some of the trie's values, as one sorted array of (request, sorted sequence) keys.

    Args:
        trie: the trie that is decoded with.
        values: one collection of values a request; values that the trie does not hold are ignored.
    """

    def __init__(self, trie: Trie, values: ItemCollections) -> None:
        self.num_requests = len(values)
        self._trie = trie
        requests = np.repeat(np.arange(len(values)), [len(own) for own in values])
        flat = [np.fromiter(own, dtype=np.int64, count=len(own)) for own in values]
        owners, sequences = trie.sequences_of(torch.from_numpy(np.concatenate([*flat, np.empty(0, dtype=np.int64)])))
        keys = torch.from_numpy(requests)[owners] * trie.num_sequences + sequences
        self._keys = keys.unique()  # sorted, and a value named twice counts once

    def _count(self, first: torch.Tensor, last: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
        """How many of the sorted sequences `first` … `last - 1` belong to each request."""
        self._keys = self._keys.to(first.device)
        offsets = requests * self._trie.num_sequences
        return torch.searchsorted(self._keys, offsets + last) - torch.searchsorted(self._keys, offsets + first)


class ExcludedItems(_ItemsByRequest):
    """For each request the values that must not be generated."""

    def covers(self, nodes: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
        """Bool, the shape of `nodes`: is every sequence below the node excluded for its request?"""
        first, last = self._trie.sequences_below(nodes)
        return self._count(first, last, requests) == last - first

    def contains(self, nodes: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
        """Bool, the shape of `nodes`: is the sequence that ends at the node excluded for its request?"""
        sequences = self._trie.sequences_at(nodes)
        return (sequences >= 0) & (self._count(sequences, sequences + 1, requests) == 1)


class AllowedItems(_ItemsByRequest):
    """For each request the only values that may be generated."""

    def misses(self, nodes: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
        """Bool, the shape of `nodes`: is no sequence below the node allowed for its request?"""
        return self._count(*self._trie.sequences_below(nodes), requests) == 0
