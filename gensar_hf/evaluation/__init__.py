"""Answers to numbers: candidates, ranks of items, metrics with intervals, and reports."""

from gensar_hf.evaluation.bm25_index import BM25Index
from gensar_hf.evaluation.candidates import CandidateSets, bm25_candidates, random_candidates
from gensar_hf.evaluation.full_ranking import full_ranks
from gensar_hf.evaluation.metrics import METRICS, hit_rate, hit_rate_per_request, ndcg, ndcg_per_request
from gensar_hf.evaluation.protocol import EvaluationResult, Scorer, evaluate, evaluate_full_ranking
from gensar_hf.evaluation.ranks import rank_in_catalogue, rank_of_target
from gensar_hf.evaluation.report import markdown_report, save_figure, terminal_table
from gensar_hf.evaluation.significance import bootstrap_interval, paired_t_test

__all__ = [
    "METRICS",
    "BM25Index",
    "CandidateSets",
    "EvaluationResult",
    "Scorer",
    "bm25_candidates",
    "bootstrap_interval",
    "evaluate",
    "evaluate_full_ranking",
    "full_ranks",
    "hit_rate",
    "hit_rate_per_request",
    "markdown_report",
    "ndcg",
    "ndcg_per_request",
    "paired_t_test",
    "random_candidates",
    "rank_in_catalogue",
    "rank_of_target",
    "save_figure",
    "terminal_table",
]
