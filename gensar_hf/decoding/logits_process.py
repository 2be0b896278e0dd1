"""Constrain `generate` to the sequences of a trie; per-request allow and deny lists."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from gensar_hf.decoding.trie import PADDING, Trie

# Low enough to lose against every real sequence and finite, so that sums and softmax stay defined. transformers' beam
# search uses the same number for beams that do not count.
DEAD_SCORE = -1e9


class TrieLogitsProcessor(LogitsProcessor):
    """Constrain `generate` (greedy, sampling or beam search) to the sequences of a trie, all rows at once.

    A row of `input_ids` is `[decoder start, behavior token, code 1, code 2, …]`, or begins with a prompt of any length
    in place of the decoder start if the trie says so. The behavior token is the first edge of the trie, so one batch
    may mix search and recommendation. Each row is in one of these states:

    - inside the trie: the children of its node keep the model's score, all other tokens get -inf;
    - at the end of a sequence (also after its end token): only the end token, at score 0;
    - dead (outside the trie, or everything below is excluded): only the end token, at `DEAD_SCORE`; it stays dead;
    - free text (first token `free_text_token_id`): unchanged.

    Scores are not renormalized over the allowed tokens: a beam's score is the model's own log-probability of the
    sequence. A complete sequence gets its end token at score 0 (probability 1), so the step that ends the sequences
    cannot change their ranking, and stopping one step earlier by `max_length` gives the same. Beam search with fewer
    allowed sequences than beams fills up with duplicates and dead rows scored -1e9 (divided by the length) or less,
    which the caller drops.

    Args:
        trie: the allowed sequences, from the behavior token on, and the special tokens.
        excluded: for each request (not for each beam) the trie values that must not be generated, such as the items
            that the user has seen. Row `r` of `input_ids` belongs to request `r // num_beams`, as `generate` lays out
            its rows.

    Raises:
        ValueError: when called with NaN scores, a vocabulary smaller than the trie's, or a number of rows that is not
            a multiple of the number of lists in `excluded`.
    """

    def __init__(self, trie: Trie, excluded: Sequence[Collection[int] | np.ndarray] | None = None) -> None:
        self.trie = trie
        self.excluded = None if excluded is None else ItemLists(trie, excluded)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mask the scores.

        Args:
            input_ids: `(num_rows, length)` tokens so far.
            scores: `(num_rows, vocab_size)` logits or log-probabilities of the next token.

        Returns:
            `(num_rows, vocab_size)` new scores; `scores` is not modified.
        """
        self.trie.check_vocabulary(scores.shape[1])
        refuse_nan(scores, "in row")
        requests = self._requests(len(scores), scores.device)
        prefixes = self.trie.answers(input_ids)
        is_end = prefixes == self.trie.end_token_id
        if self.trie.pad_token_id is not None:
            is_end |= prefixes == self.trie.pad_token_id
        nodes = self.trie.walk(prefixes.masked_fill(is_end, PADDING))

        constrained = torch.full_like(scores, -torch.inf)
        # A row with an end token inside the trie is dead.
        rows, tokens, children = self.trie.allowed_tokens(nodes.masked_fill(is_end.any(dim=1), self.trie.dead_node))
        is_complete = self.trie.sequences_at(nodes) >= 0
        if self.excluded is not None:
            keep = ~self.excluded.forbid(children, requests[rows])
            rows, tokens = rows[keep], tokens[keep]
            is_complete &= ~self.excluded.forbid(nodes, requests)
        constrained[rows, tokens] = scores[rows, tokens]

        dead_score = max(DEAD_SCORE, torch.finfo(scores.dtype).min)
        end_scores = torch.full_like(scores[:, 0], dead_score).masked_fill(is_complete, 0.0)
        end_scores[rows] = -torch.inf  # rows with children do not end
        constrained[:, self.trie.end_token_id] = end_scores
        free_text = self.trie.free_text_token_id
        if free_text is None:
            return constrained
        if prefixes.shape[1] == 0:
            may_begin = nodes == self.trie.root
        else:
            may_begin = prefixes[:, 0] == PADDING
            constrained = torch.where(prefixes[:, :1] == free_text, scores, constrained)
        constrained[may_begin, free_text] = scores[may_begin, free_text]
        return constrained

    def _requests(self, num_rows: int, device: torch.device) -> torch.Tensor:
        """`(num_rows,)` the request that each row belongs to."""
        rows = torch.arange(num_rows, device=device)
        if self.excluded is None:
            return rows
        num_requests = self.excluded.num_requests
        if num_requests == 0 or num_rows % num_requests != 0:
            raise ValueError(
                f"`excluded` has lists for {num_requests} requests, but `generate` works on {num_rows} rows, which is "
                "not a multiple of it; pass one list of items for each request of the batch."
            )
        return rows // (num_rows // num_requests)


def refuse_nan(scores: torch.Tensor, place: str) -> None:
    """Raise `ValueError` if a row of the scores, `(num_rows, num_columns)`, holds NaN or +inf; -inf is "impossible"."""
    is_faulty = (scores.isnan() | (scores == torch.inf)).any(dim=1)
    if is_faulty.any():
        raise ValueError(
            f"The model's scores are NaN or infinite {place} {int(is_faulty.int().argmax())} of {len(scores)}; the "
            "weights or the inputs hold such values, or a lower precision overflowed."
        )


class ValueList:
    """A list of trie values, such as the items that may be answers, prepared once for many requests.

    Args:
        trie: the trie that is decoded with.
        values: values that are not in the trie are ignored.

    Attributes:
        sequences: `(num_sequences,)` long, the sorted sequences of the trie that have one of the values, ascending.
    """

    def __init__(self, trie: Trie, values: Collection[int] | np.ndarray) -> None:
        flat = torch.from_numpy(np.fromiter(values, dtype=np.int64, count=len(values)))
        self.sequences = trie.sequences_of(flat)[1].unique()  # sorted, without duplicates


Values = Collection[int] | np.ndarray | ValueList


class ItemLists:
    """What each request may generate: the trie values of its allow list, or all, without those of its deny list.

    The lists are stored as one sorted array of (list, sequence) keys; requests that pass the same objects share a list.

    Args:
        trie: the trie that is decoded with.
        excluded: one deny list per request; None: there are none.
        allowed: one allow list per request, None for a request that may generate everything; None: there are none.

    Raises:
        ValueError: the two have different lengths.
    """

    def __init__(
        self, trie: Trie, excluded: Sequence[Values] | None = None, allowed: Sequence[Values | None] | None = None
    ) -> None:
        excluded = [()] * (0 if allowed is None else len(allowed)) if excluded is None else list(excluded)
        allowed = [None] * len(excluded) if allowed is None else list(allowed)
        if len(excluded) != len(allowed):
            raise ValueError(
                f"`excluded` has lists for {len(excluded)} requests, `allowed` for {len(allowed)}; pass one list of "
                "items for each request of the batch."
            )
        self.num_requests = len(allowed)
        self._trie = trie
        places: dict[tuple[int, int], int] = {}
        keys = [torch.zeros(0, dtype=torch.long)]
        for own_allowed, own_excluded in zip(allowed, excluded, strict=True):
            if (id(own_allowed), id(own_excluded)) not in places:
                place = places[id(own_allowed), id(own_excluded)] = len(places)
                keys.append(self._sequences(own_allowed, own_excluded) + place * trie.num_sequences)
        self._keys = torch.cat(keys)
        pairs = zip(allowed, excluded, strict=True)
        self._offsets = torch.tensor([places[id(one), id(other)] * trie.num_sequences for one, other in pairs])
        self._is_allowed = torch.tensor([own is not None for own in allowed], dtype=torch.bool)

    def _sequences(self, allowed: Values | None, excluded: Values) -> torch.Tensor:
        """The sequences of an allow list without those of the deny list, or of the deny list alone."""
        denied = excluded if isinstance(excluded, ValueList) else ValueList(self._trie, excluded)
        if allowed is None:
            return denied.sequences
        sequences = (allowed if isinstance(allowed, ValueList) else ValueList(self._trie, allowed)).sequences
        return sequences[torch.isin(sequences, denied.sequences, assume_unique=True, invert=True)]

    def forbid(self, nodes: torch.Tensor, requests: torch.Tensor) -> torch.Tensor:
        """Bool, the shape of `nodes`: may the request generate none of the sequences below the node?"""
        self._keys, self._offsets, self._is_allowed = (
            array.to(nodes.device) for array in (self._keys, self._offsets, self._is_allowed)
        )
        first, last = self._trie.sequences_below(nodes)
        offsets = self._offsets[requests]
        number = torch.searchsorted(self._keys, offsets + last) - torch.searchsorted(self._keys, offsets + first)
        return torch.where(self._is_allowed[requests], number, last - first - number) == 0
