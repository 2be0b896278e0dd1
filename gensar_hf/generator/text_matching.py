"""Text matching: how well the text of each item fits a query, and what the generator makes of it.

`TextIndex` compares a query with all items in three ways: by its words (BM25 on the items' texts), by its characters
(TF-IDF of n-grams of the titles, for spelling errors and words that are still being typed) and by its meaning (cosine
of sentence embeddings). `TextMatching` is the part of the model that weighs the three, request by request, and that
shows the encoder what a query means and which items it fits.
"""

import os
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import nn

from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError
from gensar_hf.files import load_arrays, save_arrays
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.item_embeddings import row_chunks, unit_rows
from gensar_hf.model_folder import TEXT_ENCODER_DIR

CHANNELS = ("words", "characters", "meaning")
TEXT_VECTORS_FILE = "text_vectors.safetensors"
NUM_MATCHES = 10  # best items of a query that the encoder reads
_NUM_FEATURES = 2**18  # hashed words and n-grams
_BM25_K1, _BM25_B = 1.5, 0.75  # the defaults of `bm25s`, which the BM25 baseline has
_CACHED_QUERIES = 20_000
_CACHED_SCORES = 64 * 1024**2  # of remembered queries, 256 MiB
_CHUNK_QUERIES, _CHUNK_SCORES = 64, 1 << 24  # of all items for the queries that are read at once
_BLOCK_QUERIES = 8
_FLOAT_ITEMS = 262_144  # items whose embeddings are held in float32
FIRST_SHARPNESS = 10.0  # of the softmax over matches
FIRST_WEIGHT_BIAS = 0.54  # softplus⁻¹(1): all channels start with the weight `_WEIGHT_SCALE`
_WEIGHT_SCALE = 10.0  # weights are learned in tens, since cosines are small compared with logits


class QueryReading(NamedTuple):
    """What the encoder reads at the positions of queries.

    Attributes:
        vectors: `(num_queries, dim)` float32 sentence embeddings of length 1; zeros: not known.
        items: `(num_queries, NUM_MATCHES)` int64, the items whose texts fit best, -1: fewer.
        scores: `(num_queries, NUM_MATCHES, 3)` float32, how well they fit by each channel.
    """

    vectors: np.ndarray
    items: np.ndarray
    scores: np.ndarray


class QueryInputs(NamedTuple):
    """`QueryReading` as inputs of the encoder, at the positions of queries.

    Attributes:
        vectors: `(batch_size, num_positions, dim)`; zeros where there is no query.
        items: `(batch_size, num_positions, NUM_MATCHES)` long, rows of item vectors, -1 for none.
        scores: `(batch_size, num_positions, NUM_MATCHES, 3)`.
        codes: `(batch_size, num_positions, NUM_MATCHES, num_levels)` long, code tokens of the items' semantic
            identifiers; of padding any tokens.
    """

    vectors: torch.Tensor
    items: torch.Tensor
    scores: torch.Tensor
    codes: torch.Tensor


class TextIndex:
    """The texts of a catalogue, ready to be compared with queries; it never changes.

    Memory per item: its embedding in float16 (768 bytes for 384 dimensions) and about 50 hashed words and n-grams of 8
    bytes. The hashed parts are made from the texts at the first query (about 0.1 ms an item).

    Args:
        titles: one per item.
        texts: one per item, such as `IdentifierTable.texts`.
        vectors: `(num_items, dim)` embeddings of the texts; rows of length 1, or 0.
        encoder: made the vectors, and reads queries.
    """

    def __init__(self, titles: Sequence[str], texts: Sequence[str], vectors: np.ndarray, encoder: TextEncoder) -> None:
        if not len(titles) == len(texts) == len(vectors):
            raise ValueError(f"One title, text and vector an item; got {len(titles)}, {len(texts)}, {len(vectors)}.")
        self.titles, self.texts, self.encoder = list(titles), list(texts), encoder
        self.vectors = np.asarray(vectors, dtype=np.float16)
        self._remembered: dict[str, np.ndarray] = {}  # query → embedding
        self._scored: dict[str, np.ndarray] = {}  # scores of some of these
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()  # the same, the latest ones
        self._read: OrderedDict[str, QueryReading] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made again when it is needed, some of which cannot be pickled."""
        made = ("_lexical", "_float_vectors")
        state = {name: value for name, value in self.__dict__.items() if name not in made}
        return state | {"_scored": {}, "_known": OrderedDict(), "_read": OrderedDict()}

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def dim(self) -> int:
        """Width of the sentence embeddings."""
        return self.vectors.shape[1]

    def encode(self, queries: Sequence[str]) -> np.ndarray:
        """`(num_queries, dim)` float32 embeddings; the latest ones are remembered."""
        known = ChainMap(self._known, self._remembered)
        # Held here, because another thread may remove what is remembered.
        own = {query: known[query] for query in queries if query in known}
        if new := [query for query in dict.fromkeys(queries) if query not in own]:
            made = unit_rows(self.encoder.encode(new))
            if made.shape[1] != self.dim or not np.isfinite(made).all():
                raise InputError(
                    f"The text encoder does not make the {self.dim} finite numbers of a query that the items' texts "
                    f"have, but {made.shape[1]}; copy all files of the model from one folder."
                )
            encoded = dict(zip(new, made, strict=True))
            self._known.update(encoded)
            own |= encoded
        vectors = [own[query] for query in queries]
        while len(self._known) > _CACHED_QUERIES:
            self._known.popitem(last=False)
        return np.stack(vectors).astype(np.float32, copy=False) if vectors else np.zeros((0, self.dim), np.float32)

    def remember(self, queries: Sequence[str]) -> None:
        """Encode the queries of a training, which are read again and again."""
        distinct = list(dict.fromkeys(queries))
        self._remembered = dict(zip(distinct, unit_rows(self.encoder.encode(distinct)), strict=True))
        self._scored.clear()

    def remember_as(self, embeddings: Mapping[str, np.ndarray]) -> None:
        """Add queries with embeddings `(dim,)` that no encoder made; those that are remembered already stay."""
        self._remembered = {**embeddings, **self._remembered}

    def is_remembered(self, query: str) -> bool:
        """Whether a query's embedding is remembered."""
        return query in self._remembered

    def remembered_vectors(self, queries: Sequence[str]) -> np.ndarray:
        """`(num_queries, dim)` float32 embeddings of the queries that are remembered, zeros for the others."""
        unknown = np.zeros(self.dim, dtype=np.float32)
        return np.array([self._remembered.get(query, unknown) for query in queries], np.float32).reshape(-1, self.dim)

    def scores(self, queries: Sequence[str], encode: bool = True) -> np.ndarray:
        """How well every item's text fits every query.

        Args:
            queries: any texts.
            encode: False: only queries that `remember` was given have a meaning, the scores of others are 0. Text
                encoders take milliseconds for a query, far too long for those that training makes up.

        Returns:
            `(num_queries, 3, num_items)` float32 in the order of `CHANNELS`: the share of the query's BM25 weight that
            the item reaches (0 to 1), and two cosines.
        """
        if encode:
            return self._computed_scores(queries, self.encode(queries), max(1, len(queries)))
        result = np.empty((len(queries), len(CHANNELS), len(self)), dtype=np.float32)
        new = [place for place, query in enumerate(queries) if query not in self._scored]
        new_queries = [queries[place] for place in new]
        # In blocks of one size, so that the last bits of a query's scores do not depend on what else is in a batch:
        # a resumed training meets its queries in other batches, and must end with the same weights.
        result[new] = self._computed_scores(new_queries, self._vectors_of(new_queries, encode=False), _BLOCK_QUERIES)
        for place, query in enumerate(queries):
            if query in self._scored:
                result[place] = self._scored[query]
            elif query in self._remembered and len(self._scored) * result[0].size < _CACHED_SCORES:
                self._scored[query] = result[place].copy()
        return result

    def _computed_scores(self, queries: Sequence[str], vectors: np.ndarray, block_size: int) -> np.ndarray:
        """`scores` of queries with these embeddings, compared with the items' in blocks of one size."""
        result = np.zeros((len(queries), len(CHANNELS), len(self)), dtype=np.float32)
        if not len(queries):
            return result
        for place, channel in enumerate(self._lexical):
            result[:, place] = channel.scores(queries)
        if self._float_vectors is not None:
            for rows in row_chunks(len(queries), block_size):
                block = np.zeros((block_size, self.dim), dtype=np.float32)
                block[: len(vectors[rows])] = vectors[rows]
                result[rows, 2] = (block @ self._float_vectors.T)[: len(vectors[rows])]
            return result
        half = torch.from_numpy(self.vectors)
        for row, vector in zip(result, torch.from_numpy(vectors).half(), strict=True):
            row[2] = torch.mv(half, vector).numpy()
        return result

    @cached_property
    def _float_vectors(self) -> np.ndarray | None:
        """The embeddings in float32, for exact products; None: so many that products are made in float16."""
        return self.vectors.astype(np.float32) if len(self) <= _FLOAT_ITEMS else None

    def match(self, queries: Sequence[str], encode: bool = True) -> tuple[QueryReading, np.ndarray]:
        """What the encoder reads of some queries, remembered for `read`, and `scores`; `encode` as there."""
        scores = self.scores(queries, encode)
        total = scores.sum(axis=1)
        num_best = min(NUM_MATCHES, len(self))
        # Rounded, so that the last bits, which depend on the batch, do not decide between items of the same text.
        best = np.argpartition(-total.round(5), num_best - 1, axis=1)[:, :num_best]
        best_scores = np.take_along_axis(scores, best[:, None], axis=2).transpose(0, 2, 1)
        best = np.where(np.take_along_axis(total, best, axis=1) > 0, best, -1)
        missing = NUM_MATCHES - num_best
        best = np.pad(best, ((0, 0), (0, missing)), constant_values=-1)
        best_scores = np.pad(best_scores, ((0, 0), (0, missing), (0, 0)))
        reading = QueryReading(self._vectors_of(queries, encode), best, best_scores)
        if encode:
            self._read.update(zip(queries, map(QueryReading, *reading), strict=True))
        return reading, scores

    def read(self, queries: Sequence[str]) -> QueryReading:
        """What the encoder reads of some queries; remembered, since the queries of a history come again and again."""
        new = [query for query in dict.fromkeys(queries) if query not in self._read]
        for part in row_chunks(len(new), max(1, min(_CHUNK_QUERIES, _CHUNK_SCORES // max(1, len(self))))):
            self.match(new[part])
        readings = [self._read[query] for query in queries]
        while len(self._read) > _CACHED_QUERIES:
            self._read.popitem(last=False)
        return QueryReading(*(np.stack(column) for column in zip(*readings, strict=True)))

    def _vectors_of(self, queries: Sequence[str], encode: bool) -> np.ndarray:
        return self.encode(queries) if encode else self.remembered_vectors(queries)

    @cached_property
    def _lexical(self) -> "tuple[LexicalChannel, LexicalChannel]":
        return self.lexical_channels()

    def lexical_channels(self) -> "tuple[LexicalChannel, LexicalChannel]":
        """The comparisons by words and by characters, built from the texts."""
        return _bm25(self.texts), _character_cosines(self.titles)

    def with_items(self, titles: Sequence[str], texts: Sequence[str]) -> "TextIndex":
        """The index of a catalogue that begins with the same items; the texts of the others are encoded."""
        if list(texts) == self.texts and list(titles) == self.titles:
            return self
        same = len(self) if list(texts[: len(self)]) == self.texts else 0
        new = unit_rows(self.encoder.encode(list(texts[same:])))
        return TextIndex(titles, texts, np.concatenate([self.vectors[:same], new.astype(np.float16)]), self.encoder)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the embeddings, and what is needed of the text encoder; titles and texts are in the catalogue."""
        save_arrays(Path(folder) / TEXT_VECTORS_FILE, {"vectors": self.vectors})
        self.encoder.save(Path(folder) / TEXT_ENCODER_DIR)

    @classmethod
    def load(
        cls, vectors: str | os.PathLike[str], encoder: TextEncoder, titles: Sequence[str], texts: Sequence[str]
    ) -> "TextIndex":
        """Read what `save` wrote; vectors of items that the catalogue does not have yet are left out.

        Raises:
            InputError: the file is damaged, or is of another catalogue.
        """
        loaded = load_arrays(Path(vectors)).get("vectors")
        if (
            loaded is None
            or (loaded.ndim, loaded.dtype.kind) != (2, "f")
            or len(loaded) < len(texts)
            or not np.isfinite(loaded).all()
        ):
            raise InputError(
                f"{vectors} does not hold one finite vector for each of the {len(texts)} items; copy all files of the "
                "model from one folder."
            )
        return cls(titles, texts, loaded[: len(texts)], encoder)


def _counts(texts: Sequence[str], **options: Any) -> sparse.csr_matrix:
    """`(num_texts, _NUM_FEATURES)` how often each hashed term occurs in each text."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        n_features=_NUM_FEATURES, alternate_sign=False, norm=None, strip_accents="unicode", dtype=np.float32, **options
    )
    return vectorizer.transform(texts).tocsr()


class LexicalChannel(NamedTuple):
    """A comparison of texts by weighted terms, as a sparse product, so that a batch of queries costs milliseconds.

    Attributes:
        by_term: `(_NUM_FEATURES, num_items)` float32 weights of the items' terms.
        weigh: queries → `(num_queries, _NUM_FEATURES)` weights of their terms, and `(num_queries, 1)` what the product
            of both is divided by.
    """

    by_term: sparse.csr_matrix
    weigh: Callable[[Sequence[str]], tuple[sparse.csr_matrix, np.ndarray]]

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """`(num_queries, num_items)` float32."""
        weights, most = self.weigh(queries)
        return (weights @ self.by_term).toarray() / most


def _bm25(texts: Sequence[str]) -> LexicalChannel:
    """BM25 of all texts for a list of queries, divided by the most that a text could reach; as in Lucene."""
    options: dict[str, Any] = {"analyzer": "word", "token_pattern": r"(?u)\b\w+\b"}
    counts = _counts(texts, **options)
    frequencies = np.bincount(counts.indices, minlength=_NUM_FEATURES)
    idf = np.log1p((len(texts) - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    relative = np.repeat(lengths / max(lengths.mean(), 1e-9), np.diff(counts.indptr))
    counts.data = counts.data / (counts.data + _BM25_K1 * (1 - _BM25_B + _BM25_B * relative)).astype(np.float32)

    def weigh(queries: Sequence[str]) -> tuple[sparse.csr_matrix, np.ndarray]:
        wanted = _counts(queries, **options)
        wanted.data = idf[wanted.indices]
        return wanted, np.maximum(np.asarray(wanted.sum(axis=1)), 1e-9)

    return LexicalChannel(counts.T.tocsr(), weigh)


def _character_cosines(titles: Sequence[str]) -> LexicalChannel:
    """Cosines of a list of queries with all titles, as TF-IDF vectors of n-grams of 2 to 4 characters within words.

    A spelling error leaves most n-grams as they are, the more so the shorter they are.
    """
    options: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (2, 4)}
    counts = _counts(titles, **options)
    frequencies = np.bincount(counts.indices, minlength=_NUM_FEATURES)
    idf = (np.log((1 + len(titles)) / (1 + frequencies)) + 1).astype(np.float32)

    def weighted(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
        matrix.data = (1 + np.log(matrix.data)) * idf[matrix.indices]
        lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        matrix.data /= np.repeat(np.maximum(lengths, 1e-9), np.diff(matrix.indptr)).astype(np.float32)
        return matrix

    def weigh(queries: Sequence[str]) -> tuple[sparse.csr_matrix, np.ndarray]:
        return weighted(_counts(queries, **options)), np.ones((len(queries), 1), dtype=np.float32)

    return LexicalChannel(weighted(counts).T.tocsr(), weigh)


# ---- the part of the model


class TextMatching(nn.Module):
    """Reads the meaning of queries into the encoder, and weighs the channels of `TextIndex` in an item's score.

    One weight for all requests would be right for titles and wrong for category words, which fit hundreds of items
    alike. The weights are therefore made from the encoder's state of the request and from how sharply the channels tell
    the items apart. They are learned by the cross entropy of the item vectors, which the matches are added to.
    """

    def __init__(self, config: GenSARConfig) -> None:
        super().__init__()
        num_channels = len(CHANNELS)
        self.query = nn.Linear(config.text_dim, config.d_model, bias=False)
        self.sharpness = nn.Parameter(torch.full((num_channels,), FIRST_SHARPNESS))
        self.matched = nn.Linear(config.d_model, config.d_model, bias=False) if config.num_items else None
        self.channel_weights = nn.Linear(config.d_model + 2 * num_channels, num_channels)
        self.identifier_scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(config.item_dropout)

    def query_states(
        self,
        reading: QueryInputs,
        look_up: Callable[[torch.Tensor], torch.Tensor] | None,
        embed_tokens: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added at the positions of queries, to the encoder's input and to its output.

        The identifiers of the matches are added to the input as those of clicked items are read, and to the output,
        where the decoder's attention finds their codes as they are and learns to copy them.

        Args:
            reading: the inputs of the encoder.
            look_up: items → their vectors `(…, d_model)`, of variance 1; None: the model has none.
            embed_tokens: token ids → `(…, d_model)`.

        Returns:
            two of `(batch_size, num_positions, d_model)`, zeros where there is no query.
        """
        is_match = reading.items >= 0
        is_query = is_match.any(dim=-1) | reading.vectors.any(dim=-1)
        vectors, items, is_match = reading.vectors[is_query], reading.items[is_query], is_match[is_query]
        fit = (reading.scores[is_query] @ self.sharpness).masked_fill(~is_match, -torch.inf)
        share = torch.where(is_match.any(dim=-1, keepdim=True), fit, 0.0).softmax(dim=-1) * is_match
        codes = embed_tokens(reading.codes[is_query]).sum(dim=-2) / reading.codes.shape[-1] ** 0.5
        identifiers = (share[..., None] * codes).sum(dim=-2)
        added = self.query(vectors) + identifiers
        if self.matched is not None and look_up is not None:
            matched = (share[..., None] * look_up(items.clamp(min=0))).sum(dim=-2)
            added = added + self.matched(self.dropout(matched))
        nothing = added.new_zeros(*is_query.shape, added.shape[-1])
        copied = self.identifier_scale * identifiers
        return nothing.index_put((is_query,), added), nothing.index_put((is_query,), copied.to(added.dtype))

    def weights(self, states: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """How much each channel counts for each request: the weighted scores are added to the items' logits.

        Args:
            states: `(num_requests, d_model)` of the encoder, as in `ItemVectors.logits`.
            scores: `(num_requests, 3, num_items)` of `TextIndex`.

        Returns:
            `(num_requests, 3)`, positive.
        """
        best = scores.topk(min(NUM_MATCHES, scores.shape[2]), dim=2).values
        features = torch.cat([best[:, :, 0], best.mean(dim=2)], dim=1)
        return _WEIGHT_SCALE * F.softplus(self.channel_weights(torch.cat([states, features], dim=1)))
