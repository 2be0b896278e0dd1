"""Input standardization and the MLP encoders and decoders of the RQ-VAE, which start as PCA projections."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

ENCODE_BATCH_SIZE = 8192


class Standardization(nn.Module):
    """Zero mean and unit variance per dimension, fitted on the training items; the identity until then."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def reset_buffers(self) -> None:
        """Reset to the identity; buffers that were loaded keep their values."""
        init.zeros_(self.mean)
        init.ones_(self.scale)

    def fit(self, embeddings: torch.Tensor) -> None:
        """Take mean and standard deviation of `(num_items, dim)`; a dimension that never varies keeps scale 1."""
        batches = embeddings.split(ENCODE_BATCH_SIZE)  # float64 in batches: a million items would take gigabytes
        zero = torch.zeros(())
        mean = sum((batch.double().sum(dim=0) for batch in batches), zero) / len(embeddings)
        squares = sum(((batch.double() - mean).square().sum(dim=0) for batch in batches), zero)
        deviation = (squares / len(embeddings)).sqrt()
        varies = deviation > 1e-6 * mean.abs().clamp_min(1e-6)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(varies, deviation, torch.ones_like(deviation)))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Standardize `(batch_size, dim)`."""
        return (embeddings - self.mean) / self.scale


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers between the sizes, with ReLU between them and none at the end."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def fit_projection(
    encoder: nn.Sequential, decoder: nn.Sequential, standardized: torch.Tensor, scale: float = 1.0
) -> None:
    """Start the encoder as a PCA projection with latents of root mean square `scale`, the decoder as its transpose.

    One scale makes both kinds weigh the same in the shared codebooks whatever the widths of the embeddings.
    A narrow hidden layer or embedding lowers the number of directions; the other latents are then 0. `standardized` is
    `(num_items, dim)`.
    """
    # The matrix of inner products holds all that is needed; in batches, because float64 takes twice the memory.
    batches = (batch.double() for batch in standardized.split(ENCODE_BATCH_SIZE))
    products = sum((batch.T @ batch for batch in batches), torch.zeros(()))
    _, directions = torch.linalg.eigh(products)  # columns, by ascending variance
    linears: Any = encoder[::2]  # without the ReLUs
    widths = [layer.out_features for layer in linears]
    latent_dim = widths[-1]
    rank = min([latent_dim, standardized.shape[1], *(width // 2 for width in widths[:-1])])
    directions = directions.flip(-1)[:, :rank].T  # (rank, dim)
    total = (directions @ products * directions).sum()  # Σ ‖directions @ row‖² over all rows
    root_mean_square = total.clamp_min(0).div(len(standardized) * latent_dim).sqrt() / scale
    padding = torch.eye(latent_dim, rank, dtype=torch.double, device=products.device)
    make_linear(encoder, inner=directions / root_mean_square, outer=padding)
    make_linear(decoder, inner=padding.T, outer=directions.T * root_mean_square)


def make_linear(layers: nn.Sequential, inner: torch.Tensor, outer: torch.Tensor) -> None:
    """Set an MLP with ReLU to compute `outer @ inner @ x`; its other units can still learn what is not linear.

    A value y passes a ReLU as its two parts, y = ReLU(y) − ReLU(−y), so `2 * rank` units of each hidden layer carry the
    map; the other units keep their random weights and reach the output once the last layer has learned to use them.
    `inner` is `(rank, in_dim)`, `outer` `(out_dim, rank)`.
    """
    linears: Any = layers[::2]
    identity = torch.eye(2 * len(inner), device=inner.device)
    blocks = [torch.cat([inner, -inner]), *[identity] * (len(linears) - 2), torch.cat([outer, -outer], dim=1)]
    for linear, block in zip(linears, blocks if len(linears) > 1 else [outer @ inner], strict=True):
        num_rows, num_columns = block.shape
        linear.weight[:num_rows] = 0
        linear.bias[:num_rows] = 0
        linear.weight[:num_rows, :num_columns] = block.float()
