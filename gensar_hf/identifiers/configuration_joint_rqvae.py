"""Configuration of the joint RQ-VAE."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class JointRQVAEConfig(PreTrainedConfig):
    """Sizes and losses of a `JointRQVAE`; the defaults are the paper's.

    Args:
        semantic_dim: width of the semantic embeddings.
        collaborative_dim: width of the collaborative embeddings.
        embeddings: `"both"`; or `"semantic"` or `"collaborative"`, the paper's ablation (fig. 4): only that one
            is quantized, all levels are shared (`num_specific_levels` is added to `num_shared_levels`), and the one
            identifier serves search and recommendation.
        latent_dim: d, width of each latent; specific codes have d dimensions, shared codes 2d.
        hidden_sizes: hidden layers of both encoders, outermost first (the decoders mirror them); may be empty.
        num_shared_levels: L_m, codebooks over both latents at once; 0 = nothing shared.
        num_specific_levels: L_n, codebooks per kind after the shared ones; 0 = everything shared, and the two
            identifiers are equal.
        codebook_size: K, codes per codebook.
        commitment_weight: α, weight of the commitment loss.
        quantizer: `"rq-vae"` learns MLPs and codebooks by gradient; `"rq-kmeans"` fits them without one: the encoders
            are PCA projections to `latent_dim`, the codebooks residual k-means (`hidden_sizes` is not used).
        initialization: `"kmeans"` starts the encoders as PCA projections, their decoders as the transposes (MLPs still,
            see `make_linear`) and the codebooks by residual k-means; `"random"` starts everything at random.
        collaborative_scale: root mean square of the collaborative latents at the start (PCA), that of the semantic ones
            being 1. Below 1 the shared codes follow the semantic embeddings more closely: fewer collisions between
            items with similar clicks, more between items with similar texts.
        ema_decay: 0 = codes are learned by gradient; otherwise each is a moving average, of this decay, of its latents.
        sinkhorn_epsilon: entropy of the balanced assignment on the last level while training; 0 = nearest code.
        sinkhorn_iterations: of the balanced assignment.
        dead_code_threshold: a code with fewer items than this is dead and is reset between epochs; 0 = never.
    """

    model_type = "joint_rqvae"

    semantic_dim: int = 768
    collaborative_dim: int = 64
    embeddings: Literal["both", "semantic", "collaborative"] = "both"
    latent_dim: int = 32
    hidden_sizes: list[int] | tuple[int, ...] = (512, 256, 128)
    num_shared_levels: int = 2
    num_specific_levels: int = 2
    codebook_size: int = 256
    commitment_weight: float = 0.25
    quantizer: Literal["rq-vae", "rq-kmeans"] = "rq-vae"
    initialization: Literal["kmeans", "random"] = "kmeans"
    collaborative_scale: float = 1.0
    ema_decay: float = 0.0
    sinkhorn_epsilon: float = 0.003
    sinkhorn_iterations: int = 50
    dead_code_threshold: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.embeddings != "both":
            self.num_shared_levels, self.num_specific_levels = self.num_shared_levels + self.num_specific_levels, 0
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        """Part of the `@strict` validation: sizes that leave something to learn, at least one level, weights from 0."""
        for name in ("semantic_dim", "collaborative_dim", "latent_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if self.codebook_size < 2:
            raise ValueError(
                f"`codebook_size` must be at least 2, or all items get one code; got {self.codebook_size}."
            )
        if self.codebook_size > 2**16 or self.num_levels > 32:
            raise ValueError(
                "`codebook_size` must be at most 65,536, and an identifier have at most 32 codes, because each code of "
                f"each level is a token of the generator; got {self.codebook_size} and {self.num_levels}."
            )
        if any(size < 2 for size in self.hidden_sizes):
            raise ValueError(f"`hidden_sizes` must all be at least 2; got {list(self.hidden_sizes)}.")
        if self.num_shared_levels < 0 or self.num_specific_levels < 0 or self.num_levels == 0:
            raise ValueError(
                "`num_shared_levels` and `num_specific_levels` must not be negative, and at least one of them must be "
                "above 0, because an identifier needs at least one code; "
                f"got {self.num_shared_levels} and {self.num_specific_levels}."
            )
        for name in ("commitment_weight", "sinkhorn_epsilon", "sinkhorn_iterations", "dead_code_threshold"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)}.")
        if not self.collaborative_scale > 0:
            raise ValueError(f"`collaborative_scale` must be above 0; got {self.collaborative_scale}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be at least 0 and below 1; got {self.ema_decay}.")

    @property
    def num_levels(self) -> int:
        """Codes per identifier."""
        return self.num_shared_levels + self.num_specific_levels
