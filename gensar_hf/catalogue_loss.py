"""Cross entropy over a catalogue of any size: over all items while there are few, over a sample of them beyond.

The one place that decides how a loss over all items is computed, for SASRec, the generator's item vectors and the
baselines:

- up to `EXACT_ITEMS` items by one product,
- beyond in training by a sampled softmax: its cost does not depend on the number of items,
- beyond where nothing is sampled, as in an evaluation, by the same product in blocks of targets, whose logits are
  computed again in a backward pass.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

EXACT_ITEMS = 16_384
NUM_NEGATIVES = 4096  # drawn for a batch
_BLOCK_LOGITS = 1 << 22  # 16 MiB


def is_sampled(num_items: int) -> bool:
    """Whether the loss of a training step is computed on a sample of the items."""
    return num_items > EXACT_ITEMS


class ItemSample(NamedTuple):
    """Items that stand for the whole catalogue in the softmax of a batch.

    Attributes:
        items: `(num_sampled,)` long; first those of the batch, ascending and distinct, then the drawn ones.
        log_weights: `(num_sampled,)` float32, the logarithm of the number of items that each stands for, -inf for a
            drawn item that the batch has.
    """

    items: torch.Tensor
    log_weights: torch.Tensor


def sample_items(present: torch.Tensor, num_items: int, generator: torch.Generator | None = None) -> ItemSample:
    """Sample the catalogue for a batch: the items of the batch, and `NUM_NEGATIVES` others, drawn uniformly.

    The items of the batch stand for themselves. Each drawn one stands for `num_items / NUM_NEGATIVES` items, so that
    its logit is corrected by the logarithm (logQ correction; Bengio and Senécal 2008, "Adaptive importance sampling to
    accelerate training of a neural probabilistic language model"). For a batch, the expectation of the sum of
    exponentials is then the sum over all items. Clicked items are in the batch in proportion to their popularity, and
    have the highest logits, so that little is left to the draws.

    Args:
        present: item indices of any shape, with all labels of the batch.
        num_items: of the catalogue.
        generator: default: torch's global one, whose state a checkpoint holds.
    """
    own = present.flatten().unique()
    # One from each of as many parts of the catalogue: less variance than independent draws, and hardly a repetition.
    shares = torch.rand(NUM_NEGATIVES, generator=generator, device=own.device, dtype=torch.float64)
    shares = (torch.arange(NUM_NEGATIVES, device=own.device) + shares) / NUM_NEGATIVES
    drawn = (shares * num_items).long().clamp(max=num_items - 1)
    places = torch.searchsorted(own, drawn).clamp(max=len(own) - 1)
    weight = torch.full((NUM_NEGATIVES,), num_items / NUM_NEGATIVES, device=own.device).log()
    weight = weight.masked_fill(own[places] == drawn, -torch.inf)
    return ItemSample(torch.cat([own, drawn]), torch.cat([weight.new_zeros(len(own)), weight]))


def sampled_losses(
    logits: torch.Tensor, sample: ItemSample, labels: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """`(num_labels,)` cross entropies, estimated from a sample of the items.

    Args:
        logits: `(num_labels, num_sampled)` of the sampled items, not corrected.
        sample: of `sample_items`; holds all labels.
        labels: `(num_labels,)` items.
        label_smoothing: share of the target that is spread over all items, as in torch.
    """
    logits = logits.float()
    own = sample.items[: len(sample.items) - NUM_NEGATIVES]
    places = torch.searchsorted(own, labels)
    total = (logits + sample.log_weights).logsumexp(dim=1)
    losses = total - logits.gather(1, places[:, None])[:, 0]
    if label_smoothing:
        mean = logits[:, len(own) :].mean(dim=1)  # the draws are uniform, those that the batch has included
        losses = (1 - label_smoothing) * losses + label_smoothing * (total - mean)
    return losses


def in_blocks(losses: Callable[..., torch.Tensor], num_items: int, *rows: torch.Tensor) -> torch.Tensor:
    """`losses(*rows)`, in blocks of rows beyond `EXACT_ITEMS`, each computed again in the backward pass.

    Args:
        losses: the cross entropies `(num_rows,)` of some rows over all items; draws no random numbers.
        num_items: of the catalogue.
        rows: tensors with the same first dimension.
    """
    num_rows, size = len(rows[0]), max(1, _BLOCK_LOGITS // num_items)
    if num_items <= EXACT_ITEMS or num_rows <= size:
        return losses(*rows)
    blocks = zip(*(tensor.split(size) for tensor in rows), strict=True)
    parts = [checkpoint(losses, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks]
    return torch.cat(parts)


def catalogue_losses(
    states: torch.Tensor,
    labels: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    present: torch.Tensor | None = None,
    sparse: bool = False,
) -> torch.Tensor:
    """`(num_labels,)` cross entropies of the labels over a catalogue, by the product of states and item vectors.

    Args:
        states: `(num_labels, dim)`.
        labels: `(num_labels,)` item indices.
        table: `(1 + num_items, dim)` item vectors behind a row of padding.
        bias: `(num_items,)`, added to the logits.
        label_smoothing: share of the target that is spread over all items, as in torch.
        present: item indices of the batch besides the labels, such as those of the histories, of any shape; they stand
            for themselves in a sample. Given in training only: without it no items are sampled.
        sparse: whether the gradient of the table is sparse where items are sampled.
    """
    num_items = len(table) - 1
    if present is not None and len(labels) and is_sampled(num_items):
        sample = sample_items(torch.cat([labels, present.flatten()]), num_items)
        own_bias = None if bias is None else bias[sample.items]
        logits = F.linear(states, F.embedding(sample.items + 1, table, sparse=sparse), own_bias)
        return sampled_losses(logits, sample, labels, label_smoothing)

    def over_all(states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = F.linear(states, table[1:], bias)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)

    return in_blocks(over_all, num_items, states, labels)
