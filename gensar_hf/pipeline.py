"""`GenSARPipeline`: recommendations, search results, query suggestions and rankings of a trained model."""

import copy
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from gensar_hf.data import Behavior
from gensar_hf.data.tables import TableSource, read_ids
from gensar_hf.decoding.logits_process import refuse_nan
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError, check_type, types_checked
from gensar_hf.files import CARD_FILE, RECORD_FILE, damage_reported, read_json
from gensar_hf.folders import finish_saving, saving
from gensar_hf.generator.adapters import (
    ADAPTER_BASE_FILE,
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    adapter_base,
    load_adapter,
    merge_adapter,
)
from gensar_hf.generator.catalogue import Catalogue, ItemFilter
from gensar_hf.generator.configuration_gensar import GenSARConfig
from gensar_hf.generator.history import (
    ON_UNKNOWN,
    EventArrays,
    History,
    as_batch,
    as_events,
    as_list,
    check_choice,
    check_flag,
    cut_query,
    is_list,
    whole_number,
)
from gensar_hf.generator.initialization import set_generation_defaults
from gensar_hf.generator.item_scores import (
    MAX_BEAMS,
    EncodedRequests,
    beam_scores,
    best_items,
    encode_requests,
    exact_scores,
    score_parts,
)
from gensar_hf.generator.item_vectors import item_vectors_of
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.prompts import Task
from gensar_hf.generator.tokenization_gensar import TOKENIZER_FILES, GenSARTokenizer
from gensar_hf.generator.vector_index import VectorIndex
from gensar_hf.hub import push_folder
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.model_folder import (
    COPY_AGAIN,
    ITEM_ENCODER_DIR,
    MODEL_FILES,
    TEXT_ENCODER_DIR,
    load_model,
    open_folder,
    read_config,
    read_object,
)
from gensar_hf.new_items import ItemEncoder, read_new_items

Answer = dict[str, Any]
MAX_SUGGESTION_TOKENS = 32
NUM_CHECKED_ANSWERS = 10  # of a suggested query, of which one must be allowed
MAX_SUGGESTIONS = 100  # each takes two beams, which hold keys and values of the whole decoder
MAX_ANSWERS = 5_000_000  # of one call, which take 1.5 GB
MAX_SCORED_ITEMS = 100_000  # where more items are wanted than a search has beams, all are scored: half a minute
RANKING_METHODS = ("exact", "beam_search")
# What the requests of one forward pass may take together, about half a gigabyte each.
_MAX_PAIRS = 1 << 21  # of beams, since each beam may see all others
_MAX_SCORES = 1 << 25  # of all items; a search has five each, by channels and their sums
_MAX_ROWS = 1 << 10  # beams of suggested queries
_MAX_LOGITS = 1 << 26  # of these beams

logger = logging.getLogger(__name__)
PIPELINE_FILES = (
    *MODEL_FILES, *TOKENIZER_FILES, CARD_FILE, f"{ITEM_ENCODER_DIR}/*",
    ADAPTER_CONFIG_FILE, ADAPTER_BASE_FILE, ADAPTER_WEIGHTS_FILE,
)  # fmt: skip


class GenSARPipeline:
    """Search and recommendation with one model.

    >>> pipe = GenSARPipeline.from_pretrained("runs/ml-100k/model")  # doctest: +SKIP
    >>> pipe.search("space adventure", [{"item_id": "242"}], top_k=3)  # doctest: +SKIP

    The catalogue can change while requests are answered (`set_catalogue`). A running request keeps the old one.

    Args:
        model: the generator: a GenSAR T5, or a causal language model trained as a generator.
        tokenizer: from the same folder.
        num_beams: of the constrained beam search (paper: 30); raised to `top_k` where that is larger.
        batch_size: requests per forward pass.
        card: text of the model card, which is saved and pushed with the model.
        item_encoder: turns the texts of new items into identifiers, for `add_items`.

    Raises:
        InputError: the model has fewer embeddings than the tokenizer has tokens, item vectors for another number of
            items, or reads histories in another way; it is wrapped; `num_beams` or `batch_size` is not positive.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: GenSARTokenizer,
        num_beams: int = 30,
        batch_size: int = 32,
        card: str | None = None,
        item_encoder: ItemEncoder | None = None,
    ) -> None:
        if not isinstance(model, PreTrainedModel):
            raise InputError(
                f"The pipeline answers with a model of transformers itself; got a {type(model).__name__}, so give it "
                "before it is wrapped: of a PeftModel `model.merge_and_unload()`, and compile with "
                "`pipe.model.compile()`."
            )
        check_type("tokenizer", tokenizer, GenSARTokenizer)
        check_type("card", card, str | None)
        embeddings: Any = model.get_input_embeddings()
        num_tokens = len(embeddings.weight)
        if len(tokenizer) > num_tokens:
            raise InputError(
                f"The tokenizer has {len(tokenizer)} tokens, the model embeddings for {num_tokens}; they do not belong "
                "together. Load both from one model folder."
            )
        if tokenizer.decoder_only is model.config.is_encoder_decoder:
            kinds = ("a decoder-only model", "an encoder-decoder model")
            raise InputError(
                f"The tokenizer encodes requests for {kinds[not tokenizer.decoder_only]}, the model is "
                f"{kinds[model.config.is_encoder_decoder]}; load both from one model folder."
            )
        history_encoding = getattr(model.config, "history_encoding", "tokens")
        if tokenizer.history_encoding != history_encoding:
            raise InputError(
                f"The tokenizer encodes histories as {tokenizer.history_encoding}, the model reads "
                f"{history_encoding}; load both from one model folder."
            )
        _check_item_vectors(model, tokenizer.catalogue)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.card = card
        self.item_encoder = item_encoder
        self.adapter: Any = None  # the model with LoRA on it, while it is trained
        self.name_or_path: str | None = None
        self._folder: Path | None = None  # where an item encoder can be read from
        self._warned_of: set[str] = set()
        self._index: VectorIndex | None = None
        self.num_beams = whole_number("num_beams", num_beams, MAX_BEAMS)
        self.batch_size = whole_number("batch_size", batch_size)

    @classmethod
    @types_checked
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        device: str | None = None,
        base_model: str | os.PathLike | None = None,
        num_beams: int = 30,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> "GenSARPipeline":
        """Load a model folder or Hub repository, or an adapter, which is merged into its base model.

        Args:
            path: folder or Hub name.
            device: such as "cuda:1"; default: the first GPU, or the CPU.
            base_model: folder or Hub name of an adapter's base model; default: the folder where it was in training.
            num_beams: see the class.
            batch_size: see the class.
            **kwargs: `revision`, `cache_dir`, `token`, `subfolder`, `dtype`, …

        Raises:
            InputError: a file is missing, damaged or refused (see `SECURITY.md`), or the files do not belong together;
                an adapter's model is missing, or another one.
        """
        check_type("subfolder", kwargs.get("subfolder"), str | None)
        num_beams, batch_size = whole_number("num_beams", num_beams, MAX_BEAMS), whole_number("batch_size", batch_size)
        finish_saving(Path(path) / (kwargs.get("subfolder") or ""))
        is_local = Path(path).is_dir()
        folder, kwargs = open_folder(path, PIPELINE_FILES, kwargs)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with damage_reported(f"The device {device!r} cannot be used, so the model in {folder}", "name another device"):
            torch.zeros(1, device=device)
        with damage_reported(f"The model in {folder}", COPY_AGAIN):
            if not (folder / "tokenizer_config.json").is_file():
                raise InputError(
                    f"The model in {folder} cannot be loaded: it holds no tokenizer_config.json; name the "
                    "`model` folder of a run."
                )
            tokenizer_class = read_object(folder / "tokenizer_config.json").get("tokenizer_class")
            if tokenizer_class != GenSARTokenizer.__name__:
                _refuse_kind(folder, tokenizer_class)
            tokenizer = GenSARTokenizer.from_pretrained(folder)
            model = _load_model(folder, base_model, kwargs, is_local)
            # Not those of the folder, which may penalize or ban tokens.
            set_generation_defaults(model, tokenizer)
            card_path = folder / CARD_FILE
            card = card_path.read_text(encoding="utf-8", errors="replace") if card_path.is_file() else None
            pipe = cls(model.to(device), tokenizer, num_beams, batch_size, card)
            pipe.name_or_path = os.fspath(path)
            pipe._folder = folder if (folder / ITEM_ENCODER_DIR / "item_encoder.json").is_file() else None
            _try_out(pipe)
        return pipe

    @types_checked
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write all that `from_pretrained` reads: model, tokenizer, identifiers, item encoder, and the card if any.

        An earlier model in the folder is replaced as a whole, and other files in it stay. LoRA weights that were
        trained are merged into the model; `GenSARTrainer.save_model` writes them alone.

        Raises:
            InputError: the folder cannot be written to, another process writes it, or a file is in the way that this
                package did not write there.
        """
        with saving_model(folder) as aside:
            model = self.model if self.adapter is None else merge_adapter(copy.deepcopy(self.adapter))
            model.save_pretrained(aside)
            self.tokenizer.save_pretrained(aside)
            self.save_extras(aside)
        if self.adapter is None:
            self.name_or_path = os.fspath(folder)

    def save_extras(self, folder: str | os.PathLike) -> None:
        """Write what a model folder holds besides model and tokenizer: the item encoder and the card, if there are."""
        encoder_dir = Path(folder) / ITEM_ENCODER_DIR
        if self.item_encoder is not None or self._folder is not None:
            encoder = self.load_item_encoder()
            encoder.save(encoder_dir)
            if self.tokenizer.catalogue.texts is None:  # otherwise the tokenizer writes it
                encoder.text_encoder.save(Path(folder) / TEXT_ENCODER_DIR)
        if self.card is not None:
            (Path(folder) / CARD_FILE).write_text(self.card, encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload GenSAR",
        create_pr: bool = False,
    ) -> str:
        """Upload model, tokenizer, identifiers and card in one commit.

        Args:
            repo_id: such as `"me/films"`; created if it is not there.
            revision: a branch, made from `main` if it is not there.
            private: whether a new repository is private.
            token: of an account that may write; default: the one that is logged in.
            commit_message: of the commit.
            create_pr: propose the commit as a pull request.

        Returns:
            the address of the commit.

        Raises:
            InputError: the Hub refuses, or cannot be reached.
        """
        if self.card is None:
            logger.warning("The model has no model card (%s); `gensar_hf.model_card` writes one.", CARD_FILE)
        with tempfile.TemporaryDirectory() as folder:
            name = self.name_or_path
            self.save_pretrained(folder)
            self.name_or_path = name  # not the temporary folder
            (Path(folder) / RECORD_FILE).unlink()
            return push_folder(
                folder,
                repo_id,
                revision=revision,
                private=private,
                token=token,
                commit_message=commit_message,
                create_pr=create_pr,
            )

    # ---- answers

    def recommend(
        self,
        history: History | Sequence[History],
        top_k: int = 10,
        *,
        among: Any = None,
        exclude: Any = None,
        exclude_seen: bool = False,
        on_unknown: str = "raise",
        explain: bool = False,
    ) -> list[Answer] | list[list[Answer]]:
        """Recommend items: the likeliest next clicks.

        Args:
            history: events, oldest first, such as `[{"item_id": "242"}, {"query": "comedy"}, {"item_id": "302",
                "query": "comedy"}]`; or a list of such lists, answered as a batch. An empty list is one user without
                events, not an empty batch.
            top_k: number of items; fewer if the catalogue, or what is allowed of it, has fewer. At most 1,024 of more
                than 100,000 items.
            among: the only items that may be answers: item ids, a mask of one truth value per item (in the order of
                `pipe.items`), or a `pipe.filter` of either; or a list of one of these, or None, per request of a batch.
                Scores are those without a filter. No item allowed: no answers.
            exclude: items that must not be answers, in the same forms.
            exclude_seen: leave out the items of the history.
            on_unknown: `"raise"`, or `"skip"`: events with an unknown item, and unknown ids in `among` and `exclude`,
                are left out, with a warning.
            explain: add the parts of each score, which sum up to it: `{…, "parts": {"identifier", "vector", "words",
                "characters", "meaning"}}`, the last three in a search. See `score_parts`.

        Returns:
            answers, best first: `{"item_id", "score", "title"}`. The score is the natural logarithm of the identifier's
            probability, times `config.identifier_weight`, plus, if the model has item vectors, `config.item_weight`
            times the logarithm of the item's probability by its vector and text. For a batch, a list of such lists.

        Raises:
            ValueError: an item of the history or of a filter is unknown, an argument has another type or is out of
                range, the answers would fill the memory, or the model's scores are not finite.
        """
        histories, is_batch = as_batch(history)
        options = {"among": among, "exclude": exclude, "exclude_seen": exclude_seen, "on_unknown": on_unknown}
        return unbatch(self._items(histories, None, top_k, explain=explain, **options), is_batch)

    def search(
        self,
        query: str | Sequence[str],
        history: History | Sequence[History] = (),
        top_k: int = 10,
        *,
        among: Any = None,
        exclude: Any = None,
        exclude_seen: bool = False,
        on_unknown: str = "raise",
        explain: bool = False,
    ) -> list[Answer] | list[list[Answer]]:
        """Find items for a query; answers as in `recommend`.

        Args:
            query: the typed text; a list makes a batch, with one history per query or no history.
            history: as in `recommend`; empty or None: searches without a user.
            top_k: number of items.
            among: as in `recommend`.
            exclude: as in `recommend`.
            exclude_seen: leave out the items of the history.
            on_unknown: as in `recommend`.
            explain: as in `recommend`.

        Raises:
            ValueError: an empty query, an unknown item in the history or a filter, or lists of different lengths.
        """
        self._warn_of_untrained("search", Task.NEXT_SEARCHED_ITEM, Task.AD_HOC_SEARCH)
        is_batch = is_list(query)
        queries: Any = as_list(query, "`query`", "of texts") if is_batch else [query]
        nobody = history is None or (is_list(history) and len(history) == 0)
        histories = [[] for _ in queries] if nobody else as_batch(history)[0]
        if len(histories) != len(queries):
            raise ValueError(f"A batch needs one history for each query; got {len(histories)} and {len(queries)}.")
        options: dict[str, Any] = {"among": among, "exclude": exclude, "exclude_seen": exclude_seen}
        found = self._items(histories, queries, top_k, on_unknown=on_unknown, explain=explain, **options)
        return unbatch(found, is_batch)

    def suggest_queries(
        self, history: History | Sequence[History], top_k: int = 3, *, among: Any = None, on_unknown: str = "raise"
    ) -> list[Answer] | list[list[Answer]]:
        """Suggest next queries: `{"query", "score"}`, the likeliest first, all different.

        A model that was trained without any query says so in a warning.

        Args:
            history: as for `recommend`.
            top_k: number of queries, at most 100; fewer if fewer of the likeliest are left.
            among: as in `recommend`: of the `4 * top_k` likeliest queries (at least 10), those that have an answer
                there. A query has if one of these items is among the 10 best answers of `pipe.search` for it, with
                this history and without a filter. Each of the queries is searched, which costs that many searches.
            on_unknown: as for `recommend`.

        Raises:
            ValueError: as for `recommend`.
        """
        self._warn_of_untrained("suggest_queries", Task.NEXT_QUERY)
        histories, is_batch = as_batch(history)
        self.model.eval()
        catalogue, top_k = self.tokenizer.catalogue, whole_number("top_k", top_k, MAX_SUGGESTIONS)
        filters = catalogue.filters(among, len(histories), on_unknown)
        suppressed = self.tokenizer.code_token_ids.tolist()
        num_beams = max(2 * top_k, 5) if among is None else max(4 * top_k, 10)  # several may spell the same words
        num_rows = min(_MAX_ROWS, _MAX_LOGITS // len(self.model.get_input_embeddings().weight))
        answers: list[list[Answer]] = []
        for chunk in chunks(histories, max(1, min(self.batch_size, num_rows // num_beams))):
            inputs = self._inputs(chunk, None, Behavior.SEARCH_QUERY, catalogue, on_unknown)
            output = self.model.generate(
                **inputs,
                num_beams=num_beams,
                num_return_sequences=num_beams,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
                max_new_tokens=MAX_SUGGESTION_TOKENS,
                length_penalty=1.0,
                suppress_tokens=suppressed,
            )
            num_given = inputs["input_ids" if self.tokenizer.decoder_only else "decoder_input_ids"].shape[1]
            words = self.tokenizer.decode_words(output.sequences[:, num_given:])
            refuse_nan(output.sequences_scores.view(len(chunk), num_beams), "for request")
            scores = output.sequences_scores.tolist()
            for row in range(len(chunk)):
                beams = slice(row * num_beams, (row + 1) * num_beams)
                answers.append(distinct_queries(words[beams], scores[beams], num_beams))
        for row, own in enumerate(filters):
            if own is not None and answers[row]:
                queries = [answer["query"] for answer in answers[row]]
                found: Any = self.search(
                    queries, [histories[row]] * len(queries), NUM_CHECKED_ANSWERS, on_unknown=on_unknown
                )
                allowed = {catalogue.identifiers.item_ids[item] for item in np.flatnonzero(own.is_open)}
                answers[row] = [
                    answer
                    for answer, items in zip(answers[row], found, strict=True)
                    if any(item["item_id"] in allowed for item in items)
                ]
        return unbatch([own[:top_k] for own in answers], is_batch)

    def rank(
        self,
        history: History | Sequence[History],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        query: str | Sequence[str] | None = None,
        on_unknown: str = "raise",
        method: str = "exact",
        *,
        among: Any = None,
    ) -> list[Answer] | list[list[Answer]]:
        """Rank a list of items, the likeliest next click first.

        Args:
            history: as for `recommend`; a list of histories makes a batch.
            candidates: item ids; for a batch one list per history, of any lengths.
            query: rank as results of this search; None: as recommendations. For a batch one query per history.
            on_unknown: `"raise"`, or `"skip"`: unknown items of the history, and unknown or removed candidates, are
                left out, with a warning.
            method: `"exact"` scores every candidate, in one decoder forward over their prefixes. `"beam_search"`, the
                paper's way, is a beam search restricted to the candidates that uses identifiers only; candidates that
                no beam reaches come last with the score -inf.
            among: as in `recommend`; candidates outside it are left out.

        Returns:
            one answer per candidate that is left, as in `recommend`, ties in the order of `candidates`; for a batch a
            list of such lists.

        Raises:
            ValueError: an unknown item, a removed candidate, lists of different lengths, or an unknown method.
        """
        check_choice("method", method, RANKING_METHODS)
        check_choice("on_unknown", on_unknown, ON_UNKNOWN)
        catalogue = self.tokenizer.catalogue
        histories, is_batch = as_batch(history)
        of_lists = "of lists of item ids, one for each history"
        candidate_lists: list[Any] = as_list(candidates, "`candidates`", of_lists) if is_batch else [candidates]
        queries: list[Any] | None = [query]
        if query is None:
            queries = None
        elif is_batch and is_list(query):
            queries = as_list(query, "`query`", "of texts")
        num_queries = len(histories) if queries is None else len(queries)
        if not len(candidate_lists) == num_queries == len(histories):
            raise ValueError(
                "A batch needs one list of candidates, and one query or none at all, for each history; got "
                f"{len(histories)} histories, {len(candidate_lists)} lists of candidates and "
                f"{'no' if queries is None else num_queries} queries."
            )
        rows = [catalogue.candidate_rows(given, on_unknown) for given in candidate_lists]
        for place, own in enumerate(catalogue.filters(among, len(rows), on_unknown)):
            rows[place] = rows[place] if own is None else rows[place][own.is_open[rows[place]]]
        check_num_answers(len(rows), max(map(len, rows), default=0))
        score = self.score_items if method == "exact" else self._beam_scores
        scores = score(histories, rows, queries, on_unknown, catalogue)
        return unbatch(ranked_answers(rows, scores, catalogue), is_batch)

    def score_items(
        self,
        histories: Sequence[History] | Sequence[EventArrays],
        candidates: np.ndarray | Sequence[np.ndarray],
        queries: Sequence[str] | None = None,
        on_unknown: str = "raise",
        catalogue: Catalogue | None = None,
        parts: Sequence[str] = (),
        is_normalized: bool = True,
    ) -> np.ndarray:
        """Exact scores of given items, without a search: for ranking and for evaluation.

        Args:
            histories: one per request, as in `recommend` or as arrays.
            candidates: `(num_requests, num_candidates)` rows of the identifier table, or one array per request.
            queries: one per request: score as search results; None: as recommendations.
            on_unknown: as for `recommend`.
            catalogue: that the rows belong to; default: the current one.
            parts: of the scores, see `score_parts`; default: all.
            is_normalized: False: the scores of a request may all differ from those of `recommend` by one number, which
                saves scoring the whole catalogue where only few items are ranked.

        Returns:
            `(num_requests, num_candidates)` scores as in `recommend`, padded with -inf.
        """
        score = partial(exact_scores, only=parts, is_normalized=is_normalized)
        return self._scores(score, histories, candidates, queries, on_unknown, catalogue)

    def _beam_scores(self, *request: Any) -> np.ndarray:
        """As `score_items`, by a beam search that only the candidates are open to."""
        return self._scores(partial(beam_scores, num_beams=self.num_beams), *request)

    def _scores(
        self,
        score: Callable[..., np.ndarray],
        histories: Sequence[History] | Sequence[EventArrays],
        candidates: np.ndarray | Sequence[np.ndarray],
        queries: Sequence[str] | None,
        on_unknown: str,
        catalogue: Catalogue | None,
    ) -> np.ndarray:
        catalogue = catalogue or self.tokenizer.catalogue
        longest = candidates.shape[1] if isinstance(candidates, np.ndarray) else max(map(len, candidates), default=0)
        scores = np.full((len(histories), longest), -np.inf, dtype=np.float32)
        for chunk in self._request_chunks(len(histories), is_search=queries is not None):
            chunk_queries = None if queries is None else [queries[row] for row in chunk]
            chunk_histories: list[Any] = [histories[row] for row in chunk]
            encoded = self._encode(chunk_histories, chunk_queries, catalogue, on_unknown)
            found = score(encoded, [candidates[row] for row in chunk], catalogue)
            scores[chunk[0] : chunk[-1] + 1, : found.shape[1]] = found
        return scores

    # ---- the catalogue

    @types_checked
    def set_catalogue(self, identifiers: IdentifierTable) -> None:
        """Swap the catalogue atomically; running requests keep the old one.

        Args:
            identifiers: such as `pipe.tokenizer.identifiers.add_items(…)` or `.remove_items(…)`. Removed items are no
                longer answers, but may be in histories.

        Raises:
            InputError: the vocabulary lacks one of the table's tokens, or the model's item vectors are of another
                number of items.
        """
        catalogue = self.tokenizer.catalogue_of(identifiers)
        _check_item_vectors(self.model, catalogue)
        catalogue.trie  # noqa: B018 - built here, not by the first request
        self.tokenizer.catalogue = catalogue

    def filter(self, items: Any, on_unknown: str = "raise") -> ItemFilter:
        """Prepare a list of items once, to be the `among` or `exclude` of many requests.

        The filter stands for item ids and may be used after the catalogue has changed: added items are not in it,
        removed ones are no longer answers, restored ones are again.

        Args:
            items: item ids, or a mask of one truth value per item, removed ones included, in the order of `pipe.items`.
            on_unknown: `"raise"`, or `"skip"`: unknown ids are left out, with a warning.

        Raises:
            ValueError: an unknown item, or a mask of another length.
        """
        prepared = self.tokenizer.catalogue.filter(items, on_unknown, "items")
        prepared.is_open, prepared.values  # noqa: B018 - prepared here, not by the first request
        return prepared

    @types_checked
    def build_index(self, kind: str = "SQ8", num_probes: int = 16) -> None:
        """Index the item vectors, so that recommendations from millions of items do not look at each (extra `[faiss]`).

        The index proposes, and what it proposes is scored exactly. Scores then lack a number that is the same for all
        items of a request. Searches compare texts with all items as before. The index is not saved with the model, and
        it has to be built again after a training.

        Args:
            kind: `"SQ8"` compares all items with a byte a number; `"IVF1024,SQ8"` those of the nearest of 1,024
                clusters, which may miss some. Other factory strings of FAISS work if their search takes a selector.
            num_probes: clusters that a request looks at.

        Raises:
            InputError: the model has no item vectors, FAISS is not installed, or cannot make such an index.
        """
        if not getattr(self.model.config, "num_items", 0):
            raise InputError("The model has no item vectors, so there is nothing to index; answer without an index.")
        self._index = VectorIndex(item_vectors_of(self.model), kind, whole_number("num_probes", num_probes))

    def _current_index(self) -> VectorIndex | None:
        """The index, unless the item vectors have changed since it was made."""
        if self._index is not None and not self._index.is_current(item_vectors_of(self.model)):
            logger.warning("The item vectors have changed, so the index is not used; call `build_index` again.")
            self._index = None
        return self._index

    @property
    def items(self) -> pd.DataFrame:
        """The catalogue: `item_id`, `title`, `text`, `available`, one row per item."""
        return self.tokenizer.identifiers.items_frame()

    def add_items(self, items: TableSource) -> list[Answer]:
        """Add new items to the catalogue. Nothing is trained, and no other identifier changes.

        The text encoder of the training reads the new items, a map predicts their collaborative embeddings, the joint
        RQ-VAE quantizes both, and free identifiers are assigned. Until they are trained on, new items are scored as
        their nearest trained items.

        Args:
            items: path, DataFrame or `datasets.Dataset` with `item_id` and the text columns of the training.

        Returns:
            one entry per item: `{"item_id", "title", "nearest"}`, the titles of the nearest trained items.

        Raises:
            InputError: a column, an id or a text is missing, an id is known, or the model folder has no item encoder.
        """
        encoder, table = self.load_item_encoder(), self.tokenizer.identifiers
        new = read_new_items(items, table, encoder.text_columns)
        extended = encoder.extend(table, new)
        self.set_catalogue(extended)
        names = extended.titles or extended.item_ids
        added = extended.neighbors[len(extended.neighbors) - len(new) :]
        return [
            {"item_id": item_id, "title": title, "nearest": [names[row] for row in rows]}
            for item_id, title, rows in zip(new["item_id"], new["title"], added.tolist(), strict=True)
        ]

    def remove_items(self, item_ids: Sequence[str]) -> None:
        """Take items out of all answers; they stay known in histories, and `restore_items` brings them back.

        Raises:
            InputError: an unknown item.
        """
        self.set_catalogue(self.tokenizer.identifiers.remove_items(read_ids(item_ids, "item_ids")))

    def restore_items(self, item_ids: Sequence[str]) -> None:
        """Bring removed items back.

        Raises:
            InputError: an unknown item.
        """
        self.set_catalogue(self.tokenizer.identifiers.restore_items(read_ids(item_ids, "item_ids")))

    def load_item_encoder(self) -> ItemEncoder:
        """The item encoder, read from the model's folder or repository at the first call.

        Raises:
            InputError: the model has none, or it is damaged.
        """
        if self.item_encoder is None:
            if self._folder is None:
                raise InputError(
                    "The model has no item encoder, so new items cannot get identifiers; train it with this version of "
                    f"gensar-hf, or copy the folder `{ITEM_ENCODER_DIR}` from where it was trained."
                )
            texts = self.tokenizer.catalogue.texts  # its encoder may be in memory already
            with damage_reported(f"The item encoder in {self._folder}", COPY_AGAIN):
                text_encoder = TextEncoder.load(self._folder / TEXT_ENCODER_DIR) if texts is None else texts.encoder
                self.item_encoder = ItemEncoder.load(self._folder / ITEM_ENCODER_DIR, text_encoder)
        return self.item_encoder

    # ---- scoring

    def _items(
        self,
        histories: list[History],
        queries: Sequence[str] | None,
        top_k: int,
        among: Any,
        exclude: Any,
        exclude_seen: bool,
        on_unknown: str,
        explain: bool,
    ) -> list[list[Answer]]:
        """Search results, or recommendations where `queries` is None."""
        catalogue = self.tokenizer.catalogue
        num_items = catalogue.identifiers.num_items
        most = None if num_items <= MAX_SCORED_ITEMS else MAX_BEAMS
        top_k = min(whole_number("top_k", top_k, most), num_items)
        check_num_answers(len(histories), top_k)
        check_flag("exclude_seen", exclude_seen)
        check_flag("explain", explain)
        filters = catalogue.filters(among, len(histories), on_unknown)
        denied = catalogue.filters(exclude, len(histories), on_unknown, "exclude")
        histories, num_beams = [as_events(history) for history in histories], max(self.num_beams, top_k)
        index = None if queries is not None or num_beams > MAX_BEAMS else self._current_index()
        answers = []
        for rows in self._request_chunks(len(histories), num_beams, queries is not None):
            chunk = [histories[row] for row in rows]
            chunk_queries = None if queries is None else [queries[row] for row in rows]
            encoded = self._encode(chunk, chunk_queries, catalogue, on_unknown)
            seen = [catalogue.rows_in(history) if exclude_seen else () for history in chunk]
            excluded = [
                np.union1d(np.array([*items], dtype=np.int64), () if own is None else own.rows).astype(np.int64)
                for items, own in zip(seen, [denied[row] for row in rows], strict=True)
            ]
            own_filters = [filters[row] for row in rows]
            found = best_items(encoded, catalogue, num_beams, excluded, filters=own_filters, index=index)
            answers += [answers_of(items[:top_k], scores[:top_k], catalogue) for items, scores in found]
            if explain:
                shown = [items[:top_k] for items, _ in found]
                parts = score_parts(encoded, shown, catalogue, is_normalized=index is None)
                for row, own_answers in enumerate(answers[-len(found) :]):
                    for column, answer in enumerate(own_answers):
                        answer["parts"] = {name: float(values[row, column]) for name, values in parts.items()}
        return answers

    def found_items(
        self,
        histories: Sequence[EventArrays],
        queries: Sequence[str] | None,
        parts: Sequence[str] = (),
        num_beams: int | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """What a search or recommendation proposes and how it scores, for evaluation; arguments as in `score_items`.

        Args:
            histories: one per request.
            queries: one per request, or None.
            parts: of the scores.
            num_beams: default: the pipeline's.

        Returns:
            for each request rows of the identifier table and their scores, best first, about `num_beams` to three
            times as many.
        """
        found = []
        for rows in self._request_chunks(len(histories), num_beams, queries is not None):
            chunk: list[Any] = [histories[row] for row in rows]
            chunk_queries = None if queries is None else [queries[row] for row in rows]
            encoded = self._encode(chunk, chunk_queries, self.tokenizer.catalogue, "raise")
            found += best_items(encoded, self.tokenizer.catalogue, num_beams or self.num_beams, only=parts)
        return found

    def _request_chunks(
        self, num_requests: int, num_beams: int | None = None, is_search: bool = False
    ) -> Iterator[Sequence[int]]:
        """Requests that are answered together: at most `batch_size`, fewer where beams or items would fill the memory.

        `num_beams`: default: the pipeline's.
        """
        beams = min(num_beams or self.num_beams, MAX_BEAMS)
        num_scores = self.tokenizer.identifiers.num_items * (5 if is_search else 1)
        size = min(self.batch_size, _MAX_PAIRS // beams**2, _MAX_SCORES // num_scores)
        return chunks(range(num_requests), max(1, size))

    def _warn_of_untrained(self, method: str, *tasks: Task) -> None:
        """Warn once where the training had no example of any of the tasks that a method needs."""
        trained = self.tokenizer.trained_tasks
        if trained is not None and trained.isdisjoint(tasks) and method not in self._warned_of:
            self._warned_of.add(method)
            logger.warning(
                "The training of this model had no example of %s, so the answers of `%s` mean little; train it on "
                "interactions with queries, with a weight of the task above 0.", " or ".join(tasks), method,
            )  # fmt: skip

    def _encode(
        self,
        histories: Sequence[History],
        queries: Sequence[str] | None,
        catalogue: Catalogue,
        on_unknown: str,
    ) -> EncodedRequests:
        """Encode requests: searches, or recommendations if `queries` is None."""
        self.model.eval()  # a training may have left dropout on
        behavior = Behavior.RECOMMENDED_ITEM if queries is None else Behavior.SEARCHED_ITEM
        queries = None if queries is None else [cut_query(query) for query in queries]
        text_scores = None
        if queries is not None and catalogue.texts is not None:
            _, text_scores = catalogue.texts.match(queries)  # what the inputs need of it is remembered
        inputs = self._inputs(histories, queries, behavior, catalogue, on_unknown)
        return encode_requests(self.model, inputs, behavior, text_scores)

    def _inputs(
        self,
        histories: Sequence[History],
        queries: Sequence[str] | None,
        behavior: Behavior,
        catalogue: Catalogue,
        on_unknown: str,
    ) -> dict[str, torch.Tensor]:
        options: dict[str, Any] = {"query": queries, "behavior": behavior.token, "catalogue": catalogue}
        if histories and all(isinstance(history, EventArrays) for history in histories):
            encoding = self.tokenizer.encode_events([*histories], **options)  # type: ignore[list-item]
        else:
            requests = [as_events(history) for history in histories]
            encoding = self.tokenizer.encode_request(requests, on_unknown=on_unknown, **options)
        return {name: tensor.to(self.model.device) for name, tensor in encoding.items()}


def saving_model(folder: str | os.PathLike, replace: bool = True) -> AbstractContextManager[Path]:
    """`folders.saving` into a folder that may hold a model or an adapter already.

    Args:
        folder: made if it does not exist.
        replace: whether files of the earlier model that are not written now are deleted.
    """
    try:
        settings = read_json(Path(folder) / "tokenizer_config.json")
        is_model = isinstance(settings, dict) and settings.get("tokenizer_class") == GenSARTokenizer.__name__
    except (InputError, OSError):
        is_model = False
    weights = ("model.safetensors", "model.safetensors.index.json")
    stale = (ADAPTER_CONFIG_FILE, ADAPTER_BASE_FILE, ADAPTER_WEIGHTS_FILE, *weights)
    is_replaced = is_model and replace
    return saving(folder, replace=replace, is_own=is_model, stale=stale if is_replaced else (), stage="model")


def _load_model(
    folder: Path,
    base_model: str | os.PathLike | None,
    kwargs: dict[str, Any],
    is_local: bool = True,
    seen: tuple[Path, ...] = (),
) -> Any:
    """The model in a folder; of an adapter, the model that it was made for with the adapter merged.

    `seen`: the adapters that lead to this folder.
    """
    adapter = adapter_base(folder)
    if adapter is None:
        config = read_config(folder)
        is_ours = isinstance(config, GenSARConfig)
        if not is_ours and (config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
            _refuse_kind(folder, config.model_type)
        model_class = GenSARForConditionalGeneration if is_ours else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return load_model(model_class, folder, config=config, **kwargs)[0]
    if base_model is None and not adapter.name:
        raise InputError(
            f"{folder} is a checkpoint of LoRA for a model that is in no folder yet, so it cannot answer; let the "
            "training go on to its end and load the `model` folder of its run."
        )
    if folder.resolve() in seen:
        raise InputError(f"{folder} holds an adapter for itself; copy {ADAPTER_CONFIG_FILE} again.")
    beside = folder / adapter.name  # names of folders are relative to the adapter's
    if base_model is None and not (is_local and beside.is_dir()):
        raise InputError(
            f"{folder} holds an adapter for the model in {adapter.name}, which cannot be loaded, because there is no "
            "such folder; pass `base_model`, a folder or a name on the Hub that you trust."
        )
    name = beside if base_model is None else base_model
    try:
        base_folder, _ = open_folder(name, PIPELINE_FILES, {}, "base model")
        model = _load_model(base_folder, None, kwargs, seen=(*seen, folder.resolve()))
    except InputError as error:
        raise InputError(
            f"{folder} holds an adapter for the model in {name}, which cannot be loaded (pass `base_model` if it lies "
            f"elsewhere): {error}"
        ) from error
    return merge_adapter(load_adapter(model, folder))


def _refuse_kind(folder: Path, kind: object) -> NoReturn:
    raise InputError(
        f"{folder} holds a model or a tokenizer of type {kind!r}, which cannot search or recommend; give the model "
        "folder of a run."
    )


def _try_out(pipe: GenSARPipeline) -> None:
    """Score one item for an empty history, so that a model that cannot be used is refused when it is loaded."""
    row = int(pipe.tokenizer.identifiers.available.argmax())
    if not np.isfinite(pipe.score_items([[]], [np.array([row])])).all():
        raise ValueError("its scores are not finite")


def _check_item_vectors(model: PreTrainedModel, catalogue: Catalogue) -> None:
    num_vectors = getattr(model.config, "num_items", 0)
    num_trained = catalogue.identifiers.num_trained + catalogue.identifiers.num_marked
    if num_vectors not in (0, num_trained):
        raise InputError(
            f"The model has vectors of {num_vectors} items, the identifier table {num_trained} items that it was "
            "trained on; take the table from the model's folder, and change it with `add_items` and `remove_items`."
        )


def answers_of(rows: np.ndarray, scores: np.ndarray, catalogue: Catalogue) -> list[Answer]:
    """Rows of the identifier table `(num_items,)` and their scores, as callers get them."""
    item_ids, titles = catalogue.identifiers.item_ids, catalogue.identifiers.titles
    return [
        {"item_id": item_ids[row], "score": score, "title": None if titles is None else titles[row]}
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def ranked_answers(rows: Sequence[np.ndarray], scores: np.ndarray, catalogue: Catalogue) -> list[list[Answer]]:
    """Each request's rows by their scores, the best first, equal ones in the order given.

    Args:
        rows: one `(num_candidates,)` array a request.
        scores: `(num_requests, most candidates)`.
        catalogue: whose rows they are.
    """
    answers = []
    for own_rows, own_scores in zip(rows, scores, strict=True):
        order = np.argsort(-own_scores[: len(own_rows)], kind="stable")
        answers.append(answers_of(own_rows[order], own_scores[order], catalogue))
    return answers


def unbatch(answers: list[list[Answer]], is_batch: bool) -> list[Answer] | list[list[Answer]]:
    """The answers of a batch, or those of its only request."""
    return answers if is_batch else answers[0]


def chunks(rows: Sequence, size: int) -> Iterator[Sequence]:
    """`rows` in pieces of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def check_num_answers(num_requests: int, num_answers: int) -> None:
    """Raise a `ValueError` where the answers of one call would fill the memory."""
    if num_requests * num_answers > MAX_ANSWERS:
        raise ValueError(
            f"{num_requests:,} requests of {num_answers:,} items each are more than {MAX_ANSWERS:,} answers; make "
            "several calls."
        )


def distinct_queries(words: list[str], scores: list[float], top_k: int) -> list[Answer]:
    """The first `top_k` different queries with their scores; `words` are sorted, best first."""
    best: dict[str, float] = {}
    for text, score in zip(words, scores, strict=True):
        if text.strip() and math.isfinite(score):  # beams beyond the last possible query have no score
            best.setdefault(text.strip(), score)
    return [{"query": text, "score": score} for text, score in list(best.items())[:top_k]]
