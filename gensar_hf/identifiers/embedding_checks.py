"""What item embeddings must satisfy before they are quantized."""

import numpy as np
import torch

from gensar_hf.errors import InputError

Embeddings = np.ndarray | torch.Tensor


def checked_embeddings(name: str, embeddings: Embeddings, expected_dim: int) -> torch.Tensor:
    """Float32 tensor of the embeddings, on the device they came on.

    Args:
        name: `"semantic"` or `"collaborative"`, for the message.
        embeddings: `(num_items, expected_dim)`.
        expected_dim: width that the model was configured for.

    Raises:
        InputError: not a table, no item, wrong width, or a value that is not finite.
    """
    table = torch.as_tensor(embeddings, dtype=torch.float32)
    if table.dim() != 2 or len(table) == 0:
        raise InputError(
            f"The {name} embeddings must be a table with one row per item; got an array of shape {tuple(table.shape)}."
        )
    if table.shape[1] != expected_dim:
        raise InputError(
            f"The {name} embeddings have {table.shape[1]} dimensions, but `{name}_dim` of the model is {expected_dim}; "
            f"build the model with `{name}_dim={table.shape[1]}` or encode the items again."
        )
    finite = torch.isfinite(table)
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise InputError(
            f"The {name} embedding of item {row} (counted from 0) is {table[row, column].item()} in dimension "
            f"{column}; every value must be finite, so check the model that made the embeddings."
        )
    return table


def require_variation(name: str, embeddings: torch.Tensor) -> None:
    """Refuse `(num_items, dim)` embeddings from which nothing can be learned.

    Raises:
        InputError: fewer than two items, or all items equal.
    """
    if len(embeddings) < 2:
        raise InputError("Only 1 item was given; the quantizer needs at least 2 items to tell apart.")
    if bool((embeddings == embeddings[0]).all()):
        raise InputError(
            f"All {len(embeddings)} {name} embeddings are equal, so that no code can tell the items apart; "
            "check the items' texts or interactions and the model that made the embeddings."
        )
