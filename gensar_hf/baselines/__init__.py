"""Peers of GenSAR behind the same protocol: popularity, BM25, dense retrieval and SASRec."""

from gensar_hf.baselines.bm25 import BM25
from gensar_hf.baselines.dense_retrieval import DenseRetrieval
from gensar_hf.baselines.popularity import Popularity
from gensar_hf.baselines.sasrec import SASRecScorer

__all__ = ["BM25", "DenseRetrieval", "Popularity", "SASRecScorer"]
