"""T5 models that generate one identifier an item, trained by identifiers alone, such as P5-CID and DSI-QG.

The generator, its trie and its training are the package's own, as in the TIGER of `configs/ml-100k-table.yaml`: no item
vectors, no text matching, a history as one encoder position an event. A baseline decides how its identifiers are made,
and what its generator is trained on.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from gensar_hf.data.dataset import InteractionDataset
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests, training_events
from gensar_hf.data.text_queries import TextQueries
from gensar_hf.embeddings.text_encoder import MINILM, TextEncoder
from gensar_hf.errors import InputError
from gensar_hf.evaluation import GeneratorScorer
from gensar_hf.evaluation.query_kinds import without_history
from gensar_hf.generator.prompts import Task
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.identifiers.assignment import JointCodes, assign_unique_identifiers
from gensar_hf.identifiers.quantization import residual_quantize
from gensar_hf.pipeline import GenSARPipeline
from gensar_hf.training.arguments import GenSARTrainingArguments
from gensar_hf.training.stages import new_generator, quiet_trainer
from gensar_hf.training.trainer import GenSARTrainer

Pairs = list[tuple[str, int]]
"""Training pairs of a search: a text that is read as a query, and the item (row of the dataset) that it should find."""

TEMPERATURE = 0.05  # of cosines in a softmax, as usual for sentence embeddings
TRAINING_TASKS = {RECOMMENDATION: Task.NEXT_RECOMMENDED_ITEM, SEARCH: Task.NEXT_SEARCHED_ITEM}


@strict
class GenerativeConfig(PreTrainedConfig):
    """Sizes of the generator and of the codebooks.

    Args:
        hidden_size: width of the T5; its feed-forward layers are twice as wide, its other sizes those of
            `GenSARConfig`.
        codebook_size: codes of each level.
    """

    model_type = "generative"

    hidden_size: int = 128
    codebook_size: int = 64

    def validate_ranges(self) -> None:
        """Part of the `@strict` validation; an item needs more than one code to choose from."""
        check_least(self, hidden_size=1, codebook_size=2)


@strict
class TextIdentifierConfig(GenerativeConfig):
    """Sizes of identifiers that are made from text embeddings, in addition to `GenerativeConfig`.

    Args:
        num_levels: codes of an identifier.
        text_encoder: sentence-transformers model, a folder or a name on the Hub; None = word statistics alone.
    """

    model_type = "generative_text"

    num_levels: int = 3
    text_encoder: str | None = MINILM

    def validate_levels(self) -> None:
        """Part of the `@strict` validation: an identifier has a code, and the encoder a name."""
        check_least(self, num_levels=1)
        if self.text_encoder is not None and not self.text_encoder.strip():
            raise ValueError(
                "`text_encoder` is empty; name a sentence-transformers model, or null for word statistics."
            )


def check_least(config: PreTrainedConfig, **least: int) -> None:
    """Refuse settings below their least value (ValueError)."""
    for name, value in least.items():
        if getattr(config, name) < value:
            raise ValueError(f"`{name}` must be at least {value}; got {getattr(config, name)}.")


# ---- identifiers


def one_identifier_table(dataset: InteractionDataset, codes: np.ndarray, codebook_size: int) -> IdentifierTable:
    """One identifier an item for both tasks, of `(num_items, num_levels)` codes whose rows all differ."""
    titles, texts = dataset.titles, dataset.item_texts()
    return IdentifierTable(dataset.item_ids, codes, codes, codes.shape[1], codebook_size, titles, texts)


def quantized_table(
    dataset: InteractionDataset, latents: torch.Tensor, codebooks: Sequence[torch.Tensor]
) -> IdentifierTable:
    """Identifiers of greedy residual codes, made unique by `assign_unique_identifiers`.

    Args:
        dataset: the catalogue.
        latents: `(num_items, dim)`.
        codebooks: one `(codebook_size, dim)` table a level.

    Raises:
        InputError: there are more items than identifiers.
    """
    padding = (0, latents.shape[1] % 2)  # `JointCodes` halves the latents
    latents, books = F.pad(latents, padding), F.pad(torch.stack(list(codebooks)), padding)
    codes = residual_quantize(latents, list(books))[0].numpy()
    num_codes, width = books.shape[1:]
    nothing = np.zeros((0, num_codes, width // 2), dtype=np.float32)
    joint = JointCodes(codes, codes, latents.numpy(), books.numpy(), nothing, nothing)
    return one_identifier_table(dataset, assign_unique_identifiers(joint).semantic_codes, num_codes)


def in_blocks(codebooks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Codebooks `(codebook_size, dim)` of blocks of a vector, as residual codebooks of the whole vector.

    Each is zero outside its block, so that `residual_quantize` gives every block its nearest code.
    """
    widths = [codebook.shape[1] for codebook in codebooks]
    starts = np.cumsum([0, *widths]).tolist()
    return [
        F.pad(codebook, (start, starts[-1] - start - width))
        for codebook, start, width in zip(codebooks, starts, widths, strict=False)
    ]


def load_text_encoder(dataset: InteractionDataset, config: TextIdentifierConfig, seed: int) -> TextEncoder:
    """The encoder of the settings, fitted on the catalogue's texts if it is that of word statistics."""
    return TextEncoder.load(config.text_encoder, texts=dataset.item_texts(), seed=seed)


def in_batch_loss(
    vectors: torch.Tensor,
    items: torch.Tensor,
    item_vectors: Callable[[torch.Tensor], torch.Tensor],
    sources: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross entropy of each row's item among the distinct items of the batch, by cosine over `TEMPERATURE`.

    Args:
        vectors: `(batch_size, dim)`.
        items: `(batch_size,)` rows of the catalogue.
        item_vectors: `(num_distinct,)` rows of the catalogue → `(num_distinct, dim)`.
        sources: `(batch_size,)` items that the vectors are of, which are no candidates: nothing is as near as they are.
    """
    distinct, labels = items.unique(return_inverse=True)
    logits = F.normalize(vectors, dim=-1) @ F.normalize(item_vectors(distinct), dim=-1).T / TEMPERATURE
    if sources is not None:
        logits = logits.masked_fill(sources[:, None] == distinct, -torch.inf)
    return F.cross_entropy(logits, labels)


# ---- training pairs


def text_pairs(dataset: InteractionDataset) -> Pairs:
    """Each item's own text."""
    return [(text, item) for item, text in enumerate(dataset.item_texts()) if text.strip()]


def made_pairs(dataset: InteractionDataset, num_queries: int, seed: int) -> Pairs:
    """`num_queries` queries an item, made from its text (`TextQueries`)."""
    queries, rng = TextQueries.of_dataset(dataset), np.random.default_rng(seed)
    items = np.repeat(np.arange(len(queries)), num_queries).tolist()
    return [(text, item) for item in items if (text := queries.draw(item, rng)).strip()]


def logged_pairs(dataset: InteractionDataset) -> Pairs:
    """The queries of the training events, each with the item that was clicked."""
    events = training_events(dataset.split)
    clicks = np.flatnonzero((events.items >= 0) & (events.queries >= 0))
    return [(events.query_texts[query], item) for query, item in np.stack([events.queries, events.items], 1)[clicks]]


def as_searches(dataset: InteractionDataset, pairs: Pairs) -> InteractionDataset:
    """A log in which every pair is the only search of a user of its own, so that none is read behind a history.

    Raises:
        InputError: there is no pair.
    """
    if not pairs:
        raise InputError(
            "A generative search cannot be trained: no item has a text, and no event before the held-out ones is a "
            "search; name text columns of the items, or give a log with searches."
        )
    queries, items = zip(*pairs, strict=True)
    columns = {"user_id": [str(user) for user in range(len(pairs))], "query": queries, "timestamp": 0.0}
    rows = pd.DataFrame({**columns, "item_id": [dataset.item_ids[item] for item in items]})
    return InteractionDataset.from_checked(dataset.items, rows, dataset.text_columns, split="none")


# ---- training and scoring


class GenerativeScorer(GeneratorScorer):
    """Score = log-probability of the candidate's identifier, for the tasks that the generator was trained on."""

    def __init__(self, pipeline: GenSARPipeline, name: str, tasks: Sequence[str], reads_history: bool) -> None:
        super().__init__(pipeline, name)
        self.tasks, self.reads_history = frozenset(tasks), reads_history
        self.num_parameters = pipeline.model.num_parameters()

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """`(num_requests, num_candidates)` natural logarithms."""
        return super().score(requests if self.reads_history else without_history(requests), candidates)


def fit_generator(
    name: str,
    dataset: InteractionDataset,
    table: IdentifierTable,
    config: GenerativeConfig,
    training: Mapping[str, Any],
    *,
    tasks: Sequence[str] = (),
    pairs: Sequence[Pairs] | None = None,
) -> GenerativeScorer:
    """Train a generator of a table's identifiers.

    Args:
        name: row of tables.
        dataset: gives the words of the vocabulary and, without `pairs`, the histories that are trained on.
        table: the identifiers.
        config: sizes.
        training: `seed`, and settings of `GenSARTrainingArguments` that differ from its defaults.
        tasks: of the histories, in equal shares. A search request then has its history.
        pairs: instead of `tasks`: of a search that reads the query alone, one stage of training after another, each
            with as many epochs.

    Raises:
        InputError: there is nothing to learn from.
    """
    stages = [dataset] if pairs is None else [as_searches(dataset, part) for part in pairs]
    answered = tasks or [SEARCH]
    with tempfile.TemporaryDirectory() as folder:
        arguments = GenSARTrainingArguments(
            output_dir=folder,
            text_encoder=None,
            item_vectors=False,
            text_matching=False,
            text_query_share=0.0,
            task_weights={TRAINING_TASKS[task].value: 1.0 for task in answered},
            generator_config={"d_model": config.hidden_size, "d_ff": 2 * config.hidden_size},
            save_strategy="no",
            logging_strategy="no",
            **training,
        )
        with torch.random.fork_rng():
            torch.manual_seed(arguments.seed)
            tokenizer, model = new_generator(dataset, arguments, table)
        pipe = GenSARPipeline(model, tokenizer)
        for stage in stages:
            with quiet_trainer():
                GenSARTrainer(pipe, arguments, stage).train()
    return GenerativeScorer(pipe, name, answered, reads_history=pairs is None)
