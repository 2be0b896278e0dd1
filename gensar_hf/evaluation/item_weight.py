"""How much the item vectors count beside the identifiers, chosen on validation requests."""

from collections.abc import Mapping, Sequence

import numpy as np

from gensar_hf.data.splits import Requests
from gensar_hf.evaluation.candidates import CandidateSets
from gensar_hf.evaluation.generator_scorer import GeneratorScorer
from gensar_hf.evaluation.metrics import contributions
from gensar_hf.evaluation.ranks import rank_of_target
from gensar_hf.pipeline import GenSARPipeline

WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CHOSEN_BY = "NDCG@5"


def qualities_of_weights(
    pipeline: GenSARPipeline,
    requests: Mapping[str, Requests],
    candidates: Mapping[str, CandidateSets],
    weights: Sequence[float] = WEIGHTS,
) -> dict[float, float]:
    """Rank validation requests with several values of `config.item_weight`.

    The score is linear in the weight (there are no added items yet), so two passes tell of all weights.

    Args:
        pipeline: of a model with item vectors; its `item_weight` is as before when this ends.
        requests: per task, validation requests.
        candidates: per task, what is ranked for them; tasks without are left out.
        weights: to try.

    Returns:
        weight → NDCG@5, the mean over the tasks.

    Raises:
        ValueError: the model has no item vectors, or there is no task.
    """
    config = pipeline.model.config
    if not getattr(config, "num_items", 0) or not candidates:
        raise ValueError("Weights are compared on a model with item vectors and at least one request.")
    scorer, before = GeneratorScorer(pipeline), config.item_weight
    qualities = np.zeros(len(weights))
    try:
        for task, sets in candidates.items():
            parts = []
            for config.item_weight in (0.0, 1.0):
                parts.append(scorer.score(requests[task], sets.candidates))
            identifiers, both = parts
            for place, weight in enumerate(weights):
                ranks = rank_of_target(identifiers + weight * (both - identifiers), sets.target_columns)
                qualities[place] += contributions(ranks)[CHOSEN_BY].mean() / len(candidates)
    finally:
        config.item_weight = before
    return dict(zip(weights, qualities.tolist(), strict=True))
