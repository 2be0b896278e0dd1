"""Search queries from category paths, for data without searches.

The rule is that of Ai et al. 2017, "Learning a Hierarchical Embedding Model for Personalized Product Search".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pandas as pd

from gensar_hf.data.tables import shown_value, text_of
from gensar_hf.errors import InputError

# Function words of category names. The longer lists of search engines contain words that carry meaning in them.
STOP_WORDS = frozenset({
    "a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "is", "it", "its", "of", "on", "or",
    "other", "others", "s", "the", "to", "with", "your",
})  # fmt: skip
_APOSTROPHES = re.compile(r"['’`]")


def query_from_categories(categories: str | Sequence[str]) -> str:
    """Turn one or more category paths into a query.

    Terms keep their order, from general to special, in lower case. Stop words and repeated words are dropped.
    Apostrophes are removed; all other punctuation separates words. Categories are a path as text, or a list of names,
    of paths, or of lists of these.

    >>> query_from_categories("Animation > Children's > Comedy > 1990s")
    'animation childrens comedy 1990s'
    >>> query_from_categories(["Camera & Photo", "Digital Camera Lenses"])
    'camera photo digital lenses'
    """
    if not isinstance(categories, str):
        categories = " > ".join(part if isinstance(part, str) else query_from_categories(part) for part in categories)
    letters = _APOSTROPHES.sub("", categories).lower()
    # Letters, digits and combining marks (vowel signs in many scripts) make words.
    words = "".join(each if unicodedata.category(each)[0] in "LMN" else " " for each in letters).split()
    return " ".join(word for word in dict.fromkeys(words) if word not in STOP_WORDS)


def assign_search_clicks(
    items: pd.DataFrame,
    interactions: pd.DataFrame,
    fraction: float = 0.4,
    seed: int = 0,
    category_column: str = "categories",
) -> pd.DataFrame:
    """Turn a random share of the clicks into search clicks whose query is made from the item's categories.

    Each click on a recommendation is drawn independently of its user, its item and all other rows, so that the draw
    leaks nothing about held-out clicks. Clicks on items without categories stay recommendations. Rows that have a query
    keep it. The tables are those of `InteractionDataset`; categories are paths, text or lists.

    Raises:
        ValueError: `fraction` is outside its range.
        InputError: `items` has no such column.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"`search_fraction` is a share of the clicks, from 0 to 1; got {fraction}.")
    if category_column not in items.columns:
        raise InputError(
            f"The items have no column {category_column}, which queries are made from, only "
            f"{', '.join(items.columns)}; name another column (`category_column`), or give real queries."
        )
    paths = [text_of(value, (" > ",) * 4) for value in items[category_column]]
    if None in paths:
        row = paths.index(None)
        raise InputError(
            f"The items, row {row + 1}, column {category_column}: {shown_value(items[category_column].iloc[row])} is "
            "neither text nor a list of it, so no query can be made from it; name another column (`category_column`)."
        )
    texts = [query_from_categories(path) for path in paths if path is not None]
    item_queries = pd.Series(texts, index=items["item_id"], dtype="str")
    is_search = np.random.default_rng(seed).random(len(interactions)) < fraction
    is_search &= ((interactions["query"] == "") & (interactions["item_id"] != "")).to_numpy()
    queries = interactions["query"].mask(is_search, interactions["item_id"].map(item_queries).astype("str"))
    return interactions.assign(query=queries)
