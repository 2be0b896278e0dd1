"""Evaluation: candidates, ranks of items, metrics with intervals, and tables of results."""

from gensar_hf.evaluation.bm25_index import BM25Index
from gensar_hf.evaluation.candidates import CandidateSets, bm25_candidates, random_candidates
from gensar_hf.evaluation.metrics import METRICS, hit_rate, ndcg
from gensar_hf.evaluation.protocol import (
    Evaluation,
    EvaluationResult,
    choose_weights,
    evaluate,
    evaluate_pipeline,
    validation_metrics,
)
from gensar_hf.evaluation.query_kinds import QueryKindsResult, WithoutHistory, evaluate_query_kinds, gensar_rows
from gensar_hf.evaluation.ranks import rank_of_target
from gensar_hf.evaluation.scorer import GeneratorScorer, Scorer

__all__ = [
    "METRICS",
    "BM25Index",
    "CandidateSets",
    "Evaluation",
    "EvaluationResult",
    "GeneratorScorer",
    "QueryKindsResult",
    "Scorer",
    "WithoutHistory",
    "bm25_candidates",
    "choose_weights",
    "evaluate",
    "evaluate_pipeline",
    "evaluate_query_kinds",
    "gensar_rows",
    "hit_rate",
    "ndcg",
    "random_candidates",
    "rank_of_target",
    "validation_metrics",
]
