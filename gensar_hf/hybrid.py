"""Recommendation by the generator and a dense recommender together."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gensar_hf.artifacts import DataError
from gensar_hf.decoding.borrowed_scores import mean_probability
from gensar_hf.embeddings.modeling_sasrec import SASRecModel, pad_histories
from gensar_hf.generator.answers import Answer, as_batch, checked_top_k, ranked_answers, unbatch
from gensar_hf.generator.catalogue import Catalogue
from gensar_hf.generator.history import History, parse_history
from gensar_hf.generator.modeling_gensar import GenSARForConditionalGeneration
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer
from gensar_hf.pipeline import GenSARPipeline


class HybridPipeline(GenSARPipeline):
    """A `GenSARPipeline` whose recommendations are ranked by two models: the generator, and SASRec.

    The generator tells items apart by a few codes, SASRec by a vector of their own: they err in different places (Yang
    et al. 2024, "Unifying generative and dense retrieval for sequential recommendation"). The score of an item is the
    sum of the logarithms of the probabilities that both give it. What either of them proposes is scored by both.
    Search is the generator's alone.

    >>> pipe = HybridPipeline.from_pretrained("runs/x/model", recommender="runs/x/collaborative")  # doctest: +SKIP

    Args:
        model: the generator.
        tokenizer: of the same folder.
        recommender: trained on the same catalogue; its item `i` is row `i` of the identifier table.
        weight: of SASRec's log-probability beside the generator's.
        **options: as for `GenSARPipeline`.

    Raises:
        DataError: the recommender has another number of items than the generator was trained on.
    """

    def __init__(
        self,
        model: GenSARForConditionalGeneration,
        tokenizer: GenSARTokenizer,
        recommender: SASRecModel,
        weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, **options)
        num_trained = tokenizer.identifiers.num_trained
        if recommender.config.num_items != num_trained:
            raise DataError(
                f"The recommender knows {recommender.config.num_items} items, the generator was trained on "
                f"{num_trained}; give the `collaborative` folder of the run that the generator comes from."
            )
        if not weight >= 0:
            raise ValueError(f"`weight` must not be negative; got {weight}.")
        self.recommender, self.weight = recommender.eval(), weight

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        path: str | os.PathLike,
        recommender: str | os.PathLike,
        weight: float = 1.0,
        device: str | None = None,
        **kwargs: Any,
    ) -> "HybridPipeline":
        """Load both models.

        Args:
            path: the model folder, as for `GenSARPipeline`.
            recommender: the `collaborative` folder of the same run.
            weight: of its log-probability.
            device: where to run; default: a GPU if there is one.
            **kwargs: for the model folder: `revision`, `cache_dir`, …
        """
        generator = GenSARPipeline.from_pretrained(path, device, **kwargs)
        try:
            sasrec = SASRecModel.from_pretrained(recommender)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"The recommender in {recommender} cannot be loaded: {error}") from error
        return cls(generator.model, generator.tokenizer, sasrec.to(generator.model.device), weight)

    def recommend(
        self,
        history: History | Sequence[History],
        top_k: int = 10,
        exclude_seen: bool = False,
        on_unknown: str = "raise",
    ) -> list[Answer] | list[list[Answer]]:
        """As `GenSARPipeline.recommend`; `score` is the weighted sum of both log-probabilities, natural logarithms."""
        histories, is_batch = as_batch(history)
        catalogue, top_k = self.tokenizer.catalogue, checked_top_k(top_k)
        num_proposed = max(top_k, self.num_beams)
        generated: list[Any] = super().recommend(histories, num_proposed, exclude_seen, on_unknown)
        expected = self._best_of_recommender(histories, num_proposed, exclude_seen, catalogue)
        proposals = [
            np.union1d(catalogue.candidate_rows([answer["item_id"] for answer in own], "skip"), best)
            for own, best in zip(generated, expected, strict=True)
        ]
        scores = self.score_items(histories, proposals, None, on_unknown, catalogue)
        return unbatch([own[:top_k] for own in ranked_answers(proposals, scores, catalogue)], is_batch)

    def score_items(
        self,
        histories: Sequence[History],
        candidates: np.ndarray | Sequence[np.ndarray],
        queries: Sequence[str] | None = None,
        on_unknown: str = "raise",
        catalogue: Catalogue | None = None,
    ) -> np.ndarray:
        """As `GenSARPipeline.score_items`; for recommendations with SASRec's part."""
        catalogue = catalogue or self.tokenizer.catalogue
        scores = super().score_items(histories, candidates, queries, on_unknown, catalogue)
        if queries is None:
            for chunk in range(0, len(histories), self.batch_size):
                rows = range(chunk, min(chunk + self.batch_size, len(histories)))
                expected = self._log_probabilities([histories[row] for row in rows], catalogue)
                for row, own in zip(rows, expected, strict=True):
                    scores[row, : len(candidates[row])] += self.weight * own[candidates[row]]
        return scores

    def rank(
        self,
        history: History | Sequence[History],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        query: str | Sequence[str] | None = None,
        on_unknown: str = "raise",
        method: str = "exact",
    ) -> list[Answer] | list[list[Answer]]:
        """As `GenSARPipeline.rank`; recommendations by both models, which takes exact scores."""
        if query is not None:
            return super().rank(history, candidates, query, on_unknown, method)
        if method != "exact":
            raise ValueError(f"Two models rank by exact scores only; got method={method!r}.")
        return super().rank(history, candidates, None, on_unknown)

    def _best_of_recommender(
        self, histories: Sequence[History], num_proposed: int, exclude_seen: bool, catalogue: Catalogue
    ) -> list[np.ndarray]:
        """Rows that SASRec puts first; none for a request without clicks, of which it knows nothing."""
        log_probabilities = self._log_probabilities(histories, catalogue)
        best = []
        for history, own in zip(histories, log_probabilities, strict=True):
            own = np.where(catalogue.identifiers.available, own, -np.inf)
            seen = list(catalogue.rows_in(history)) if exclude_seen else []
            own[seen] = -np.inf
            order = np.argsort(-own, kind="stable")[:num_proposed]
            best.append(order[np.isfinite(own[order]) & (own.max() > own.min())])
        return best

    @torch.inference_mode()
    def _log_probabilities(self, histories: Sequence[History], catalogue: Catalogue) -> np.ndarray:
        """`(num_requests, num_items)` of the next click; of items added after training what their lenders give."""
        index_of = catalogue.identifiers.index_of
        clicks = [
            np.array([event.item for event in parse_history(history, index_of, "skip") if event.item >= 0], dtype=int)
            for history in histories
        ]
        table = catalogue.identifiers
        # SASRec has never seen an item that was added later: it reads the nearest trained one in its place.
        known = [np.where(own < table.num_trained, own, _first_lenders(own, catalogue)) for own in clicks]
        inputs = pad_histories(known, self.recommender.config.max_length).to(self.recommender.device)
        found = self.recommender.score(inputs).float().log_softmax(dim=-1).cpu().numpy()
        if len(table.lenders) == 0:
            return found
        return np.concatenate([found, mean_probability(found[:, table.lenders])], axis=1)


def _first_lenders(rows: np.ndarray, catalogue: Catalogue) -> np.ndarray:
    """The nearest trained item of each added one; of others any row, which is not used."""
    table = catalogue.identifiers
    if len(table.lenders) == 0:
        return rows
    return table.lenders[np.maximum(rows - table.num_trained, 0), 0]
