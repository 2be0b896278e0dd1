"""Raw logs → one validated, chronological log, its events, and what of them may be trained on."""

from gensar_hf.data.amazon import load_amazon
from gensar_hf.data.continuation import append_log, newer_starts, part_in_time
from gensar_hf.data.hub_log import export_log, log_from_hub, push_log
from gensar_hf.data.interactions import InteractionLog, k_core, load_log
from gensar_hf.data.movielens import load_movielens_100k
from gensar_hf.data.queries import assign_search_clicks, query_from_categories
from gensar_hf.data.splits import (
    RECOMMENDATION,
    SEARCH,
    Requests,
    Split,
    chronological_cut,
    cut_in_time,
    leave_one_out,
    training_events,
    training_mask,
)
from gensar_hf.data.user_events import Behavior, UserEvents, events_from_log

__all__ = [
    "RECOMMENDATION",
    "SEARCH",
    "Behavior",
    "InteractionLog",
    "Requests",
    "Split",
    "UserEvents",
    "append_log",
    "assign_search_clicks",
    "chronological_cut",
    "cut_in_time",
    "events_from_log",
    "export_log",
    "k_core",
    "leave_one_out",
    "load_amazon",
    "load_log",
    "load_movielens_100k",
    "log_from_hub",
    "newer_starts",
    "part_in_time",
    "push_log",
    "query_from_categories",
    "training_events",
    "training_mask",
]
