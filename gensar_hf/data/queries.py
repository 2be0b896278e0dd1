"""Category path → query, for logs that hold no searches (Ai et al. 2017, "Learning a Hierarchical Embedding Model")."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from gensar_hf.data.interactions import InteractionLog
from gensar_hf.errors import InputError

# Function words of category names; the wider lists of search engines also hold words that mean something there.
STOP_WORDS = frozenset({
    "a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "is", "it", "its", "of", "on", "or",
    "other", "others", "s", "the", "to", "with", "your",
})  # fmt: skip
_APOSTROPHES = re.compile(r"['’`]")


def query_from_categories(categories: str | Sequence[str]) -> str:
    """Turn a category path, or several, into a query.

    Terms keep their order, from general to special; they are lower-cased, stop words are dropped, and so is every word
    that came before. Apostrophes vanish, other signs part words.

    Args:
        categories: a path in text, or a list of names, paths, or lists of these.

    >>> query_from_categories("Animation > Children's > Comedy > 1990s")
    'animation childrens comedy 1990s'
    >>> query_from_categories(["Camera & Photo", "Digital Camera Lenses"])
    'camera photo digital lenses'
    """
    if not isinstance(categories, str):
        categories = " > ".join(part if isinstance(part, str) else query_from_categories(part) for part in categories)
    words = "".join(map(_letter_or_space, _APOSTROPHES.sub("", categories).lower())).split()
    return " ".join(word for word in dict.fromkeys(words) if word not in STOP_WORDS)


def _letter_or_space(character: str) -> str:
    """Letters, digits and the marks on them (vowel signs in many scripts) make words, everything else parts them."""
    return character if unicodedata.category(character)[0] in "LMN" else " "


def assign_search_clicks(
    log: InteractionLog, fraction: float = 0.4, seed: int = 0, category_column: str = "categories"
) -> InteractionLog:
    """Turn a random share of the clicks into search clicks that carry their item's query.

    Each click on a recommendation is drawn by itself; neither its user, nor its item, nor any other row has a say, so
    that nothing of the held-out part can leak through the draw. Clicks on items without categories stay
    recommendations, as do rows that have a query already.

    Args:
        log: it is not changed.
        fraction: the share, 0 to 1.
        seed: of the draw; one seed gives one result for the same log.
        category_column: column of `log.items` with category paths, text or lists.

    Raises:
        ValueError: `fraction` is not a share.
        InputError: there is no such column.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"`fraction` is a share of the clicks, from 0 to 1; got {fraction}.")
    if category_column not in log.items.columns:
        raise InputError(
            f"The items have no column {category_column}, which queries are made from, only "
            f"{', '.join(log.items.columns)}; name another column, or give real queries."
        )
    categories = log.items[category_column]
    item_queries = dict(zip(log.items["item_id"], map(_query_or_nothing, categories, categories.isna()), strict=True))
    rows = log.interactions
    is_search = (np.random.default_rng(seed).random(len(rows)) < fraction) & (rows["query"] == "")
    queries = rows["query"].mask(is_search, rows["item_id"].map(item_queries).astype("str"))
    return InteractionLog(log.items, rows.assign(query=queries), log.text_columns)


def _query_or_nothing(categories: str | Sequence[str], missing: bool) -> str:
    return "" if missing else query_from_categories(categories)
