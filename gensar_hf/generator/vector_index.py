"""An index of item vectors, so that a recommendation need not look at all items (extra `[faiss]`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gensar_hf.errors import InputError, extra_installed
from gensar_hf.generator.item_vectors import ItemVectors
from gensar_hf.item_embeddings import row_chunks

_TRAINED_ROWS = 262_144  # that the clusters and scales are made from, at most
_WIDTH = 16  # of which the rows' width is a multiple, so that the processor compares them quickly


class VectorIndex:
    """Approximate search for the items with the highest logits by vector, with FAISS.

    Douze et al., The Faiss Library, 2024 (arXiv:2401.08281). The items that it finds are scored exactly by the caller,
    so that an approximation can miss an item but not misplace one.

    Args:
        items: the vectors of a trained model; a copy is made in the index.
        kind: a factory string of FAISS: `"SQ8"` compares all items with a byte a number, `"IVF1024,SQ8"` those of
            the nearest of 1,024 clusters.
        num_probes: clusters that are looked at, of an index that has any.

    Raises:
        InputError: FAISS is not installed, knows no such kind, or cannot make one of so few items.
    """

    def __init__(self, items: ItemVectors, kind: str = "SQ8", num_probes: int = 16) -> None:
        with extra_installed("faiss"):
            import faiss
        vectors, biases = items.table.weight, items.bias
        self.num_items, self.kind = len(biases), kind
        self._source = [(tensor, tensor._version) for tensor in (vectors, biases)]  # torch counts their changes
        self._width = -(-(vectors.shape[1] + 1) // _WIDTH) * _WIDTH

        def rows_of(part: Any) -> np.ndarray:
            """Vector and bias of some items, `(num_items, width)`: their product with a request and 1 is the logit."""
            rows = np.zeros((len(biases[part]), self._width), dtype=np.float32)
            rows[:, : vectors.shape[1]] = vectors[part].detach().float().cpu().numpy()
            rows[:, vectors.shape[1]] = biases[part].detach().float().cpu().numpy()
            return rows

        try:
            self._index: Any = faiss.index_factory(self._width, kind, faiss.METRIC_INNER_PRODUCT)
            step = -(-self.num_items // _TRAINED_ROWS)
            self._index.train(rows_of(slice(None, None, step)))
            for part in row_chunks(self.num_items):
                self._index.add(rows_of(part))
            is_clustered = faiss.try_extract_index_ivf(self._index) is not None
            self._options: dict[str, Any] = {"nprobe": num_probes} if is_clustered else {}
            self._parameters: Any = faiss.SearchParametersIVF if is_clustered else faiss.SearchParameters
            self._selector: Any = faiss.IDSelectorBitmap
            self._search_open(rows_of(slice(1)), 1, np.ones(self.num_items, dtype=bool))  # some kinds refuse that
        except RuntimeError as error:  # its messages have a line of C++ each
            raise InputError(
                f"FAISS cannot make an index of kind {kind!r} of {self.num_items:,} items; take 'SQ8', or 'IVFn,SQ8' "
                "with n clusters of at least 40 items each."
            ) from error

    def is_current(self, items: ItemVectors) -> bool:
        """Whether these are the vectors and biases that the index was made of, unchanged."""
        now = items.table.weight, items.bias
        return all(
            tensor is source and tensor._version == version
            for tensor, (source, version) in zip(now, self._source, strict=True)
        )

    def search(self, requests: torch.Tensor, number: int, is_open: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The best open items of each request.

        Args:
            requests: `(num_requests, dim)` request vectors.
            number: of items.
            is_open: for each request `(num_items,)` bool, or of more items, of which the first ones are looked at.

        Returns:
            for each request `(num_found,)` distinct items; fewer than `number` if the clusters have no more.
        """
        rows = np.zeros((len(requests), self._width), dtype=np.float32)
        rows[:, : requests.shape[1]] = requests.float().cpu().numpy()
        rows[:, requests.shape[1]] = 1.0
        known, number = [own[: self.num_items] for own in is_open], min(number, self.num_items)
        if all(own.all() for own in known):
            found = self._index.search(rows, number, params=self._parameters(**self._options))[1]
        else:
            found = np.concatenate([self._search_open(rows[[row]], number, own) for row, own in enumerate(known)])
        return [own[own >= 0] for own in found]

    def _search_open(self, request: np.ndarray, number: int, is_open: np.ndarray) -> np.ndarray:
        """`(1, number)`, padded with -1."""
        bitmap = np.packbits(is_open, bitorder="little")
        parameters = self._parameters(sel=self._selector(bitmap), **self._options)
        return self._index.search(request, number, params=parameters)[1]
