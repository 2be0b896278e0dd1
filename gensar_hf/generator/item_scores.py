"""Scores of given items for encoded requests."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from gensar_hf.data import Behavior
from gensar_hf.decoding import TrieBeamSearch
from gensar_hf.decoding.borrowed_scores import mean_probability, rank_with_cold_items
from gensar_hf.decoding.candidate_scoring import score_candidates
from gensar_hf.decoding.context import DecodingContext, EncoderContext, PromptContext
from gensar_hf.generator.catalogue import Catalogue
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration, event_positions


class EncodedRequests(NamedTuple):
    """What answers start from."""

    context: DecodingContext  # the requests as the model has read them
    behavior_tokens: torch.Tensor  # (batch_size, 1)
    behavior: Behavior  # the kind of click that is asked for


@torch.inference_mode()
def encode_requests(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], behavior: Behavior) -> EncodedRequests:
    """Let the model read requests.

    Args:
        model: the generator.
        inputs: of `GenSARTokenizer.encode_request`, on the model's device.
        behavior: that they ask for.
    """
    if not isinstance(model, GenSARForConditionalGeneration):
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        return EncodedRequests(PromptContext.of_prompts(model, tokens[:, :-1], mask[:, :-1]), tokens[:, -1:], behavior)
    encoder_inputs = dict(inputs)
    starts, event_ids = encoder_inputs.pop("decoder_input_ids"), inputs.get("event_ids")
    mask = inputs["attention_mask"].bool() if event_ids is None else event_positions(event_ids)
    states = model.encoder(**encoder_inputs).last_hidden_state
    return EncodedRequests(EncoderContext(model, states, mask, starts[:, 0]), starts[:, 1:], behavior)


def exact_scores(requests: EncodedRequests, rows: Sequence[np.ndarray], catalogue: Catalogue) -> np.ndarray:
    """Log-probabilities of the items' identifiers; of an item added after training, what it borrows.

    A model that has item vectors, too, adds their log-probability, `config.item_weight` times.

    Args:
        requests: as `encode_requests` gives them.
        rows: one array of rows of the identifier table a request.
        catalogue: whose rows they are.

    Returns:
        `(batch_size, most rows)`; -inf behind the items of a request that has fewer than another.
    """
    return _exact_scores(requests, rows, catalogue, _scores_by_vector(requests, catalogue))


def _exact_scores(
    requests: EncodedRequests,
    rows: Sequence[np.ndarray],
    catalogue: Catalogue,
    by_vector: "ScoresByVector | None",
) -> np.ndarray:
    """As `exact_scores`; `by_vector` is what `_scores_by_vector` has said of the requests."""
    asked, nums_asked = zip(*[_with_neighbors(own_rows, catalogue) for own_rows in rows], strict=True)
    sequences = [catalogue.item_token_ids[requests.behavior][own_rows] for own_rows in asked]
    scores = score_candidates(requests.context, sequences).cpu().numpy()
    if by_vector is not None:
        for own_scores, own_by_vector, own_rows in zip(scores, by_vector.own, asked, strict=True):
            own_scores[: len(own_rows)] += requests.context.model.config.item_weight * own_by_vector[own_rows]
    if len(catalogue.identifiers.neighbors) == 0:
        return scores
    merged = np.full((len(rows), max(map(len, rows), default=0)), -np.inf, dtype=np.float32)
    for place, own_nums in enumerate(nums_asked):
        ends = np.cumsum(own_nums)
        for column, (start, end) in enumerate(zip(ends - own_nums, ends, strict=True)):
            merged[place, column] = mean_probability(scores[place, start:end])
    return merged


class ScoresByVector(NamedTuple):
    """Log-probabilities of items by their vectors."""

    own: np.ndarray  # (batch_size, num_vectors)
    borrowed: np.ndarray  # (batch_size, num_items), of an added item the mean of its neighbors'


@torch.inference_mode()
def _scores_by_vector(requests: EncodedRequests, catalogue: Catalogue) -> ScoresByVector | None:
    """What the item vectors say of the requests.

    None where vectors have no say: the model has none, or their weight is 0.
    """
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
        return ScoresByVector(scores, scores)
    borrowed = mean_probability(scores[:, table.neighbors])
    return ScoresByVector(scores, np.concatenate([scores[:, : table.num_trained], borrowed], axis=1))


def _with_neighbors(rows: np.ndarray, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """The rows, each added item's replaced by those of its neighbors, and how many there are of each, `(num_rows,)`."""
    table = catalogue.identifiers
    rows, nums = np.asarray(rows), np.ones(len(rows), dtype=np.int64)
    is_added = rows >= table.num_trained
    if not is_added.any():
        return rows, nums
    nums[is_added] = table.neighbors.shape[1]
    asked = np.repeat(rows, nums)
    asked[np.repeat(is_added, nums)] = table.neighbors[rows[is_added] - table.num_trained].ravel()
    return asked, nums


def best_items(
    requests: EncodedRequests,
    catalogue: Catalogue,
    num_beams: int,
    excluded: Sequence[Collection[int]] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The items that answer each request best: rows of the identifier table and their scores, the best first.

    Identifiers are found by a beam search. A model that has item vectors, too, proposes as many items by them, and
    what either has proposed is scored exactly.

    Args:
        requests: as `encode_requests` gives them.
        catalogue: to search in.
        num_beams: of the search, and items proposed by vectors.
        excluded: for each request rows that must not be answered.
    """
    excluded = excluded or [()] * len(requests.context)
    search = TrieBeamSearch(catalogue.trie, excluded=excluded if any(excluded) else None)
    beams = search.search(requests.context, requests.behavior_tokens, num_beams)
    found = [
        with_added_items(values[values >= 0], scores[values >= 0], catalogue, own_excluded)
        for values, scores, own_excluded in zip(
            beams.values.cpu().numpy(), beams.scores.cpu().numpy(), excluded, strict=True
        )
    ]
    by_vector = _scores_by_vector(requests, catalogue)
    if by_vector is None:
        return found
    proposals = []
    for (rows, _), own_by_vector, own_excluded in zip(found, by_vector.borrowed.copy(), excluded, strict=True):
        own_by_vector[~catalogue.identifiers.available] = -np.inf
        own_by_vector[list(own_excluded)] = -np.inf
        best = np.argsort(-own_by_vector, kind="stable")[:num_beams]
        proposals.append(np.union1d(rows, best[np.isfinite(own_by_vector[best])]))
    scores = _exact_scores(requests, proposals, catalogue, by_vector)
    ranked = []
    for rows, own_scores in zip(proposals, scores, strict=True):
        order = np.argsort(-own_scores[: len(rows)], kind="stable")
        ranked.append((rows[order], own_scores[order]))
    return ranked


def with_added_items(
    rows: np.ndarray, scores: np.ndarray, catalogue: Catalogue, excluded: Collection[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """What a search has found, and the added items at the places that their neighbors give them.

    Args:
        rows: `(num_found,)`, best first; what has not been found counts as improbable.
        scores: `(num_found,)` log-probabilities.
        catalogue: whose rows they are.
        excluded: rows that must not be answered.

    Returns:
        rows and scores of both, best first; added items none of whose neighbors was found are left out.
    """
    table = catalogue.identifiers
    if len(table.neighbors) == 0:
        return rows, scores
    can_lend = rows < table.num_trained + table.num_marked
    cold_items = np.flatnonzero(table.available[table.num_trained :])
    cold_items = cold_items[~np.isin(cold_items + table.num_trained, list(excluded))]
    return rank_with_cold_items(
        rows[can_lend], scores[can_lend], cold_items + table.num_trained, table.neighbors[cold_items]
    )


def beam_scores(
    requests: EncodedRequests,
    rows: Sequence[np.ndarray],
    catalogue: Catalogue,
    num_beams: int,
) -> np.ndarray:
    """As `exact_scores`, by a beam search that only the given items are open to; -inf also for what it has not found.

    This is how the paper ranks candidates.
    """
    search = TrieBeamSearch(catalogue.trie, allowed=rows)
    beams = search.search(requests.context, requests.behavior_tokens, num_beams)
    scores = np.full((len(rows), max(map(len, rows), default=0)), -np.inf, dtype=np.float32)
    for place, (values, own_scores) in enumerate(zip(beams.values.tolist(), beams.scores.tolist(), strict=True)):
        found = dict(zip(values, own_scores, strict=True))
        scores[place, : len(rows[place])] = [found.get(row, -np.inf) for row in rows[place].tolist()]
    return scores
