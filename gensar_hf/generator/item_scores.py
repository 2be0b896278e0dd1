"""Find and score items for requests that the model has read.

A generator learns which combinations of codes exist. A combination that did not exist in training gets almost no
probability, however well its codes fit the request one by one, so an item that was added after training would never be
found. Such an item borrows its score: its probability is the mean of those of the nearest trained items.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from gensar_hf.data import Behavior
from gensar_hf.decoding import TrieBeamSearch
from gensar_hf.decoding.candidate_scoring import score_candidates
from gensar_hf.decoding.tree_decoder import DecodingContext, EncoderContext, PromptContext
from gensar_hf.generator.catalogue import Catalogue
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration, event_positions


class EncodedRequests(NamedTuple):
    """A batch of requests that the model has read."""

    context: DecodingContext
    behavior_tokens: torch.Tensor  # (batch_size, 1)
    behavior: Behavior  # the kind of click to predict


@torch.inference_mode()
def encode_requests(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], behavior: Behavior) -> EncodedRequests:
    """Run the model over requests: a T5's encoder over the histories, or a decoder-only model over the prompts.

    Args:
        model: the generator.
        inputs: of `GenSARTokenizer.encode_request`, on the model's device.
        behavior: the kind of click to predict.
    """
    if not isinstance(model, GenSARForConditionalGeneration):
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        return EncodedRequests(PromptContext.of_prompts(model, tokens[:, :-1], mask[:, :-1]), tokens[:, -1:], behavior)
    encoder_inputs = dict(inputs)
    starts, event_ids = encoder_inputs.pop("decoder_input_ids"), inputs.get("event_ids")
    mask = inputs["attention_mask"].bool() if event_ids is None else event_positions(event_ids)
    states = model.encoder(**encoder_inputs).last_hidden_state
    return EncodedRequests(EncoderContext(model, states, mask, starts[:, 0]), starts[:, 1:], behavior)


# ---- scores of candidates


def exact_scores(
    requests: EncodedRequests,
    rows: Sequence[np.ndarray],
    catalogue: Catalogue,
    vector_scores: "VectorScores | None" = None,
) -> np.ndarray:
    """Log-probabilities of the items' identifiers; borrowed ones for items that were added after training.

    A model with item vectors adds `config.item_weight` times the item's log-probability by its vector.

    Args:
        requests: of `encode_requests`.
        rows: for each request an array of rows of the identifier table.
        catalogue: the items.
        vector_scores: the items' log-probabilities by their vectors, if they are known already.

    Returns:
        `(batch_size, most rows)`, padded with -inf.
    """
    vector_scores = vector_scores or _vector_scores(requests, catalogue)
    scored, counts = zip(*[_with_neighbors(items, catalogue) for items in rows], strict=True)
    sequences = [catalogue.item_token_ids[requests.behavior][items] for items in scored]
    scores = score_candidates(requests.context, sequences).cpu().numpy()
    if vector_scores is not None:
        item_weight = requests.context.model.config.item_weight
        for request_scores, by_vector, items in zip(scores, vector_scores.trained, scored, strict=True):
            request_scores[: len(items)] += item_weight * by_vector[items]
    if len(catalogue.identifiers.neighbors) == 0:
        return scores
    merged = np.full((len(rows), max(map(len, rows), default=0)), -np.inf, dtype=np.float32)
    for request, request_counts in enumerate(counts):
        ends = np.cumsum(request_counts)
        for column, (start, end) in enumerate(zip(ends - request_counts, ends, strict=True)):
            merged[request, column] = mean_probability(scores[request, start:end])
    return merged


def beam_scores(
    requests: EncodedRequests, rows: Sequence[np.ndarray], catalogue: Catalogue, num_beams: int
) -> np.ndarray:
    """As `exact_scores`, by a beam search restricted to the candidates, as in the paper; -inf for those not found."""
    search = TrieBeamSearch(catalogue.trie, allowed=rows)
    beams = search.search(requests.context, requests.behavior_tokens, num_beams)
    scores = np.full((len(rows), max(map(len, rows), default=0)), -np.inf, dtype=np.float32)
    for request, found in enumerate(zip(beams.values.tolist(), beams.scores.tolist(), strict=True)):
        score_of = dict(zip(*found, strict=True))
        scores[request, : len(rows[request])] = [score_of.get(row, -np.inf) for row in rows[request].tolist()]
    return scores


# ---- search


def best_items(
    requests: EncodedRequests,
    catalogue: Catalogue,
    num_beams: int,
    excluded: Sequence[Collection[int]] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The best items for each request: rows of the identifier table and their scores, best first.

    Identifiers are found by beam search. A model with item vectors also proposes the `num_beams` best items by vector,
    and all proposals are scored exactly.

    Args:
        requests: of `encode_requests`.
        catalogue: the items.
        num_beams: beams, and items proposed by vector.
        excluded: for each request rows that must not be returned.
    """
    excluded = excluded or [()] * len(requests.context)
    search = TrieBeamSearch(catalogue.trie, excluded=excluded if any(excluded) else None)
    beams = search.search(requests.context, requests.behavior_tokens, num_beams)
    results = [
        _with_added_items(values[values >= 0], scores[values >= 0], catalogue, rows)
        for values, scores, rows in zip(beams.values.cpu().numpy(), beams.scores.cpu().numpy(), excluded, strict=True)
    ]
    vector_scores = _vector_scores(requests, catalogue)
    if vector_scores is None:
        return results
    proposals = []
    for (rows, _), by_vector, excluded_rows in zip(results, vector_scores.all.copy(), excluded, strict=True):
        by_vector[~catalogue.identifiers.available] = -np.inf
        by_vector[list(excluded_rows)] = -np.inf
        best = np.argsort(-by_vector, kind="stable")[:num_beams]
        proposals.append(np.union1d(rows, best[np.isfinite(by_vector[best])]))
    scores = exact_scores(requests, proposals, catalogue, vector_scores)
    ranked = []
    for rows, request_scores in zip(proposals, scores, strict=True):
        order = np.argsort(-request_scores[: len(rows)], kind="stable")
        ranked.append((rows[order], request_scores[order]))
    return ranked


class VectorScores(NamedTuple):
    """Log-probabilities of items by their vectors."""

    trained: np.ndarray  # (batch_size, num_vectors)
    all: np.ndarray  # (batch_size, num_items), for an added item the mean probability of its neighbors


@torch.inference_mode()
def _vector_scores(requests: EncodedRequests, catalogue: Catalogue) -> VectorScores | None:
    """Item-vector log-probabilities; None if the model has no item vectors or `item_weight` is 0."""
    context = requests.context
    if not isinstance(context, EncoderContext) or not isinstance(context.model, GenSARForConditionalGeneration):
        return None
    items = context.model.encoder.items
    if items is None or context.model.config.item_weight == 0:
        return None
    last = context.mask.sum(dim=1) - 1  # positions are filled from the left
    states = context.states[torch.arange(len(last), device=last.device), last]
    is_searched = torch.full_like(last, requests.behavior is Behavior.SEARCHED_ITEM)
    scores = items.logits(states, is_searched).float().log_softmax(dim=-1).cpu().numpy()
    table = catalogue.identifiers
    if len(table.neighbors) == 0:
        return VectorScores(scores, scores)
    borrowed = mean_probability(scores[:, table.neighbors])
    return VectorScores(scores, np.concatenate([scores[:, : table.num_trained], borrowed], axis=1))


# ---- items added after training


def mean_probability(log_probabilities: np.ndarray) -> np.ndarray:
    """Natural logarithm of the mean probability over the last axis: `(..., n)` natural logarithms → `(...,)`.

    >>> np.exp(mean_probability(np.log([[0.5, 0.25], [0.1, 0.1]]))).round(3).tolist()
    [0.375, 0.1]
    """
    return np.logaddexp.reduce(log_probabilities, axis=-1) - math.log(log_probabilities.shape[-1])


def _with_neighbors(rows: np.ndarray, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """The rows, each added item replaced by its neighbors, and the number that replaces each, `(num_rows,)`."""
    table = catalogue.identifiers
    rows, counts = np.asarray(rows), np.ones(len(rows), dtype=np.int64)
    is_added = rows >= table.num_trained
    if not is_added.any():
        return rows, counts
    counts[is_added] = table.neighbors.shape[1]
    scored = np.repeat(rows, counts)
    scored[np.repeat(is_added, counts)] = table.neighbors[rows[is_added] - table.num_trained].ravel()
    return scored, counts


def _with_added_items(
    rows: np.ndarray, scores: np.ndarray, catalogue: Catalogue, excluded: Collection[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The result of a search with the catalogue's added items inserted, except excluded ones."""
    table = catalogue.identifiers
    if len(table.neighbors) == 0:
        return rows, scores
    is_trained = rows < table.num_trained + table.num_marked
    cold = np.setdiff1d(np.flatnonzero(table.available[table.num_trained :]) + table.num_trained, list(excluded))
    return rank_with_cold_items(rows[is_trained], scores[is_trained], cold, table.neighbors[cold - table.num_trained])


def rank_with_cold_items(
    rows: np.ndarray, scores: np.ndarray, cold_items: np.ndarray, neighbors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Insert items into the result of a search, at the scores that they borrow from their neighbors.

    Args:
        rows: `(num_found,)` the items found, best first; others count as having probability 0. A cold item may be
            among them: it is then one of its own neighbors.
        scores: `(num_found,)` log-probabilities.
        cold_items: `(num_cold,)` rows of the items that borrow their scores.
        neighbors: `(num_cold, k)` rows of the trained items nearest to each.

    Returns:
        rows and scores, best first, without cold items none of whose neighbors was found.
    """
    log_probabilities = np.full(1 + max(rows.max(initial=0), neighbors.max(initial=0)), -np.inf)
    log_probabilities[rows] = scores
    borrowed = mean_probability(log_probabilities[neighbors])
    is_found = np.isfinite(borrowed)
    is_trained = ~np.isin(rows, cold_items)
    all_rows = np.concatenate([rows[is_trained], cold_items[is_found]])
    all_scores = np.concatenate([scores[is_trained], borrowed[is_found]])
    order = np.argsort(-all_scores, kind="stable")
    return all_rows[order], all_scores[order]
