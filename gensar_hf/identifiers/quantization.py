"""Vector and residual quantization: nearest codes, their losses, k-means, Sinkhorn balancing, dead-code reset."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from transformers import initialization as init

NEAREST_BATCH_SIZE = 8192  # 8 MB of distances to 256 codes
# k-means sees a seeded sample of the vectors where there are more than this many for each code.
MAX_VECTORS_PER_CODE = 256


class QuantizerOutput(NamedTuple):
    """What quantizing a batch gives."""

    codes: torch.Tensor  # (batch_size,) of one level, (batch_size, num_levels) of a residual quantizer, long
    quantized: torch.Tensor  # (batch_size, codebook_dim), sum of the chosen codes; carries no gradient
    loss: torch.Tensor  # scalar, codebook loss + commitment_weight * commitment loss, summed over the levels


def mean_squared_error(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The ‖left − right‖² of every loss of the joint RQ-VAE: the mean over the batch and over the dimensions.

    Differs from the paper: it writes the squared norm, a sum over the dimensions. With a 384-d semantic and a 64-d
    collaborative embedding the sum would count the first six times; the mean makes both reconstructions weigh the same,
    and shared (2d) codes as much as specific (d) ones. This function is the only place where that is decided.
    """
    return (left - right).square().mean()


def straight_through(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Value of `quantized`, gradient of `latents` (van den Oord et al. 2017, sec. 3.2); both of the same shape."""
    return latents + (quantized - latents).detach()


def squared_distances(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Squared L2 distances `(num_vectors, codebook_size)`, in float32 also under autocast, not below 0."""
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        vectors, codebook = vectors.float(), codebook.float()
        cross_terms = vectors @ codebook.T
        distances = vectors.square().sum(-1, keepdim=True) - 2 * cross_terms + codebook.square().sum(-1)
    return distances.clamp_min(0)


@torch.no_grad()
def nearest_code(vectors: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance to the nearest code, `(num_vectors,)` float32, and that code, `(num_vectors,)` long."""
    batches = [squared_distances(batch, codebook).min(dim=-1) for batch in vectors.split(NEAREST_BATCH_SIZE)]
    distances, codes = zip(*batches, strict=True)
    return torch.cat(distances), torch.cat(codes)


def residual_quantize(latents: torch.Tensor, codebooks: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each latent greedily, one codebook at a time (RQ-VAE, Lee et al. 2022, sec. 3.1).

    Args:
        latents: `(num_items, codebook_dim)`.
        codebooks: one `(codebook_size, codebook_dim)` table per level, coarse first; none is allowed.

    Returns:
        codes `(num_items, num_levels)`, dtype long, and the quantized latents `(num_items, codebook_dim)`.
    """
    residual = latents
    codes = torch.zeros(len(latents), len(codebooks), dtype=torch.long, device=latents.device)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest_code(residual, codebook)[1]
        residual = residual - codebook[codes[:, level]]
    return codes, latents - residual


def sinkhorn_plan(distances: torch.Tensor, epsilon: float, num_iterations: int = 50) -> torch.Tensor:
    """Entropic transport plan that spreads the vectors evenly over the codes (Cuturi 2013), in the log domain.

    As in LC-Rec, distances are divided by half their range first, so that `epsilon` does not depend on their scale.
    Smaller is closer to the exact transport, and converges later.

    Args:
        distances: `(num_vectors, codebook_size)`, squared distances.
        epsilon: strength of the entropy term.
        num_iterations: how often columns and rows are scaled in turn.

    Returns:
        `(num_vectors, codebook_size)`: rows sum to 1 / num_vectors, columns to about 1 / codebook_size.
    """
    num_vectors, codebook_size = distances.shape
    distances = distances.float()
    half_range = ((distances.max() - distances.min()) / 2).clamp_min(1e-12)
    log_kernel = (distances.min() - distances) / (half_range * epsilon)
    column_potential = log_kernel.new_zeros(codebook_size)
    # Scaling the rows is a softmax, so only the column potential is kept: 5 times faster than two logsumexp per
    # iteration. A column whose mass underflows is raised by at most 87 (= -log of the smallest float) at a time.
    smallest = torch.finfo(torch.float32).tiny
    for _ in range(num_iterations):
        column_mass = torch.softmax(log_kernel + column_potential, dim=1).sum(dim=0) * (codebook_size / num_vectors)
        column_potential = column_potential - column_mass.clamp_min(smallest).log()
    return torch.softmax(log_kernel + column_potential, dim=1) / num_vectors


def fit_codebook(vectors: torch.Tensor, codebook_size: int, seed: int) -> torch.Tensor:
    """`(codebook_size, codebook_dim)` float32 codes from k-means over `(num_vectors, codebook_dim)` vectors.

    With fewer distinct vectors than codes, each distinct vector becomes a code and the spare codes lie around them, so
    that every code is finite and near the data. `seed`: of the sample, the k-means++ start and the spare codes.
    """
    from sklearn.cluster import KMeans

    generator = np.random.default_rng(seed)
    points = vectors.detach().float().cpu().numpy()
    if len(points) > (max_points := MAX_VECTORS_PER_CODE * codebook_size):
        points = points[np.sort(generator.choice(len(points), size=max_points, replace=False))]
    distinct = np.unique(points, axis=0)
    if len(distinct) > codebook_size:
        codes = KMeans(n_clusters=codebook_size, n_init=1, random_state=seed).fit(points).cluster_centers_
    else:
        neighbors = distinct[generator.integers(len(distinct), size=codebook_size - len(distinct))]
        spread = 0.1 * points.std() + 1e-6
        codes = np.concatenate([distinct, neighbors + spread * generator.standard_normal(neighbors.shape)])
    return torch.as_tensor(codes, dtype=torch.float32, device=vectors.device)


class VectorQuantizer(nn.Module):
    """One codebook: the nearest code by squared L2 (VQ-VAE, van den Oord et al. 2017).

    With `sinkhorn_epsilon > 0`, codes are assigned by the balanced transport plan instead while training. With
    `ema_decay > 0` a code is not learned by gradient: it is the moving average of the vectors assigned to it
    (van den Oord et al. 2017, appendix A.1).
    """

    ema_counts: torch.Tensor
    ema_sums: torch.Tensor

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        commitment_weight: float = 0.25,
        sinkhorn_epsilon: float = 0.0,
        sinkhorn_iterations: int = 50,
        ema_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.commitment_weight = commitment_weight
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.ema_decay = ema_decay
        self.codebook = nn.Parameter(torch.empty(codebook_size, codebook_dim), requires_grad=ema_decay == 0)
        if ema_decay:
            self.register_buffer("ema_counts", torch.empty(codebook_size))
            self.register_buffer("ema_sums", torch.empty(codebook_size, codebook_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the codes from U(−1/K, 1/K), VQ-VAE's usual start; weights that were loaded keep their values."""
        bound = 1 / len(self.codebook)
        init.uniform_(self.codebook, -bound, bound)
        if self.ema_decay:
            init.ones_(self.ema_counts)
            init.copy_(self.ema_sums, self.codebook)

    @torch.no_grad()
    def set_codes(self, rows: torch.Tensor, vectors: torch.Tensor) -> None:
        """Put `(num_rows,)` codes where `(num_rows, codebook_dim)` vectors are, and restart their moving averages."""
        self.codebook[rows] = vectors.to(self.codebook.dtype)
        if self.ema_decay:
            self.ema_counts[rows] = 1
            self.ema_sums[rows] = self.codebook[rows]

    @torch.no_grad()
    def update_averages(self, vectors: torch.Tensor, codes: torch.Tensor) -> None:
        """Update the moving averages with `(batch_size, codebook_dim)` vectors and their codes; move the codes there.

        Counts and sums are those of all processes, so that the codebooks stay equal. A code that recent vectors did not
        use keeps its place: its count and its sum shrink by the same factor.
        """
        counts = torch.bincount(codes, minlength=len(self.codebook)).to(self.ema_counts.dtype)
        sums = torch.zeros_like(self.ema_sums).index_add_(0, codes, vectors.to(self.ema_sums.dtype))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.ema_counts.lerp_(counts, 1 - self.ema_decay)
        self.ema_sums.lerp_(sums, 1 - self.ema_decay)
        is_used = (self.ema_counts > 1e-4)[:, None]
        self.codebook.copy_(torch.where(is_used, self.ema_sums / self.ema_counts[:, None], self.codebook))

    def forward(self, vectors: torch.Tensor) -> QuantizerOutput:
        """Quantize `(batch_size, codebook_dim)` vectors; the loss is ‖sg[r] − e‖² + α‖r − sg[e]‖²."""
        if self.training and self.sinkhorn_epsilon > 0:
            distances = squared_distances(vectors.detach(), self.codebook.detach())
            codes = sinkhorn_plan(distances, self.sinkhorn_epsilon, self.sinkhorn_iterations).argmax(dim=-1)
        else:
            codes = nearest_code(vectors, self.codebook)[1]
        chosen = self.codebook[codes]
        loss = self.commitment_weight * mean_squared_error(vectors, chosen.detach())
        if not self.ema_decay:
            loss = loss + mean_squared_error(vectors.detach(), chosen)
        elif self.training:
            self.update_averages(vectors.detach(), codes)
        return QuantizerOutput(codes, chosen.detach(), loss)

    @torch.no_grad()
    def reset_dead_codes(self, vectors: torch.Tensor, min_items: int, generator: np.random.Generator) -> int:
        """Move each code that is nearest to fewer than `min_items` vectors onto a badly quantized vector.

        The vectors, `(num_vectors, codebook_dim)` of all training items at this level, are drawn in proportion to their
        squared error, as k-means++ draws its centers. Returns how many codes were moved.
        """
        errors, codes = nearest_code(vectors, self.codebook)
        dead = torch.bincount(codes, minlength=len(self.codebook)) < min_items
        weights = errors.double().cpu().numpy()
        num_moved = min(int(dead.sum()), int(np.count_nonzero(weights)))
        if num_moved == 0:
            return 0
        rows = generator.choice(len(vectors), size=num_moved, replace=False, p=weights / weights.sum())
        dead_codes = torch.nonzero(dead).squeeze(-1)[:num_moved]
        self.set_codes(dead_codes, vectors[torch.as_tensor(rows, device=vectors.device)])
        return num_moved


class ResidualVectorQuantizer(nn.Module):
    """A sequence of codebooks; each quantizes the residual of those before it (Lee et al. 2022). 0 levels work."""

    def __init__(
        self, num_levels: int, codebook_size: int, codebook_dim: int, sinkhorn_epsilon: float = 0.0, **settings: Any
    ) -> None:
        """As `VectorQuantizer`, with its other `settings`; Sinkhorn is used on the last level only."""
        super().__init__()
        epsilons = [0.0] * (num_levels - 1) + [sinkhorn_epsilon] * (num_levels > 0)
        self.levels = nn.ModuleList(
            VectorQuantizer(codebook_size, codebook_dim, sinkhorn_epsilon=epsilon, **settings) for epsilon in epsilons
        )

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """The levels, coarse first."""
        return cast(list[VectorQuantizer], list(self.levels))

    @property
    def codebooks(self) -> list[torch.Tensor]:
        """The codebooks, `(codebook_size, codebook_dim)` each, coarse first."""
        return [level.codebook for level in self.quantizers]

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize `(batch_size, codebook_dim)` latents level by level.

        The residual of level l is `latents − sg[Σ codes before l]`: the commitment losses of all levels reach the
        encoder, and a codebook is moved by its own level's loss only (Lee et al. 2022, eq. 8).
        """
        quantized, loss = torch.zeros_like(latents), latents.new_zeros(())
        codes = torch.zeros(len(latents), len(self.levels), dtype=torch.long, device=latents.device)
        for index, level in enumerate(self.quantizers):
            output = level(latents - quantized)
            codes[:, index] = output.codes
            quantized = quantized + output.quantized
            loss = loss + output.loss
        return QuantizerOutput(codes, quantized, loss)

    @torch.no_grad()
    def fit(self, latents: torch.Tensor, seed: int) -> torch.Tensor:
        """Residual k-means: fit every codebook on what the levels before it leave; returns the last residual."""
        residual = latents
        for index, level in enumerate(self.quantizers):
            codes = fit_codebook(residual, len(level.codebook), seed + index)
            level.set_codes(torch.arange(len(codes), device=codes.device), codes)
            residual = residual - level.codebook[nearest_code(residual, level.codebook)[1]]
        return residual

    @torch.no_grad()
    def reset_dead_codes(
        self, latents: torch.Tensor, min_items: int, generator: np.random.Generator
    ) -> tuple[int, torch.Tensor]:
        """Reset the dead codes of every level in turn; how many, and the last residual `(num_items, codebook_dim)`."""
        residual, num_moved = latents, 0
        for level in self.quantizers:
            num_moved += level.reset_dead_codes(residual, min_items, generator)
            residual = residual - level.codebook[nearest_code(residual, level.codebook)[1]]
        return num_moved, residual
