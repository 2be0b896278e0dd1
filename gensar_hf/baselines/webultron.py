"""WebUltron: a T5 that searches by identifiers from product quantization, trained in three stages."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict

from gensar_hf.baselines.generative import (
    GenerativeScorer,
    TextIdentifierConfig,
    check_least,
    fit_generator,
    in_blocks,
    load_text_encoder,
    logged_pairs,
    made_pairs,
    quantized_table,
    text_pairs,
)
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.dataset import InteractionDataset
from gensar_hf.identifiers.quantization import fit_codebook


@strict
class WebUltronConfig(TextIdentifierConfig):
    """Configuration of WebUltron, in addition to `TextIdentifierConfig`: a level is a block of the text embedding.

    Args:
        num_queries: pseudo-queries made for each item.
    """

    model_type = "webultron"

    num_queries: int = 10

    def validate_queries(self) -> None:
        """Part of the `@strict` validation."""
        check_least(self, num_queries=1)


def product_codebooks(embeddings: np.ndarray, num_blocks: int, codebook_size: int, seed: int) -> list[torch.Tensor]:
    """Product quantization (Jégou et al. 2011): k-means in each of `num_blocks` equal parts of the dimensions.

    `embeddings` are `(num_items, dim)`; the codebooks `(codebook_size, dim)` are zero outside their block.
    """
    blocks = np.array_split(embeddings, min(num_blocks, embeddings.shape[1]), axis=1)
    return in_blocks([fit_codebook(torch.from_numpy(block), codebook_size, seed) for block in blocks])


def fit_webultron(
    dataset: InteractionDataset, config: WebUltronConfig, training: Mapping[str, Any]
) -> GenerativeScorer:
    """Train on texts, then on pseudo-queries, then on the log's queries; see `Baseline.fit`.

    Zhou, Yao, Dou, Wu, Zhang and Wen, Ultron: An Ultimate Retriever on Corpus with a Model-based Indexer,
    arXiv:2208.09257; Zhou, Yao, Dou, Tu, Wu, Chua and Wen, WebUltron: An Ultimate Retriever on Webpages under the
    Model-Centric Paradigm, TKDE 2023: general pretraining, search-oriented pretraining and fine-tuning.

    Differs from the papers: the first stage reads an item's whole text instead of its passages, key terms and URL; the
    pseudo-queries are made by the package's rules (`TextQueries`) instead of by a language model; a small T5 from
    scratch reads a text as one position, the mean of its words; there are fewer and shorter codebooks, and items with
    equal codes get the nearest free ones instead of a further code.
    """
    seed = training["seed"]
    embeddings = load_text_encoder(dataset, config, seed).encode(dataset.item_texts())
    codebooks = product_codebooks(embeddings, config.num_levels, config.codebook_size, seed)
    table = quantized_table(dataset, torch.from_numpy(embeddings), codebooks)
    stages = [
        text_pairs(dataset),
        made_pairs(dataset, config.num_queries, seed),
        logged_pairs(dataset),
    ]
    stages = [pairs for pairs in stages if pairs]  # a log without searches leaves the first two
    return fit_generator("WebUltron", dataset, table, config, training, pairs=stages)


BASELINES = {"webultron": Baseline(WebUltronConfig, fit_webultron)}
