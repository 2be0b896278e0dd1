"""The joint RQ-VAE: one shared prefix, two specific suffixes of codes per item (GenSAR, Shi et al. 2025)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from gensar_hf.errors import InputError
from gensar_hf.identifiers.assignment import JointCodes
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.networks import ENCODE_BATCH_SIZE, Standardization, fit_projection, mlp
from gensar_hf.identifiers.quantization import (
    ResidualVectorQuantizer,
    VectorQuantizer,
    mean_squared_error,
    residual_quantize,
    straight_through,
)
from gensar_hf.item_embeddings import checked_pair
from gensar_hf.model_folder import CheckedLoading

Embeddings = np.ndarray | torch.Tensor


@dataclass
class JointRQVAEOutput(ModelOutput):
    """What `JointRQVAE.forward` returns."""

    loss: torch.Tensor | None = None  # scalar, the sum of the two below
    reconstruction_loss: torch.Tensor | None = None  # scalar, ‖v_s − v̂_s‖² + ‖v_c − v̂_c‖² of standardized embeddings
    quantization_loss: torch.Tensor | None = None  # scalar, codebook and commitment losses of all levels
    semantic_codes: torch.Tensor | None = None  # (batch_size, num_levels) long, shared levels first
    collaborative_codes: torch.Tensor | None = None  # the same


class JointRQVAE(CheckedLoading, PreTrainedModel):
    """Quantizes a semantic and a collaborative embedding of each item into two identifiers with a shared prefix.

    `[z_s; z_c]` goes through the shared codebooks; the residual is cut in half, for the semantic and the collaborative
    codebooks. `train_joint_rqvae` calls `fit_standardization` and `initialize_codebooks` before it trains.
    """

    config_class = JointRQVAEConfig
    config: JointRQVAEConfig
    base_model_prefix = "joint_rqvae"
    main_input_name = "semantic_embeddings"

    def __init__(self, config: JointRQVAEConfig) -> None:
        super().__init__(config)
        hidden = [] if config.quantizer == "rq-kmeans" else list(config.hidden_sizes)
        dims = (config.semantic_dim, config.collaborative_dim)
        self.semantic_standardization, self.collaborative_standardization = map(Standardization, dims)
        self.semantic_encoder, self.collaborative_encoder = (mlp([dim, *hidden, config.latent_dim]) for dim in dims)
        self.semantic_decoder, self.collaborative_decoder = (
            mlp([config.latent_dim, *reversed(hidden), dim]) for dim in dims
        )
        settings = {
            "commitment_weight": config.commitment_weight,
            "sinkhorn_iterations": config.sinkhorn_iterations,
            "ema_decay": config.ema_decay,
        }
        # The last level is balanced while training; without specific levels that is the last shared one.
        epsilon, size, dim = config.sinkhorn_epsilon, config.codebook_size, config.latent_dim
        shared_epsilon = 0.0 if config.num_specific_levels else epsilon
        self.shared_quantizer = ResidualVectorQuantizer(
            config.num_shared_levels, size, 2 * dim, shared_epsilon, **settings
        )
        self.semantic_quantizer, self.collaborative_quantizer = (
            ResidualVectorQuantizer(config.num_specific_levels, size, dim, epsilon, **settings) for _ in dims
        )
        if config.quantizer == "rq-kmeans":
            self.requires_grad_(False)
        if config.embeddings == "semantic":
            nn.ModuleList([self.collaborative_encoder, self.collaborative_decoder]).requires_grad_(False)
        if config.embeddings == "collaborative":
            nn.ModuleList([self.semantic_encoder, self.semantic_decoder]).requires_grad_(False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, VectorQuantizer):
            module.reset_parameters()
        elif isinstance(module, Standardization):
            module.reset_buffers()

    def encode_latents(self, semantic_embeddings: torch.Tensor, collaborative_embeddings: torch.Tensor) -> torch.Tensor:
        """`[z_s; z_c]`, `(batch_size, 2 * latent_dim)` float32, of standardized embeddings.

        The half of an embedding that `config.embeddings` leaves out is 0.
        """
        halves = [
            encoder(embeddings).float()
            if self.config.embeddings in ("both", kind)
            else embeddings.new_zeros(len(embeddings), self.config.latent_dim, dtype=torch.float32)
            for kind, encoder, embeddings in (
                ("semantic", self.semantic_encoder, semantic_embeddings),
                ("collaborative", self.collaborative_encoder, collaborative_embeddings),
            )
        ]
        return torch.cat(halves, dim=-1)

    def forward(
        self,
        semantic_embeddings: torch.Tensor,
        collaborative_embeddings: torch.Tensor,
        return_loss: bool = True,
    ) -> JointRQVAEOutput:
        """Encode, quantize, decode.

        Args:
            semantic_embeddings: `(batch_size, semantic_dim)`.
            collaborative_embeddings: `(batch_size, collaborative_dim)`.
            return_loss: tells `Trainer` that a batch without labels has a loss.

        Returns:
            in training mode with `sinkhorn_epsilon > 0` the last level's codes are balanced, otherwise the nearest.
        """
        semantic = self.semantic_standardization(semantic_embeddings)
        collaborative = self.collaborative_standardization(collaborative_embeddings)
        latents = self.encode_latents(semantic, collaborative)
        of_shared = self.shared_quantizer(latents)
        semantic_residual, collaborative_residual = (latents - of_shared.quantized).chunk(2, dim=-1)
        of_semantic = self.semantic_quantizer(semantic_residual)
        of_collaborative = self.collaborative_quantizer(collaborative_residual)
        quantized = of_shared.quantized + torch.cat([of_semantic.quantized, of_collaborative.quantized], dim=-1)
        quantization_loss = of_shared.loss + of_semantic.loss + of_collaborative.loss
        semantic_latents, collaborative_latents = straight_through(latents, quantized).chunk(2, dim=-1)
        reconstruction_loss = latents.new_zeros(())
        if self.config.embeddings != "collaborative":
            decoded = self.semantic_decoder(semantic_latents).float()
            reconstruction_loss = reconstruction_loss + mean_squared_error(semantic, decoded)
        if self.config.embeddings != "semantic":
            decoded = self.collaborative_decoder(collaborative_latents).float()
            reconstruction_loss = reconstruction_loss + mean_squared_error(collaborative, decoded)
        return JointRQVAEOutput(
            loss=reconstruction_loss + quantization_loss,
            reconstruction_loss=reconstruction_loss,
            quantization_loss=quantization_loss,
            semantic_codes=torch.cat([of_shared.codes, of_semantic.codes], dim=-1),
            collaborative_codes=torch.cat([of_shared.codes, of_collaborative.codes], dim=-1),
        )

    @torch.no_grad()
    def fit_standardization(self, semantic: Embeddings, collaborative: Embeddings) -> None:
        """Fit mean and scale of both inputs on the training items, `(num_items, semantic_dim / collaborative_dim)`.

        Raises:
            InputError: wrong width, a non-finite value, fewer than two items, or all items equal.
        """
        semantic, collaborative = self._checked(semantic, collaborative)
        if len(semantic) < 2:
            raise InputError("Only 1 item was given; the quantizer needs at least 2 different items.")
        for name, embeddings in (("semantic", semantic), ("collaborative", collaborative)):
            if bool((embeddings == embeddings[0]).all()):
                raise InputError(
                    f"All {len(embeddings)} {name} embeddings are equal, so that no code can distinguish the items; "
                    "check the items' texts or interactions and the model that made the embeddings."
                )
        self.semantic_standardization.fit(semantic)
        self.collaborative_standardization.fit(collaborative)

    @torch.no_grad()
    def initialize_codebooks(self, semantic: Embeddings, collaborative: Embeddings, seed: int) -> None:
        """Fit PCA projections and, by residual k-means on the latents, all codebooks, after the standardization."""
        semantic, collaborative = self._checked(semantic, collaborative)
        fit_projection(self.semantic_encoder, self.semantic_decoder, self.semantic_standardization(semantic))
        fit_projection(
            self.collaborative_encoder,
            self.collaborative_decoder,
            self.collaborative_standardization(collaborative),
            self.config.collaborative_scale,
        )
        residual = self.shared_quantizer.fit(self._all_latents(semantic, collaborative), seed)
        semantic_residual, collaborative_residual = residual.chunk(2, dim=-1)
        self.semantic_quantizer.fit(semantic_residual, seed)
        self.collaborative_quantizer.fit(collaborative_residual, seed)

    @torch.no_grad()
    def reset_dead_codes(self, semantic: Embeddings, collaborative: Embeddings, seed: int) -> int:
        """Move codes with fewer than `config.dead_code_threshold` training items onto badly quantized ones."""
        semantic, collaborative = self._checked(semantic, collaborative)
        threshold, generator = self.config.dead_code_threshold, np.random.default_rng(seed)
        latents = self._all_latents(semantic, collaborative)
        num_shared, residual = self.shared_quantizer.reset_dead_codes(latents, threshold, generator)
        semantic_residual, collaborative_residual = residual.chunk(2, dim=-1)
        num_semantic, _ = self.semantic_quantizer.reset_dead_codes(semantic_residual, threshold, generator)
        num_collaborative, _ = self.collaborative_quantizer.reset_dead_codes(
            collaborative_residual, threshold, generator
        )
        return num_shared + num_semantic + num_collaborative

    @torch.no_grad()
    def encode(self, semantic: Embeddings, collaborative: Embeddings) -> JointCodes:
        """Nearest codes of any items, not yet unique: what `assign_unique_identifiers` takes.

        The tables are `(num_items, semantic_dim)` and `(num_items, collaborative_dim)`.
        """
        latents = self._all_latents(*self._checked(semantic, collaborative))
        shared_codes, shared_quantized = residual_quantize(latents, self.shared_quantizer.codebooks)
        halves = (latents - shared_quantized).chunk(2, dim=-1)
        semantic_codes, _ = residual_quantize(halves[0], self.semantic_quantizer.codebooks)
        collaborative_codes, _ = residual_quantize(halves[1], self.collaborative_quantizer.codebooks)
        quantizers = (self.shared_quantizer, self.semantic_quantizer, self.collaborative_quantizer)
        size, dim = self.config.codebook_size, self.config.latent_dim
        books = [
            np.array([book.float().cpu().numpy() for book in quantizer.codebooks], np.float32).reshape(-1, size, width)
            for quantizer, width in zip(quantizers, (2 * dim, dim, dim), strict=True)
        ]
        return JointCodes(
            torch.cat([shared_codes, semantic_codes], dim=-1).cpu().numpy(),
            torch.cat([shared_codes, collaborative_codes], dim=-1).cpu().numpy(),
            latents.cpu().numpy(),
            *books,
        )

    @torch.no_grad()
    def reconstruction_error(
        self, semantic: Embeddings, collaborative: Embeddings, quantized_latents: np.ndarray
    ) -> dict[str, float]:
        """Mean squared error of the decoded embeddings, on standardized dimensions: the share of variance that is lost.

        Of each kind: 0 is exact, 1 is what the mean embedding would give. `quantized_latents`, from
        `JointCodes.quantized`, are `(num_items, 2 * latent_dim)`.
        """
        semantic, collaborative = self._checked(semantic, collaborative)
        halves = torch.as_tensor(quantized_latents, device=self.device, dtype=torch.float32).chunk(2, dim=-1)
        parts = (
            ("semantic", semantic, self.semantic_standardization, self.semantic_decoder),
            ("collaborative", collaborative, self.collaborative_standardization, self.collaborative_decoder),
        )
        errors = {}
        for (kind, table, standardization, decoder), half in zip(parts, halves, strict=True):
            batches = zip(table.split(ENCODE_BATCH_SIZE), half.split(ENCODE_BATCH_SIZE), strict=True)
            sums = [
                float(mean_squared_error(standardization(rows), decoder(latents))) * len(rows)
                for rows, latents in batches
            ]
            errors[kind] = sum(sums) / len(table)
        return errors

    def _checked(self, semantic: Embeddings, collaborative: Embeddings) -> tuple[torch.Tensor, torch.Tensor]:
        """Both tables as float32 tensors on the model's device."""
        on_cpu = (
            table.detach().cpu() if isinstance(table, torch.Tensor) else table for table in (semantic, collaborative)
        )
        tables = checked_pair(*on_cpu)
        for name, table in zip(("semantic", "collaborative"), tables, strict=True):
            width = getattr(self.config, f"{name}_dim")
            if len(table) == 0:
                raise InputError(f"The {name} embeddings must be a table with one row per item; got no item.")
            if table.shape[1] != width:
                raise InputError(
                    f"The {name} embeddings have {table.shape[1]} dimensions, but `{name}_dim` of the model is "
                    f"{width}; build the model with `{name}_dim={table.shape[1]}` or encode the items again."
                )
        return torch.from_numpy(tables[0]).to(self.device), torch.from_numpy(tables[1]).to(self.device)

    def _all_latents(self, semantic: torch.Tensor, collaborative: torch.Tensor) -> torch.Tensor:
        """Latents of all items, `(num_items, 2 * latent_dim)`, computed in batches."""
        batches = zip(semantic.split(ENCODE_BATCH_SIZE), collaborative.split(ENCODE_BATCH_SIZE), strict=True)
        return torch.cat(
            [
                self.encode_latents(self.semantic_standardization(left), self.collaborative_standardization(right))
                for left, right in batches
            ]
        )


AutoConfig.register(JointRQVAEConfig.model_type, JointRQVAEConfig)
AutoModel.register(JointRQVAEConfig, JointRQVAE)
