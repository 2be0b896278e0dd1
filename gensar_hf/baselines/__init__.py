"""Baselines behind the protocol of GenSAR's evaluation; `tuning.fit_baseline` fits one by its name.

A module with `BASELINES` (name: `Baseline`) is all that a baseline needs here, see CONTRIBUTING.md.
"""

from gensar_hf.baselines.bm25 import BM25
from gensar_hf.baselines.dense_retrieval import DenseRetrieval
from gensar_hf.baselines.hybrid import HybridSearch
from gensar_hf.baselines.popularity import Popularity
from gensar_hf.baselines.sequential import NextItemScorer

__all__ = ["BM25", "DenseRetrieval", "HybridSearch", "NextItemScorer", "Popularity"]
