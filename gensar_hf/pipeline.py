"""Ask a trained model: recommend, search, suggest queries, rank."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from gensar_hf.artifacts import DataError
from gensar_hf.data import Behavior
from gensar_hf.decoding import TrieLogitsProcessor
from gensar_hf.decoding.candidate_scoring import score_candidates
from gensar_hf.generator.history import History, as_events
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration, event_positions
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

MAX_SUGGESTION_TOKENS = 32
# A beam below this is one that the trie forbids (the processor scores it -1e9); no real identifier comes near it.
_FORBIDDEN_SCORE = -1e6

Answer = dict[str, Any]


class GenSARPipeline:
    """Search and recommendation with one model.

    >>> pipe = GenSARPipeline.from_pretrained("runs/ml-100k/model")  # doctest: +SKIP
    >>> pipe.search("space adventure", [{"item_id": "242"}], top_k=3)  # doctest: +SKIP

    Args:
        model: the generator.
        tokenizer: of the same folder.
        num_beams: of the constrained beam search (paper: 30); raised to `top_k` where that is larger.
        batch_size: requests that are answered at once.

    Raises:
        DataError: the model has fewer embeddings than the tokenizer has tokens, or reads histories in another way.
    """

    def __init__(
        self,
        model: GenSARForConditionalGeneration,
        tokenizer: GenSARTokenizer,
        num_beams: int = 30,
        batch_size: int = 32,
    ) -> None:
        if len(tokenizer) > model.config.vocab_size:
            raise DataError(
                f"The tokenizer has {len(tokenizer)} tokens, the model embeddings for {model.config.vocab_size}; they "
                "do not belong together. Load both from one model folder."
            )
        if tokenizer.history_encoding != model.config.history_encoding:
            raise DataError(
                f"The tokenizer encodes histories as {tokenizer.history_encoding}, the model reads "
                f"{model.config.history_encoding}; load both from one model folder."
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.num_beams = num_beams
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, device: str | None = None, **kwargs: Any) -> "GenSARPipeline":
        """Load `model/` from a folder or the Hub.

        Args:
            path: folder or Hub name.
            device: where to run; default: a GPU if there is one.
            **kwargs: `revision`, `cache_dir`, `token`, `subfolder`, … for both parts.

        Raises:
            DataError: a file is missing or damaged, or the files do not belong together.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
            model = AutoModelForSeq2SeqLM.from_pretrained(path, **kwargs)
        except DataError:
            raise
        except SafetensorError as error:
            raise DataError(
                f"The model in {path} cannot be loaded: model.safetensors is damaged ({_first_line(error)}); copy the "
                "file again, or train the model again."
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            reason = _first_line(error) if Path(path).is_dir() else "no such folder, nor such a repository on the Hub."
            raise DataError(f"The model in {path} cannot be loaded: {reason}") from error
        if not isinstance(tokenizer, GenSARTokenizer) or not isinstance(model, GenSARForConditionalGeneration):
            raise DataError(
                f"{path} holds a {type(model).__name__} with a {type(tokenizer).__name__}, which cannot search or "
                "recommend; give the model folder of a run."
            )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), tokenizer)  # type: ignore[arg-type]

    # ---- answers

    def recommend(
        self,
        history: History | Sequence[History],
        top_k: int = 10,
        exclude_seen: bool = False,
        on_unknown: str = "raise",
    ) -> list[Answer] | list[list[Answer]]:
        """The items that the user will click next.

        Args:
            history: events, oldest first, such as `[{"item_id": "242"}, {"query": "comedy"}, {"item_id": "302",
                "query": "comedy"}]`; or a list of such lists, answered as a batch.
            top_k: number of items; fewer where the catalogue has fewer.
            exclude_seen: leave out the items of the history.
            on_unknown: `"raise"`, or `"skip"`: events with an unknown item are left out, with a warning.

        Returns:
            the best item first: `{"item_id", "score", "title"}`, `score` being the natural logarithm of the
            identifier's probability; for a batch a list of such lists.

        Raises:
            ValueError: an item of the history is unknown, or `top_k` is not positive.
        """
        histories, is_batch = _as_batch(history)
        return _unbatch(self._items(histories, None, top_k, exclude_seen, on_unknown), is_batch)

    def search(
        self,
        query: str | Sequence[str],
        history: History | Sequence[History] = (),
        top_k: int = 10,
        exclude_seen: bool = False,
        on_unknown: str = "raise",
    ) -> list[Answer] | list[list[Answer]]:
        """The items that the user will click for a query; arguments and answer as for `recommend`.

        Args:
            query: what was typed; a list makes a batch, with one history for each query or none at all.
            history: what the user did before.
            top_k: number of items.
            exclude_seen: leave out the items of the history.
            on_unknown: what to do with unknown items of the history.
        """
        is_batch = isinstance(query, Iterable) and not isinstance(query, str)
        queries: list[Any] = list(query) if is_batch else [query]
        histories = _as_batch(history)[0] if len(history) else [[] for _ in queries]
        if len(histories) != len(queries):
            raise ValueError(f"A batch needs one history for each query; got {len(histories)} and {len(queries)}.")
        return _unbatch(self._items(histories, queries, top_k, exclude_seen, on_unknown), is_batch)

    def suggest_queries(
        self, history: History | Sequence[History], top_k: int = 3, on_unknown: str = "raise"
    ) -> list[Answer] | list[list[Answer]]:
        """The queries that the user may type next: `{"query", "score"}`, the likeliest first, none twice.

        Args:
            history: as for `recommend`.
            top_k: number of queries.
            on_unknown: as for `recommend`.
        """
        histories, is_batch = _as_batch(history)
        top_k = _checked_top_k(top_k)
        answers = []
        for chunk in _chunks(histories, self.batch_size):
            inputs = self._encode(chunk, None, Behavior.SEARCH_QUERY, on_unknown)
            num_beams = max(2 * top_k, 5)  # different tokens may spell the same words
            output = self._generate(
                inputs,
                num_beams=num_beams,
                max_new_tokens=MAX_SUGGESTION_TOKENS,
                length_penalty=1.0,
                suppress_tokens=self.tokenizer.code_token_ids.tolist(),
            )
            words = self.tokenizer.batch_decode(output.sequences[:, 2:], skip_special_tokens=True)
            scores = output.sequences_scores.tolist()
            for row in range(len(chunk)):
                beams = slice(row * num_beams, (row + 1) * num_beams)
                answers.append(_distinct_queries(words[beams], scores[beams], top_k))
        return _unbatch(answers, is_batch)

    def score_items(
        self,
        histories: Sequence[History],
        candidates: np.ndarray,
        queries: Sequence[str] | None = None,
        on_unknown: str = "raise",
    ) -> np.ndarray:
        """Exact scores of given items, without a search: for ranking and for evaluation.

        Args:
            histories: one a request.
            candidates: `(num_requests, num_candidates)` rows of the identifier table.
            queries: one a request: the items are scored as search results; None: as recommendations.
            on_unknown: as for `recommend`.

        Returns:
            `(num_requests, num_candidates)` natural logarithms of the identifiers' probabilities.
        """
        behavior = Behavior.RECOMMENDED_ITEM if queries is None else Behavior.SEARCHED_ITEM
        scores = []
        for rows in _chunks(range(len(histories)), self.batch_size):
            chunk_queries = None if queries is None else [queries[row] for row in rows]
            inputs = self._encode([histories[row] for row in rows], chunk_queries, behavior, on_unknown)
            inputs.pop("decoder_input_ids")
            with torch.inference_mode():
                states = self.model.encoder(**inputs).last_hidden_state
            event_ids = inputs.get("event_ids")
            mask = inputs["attention_mask"].bool() if event_ids is None else event_positions(event_ids)
            sequences = self.tokenizer.item_token_ids[behavior][candidates[list(rows)]]
            scores.append(score_candidates(self.model, states, mask, sequences).cpu().numpy())
        return np.concatenate(scores) if scores else np.zeros(candidates.shape, dtype=np.float32)

    # ---- how they are found

    def _items(
        self,
        histories: list[History],
        queries: Sequence[str] | None,
        top_k: int,
        exclude_seen: bool,
        on_unknown: str,
    ) -> list[list[Answer]]:
        """Search results, or recommendations where `queries` is None."""
        top_k = _checked_top_k(top_k)
        behavior = Behavior.RECOMMENDED_ITEM if queries is None else Behavior.SEARCHED_ITEM
        answers = []
        for rows in _chunks(range(len(histories)), self.batch_size):
            chunk = [histories[row] for row in rows]
            chunk_queries = None if queries is None else [queries[row] for row in rows]
            inputs = self._encode(chunk, chunk_queries, behavior, on_unknown)
            excluded = [self._seen(history) for history in chunk] if exclude_seen else None
            processor = TrieLogitsProcessor(
                self.tokenizer.trie,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                excluded=excluded,
            )
            output = self._generate(
                inputs,
                logits_processor=[processor],
                num_beams=max(self.num_beams, top_k, 2),  # a single beam would be a greedy search, without a score
                max_new_tokens=self.tokenizer.identifiers.num_levels,
                length_penalty=0.0,
            )
            answers += self._read_items(output, len(chunk), top_k)
        return answers

    def _encode(
        self, histories: Sequence[History], queries: Sequence[str] | None, behavior: Behavior, on_unknown: str
    ) -> dict[str, torch.Tensor]:
        encoding = self.tokenizer.encode_request(
            [as_events(history) for history in histories], queries, behavior.token, on_unknown=on_unknown
        )
        return {name: tensor.to(self.model.device) for name, tensor in encoding.items()}

    def _generate(self, inputs: dict[str, torch.Tensor], num_beams: int, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return self.model.generate(
                **inputs,
                num_beams=num_beams,
                num_return_sequences=num_beams,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
                **kwargs,
            )

    def _seen(self, history: History) -> set[int]:
        """Rows of the history's items; unknown ones have been dealt with when the history was encoded."""
        rows = set()
        for event in history:
            if event.get("item_id") is not None:
                with contextlib.suppress(KeyError):
                    rows.add(self.tokenizer.identifiers.index_of(str(event["item_id"])))
        return rows

    def _read_items(self, output: Any, num_requests: int, top_k: int) -> list[list[Answer]]:
        rows = self.tokenizer.decode_item_rows(output.sequences).reshape(num_requests, -1)
        scores = output.sequences_scores.float().cpu().numpy().reshape(num_requests, -1)
        answers = []
        for request_rows, request_scores in zip(rows, scores, strict=True):
            is_item = (request_rows >= 0) & (request_scores > _FORBIDDEN_SCORE)
            answers.append(
                [
                    self._answer(int(row), float(score))
                    for row, score in zip(request_rows[is_item][:top_k], request_scores[is_item], strict=False)
                ]
            )
        return answers

    def _answer(self, row: int, score: float) -> Answer:
        identifiers = self.tokenizer.identifiers
        title = identifiers.titles[row] if identifiers.titles is not None else None
        return {"item_id": identifiers.item_ids[row], "score": score, "title": title}


def _as_batch(history: Any) -> tuple[list[History], bool]:
    is_batch = isinstance(history, Sequence) and len(history) > 0 and isinstance(history[0], (list, tuple))
    return (list(history) if is_batch else [history]), is_batch


def _unbatch(answers: list[list[Answer]], is_batch: bool) -> list[Answer] | list[list[Answer]]:
    return answers if is_batch else answers[0]


def _chunks(rows: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _checked_top_k(top_k: Any) -> int:
    if not isinstance(top_k, (int, np.integer)) or top_k < 1:
        raise ValueError(f"`top_k` must be a whole number of at least 1; got {top_k!r}.")
    return int(top_k)


def _distinct_queries(words: list[str], scores: list[float], top_k: int) -> list[Answer]:
    best: dict[str, float] = {}
    for text, score in zip(words, scores, strict=True):
        if text.strip():
            best.setdefault(text.strip(), score)
    return [{"query": text, "score": score} for text, score in list(best.items())[:top_k]]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
