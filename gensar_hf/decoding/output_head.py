"""Log-probabilities of few tokens under the softmax over the whole vocabulary.

The normaliser needs every logit, but no logit is needed twice: they are computed in slices of the vocabulary that stay
in the cache and are summed there, so that no `(num_rows, vocab_size)` table is ever written.
"""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import T5ForConditionalGeneration

from gensar_hf.decoding.packed_linear import SLICE_TOKENS, PackedLinear


class OutputHead:
    """A language-model head.

    Args:
        head: it is called as it is where it is more than a matrix (with a bias, quantised, with an adapter or a hook);
            the whole table of logits is then computed, some rows at a time.
        scale: what states are multiplied with before it, if they are.
    """

    def __init__(self, head: nn.Module, scale: float | None = None) -> None:
        self._head, self._scale = head, scale
        self._weight = _plain_weight(head)
        if isinstance(head, PackedLinear):
            self._products = head.products
        elif self._weight is not None:
            self._products = [partial(linear, weight=rows) for rows in self._weight.split(SLICE_TOKENS)]

    @classmethod
    def of_t5(cls, model: T5ForConditionalGeneration) -> "OutputHead":
        """That of a T5, which may scale its states."""
        return cls(model.lm_head, model.config.d_model**-0.5 if model.config.scale_decoder_outputs else None)

    def range_logits(self, states: torch.Tensor, first_token: int, end_token: int) -> torch.Tensor:
        """Of the tokens `first_token` … `end_token - 1`: `(..., d_model)` states → float32 `(..., num_tokens)`."""
        states = self._scaled(states)
        if self._weight is None:
            return self._head(states).float()[..., first_token:end_token]
        return linear(states, self._weight[first_token:end_token]).float()

    def range_log_probabilities(self, states: torch.Tensor, first_token: int, end_token: int) -> torch.Tensor:
        """Of the tokens `first_token` … `end_token - 1`.

        Args:
            states: `(..., d_model)` decoder states.
            first_token: of the range.
            end_token: the token after the range.

        Returns:
            `(..., end_token - first_token)` natural logarithms, float32.
        """
        if self._weight is None:
            return self._head(self._scaled(states)).float().log_softmax(dim=-1)[..., first_token:end_token]
        return (
            self.range_logits(states, first_token, end_token) - self._log_normalizers(self._scaled(states))[..., None]
        )

    def token_log_probabilities(self, states: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Of one token for each of the chosen states.

        Args:
            states: `(num_states, d_model)` decoder states.
            rows: `(...)` long, the state that each token is predicted from; a state may serve many tokens.
            tokens: `(...)` long.

        Returns:
            `(...)` natural logarithms, float32.
        """
        states = self._scaled(states)
        if self._weight is None:
            return self._head(states).float().log_softmax(dim=-1)[rows, tokens]
        logits = (states[rows] * self._weight[tokens]).sum(dim=-1).float()
        return logits - self._log_normalizers(states)[rows]

    def _scaled(self, states: torch.Tensor) -> torch.Tensor:
        return states if self._scale is None else states * self._scale

    def _log_normalizers(self, states: torch.Tensor) -> torch.Tensor:
        """`(...)` float32: the logarithm of the sum of all tokens' exponentials."""
        maxima, sums = [], []
        for product in self._products:
            # torch's own logsumexp takes as long as the product that it follows.
            logits = product(states).float()
            maxima.append(logits.amax(dim=-1))
            sums.append(logits.sub_(maxima[-1][..., None]).exp_().sum(dim=-1))
        slice_maxima, slice_sums = torch.stack(maxima, dim=-1), torch.stack(sums, dim=-1)
        highest = slice_maxima.amax(dim=-1)
        return highest + (slice_sums * (slice_maxima - highest[..., None]).exp()).sum(dim=-1).log()


def _plain_weight(head: nn.Module) -> torch.Tensor | None:
    """`(vocab_size, d_model)`; None if calling the head does more than to multiply with it."""
    is_plain = (
        type(head) in (nn.Linear, PackedLinear)
        and head.bias is None
        and not head._forward_hooks
        and not head._forward_pre_hooks
    )
    return head.weight if is_plain and isinstance(head.weight, torch.Tensor) else None
