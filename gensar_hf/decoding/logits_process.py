"""A logits processor that lets only the sequences of a trie through."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from gensar_hf.decoding.excluded_items import ExcludedItems
from gensar_hf.decoding.trie import PADDING, Trie

# Low enough to lose against every real sequence and finite, so that sums and softmax stay defined. transformers' own
# beam search uses the same number for beams that do not count.
DEAD_SCORE = -1e9


class TrieLogitsProcessor(LogitsProcessor):
    """Constrain `generate` (greedy, sampling or beams) to the sequences of a trie, all rows at once.

    A row of `input_ids` is `[decoder start, behavior token, code 1, code 2, …]`, or a prompt of any length in place of
    the decoder start if the trie says so; the behavior token is the first edge of the trie, so one batch may mix search
    and recommendation. Each row is in one of these states:

    - inside the trie: the children of its node keep the score that the model gave them, all other tokens get -inf;
    - at the end of a sequence (also after its end token): only the end token, at score 0;
    - at the end of a sequence that is the beginning of a longer one: the children and the end token, at the model's
      scores;
    - dead (outside the trie, or everything below is excluded): only the end token, at `DEAD_SCORE`; it stays dead;
    - free text (first token `free_text_token_id`): untouched.

    Scores are not renormalised over the allowed tokens: a beam's score is the model's own log-probability of the
    sequence. Beam search with fewer allowed sequences than beams fills up with duplicates and dead rows scored -1e9
    (divided by the length) or less, which the caller drops.

    Args:
        trie: the sequences allowed, from the behavior token on.
        decoder_start_length: number of tokens before the behavior token; default, as of the next three: the trie's own.
        eos_token_id: the end token. It must not occur in the trie.
        pad_token_id: what finished rows are filled with.
        free_text_token_id: a first token after which anything may follow.
        excluded: for each request (not for each beam) the trie values that must not be generated, such as the items
            already seen. Row `r` of `input_ids` belongs to request `r // num_beams`, as `generate` lays its rows out.

    Raises:
        ValueError: when called with NaN scores, a vocabulary smaller than the trie's, or rows that `excluded` does
            not divide.
    """

    def __init__(
        self,
        trie: Trie,
        decoder_start_length: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        free_text_token_id: int | None = None,
        excluded: Sequence[Collection[int] | np.ndarray] | None = None,
    ) -> None:
        self.trie = trie
        self.decoder_start_length = decoder_start_length
        self.eos_token_id = trie.end_token_id if eos_token_id is None else eos_token_id
        self.pad_token_id = trie.pad_token_id if pad_token_id is None else pad_token_id
        self.free_text_token_id = trie.free_text_token_id if free_text_token_id is None else free_text_token_id
        self.excluded = None if excluded is None else ExcludedItems(trie, excluded)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mask the scores.

        Args:
            input_ids: `(num_rows, length)` tokens so far.
            scores: `(num_rows, vocab_size)` logits or log-probabilities of the next token.

        Returns:
            `(num_rows, vocab_size)` new scores; `scores` itself is left as it is.
        """
        self._check(scores)
        requests = self._requests(len(scores), scores.device)
        start_length = self.decoder_start_length
        prefixes = self.trie.answers(input_ids) if start_length is None else input_ids[:, start_length:]
        nodes, has_ended = self._positions(prefixes)

        constrained = torch.full_like(scores, -torch.inf)
        # A row that has emitted its end token must not go on to a longer sequence.
        parents = nodes.masked_fill(has_ended, self.trie.dead_node)
        rows, tokens, children = self.trie.allowed_tokens(parents)
        if self.excluded is not None:
            keep = ~self.excluded.covers(children, requests[rows])
            rows, tokens = rows[keep], tokens[keep]
        constrained[rows, tokens] = scores[rows, tokens]

        has_children = torch.zeros_like(has_ended)
        has_children[rows] = True
        is_complete = self.trie.sequences_at(nodes) >= 0
        if self.excluded is not None:
            is_complete &= ~self.excluded.contains(nodes, requests)
        constrained[:, self.eos_token_id] = _end_scores(scores[:, self.eos_token_id], is_complete, has_children)
        return self._release_free_text(prefixes, nodes, scores, constrained)

    def _positions(self, prefixes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(num_rows,)` node reached by each row, and whether the row has emitted its end token."""
        is_end = prefixes == self.eos_token_id
        if self.pad_token_id is not None:
            is_end |= prefixes == self.pad_token_id
        return self.trie.walk(prefixes.masked_fill(is_end, PADDING)), is_end.any(dim=1)

    def _release_free_text(
        self, prefixes: torch.Tensor, nodes: torch.Tensor, scores: torch.Tensor, constrained: torch.Tensor
    ) -> torch.Tensor:
        """Undo the constraint on rows of free text; rows at the root may also begin free text."""
        if self.free_text_token_id is None:
            return constrained
        if prefixes.shape[1] == 0:
            to_begin = nodes == self.trie.root
        else:
            to_begin = prefixes[:, 0] == PADDING
            is_free = prefixes[:, 0] == self.free_text_token_id
            constrained = torch.where(is_free[:, None], scores, constrained)
        constrained[to_begin, self.free_text_token_id] = scores[to_begin, self.free_text_token_id]
        return constrained

    def _requests(self, num_rows: int, device: torch.device) -> torch.Tensor:
        """`(num_rows,)` the request that each row belongs to."""
        rows = torch.arange(num_rows, device=device)
        if self.excluded is None:
            return rows
        num_requests = self.excluded.num_requests
        if num_requests == 0 or num_rows % num_requests != 0:
            raise ValueError(
                f"`excluded` names {num_requests} requests, but `generate` works on {num_rows} rows, which is no "
                "multiple of it; give one set of items for each request of the batch."
            )
        return rows // (num_rows // num_requests)

    def _check(self, scores: torch.Tensor) -> None:
        vocab_size = scores.shape[1]
        if self.trie.token_limit > vocab_size:
            raise ValueError(
                f"The trie holds the token {self.trie.token_limit - 1}, but the model scores only {vocab_size} "
                "tokens; resize the model's embeddings to the tokenizer that the trie was built with."
            )
        is_nan = scores.isnan().any(dim=1)
        if is_nan.any():
            raise ValueError(
                f"The model's scores are NaN in row {int(is_nan.int().argmax())} of {len(scores)}; the weights or "
                "the inputs hold NaN, or a lower precision overflowed."
            )


def _end_scores(model_scores: torch.Tensor, is_complete: torch.Tensor, has_children: torch.Tensor) -> torch.Tensor:
    """`(num_rows,)` scores of the end token.

    A complete sequence has only one way to go on. Its end token gets score 0 (probability 1) instead of the model's,
    so that the step that merely ends the sequences cannot change their ranking, and stopping one step earlier by
    `max_length` gives the same.
    """
    dead_score = max(DEAD_SCORE, torch.finfo(model_scores.dtype).min)
    if_not_complete = torch.where(has_children, -torch.inf, dead_score)
    if_complete = torch.where(has_children, model_scores, 0.0)
    return torch.where(is_complete, if_complete, if_not_complete)
