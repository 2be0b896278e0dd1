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
import torch.nn.functional as F
from transformers import PreTrainedModel

from gensar_hf.data import Behavior
from gensar_hf.decoding import TrieBeamSearch
from gensar_hf.decoding.candidate_scoring import score_candidates
from gensar_hf.decoding.tree_decoder import DecodingContext, EncoderContext, PromptContext
from gensar_hf.generator.catalogue import Catalogue, ItemFilter
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration, event_positions
from gensar_hf.generator.text_matching import CHANNELS
from gensar_hf.generator.vector_index import VectorIndex
from gensar_hf.item_embeddings import row_chunks

MAX_BEAMS = 1024  # the memory of a search grows with the square of its beams; beyond, all items are scored
_NO_ROWS = np.zeros(0, dtype=np.int64)
_BLOCK_LOGITS, _BLOCK_ITEMS = 1 << 18, 1 << 10  # made at a time, so that they stay in the processor's cache; at least
_GROUP = 64  # neighboring items of which only the best is looked at first


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
    is_normalized: bool = True,
    by_identifier: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
    """The parts of the items' scores, each weighted; a score is their sum.

    Args:
        requests: of `encode_requests`.
        rows: for each request an array of rows of the identifier table.
        catalogue: the items.
        by_item: `ItemScores` of the requests, if they have been made already.
        only: the parts that are wanted, also those that weigh nothing in the model's scores; default: all that do.
        is_normalized: False: leave out of the part `"vector"` what is the same for all items of a request, for which
            the whole catalogue has to be scored.
        by_identifier: for each request rows of items whose identifiers have been scored already, and these scores.

    Returns:
        part → `(batch_size, most rows)`, padded with -inf. `"identifier"`: log-probability of the item's identifier,
        for items that were added after training the mean probability of their neighbors' identifiers. `"vector"`: that
        of the item by its vector, without what its text adds: `"words"`, `"characters"` and `"meaning"` (`CHANNELS`).
        Parts that the model does not have are left out.
    """
    identifier_weight, item_weight = _weights(requests, only)
    if by_item is None and item_weight:
        by_item = ItemScores(requests, catalogue)
    scored, counts = zip(*[_with_neighbors(items, catalogue) for items in rows], strict=True)
    parts: dict[str, np.ndarray] = {}
    borrowed: np.ndarray = np.zeros((len(rows), max(map(len, scored), default=0)), dtype=np.float32)
    if identifier_weight:
        borrowed = identifier_weight * _identifier_scores(requests, scored, catalogue, by_identifier)
        parts["identifier"] = _merged(borrowed, counts)
    if by_item is not None and (not only or "vector" in only):
        # An added item has the mean probability of its neighbors, of which the identifier has its share already.
        joint = borrowed + item_weight * by_item.by_vector(_padded(scored), is_normalized)
        with np.errstate(invalid="ignore"):  # of the padding, which is filled below
            parts["vector"] = _merged(joint, counts) - parts.get("identifier", 0.0)
    if by_item is not None and by_item.text_weights is not None:
        for name, values in zip(CHANNELS, by_item.by_text(_padded(rows)), strict=True):
            if not only or name in only:
                with np.errstate(invalid="ignore"):  # of weights that are not finite, which are refused later
                    parts[name] = item_weight * values
    for part in parts.values():
        for request, items in enumerate(rows):
            part[request, len(items) :] = -np.inf
    return parts


def _identifier_scores(
    requests: EncodedRequests,
    rows: Sequence[np.ndarray],
    catalogue: Catalogue,
    known: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
) -> np.ndarray:
    """`(batch_size, most rows)` log-probabilities of the items' identifiers, padded with 0.

    `known`: `by_identifier` of `score_parts`; only the other items are decoded.
    """
    known = known or [(_NO_ROWS, np.zeros(0, dtype=np.float32))] * len(rows)
    is_new = [np.isin(items, own, invert=True) for items, (own, _) in zip(rows, known, strict=True)]
    token_ids = catalogue.item_token_ids[requests.behavior]
    sequences = [token_ids[items[new]] for items, new in zip(rows, is_new, strict=True)]
    decoded = score_candidates(requests.context, sequences).cpu().numpy()
    scores = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.float32)
    for request, (items, new, (own, own_scores)) in enumerate(zip(rows, is_new, known, strict=True)):
        order = np.argsort(own)
        places = order[np.searchsorted(own, items[~new], sorter=order)]
        scores[request, : len(items)][new] = decoded[request, : int(new.sum())]
        scores[request, : len(items)][~new] = own_scores[places]
    return scores


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """`(batch_size, most rows)` int64, padded with row 0."""
    padded = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
    for request, items in enumerate(rows):
        padded[request, : len(items)] = items
    return padded


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
    is_normalized: bool = True,
    by_identifier: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
) -> np.ndarray:
    """`(batch_size, most rows)` scores of items, padded with -inf: the sum of `score_parts`, or of some of them."""
    values = score_parts(requests, rows, catalogue, by_item, only, is_normalized, by_identifier)
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
    index: VectorIndex | None = None,
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
        index: of the item vectors, for recommendations; the scores then lack what is the same for all items of a
            request.
    """
    table = catalogue.identifiers
    excluded = excluded or [_NO_ROWS] * len(requests.context)
    filters = filters or [None] * len(requests.context)
    is_open = [_is_open(table.available, *own) for own in zip(filters, excluded, strict=True)]
    identifier_weight, item_weight = _weights(requests, only)
    by_item = ItemScores(requests, catalogue) if item_weight else None
    proposals, by_identifier = [_NO_ROWS] * len(requests.context), None
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
        values_and_scores = zip(beams.values.cpu().numpy(), beams.scores.cpu().numpy(), strict=True)
        by_identifier = [(values[values >= 0], scores[values >= 0]) for values, scores in values_and_scores]
        found = [
            _with_added_items(*own, catalogue, own_open) for own, own_open in zip(by_identifier, is_open, strict=True)
        ]
        if by_item is None:
            return found
        proposals = [rows for rows, _ in found]
    index = None if by_item is None or scores_all else index
    if by_item is not None and not scores_all:
        by_vector = (
            by_item.best(num_beams, is_open, only) if index is None else by_item.nearest(num_beams, is_open, index)
        )
        proposals = [np.union1d(rows, best) for rows, best in zip(proposals, by_vector, strict=True)]
    is_normalized = index is None
    scores = exact_scores(requests, proposals, catalogue, by_item, only, is_normalized, by_identifier)
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


class ItemScores:
    """Scores of items for some requests, by their vectors and texts.

    Their sum is the logarithm of the item's probability among all items that training knew.

    Args:
        requests: of `encode_requests`, by a model with item vectors.
        catalogue: the items.

    Attributes:
        text_weights: `(batch_size, 3)` of the channels; None without text matching.
    """

    @torch.inference_mode()
    def __init__(self, requests: EncodedRequests, catalogue: Catalogue) -> None:
        context: Any = requests.context
        encoder = context.model.encoder
        last = context.mask.sum(dim=1) - 1  # positions are filled from the left
        states = context.states[torch.arange(len(last), device=last.device), last]
        of_both_kinds = encoder.items.request(states).unflatten(1, (2, -1))
        self._requests = of_both_kinds[:, int(requests.behavior is Behavior.SEARCHED_ITEM)]
        self._vectors, self._biases = encoder.items.table.weight, encoder.items.bias
        self._table = catalogue.identifiers
        self.text_weights: torch.Tensor | None = None
        if encoder.text is not None and requests.text_scores is not None:
            self._texts = torch.from_numpy(requests.text_scores).to(states.device)
            # The weights are made from the items that training knew, as in training.
            known = self._texts[:, :, : len(self._vectors)].to(states.dtype)
            self.text_weights = encoder.text.weights(states, known).float()
        self._log_normalizers: torch.Tensor | None = None

    @torch.inference_mode()
    def by_vector(self, rows: np.ndarray, is_normalized: bool = True) -> np.ndarray:
        """The part of the items' vectors.

        Args:
            rows: `(batch_size, num_rows)` of the identifier table, of items with vectors.
            is_normalized: False: without what is the same for all items of a request.

        Returns:
            `(batch_size, num_rows)` float32.
        """
        places = torch.from_numpy(rows).to(self._vectors.device)
        if len(self._vectors) <= _BLOCK_ITEMS or 4 * rows.shape[1] > len(self._vectors):
            values = self._logits(is_normalized).gather(1, places)
        else:
            values = torch.empty(rows.shape, dtype=torch.float32, device=places.device)
            for chunk in row_chunks(rows.shape[1]):
                own = places[:, chunk]
                # Not a matrix product, whose last bits depend on the number of rows.
                products = (self._requests[:, None] * F.embedding(own, self._vectors)).sum(dim=-1)
                values[:, chunk] = (products + self._biases[own]).float()
        if is_normalized:
            normalizers = self._normalize() if self._log_normalizers is None else self._log_normalizers
            values = values - normalizers[:, None]
        return values.cpu().numpy()

    @torch.inference_mode()
    def by_text(self, rows: np.ndarray) -> np.ndarray:
        """The parts of the channels, `(3, batch_size, num_rows)` float32; `rows` as in `by_vector`."""
        if self.text_weights is None:
            raise ValueError("The requests have no queries, or the model does not match texts.")
        places = torch.from_numpy(rows).to(self._texts.device)[:, None].expand(-1, len(CHANNELS), -1)
        return (self.text_weights[:, :, None] * self._texts.gather(2, places)).transpose(0, 1).cpu().numpy()

    @torch.inference_mode()
    def best(self, number: int, is_open: Sequence[np.ndarray], only: Collection[str] = ()) -> list[np.ndarray]:
        """The best open items of each request by vector and text together, and by either alone, `number` each.

        Of equal items those come first that come first in the catalogue.

        Args:
            number: of items.
            is_open: for each request `(num_items,)` bool.
            only: as in `score_parts`.

        Returns:
            for each request distinct rows of the identifier table, in any order.
        """
        rankings = []
        if not only or "vector" in only:
            logits = self._logits(is_normalized=True)
            if len(neighbors := self._table.neighbors):
                borrowed = logits[:, torch.from_numpy(neighbors).to(logits.device)].logsumexp(dim=-1)
                borrowed -= math.log(neighbors.shape[1])
                logits = torch.cat([logits[:, : self._table.num_trained], borrowed], dim=1)
            rankings.append(logits)
        if self.text_weights is not None and any(not only or name in only for name in CHANNELS):
            rankings.append(self._text(self.text_weights, only))
            rankings += [rankings[0] + rankings[1]] if len(rankings) > 1 else []
        for request, own in enumerate(is_open):
            if not own.all():
                is_closed = torch.from_numpy(~own).to(self._vectors.device)
                for ranking in rankings:
                    ranking[request].masked_fill_(is_closed, -torch.inf)
        found = [_best_columns(ranking, number) for ranking in rankings]
        return [np.unique(np.concatenate(own)) for own in zip(*found, strict=True)]

    def nearest(self, number: int, is_open: Sequence[np.ndarray], index: VectorIndex) -> list[np.ndarray]:
        """As `best`, by vector alone; items with vectors are those that an index finds."""
        neighbors, num_trained = self._table.neighbors, self._table.num_trained
        is_known = [own[: index.num_items] for own in is_open]
        proposals = index.search(self._requests, 2 * number, is_known)  # which it may have in a slightly wrong order
        for request, (rows, own) in enumerate(zip(proposals, is_known, strict=True)):
            if len(rows) < min(number, int(own.sum())):  # the clusters that were looked at have hardly an open item
                proposals[request] = np.flatnonzero(own)
        logits = self.by_vector(_padded(proposals), is_normalized=False)
        found = [
            rows[np.argsort(-own_logits[: len(rows)], kind="stable")[:number]]
            for rows, own_logits in zip(proposals, logits, strict=True)
        ]
        if len(neighbors):
            added = [np.flatnonzero(own[num_trained:]) for own in is_open]
            lent = self.by_vector(_padded([neighbors[own].ravel() for own in added]), is_normalized=False)
            for request, (own, logits_of_lenders) in enumerate(zip(added, lent, strict=True)):
                borrowed = mean_probability(logits_of_lenders[: neighbors[own].size].reshape(-1, neighbors.shape[1]))
                best = own[np.argsort(-borrowed, kind="stable")[:number]]
                found[request] = np.union1d(found[request], num_trained + best)
        return found

    def _text(self, weights: torch.Tensor, only: Collection[str] = ()) -> torch.Tensor:
        """`(batch_size, num_items)`: the sum of the channels, or of some, by their `weights` `(batch_size, 3)`."""
        counts = torch.tensor([not only or name in only for name in CHANNELS], device=self._texts.device)
        return torch.bmm((weights * counts)[:, None], self._texts)[:, 0]

    def _logits(self, is_normalized: bool) -> torch.Tensor:
        """`(batch_size, num_vectors)` float32; with `is_normalized` the normalizers are made in the same pass."""
        logits = torch.empty(
            (len(self._requests), len(self._vectors)), dtype=torch.float32, device=self._vectors.device
        )
        if is_normalized:
            self._normalize(logits)
        else:
            for rows in self._blocks():
                logits[:, rows] = self._block(rows)
        return logits

    def _normalize(self, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Make the logarithms `(batch_size,)` of the sums of all items' exponentials, block by block.

        `kept`: `(batch_size, num_vectors)`, which the logits by vector are written to.
        """
        texts = None if self.text_weights is None else self._text(self.text_weights)
        maxima, sums = [], []
        for rows in self._blocks():
            logits = self._block(rows)
            if kept is not None:
                kept[:, rows] = logits
            if texts is not None:
                logits = logits + texts[:, rows]
            maxima.append(logits.amax(dim=1, keepdim=True))
            sums.append((logits - maxima[-1]).exp_().sum(dim=1, keepdim=True))
        self._log_normalizers = (torch.cat(maxima, dim=1) + torch.cat(sums, dim=1).log()).logsumexp(dim=1)
        return self._log_normalizers

    def _blocks(self) -> list[slice]:
        size = max(_BLOCK_ITEMS, _BLOCK_LOGITS // max(1, len(self._requests)))
        starts = range(0, len(self._vectors), size)
        return [slice(start, min(start + size, len(self._vectors))) for start in starts]

    def _block(self, rows: slice) -> torch.Tensor:
        return F.linear(self._requests, self._vectors[rows], self._biases[rows]).float()


def _best_columns(scores: torch.Tensor, number: int) -> list[np.ndarray]:
    """For each row of `(num_rows, num_columns)` scores the `number` best columns that are not -inf, in any order.

    Of equal columns the first ones are taken. A whole row is read once, for the best of each group of columns: the best
    columns are in the best groups.
    """
    num_columns = scores.shape[1]
    columns = torch.arange(num_columns, device=scores.device).expand(len(scores), -1)
    num_groups = num_columns // _GROUP
    if num_groups > 4 * number:
        grouped = scores[:, : num_groups * _GROUP].unflatten(1, (num_groups, _GROUP))
        groups = grouped.amax(dim=2).topk(number + 1, sorted=False).indices
        inside = groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=scores.device)
        columns = torch.cat([inside.flatten(1), columns[:, num_groups * _GROUP :]], dim=1)
    best, places = scores.gather(1, columns).topk(min(number + 1, columns.shape[1]))
    best_columns, values = columns.gather(1, places).cpu().numpy(), best.cpu().numpy()
    found = []
    for row, (own, own_values) in enumerate(zip(best_columns, values, strict=True)):
        chosen = own[:number][own_values[:number] != -np.inf]
        if len(own) > number and len(chosen) == number and own_values[number - 1] == own_values[number]:
            better = own[own_values > own_values[number]]
            equal = torch.nonzero(scores[row] == best[row, number])[:, 0].cpu().numpy()
            chosen = np.concatenate([better, equal[: number - len(better)]])
        found.append(chosen)
    return found


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
