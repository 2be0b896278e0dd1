"""Evaluation: candidates, ranks of items, metrics with intervals, and tables of results."""

from gensar_hf.evaluation.bm25_index import BM25Index
from gensar_hf.evaluation.candidates import CandidateSets, bm25_candidates, draw_candidates, random_candidates
from gensar_hf.evaluation.metrics import METRICS, hit_rate, hit_rate_per_request, ndcg, ndcg_per_request
from gensar_hf.evaluation.protocol import (
    Evaluation,
    EvaluationResult,
    evaluate,
    evaluate_pipeline,
    full_ranks,
    validation_metrics,
)
from gensar_hf.evaluation.ranks import rank_in_catalogue, rank_of_target
from gensar_hf.evaluation.scorer import GeneratorScorer, Scorer, choose_item_weight
from gensar_hf.evaluation.significance import bootstrap_interval

__all__ = [
    "METRICS",
    "BM25Index",
    "CandidateSets",
    "Evaluation",
    "EvaluationResult",
    "GeneratorScorer",
    "Scorer",
    "bm25_candidates",
    "bootstrap_interval",
    "choose_item_weight",
    "draw_candidates",
    "evaluate",
    "evaluate_pipeline",
    "full_ranks",
    "hit_rate",
    "hit_rate_per_request",
    "ndcg",
    "ndcg_per_request",
    "random_candidates",
    "rank_in_catalogue",
    "rank_of_target",
    "validation_metrics",
]
