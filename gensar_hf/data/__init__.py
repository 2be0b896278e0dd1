"""Datasets of searches and recommendations: tables, events, splits, and the public data sets of the papers."""

from gensar_hf.data.amazon import load_amazon
from gensar_hf.data.dataset import InteractionDataset
from gensar_hf.data.movielens import load_movielens_100k
from gensar_hf.data.queries import query_from_categories
from gensar_hf.data.splits import (
    RECOMMENDATION,
    SEARCH,
    TASKS,
    Requests,
    Split,
    chronological_cut,
    leave_one_out,
    training_events,
    training_mask,
)
from gensar_hf.data.text_queries import TextQueries
from gensar_hf.data.user_events import Behavior, UserEvents

__all__ = [
    "RECOMMENDATION",
    "SEARCH",
    "TASKS",
    "Behavior",
    "InteractionDataset",
    "Requests",
    "Split",
    "TextQueries",
    "UserEvents",
    "chronological_cut",
    "leave_one_out",
    "load_amazon",
    "load_movielens_100k",
    "query_from_categories",
    "training_events",
    "training_mask",
]
