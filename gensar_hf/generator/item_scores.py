"""Find and score items for requests that the model has read.

A generator learns which combinations of codes exist. A combination that did not exist in training gets almost no
probability, however well its codes fit the request one by one, so an item that was added after training would never be
found. Such an item borrows its score: its probability is the mean of those of the nearest trained items.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from gensar_hf.data import Behavior
from gensar_hf.decoding import TrieBeamSearch
from gensar_hf.decoding.candidate_scoring import score_candidates
from gensar_hf.decoding.tree_decoder import DecodingContext, EncoderContext, PromptContext
from gensar_hf.generator.catalogue import Catalogue, ItemFilter
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration, event_positions
from gensar_hf.generator.text_matching import CHANNELS

MAX_BEAMS = 1024  # the memory of a search grows with the square of its beams; beyond, all items are scored
_NO_ROWS = np.zeros(0, dtype=np.int64)


class EncodedRequests(NamedTuple):
    """A batch of requests that the model has read.

    Attributes:
        context: of the decoder.
        behavior_tokens: `(batch_size, 1)`.
        behavior: the kind of click to predict.
        text_scores: `(batch_size, 3, num_items)` of `TextIndex.scores` for the current queries; None: no queries, or a
            model that does not match texts.
    """

    context: DecodingContext
    behavior_tokens: torch.Tensor
    behavior: Behavior
    text_scores: np.ndarray | None = None


@torch.inference_mode()
def encode_requests(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    behavior: Behavior,
    text_scores: np.ndarray | None = None,
) -> EncodedRequests:
    """Run the model over requests: a T5's encoder over the histories, or a decoder-only model over the prompts.

    Args:
        model: the generator.
        inputs: of `GenSARTokenizer.encode_request`, on the model's device.
        behavior: the kind of click to predict.
        text_scores: see `EncodedRequests`.
    """
    if not isinstance(model, GenSARForConditionalGeneration):
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        return EncodedRequests(PromptContext.of_prompts(model, tokens[:, :-1], mask[:, :-1]), tokens[:, -1:], behavior)
    encoder_inputs = dict(inputs)
    starts, event_ids = encoder_inputs.pop("decoder_input_ids"), inputs.get("event_ids")
    states = model.encoder(**encoder_inputs).last_hidden_state
    mask = inputs["attention_mask"].bool()
    if event_ids is not None:
        mask = event_positions(event_ids, states.shape[1])
    return EncodedRequests(EncoderContext(model, states, mask, starts[:, 0]), starts[:, 1:], behavior, text_scores)


# ---- scores of candidates


def score_parts(
    requests: EncodedRequests,
    rows: Sequence[np.ndarray],
    catalogue: Catalogue,
    by_item: "ItemScores | None" = None,
    only: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The parts of the items' scores, each weighted; a score is their sum.

    Args:
        requests: of `encode_requests`.
        rows: for each request an array of rows of the identifier table.
        catalogue: the items.
        by_item: `item_scores` of the requests, if they are known already.
        only: the parts that are wanted, also those that weigh nothing in the model's scores; default: all that do.

    Returns:
        part → `(batch_size, most rows)`, padded with -inf. `"identifier"`: log-probability of the item's identifier,
        for items that were added after training the mean probability of their neighbors' identifiers. `"vector"`: that
        of the item by its vector, without what its text adds: `"words"`, `"characters"` and `"meaning"` (`CHANNELS`).
        Parts that the model does not have are left out.
    """
    identifier_weight, item_weight = _weights(requests, only)
    if by_item is None and item_weight:
        by_item = item_scores(requests, catalogue)
    scored, counts = zip(*[_with_neighbors(items, catalogue) for items in rows], strict=True)
    parts: dict[str, np.ndarray] = {}
    borrowed: np.ndarray = np.zeros((len(rows), max(map(len, scored), default=0)), dtype=np.float32)
    if identifier_weight:
        sequences = [catalogue.item_token_ids[requests.behavior][items] for items in scored]
        found = score_candidates(requests.context, sequences).cpu().numpy()
        borrowed = identifier_weight * np.where(np.isneginf(found), 0, found)  # padding, which is set below
        parts["identifier"] = _merged(borrowed, counts)
    if by_item is not None and (not only or "vector" in only):
        # An added item has the mean probability of its neighbors, of which the identifier has its share already.
        joint = borrowed + item_weight * _of_rows(by_item.trained, scored)
        with np.errstate(invalid="ignore"):  # of the padding, which is filled below
            parts["vector"] = _merged(joint, counts) - parts.get("identifier", 0.0)
    for name, values in by_item.text.items() if by_item is not None else ():
        if not only or name in only:
            parts[name] = item_weight * _of_rows(values, rows)
    for part in parts.values():
        for request, items in enumerate(rows):
            part[request, len(items) :] = -np.inf
    return parts


def _of_rows(values: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    """`(batch_size, most rows)` of `(batch_size, num_items)`, padded with 0."""
    chosen = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.float32)
    for request, items in enumerate(rows):
        chosen[request, : len(items)] = values[request, items]
    return chosen


def _merged(scores: np.ndarray, counts: Sequence[np.ndarray]) -> np.ndarray:
    """Of each item the mean probability of the columns that stand for it: `(batch_size, most items)`.

    `counts`: for each request the numbers of columns of its items, see `_with_neighbors`.
    """
    if all((own == 1).all() for own in counts):
        return scores.copy()
    merged = np.zeros((len(counts), max(map(len, counts), default=0)), dtype=np.float32)
    for request, own in enumerate(counts):
        ends = np.cumsum(own)
        for column, (start, end) in enumerate(zip(ends - own, ends, strict=True)):
            merged[request, column] = mean_probability(scores[request, start:end])
    return merged


def exact_scores(
    requests: EncodedRequests,
    rows: Sequence[np.ndarray],
    catalogue: Catalogue,
    by_item: "ItemScores | None" = None,
    only: Collection[str] = (),
) -> np.ndarray:
    """`(batch_size, most rows)` scores of items, padded with -inf: the sum of `score_parts`, or of some of them."""
    values = score_parts(requests, rows, catalogue, by_item, only)
    if not values:
        raise ValueError(f"The model's scores have none of the parts {', '.join(only)}.")
    scores = np.sum(list(values.values()), axis=0)
    for request, items in enumerate(rows):
        if not np.isfinite(scores[request, : len(items)]).all():
            raise ValueError(
                f"The model's scores are NaN or infinite for request {request} of {len(rows)}; its weights or the "
                "weights of the parts hold such values, or a lower precision overflowed."
            )
    return scores


def _weights(requests: EncodedRequests, only: Collection[str] = ()) -> tuple[float, float]:
    """Of the identifier and of the item by vector and text; `only` as in `score_parts`."""
    model = requests.context.model
    has_vectors = isinstance(model, GenSARForConditionalGeneration) and model.encoder.items is not None
    identifier, item = (
        model.config.score_weights(requests.behavior is Behavior.SEARCHED_ITEM) if has_vectors else (1.0, 0.0)
    )
    if not only:
        return identifier, item
    wants_item = has_vectors and any(name != "identifier" for name in only)
    return (identifier or 1.0) * ("identifier" in only), (item or 1.0) * wants_item


def beam_scores(
    requests: EncodedRequests, rows: Sequence[np.ndarray], catalogue: Catalogue, num_beams: int
) -> np.ndarray:
    """As `exact_scores`, by a beam search restricted to the candidates, as in the paper; -inf for those not found."""
    search = TrieBeamSearch(catalogue.trie, allowed=rows)
    beams = search.search(requests.context, requests.behavior_tokens, min(num_beams, MAX_BEAMS))
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
    excluded: Sequence[np.ndarray] | None = None,
    only: Collection[str] = (),
    filters: Sequence[ItemFilter | None] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The best items for each request: rows of the identifier table and their scores, best first.

    Identifiers are found by beam search. A model with item vectors also proposes the best items by vector and text, and
    those by vector alone and by text alone, `num_beams` each; all proposals are scored exactly.

    Args:
        requests: of `encode_requests`.
        catalogue: the items.
        num_beams: beams, and items proposed by vector; with more than `MAX_BEAMS` all items are scored.
        excluded: for each request rows that must not be returned.
        only: parts of the scores that count, see `score_parts`; default: all.
        filters: for each request the items that may be returned, of this catalogue; None: all.
    """
    table = catalogue.identifiers
    excluded = excluded or [_NO_ROWS] * len(requests.context)
    filters = filters or [None] * len(requests.context)
    is_open = [_is_open(table.available, *own) for own in zip(filters, excluded, strict=True)]
    identifier_weight, item_weight = _weights(requests, only)
    by_item = item_scores(requests, catalogue) if item_weight else None
    proposals = [_NO_ROWS] * len(requests.context)
    scores_all = num_beams > MAX_BEAMS
    if scores_all:
        proposals = [np.flatnonzero(own) for own in is_open]
    elif identifier_weight:
        search = TrieBeamSearch(catalogue.trie)
        if any(map(len, excluded)) or any(own is not None for own in filters):
            # Items that are not open are searched all the same if open ones borrow their scores.
            denied = [np.setdiff1d(rows, table.neighbors) if len(rows) else _NO_ROWS for rows in excluded]
            allowed = [None if own is None else own.values for own in filters]
            search = TrieBeamSearch(catalogue.trie, denied, allowed)
            num_beams = min(2 * num_beams, MAX_BEAMS) if len(table.neighbors) else num_beams
        beams = search.search(requests.context, requests.behavior_tokens, num_beams)
        found = [
            _with_added_items(values[values >= 0], scores[values >= 0], catalogue, own)
            for values, scores, own in zip(beams.values.cpu().numpy(), beams.scores.cpu().numpy(), is_open, strict=True)
        ]
        if by_item is None:
            return found
        proposals = [rows for rows, _ in found]
    if by_item is not None and not scores_all:
        proposals = [
            np.union1d(rows, by_item.best(request, num_beams, own, only))
            for request, (rows, own) in enumerate(zip(proposals, is_open, strict=True))
        ]
    scores = exact_scores(requests, proposals, catalogue, by_item, only)
    ranked = []
    for rows, request_scores in zip(proposals, scores, strict=True):
        order = np.argsort(-request_scores[: len(rows)], kind="stable")
        ranked.append((rows[order], request_scores[order]))
    return ranked


def _is_open(available: np.ndarray, own_filter: ItemFilter | None, excluded: np.ndarray) -> np.ndarray:
    """`(num_items,)` bool: the items that a request may have as answers."""
    is_open = available if own_filter is None else own_filter.is_open
    if len(excluded):
        is_open = is_open.copy()
        is_open[excluded] = False
    return is_open


class ItemScores(NamedTuple):
    """Scores of all items for some requests, by their vectors and texts; their sum is a log-probability.

    Attributes:
        trained: `(batch_size, num_vectors)`.
        all: `(batch_size, num_items)`; an added item has the mean probability of its neighbors.
        text: channel → `(batch_size, num_items)`; without text matching there is none.
    """

    trained: np.ndarray
    all: np.ndarray
    text: dict[str, np.ndarray]

    def best(self, request: int, number: int, is_open: np.ndarray, only: Collection[str] = ()) -> np.ndarray:
        """The best open items of a request by vector and text together, and by either alone, `number` each.

        `is_open`: `(num_items,)` bool. `only` as in `score_parts`.
        """
        texts = [values[request] for name, values in self.text.items() if not only or name in only]
        rankings = [self.all[request]] if not only or "vector" in only else []
        rankings += [np.sum(texts, axis=0)] if texts else []
        rankings += [rankings[0] + rankings[1]] if len(rankings) > 1 else []
        rows = np.flatnonzero(is_open)
        number = min(number, len(rows))
        best = [rows[np.argpartition(-ranking[rows], number - 1)[:number]] for ranking in rankings]
        return np.unique(np.concatenate(best))


@torch.inference_mode()
def item_scores(requests: EncodedRequests, catalogue: Catalogue) -> ItemScores:
    """Scores of all items by their vectors and texts, of a model with item vectors."""
    context: Any = requests.context
    encoder = context.model.encoder
    last = context.mask.sum(dim=1) - 1  # positions are filled from the left
    states = context.states[torch.arange(len(last), device=last.device), last]
    is_searched = torch.full_like(last, requests.behavior is Behavior.SEARCHED_ITEM)
    logits = encoder.items.logits(states, is_searched).float()
    texts, table, total = dict[str, np.ndarray](), catalogue.identifiers, logits
    if encoder.text is not None and requests.text_scores is not None:
        # The weights are made from the items that training knew, as in training.
        known = torch.from_numpy(requests.text_scores[:, :, : logits.shape[1]]).to(states)
        weights = encoder.text.weights(states, known).float()
        total = logits + torch.bmm(weights[:, None], known.float())[:, 0]
        by_channel = weights.cpu().numpy()[:, :, None] * requests.text_scores
        texts = {name: by_channel[:, place] for place, name in enumerate(CHANNELS)}
    trained = (logits - total.logsumexp(dim=1, keepdim=True)).cpu().numpy()
    every = trained
    if len(table.neighbors):
        borrowed = mean_probability(trained[:, table.neighbors])
        every = np.concatenate([trained[:, : table.num_trained], borrowed], axis=1)
    return ItemScores(trained, every, texts)


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
    rows: np.ndarray, scores: np.ndarray, catalogue: Catalogue, is_open: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The open items of a search's result, and the open added items inserted; `is_open`: `(num_items,)` bool."""
    table = catalogue.identifiers
    if len(table.neighbors):
        is_trained = rows < table.num_trained + table.num_marked
        neighbors = table.neighbors[is_open[table.num_trained :]]
        cold = np.flatnonzero(is_open[table.num_trained :]) + table.num_trained
        rows, scores = rank_with_cold_items(rows[is_trained], scores[is_trained], cold, neighbors)
    return rows[is_open[rows]], scores[is_open[rows]]


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
