"""Joint semantic identifiers: one T5 for both tasks, and one identifier an item from a bi-encoder of both tasks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from tqdm.auto import tqdm

from gensar_hf.baselines.generative import (
    GenerativeScorer,
    TextIdentifierConfig,
    check_least,
    fit_generator,
    in_batch_loss,
    load_text_encoder,
    quantized_table,
)
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.dataset import InteractionDataset
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, training_events
from gensar_hf.data.user_events import UserEvents
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError
from gensar_hf.identifiers.networks import mlp
from gensar_hf.identifiers.quantization import ResidualVectorQuantizer

PAIRS_PER_STEP = 128  # of each task


@strict
class JointIdsConfig(TextIdentifierConfig):
    """Configuration of the joint identifiers, in addition to `TextIdentifierConfig`.

    Args:
        identifier_steps: steps of the bi-encoder's training; 0: the text embeddings are quantized as they are.
    """

    model_type = "joint_ids"

    identifier_steps: int = 300

    def validate_steps(self) -> None:
        """Part of the `@strict` validation."""
        check_least(self, identifier_steps=0)


class BiEncoder(nn.Module):
    """One map of the text embeddings of queries and of items, x + MLP(x), the identity before it is trained."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = mlp([dim, dim, dim])
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`(batch_size, dim)` to `(batch_size, dim)`."""
        return embeddings + self.layers(embeddings)


def click_pairs(events: UserEvents) -> np.ndarray:
    """Each click of a user with the one before it, `(num_pairs, 2)` items, the earlier one first."""
    clicks = np.flatnonzero(events.items >= 0)
    users, items = events.event_users()[clicks], events.items[clicks]
    is_pair = (users[1:] == users[:-1]) & (items[1:] != items[:-1])
    return np.stack([items[:-1], items[1:]], axis=1)[is_pair]


def search_pairs(events: UserEvents) -> np.ndarray:
    """The query and the item of each searched click, `(num_pairs, 2)`."""
    is_search = (events.items >= 0) & (events.queries >= 0)
    return np.stack([events.queries, events.items], axis=1)[is_search]


def train_bi_encoder(
    item_embeddings: torch.Tensor,
    query_embeddings: torch.Tensor,
    searches: np.ndarray,
    clicks: np.ndarray,
    num_steps: int,
    seed: int,
) -> BiEncoder:
    """Train on equally many pairs of each task, with the other items of a batch as negatives.

    Args:
        item_embeddings: `(num_items, dim)`.
        query_embeddings: `(num_queries, dim)`.
        searches: `(num_searches, 2)` queries and items.
        clicks: `(num_clicks, 2)` items and items.
        num_steps: of AdamW.
        seed: of the weights and the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BiEncoder(item_embeddings.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tasks = [(query_embeddings, torch.from_numpy(searches)), (item_embeddings, torch.from_numpy(clicks))]
    for _ in tqdm(range(num_steps), desc="bi-encoder", delay=2):
        loss = torch.zeros(())
        for embeddings, pairs in tasks:
            if not len(pairs):
                continue
            rows, items = pairs[torch.randint(len(pairs), (PAIRS_PER_STEP,), generator=generator)].T
            sources = rows if embeddings is item_embeddings else None
            vectors = model(embeddings[rows])
            loss = loss + in_batch_loss(vectors, items, lambda own: model(item_embeddings[own]), sources)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


def joint_latents(dataset: InteractionDataset, encoder: TextEncoder, num_steps: int, seed: int) -> torch.Tensor:
    """The items' vectors of the bi-encoder, `(num_items, dim)` float32.

    Raises:
        InputError: no user has two clicks, and no training event is a search.
    """
    events = training_events(dataset.split)
    item_embeddings = torch.from_numpy(encoder.encode(dataset.item_texts()))
    searches, clicks = search_pairs(events), click_pairs(events)
    if not len(searches) and not len(clicks):
        raise InputError(
            "The joint identifiers cannot be learned: no event before the held-out ones is a search, and no user has "
            "two clicks; give longer histories."
        )
    queries, searches[:, 0] = np.unique(searches[:, 0], return_inverse=True)
    texts = [events.query_texts[query] for query in queries]
    query_embeddings = torch.from_numpy(encoder.encode(texts)) if texts else item_embeddings[:0]
    model = train_bi_encoder(item_embeddings, query_embeddings, searches, clicks, num_steps, seed)
    return model(item_embeddings)


def fit_joint_ids(dataset: InteractionDataset, config: JointIdsConfig, training: Mapping[str, Any]) -> GenerativeScorer:
    """Train the bi-encoder, quantize its items by residual k-means, train the generator; see `Baseline.fit`.

    Penha, D'Amico, De Nadai, Palumbo, Tamborrino, Vardasbi, Lefarov, Lin, Heath, Fabbri and Bouchard, Semantic IDs for
    Joint Generative Search and Recommendation, RecSys 2025 (late-breaking results): identifiers of a bi-encoder that
    was fine-tuned on both tasks serve both better than those of one task, or than two identifiers an item.

    Differs from the paper: the bi-encoder is a small network on frozen text embeddings instead of a fine-tuned language
    model; the recommendation pairs are successive clicks of a user; the generator is a small T5 from scratch, which
    also reads the history of a search; items with equal codes get the nearest free ones.
    """
    seed, encoder = training["seed"], load_text_encoder(dataset, config, training["seed"])
    latents = joint_latents(dataset, encoder, config.identifier_steps, seed)
    quantizer = ResidualVectorQuantizer(config.num_levels, config.codebook_size, latents.shape[1])
    quantizer.fit(latents, seed)
    table = quantized_table(dataset, latents, [codebook.detach() for codebook in quantizer.codebooks])
    return fit_generator("Joint IDs", dataset, table, config, training, tasks=[RECOMMENDATION, SEARCH])


BASELINES = {"joint_ids": Baseline(JointIdsConfig, fit_joint_ids)}
