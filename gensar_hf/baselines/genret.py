"""GenRet: a T5 that searches by identifiers that are learned for retrieval, one level after another."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from tqdm.auto import tqdm

from gensar_hf.baselines.generative import (
    GenerativeScorer,
    Pairs,
    TextIdentifierConfig,
    check_least,
    fit_generator,
    in_batch_loss,
    in_blocks,
    load_text_encoder,
    logged_pairs,
    made_pairs,
    quantized_table,
    text_pairs,
)
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.dataset import InteractionDataset
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.identifiers.networks import mlp
from gensar_hf.identifiers.quantization import (
    QuantizerOutput,
    VectorQuantizer,
    fit_codebook,
    nearest_code,
    squared_distances,
    straight_through,
)

LATENT_DIM, HIDDEN_SIZE = 64, 256  # of each level's code vectors, and between the layers of its encoder
PAIRS_PER_STEP = 256
CODE_TEMPERATURE = 0.1  # of squared distances, which are at most 4 between unit vectors
SINKHORN_EPSILON = 0.01  # codes are used about equally often in training, in place of the paper's diverse clustering


@strict
class GenRetConfig(TextIdentifierConfig):
    """Configuration of GenRet, in addition to `TextIdentifierConfig`.

    Args:
        num_queries: made for each item, in addition to its text and the log's queries.
        identifier_steps: steps in which each level's codes are learned.
    """

    model_type = "genret"

    num_queries: int = 4
    identifier_steps: int = 300

    def validate_queries(self) -> None:
        """Part of the `@strict` validation."""
        check_least(self, num_queries=0, identifier_steps=1)


class CodeLevel(nn.Module):
    """One level: an encoder of texts behind the codes before it, a codebook, a decoder of all codes so far.

    Args:
        dim: of the text embeddings.
        prefix_dim: of the code vectors of the levels before, joined.
        codebook_size: codes.
    """

    def __init__(self, dim: int, prefix_dim: int, codebook_size: int) -> None:
        super().__init__()
        self.encoder = mlp([dim + prefix_dim, HIDDEN_SIZE, LATENT_DIM])
        self.quantizer = VectorQuantizer(codebook_size, LATENT_DIM, sinkhorn_epsilon=SINKHORN_EPSILON)
        self.decoder = nn.Linear(prefix_dim + LATENT_DIM, dim)

    def forward(self, embeddings: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """Unit latents `(batch_size, latent_dim)` of texts `(batch_size, dim)` behind codes `(batch_size, prefix_dim)`.

        An item is encoded behind its own earlier codes, a query behind those of the item that it should find.
        """
        return F.normalize(self.encoder(torch.cat([embeddings, prefix], dim=-1)), dim=-1)


def level_loss(
    level: CodeLevel, texts: torch.Tensor, items: torch.Tensor, item_embeddings: torch.Tensor, prefix: torch.Tensor
) -> torch.Tensor:
    """Retrieval + reconstruction + commitment (Sun et al. 2023), given the frozen codes before.

    Retrieval: the text finds the item among those of the batch, and its code among all codes. Reconstruction:
    the item's codes find its embedding among those of the batch. Commitment: latents and codes approach each other.

    Args:
        level: in training mode its codes are balanced over the batch.
        texts: `(batch_size, dim)` embeddings of queries.
        items: `(batch_size,)` the items that they should find.
        item_embeddings: `(num_items, dim)`.
        prefix: `(num_items, prefix_dim)` code vectors of the levels before.
    """
    latents = level(item_embeddings[items], prefix[items])
    quantized: QuantizerOutput = level.quantizer(latents)
    asked = level(texts, prefix[items])
    by_latent = in_batch_loss(asked, items, lambda rows: level(item_embeddings[rows], prefix[rows]))
    distances = squared_distances(asked, level.quantizer.codebook)
    by_code = F.cross_entropy(-distances / CODE_TEMPERATURE, quantized.codes)
    rebuilt = level.decoder(torch.cat([prefix[items], straight_through(latents, quantized.quantized)], dim=-1))
    reconstruction = in_batch_loss(rebuilt, items, lambda rows: item_embeddings[rows])
    return by_latent + by_code + reconstruction + LATENT_DIM * quantized.loss


def learn_codes(
    item_embeddings: torch.Tensor, texts: torch.Tensor, pairs: torch.Tensor, config: GenRetConfig, seed: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Progressive training: each level's codes are learned, then frozen.

    Args:
        item_embeddings: `(num_items, dim)`.
        texts: `(num_texts, dim)` embeddings of queries.
        pairs: `(num_pairs, 2)` rows of `texts` and of items.
        config: levels, codes and steps.
        seed: of weights, codebooks and batches.

    Returns:
        latents of all levels, joined, `(num_items, num_levels * latent_dim)`, and a codebook `(codebook_size,
        latent_dim)` a level.
    """
    generator = torch.Generator().manual_seed(seed)
    prefix, latents, codebooks = item_embeddings[:, :0], list[torch.Tensor](), list[torch.Tensor]()
    progress = tqdm(total=config.num_levels * config.identifier_steps, desc="codes", delay=2)
    for number in range(config.num_levels):
        with torch.random.fork_rng():
            torch.manual_seed(seed + number)
            level = CodeLevel(item_embeddings.shape[1], prefix.shape[1], config.codebook_size)
        start = fit_codebook(level(item_embeddings, prefix), config.codebook_size, seed)
        level.quantizer.set_codes(torch.arange(config.codebook_size), start)
        optimizer = torch.optim.AdamW(level.parameters(), lr=1e-3)
        for _ in range(config.identifier_steps):
            rows, items = pairs[torch.randint(len(pairs), (PAIRS_PER_STEP,), generator=generator)].T
            optimizer.zero_grad()
            level_loss(level, texts[rows], items, item_embeddings, prefix).backward()
            optimizer.step()
            progress.update()
        with torch.no_grad():
            latents.append(level(item_embeddings, prefix))
            codebooks.append(level.quantizer.codebook.detach())
            prefix = torch.cat([prefix, codebooks[-1][nearest_code(latents[-1], codebooks[-1])[1]]], dim=-1)
    progress.close()
    return torch.cat(latents, dim=-1), codebooks


def encode_pairs(encoder: TextEncoder, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the distinct texts `(num_texts, dim)`, and `(num_pairs, 2)` rows of texts and items."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(text for text, _ in pairs))}
    return torch.from_numpy(encoder.encode(list(rows))), torch.tensor([(rows[text], item) for text, item in pairs])


def fit_genret(dataset: InteractionDataset, config: GenRetConfig, training: Mapping[str, Any]) -> GenerativeScorer:
    """Learn the codes, then train the generator on the same pairs; see `Baseline.fit`.

    Sun, Yan, Chen, Wang, Zhu, Ren, Chen, Yin, de Rijke and Ren, Learning to Tokenize for Generative Retrieval, NeurIPS
    2023: discrete auto-encoding, in which identifiers are learned from how well they find and rebuild their items.

    Differs from the paper: the codes are learned with a small retriever on frozen text embeddings, and a T5 from
    scratch learns them afterwards, where the paper's T5 is tokenizer and retriever at once; earlier levels are frozen
    instead of held by a loss; balanced assignment (Sinkhorn) replaces the diverse clustering; queries are made by the
    package's rules (`TextQueries`); items with equal codes get the nearest free ones.
    """
    seed, encoder = training["seed"], load_text_encoder(dataset, config, training["seed"])
    pairs = text_pairs(dataset) + made_pairs(dataset, config.num_queries, seed) + logged_pairs(dataset)
    texts, rows = encode_pairs(encoder, pairs)
    item_embeddings = torch.from_numpy(encoder.encode(dataset.item_texts()))
    latents, codebooks = learn_codes(item_embeddings, texts, rows, config, seed)
    table = quantized_table(dataset, latents, in_blocks(codebooks))
    return fit_generator("GenRet", dataset, table, config, training, pairs=[pairs])


BASELINES = {"genret": Baseline(GenRetConfig, fit_genret)}
