"""DSI-QG: a T5 that searches by arbitrary identifiers and learns them from generated queries."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from huggingface_hub.dataclasses import strict

from gensar_hf.baselines.generative import (
    GenerativeConfig,
    GenerativeScorer,
    check_least,
    fit_generator,
    logged_pairs,
    made_pairs,
    one_identifier_table,
)
from gensar_hf.baselines.registry import Baseline
from gensar_hf.data.dataset import InteractionDataset


@strict
class DSIQGConfig(GenerativeConfig):
    """Configuration of DSI-QG, in addition to `GenerativeConfig`.

    Args:
        num_queries: generated for each item.
    """

    model_type = "dsi_qg"

    num_queries: int = 10

    def validate_queries(self) -> None:
        """Part of the `@strict` validation."""
        check_least(self, num_queries=1)


def number_codes(num_items: int, base: int, seed: int) -> np.ndarray:
    """The digits of a number for each item, drawn without repetition below `num_items`: `(num_items, num_digits)`."""
    places = 1
    while base**places < num_items:
        places += 1
    numbers = np.random.default_rng(seed).permutation(num_items)
    return numbers[:, None] // base ** np.arange(places)[::-1] % base


def fit_dsi_qg(dataset: InteractionDataset, config: DSIQGConfig, training: Mapping[str, Any]) -> GenerativeScorer:
    """Train on generated queries and on those of the log; see `Baseline.fit`.

    Zhuang, Ren, Shou, Pei, Gong, Zuccon and Jiang, Bridging the Gap Between Indexing and Retrieval for Differentiable
    Search Index with Query Generation, arXiv:2206.10128: an item is learned from what users might type instead of from
    its text, because a search is asked by queries.

    Differs from the paper: the queries are made of the words of the items' texts by the package's rules (`TextQueries`)
    instead of by a language model, and none is filtered out; a small T5 from scratch reads a query as one position, the
    mean of its words; an identifier is a number in base `codebook_size`, one token a digit, instead of the word pieces
    of a decimal number.
    """
    seed = training["seed"]
    codes = number_codes(len(dataset.item_ids), config.codebook_size, seed)
    pairs = made_pairs(dataset, config.num_queries, seed) + logged_pairs(dataset)
    table = one_identifier_table(dataset, codes, config.codebook_size)
    return fit_generator("DSI-QG", dataset, table, config, training, pairs=[pairs])


BASELINES = {"dsi_qg": Baseline(DSIQGConfig, fit_dsi_qg)}
