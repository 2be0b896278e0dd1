"""What models of the next item share: histories padded with 0 on the right, and a loss over the whole catalogue."""

import torch
import torch.nn.functional as F

PADDING = 0
IGNORED_LABEL = -100


def next_item_loss(
    hidden: torch.Tensor,
    item_embeddings: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy over the whole catalogue at the labelled positions.

    Args:
        hidden: `(batch_size, length, dim)`.
        item_embeddings: `(num_items, dim)`.
        labels: `(batch_size, length)` item index + 1; 0 and -100 are ignored.
        label_smoothing: share of the target's probability that all items divide.
        num_items_in_batch: labels in the whole batch, as Trainer counts them; default: those given here.

    Returns:
        scalar: the sum divided by that number.
    """
    # The catalogue's logits are the largest tensor by far, so only labelled positions get any.
    is_labelled = labels > PADDING
    logits = F.linear(hidden[is_labelled], item_embeddings)  # (num_labels, num_items)
    loss_sum = F.cross_entropy(logits, labels[is_labelled] - 1, reduction="sum", label_smoothing=label_smoothing)
    return loss_sum / (is_labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def last_states(hidden: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Each history's state after its last event, zeros for an empty one.

    Args:
        hidden: `(batch_size, length, dim)`.
        input_ids: `(batch_size, length)` item index + 1, 0 = padding on the right.

    Returns:
        `(batch_size, dim)`.
    """
    lengths = (input_ids != PADDING).sum(dim=1)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    return hidden[rows, (lengths - 1).clamp(min=0)] * (lengths > 0)[:, None]
