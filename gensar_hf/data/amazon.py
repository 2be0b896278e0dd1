"""Amazon reviews of 2014 (McAuley et al. 2015), such as Electronics, the public data set of the GenSAR paper."""

from __future__ import annotations

import ast
import gzip
import html
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from gensar_hf.data.dataset import InteractionDataset
from gensar_hf.data.queries import assign_search_clicks
from gensar_hf.data.splits import SplitMethod
from gensar_hf.data.tables import shown_value
from gensar_hf.errors import InputError

logger = logging.getLogger(__name__)

_QUERY_FILE, _QRELS_FILES = "query_text.txt.gz", ("train.qrels.gz", "test.qrels.gz")
_TEXT_FIELDS = ("title", "brand", "description")
_EXACT_SECONDS = 2**53  # float64 cannot represent all larger whole numbers
_QREL = re.compile(r"(\S+)_([0-9]+) +\S+ +(\S+) +([0-9]+)")
_ITEM_FIRST = re.compile(r"""^\{\s*(['"])asin\1\s*:\s*(['"])([^'"\\]+)\2\s*[,}]""")


def load_amazon(  # noqa: D417
    reviews: str | os.PathLike[str],
    metadata: str | os.PathLike[str],
    query_dir: str | os.PathLike[str] | None = None,
    *,
    reviews_are: Literal["split", "both"] = "split",
    search_fraction: float = 0.4,
    seed: int = 0,
    text_columns: Sequence[str] | None = None,
    min_interactions: int = 0,
    split: SplitMethod = "leave_one_out",
) -> InteractionDataset:
    """Load a category of the Amazon reviews of 2014; each review is a click.

    The reviews contain no searches. Queries come from the items' category paths (`queries.query_from_categories`) or,
    with `query_dir`, from the files of Ai et al. ("Learning a Hierarchical Embedding Model for Personalized Product
    Search", SIGIR 2017; https://github.com/QingyaoAi/Amazon-Product-Search-Datasets): line n of `query_text.txt.gz`,
    counted from 0, is query n, and a line `USER_n 0 ITEM 1` of `train.qrels.gz` or `test.qrels.gz` says that USER
    bought ITEM, which is relevant to query n. A pair with several queries gets one of them, drawn at random.

    Reviews are dated by the day. Those of one user and day keep the order of the file, which is that of the items.
    `text_columns`, `min_interactions` and `split` are those of `InteractionDataset`.

    Args:
        reviews: the 5-core reviews, such as `reviews_Electronics_5.json.gz`; one JSON object per line.
        metadata: such as `meta_Electronics.json.gz`; one Python literal or JSON object per line.
        query_dir: folder with the three published files.
        reviews_are: `"split"`: a seeded share of the reviews becomes search clicks, the others are clicks on
            recommendations. `"both"`: as in the paper's data, every review is a click on a recommendation and, if it
            has a query, also a search at the same moment; `min_interactions` then counts such a review twice.
        search_fraction: that share, from 0 to 1; not used with `"both"`. Reviews without a query stay recommendations.
        seed: of that draw, and of the draw among several queries.

    Returns:
        A dataset with every reviewed item and the columns `item_id`, `title`, `brand`, `description` and `categories`
        ("Electronics > Cameras, Electronics > Bags": two paths). Items that the metadata lack have no text.

    Raises:
        ValueError: `reviews_are` or `search_fraction` is outside its range.
        InputError: one sentence with the file, the line, the problem and the remedy.
    """
    if reviews_are not in ("split", "both"):
        raise ValueError(f"`reviews_are` must be 'split' or 'both'; got {reviews_are!r}.")
    if not 0 <= search_fraction <= 1:
        raise ValueError(f"`search_fraction` is a share of the reviews, from 0 to 1; got {search_fraction}.")
    if reviews_are == "both":
        search_fraction = 1.0
    clicks = _read_reviews(Path(reviews))
    items = _read_items(Path(metadata), clicks["item_id"].unique().tolist())
    if query_dir is None:
        clicks = assign_search_clicks(items, clicks.assign(query=""), search_fraction, seed)
    else:
        clicks = _with_published_queries(clicks, Path(query_dir), seed)
        is_search = np.random.default_rng(seed).random(len(clicks)) < search_fraction
        clicks["query"] = clicks["query"].where(is_search, "")
    if reviews_are == "both":
        clicks = pd.concat([clicks.assign(query=""), clicks[clicks["query"] != ""]]).sort_index(kind="stable")
    return InteractionDataset(items, clicks, text_columns=text_columns, min_interactions=min_interactions, split=split)


def _read_reviews(path: Path) -> pd.DataFrame:
    """The reviews in the order of the file: `user_id`, `item_id` and `timestamp` (seconds since 1970)."""
    rows = []
    for number, line in _lines(path):
        review = _record(path, number, line)
        user, item = (_field(path, number, review, name).strip() for name in ("reviewerID", "asin"))
        time = review.get("unixReviewTime")
        if isinstance(time, bool) or not isinstance(time, int | float) or not abs(time) < _EXACT_SECONDS:  # NaN is not
            raise _wrong_field(path, number, "unixReviewTime", time, "a number of seconds")
        rows.append((sys.intern(user), sys.intern(item), float(time)))
    if not rows:
        raise InputError(f"{path.name} holds no reviews; give a file such as reviews_Electronics_5.json.gz.")
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


def _read_items(path: Path, item_ids: list[str]) -> pd.DataFrame:
    """The reviewed items with their texts; the first description of an item counts."""
    wanted, known = set(item_ids), dict[str, dict[str, Any]]()
    for number, line in _lines(path):
        # A Python literal takes much longer to read than JSON, and most items of a category are not in its 5-core.
        first = _ITEM_FIRST.match(line)
        if first and first[3].strip() not in wanted:
            continue
        entry = _record(path, number, line)
        item = _field(path, number, entry, "asin").strip()
        if item in wanted and item not in known:
            texts = {name: _plain(_field(path, number, entry, name, is_optional=True)) for name in _TEXT_FIELDS}
            known[item] = {**texts, "categories": _categories(path, number, entry)}
    if not known:
        raise InputError(
            f"{path.name} describes none of the {len(item_ids):,} reviewed items; give the metadata of the same "
            "category as the reviews."
        )
    if len(known) < len(item_ids):
        logger.warning(
            "%s does not describe %d of the %d reviewed items; they have no text.",
            path.name, len(item_ids) - len(known), len(item_ids),
        )  # fmt: skip
    nothing = {**dict.fromkeys(_TEXT_FIELDS, ""), "categories": []}
    return pd.DataFrame([{"item_id": item, **known.get(item, nothing)} for item in item_ids])


def _with_published_queries(clicks: pd.DataFrame, folder: Path, seed: int) -> pd.DataFrame:
    """The clicks with a column `query`: the published query of the user and the item, "" if there is none."""
    texts = [" ".join(line.split()) for _, line in _lines(folder / _QUERY_FILE, keep_blank=True)]
    users, items, rows = set(clicks["user_id"]), set(clicks["item_id"]), []
    for name in _QRELS_FILES:
        for number, line in _lines(folder / name):
            match = _QREL.fullmatch(line)
            if match is None:
                raise _complaint(
                    folder / name, number, f"{shown_value(line)} is not of the form 'USER_QUERY 0 ITEM LABEL'"
                )
            user, query, item, label = match.groups()
            if int(query) >= len(texts):
                problem = f"the query {query} is not among the {len(texts):,} lines (from 0) of {_QUERY_FILE}"
                raise _complaint(folder / name, number, problem)
            if int(label) > 0 and user in users and item in items:
                rows.append((user, item, int(query)))
    pairs = pd.DataFrame(rows, columns=["user_id", "item_id", "number"]).drop_duplicates()
    # A separate random stream: the same seed also draws which reviews are searches.
    shuffled = pairs.sort_values(list(pairs.columns)).sample(frac=1, random_state=np.random.default_rng([seed, 2]))
    one_each = shuffled.drop_duplicates(["user_id", "item_id"])
    one_each = one_each.assign(query=[texts[number] for number in one_each.pop("number")])
    merged = clicks.merge(one_each, how="left", on=["user_id", "item_id"])
    has_query = merged["query"].notna()
    if not has_query.any():
        raise InputError(
            f"{' and '.join(_QRELS_FILES)} name none of the reviews; give the published files of the same category."
        )
    logger.info("%d of %d reviews have a published query.", int(has_query.sum()), len(clicks))
    return merged.assign(query=merged["query"].fillna(""))


def _lines(path: Path, keep_blank: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a text file, compressed or not, with their numbers from 1."""
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; give the path of a file.")
    with path.open("rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
    number = 0
    try:
        with gzip.open(path) if is_gzipped else path.open("rb") as lines:
            for number, line in enumerate(tqdm(lines, path.name, unit=" lines", leave=False, delay=2), start=1):
                text = line.decode("utf-8").strip()
                if text or keep_blank:
                    yield number, text
    except UnicodeDecodeError as error:
        raise _complaint(path, number, f"it is not UTF-8 text ({error.reason})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path.name} is damaged after line {number} ({error}); download it again.") from None


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    """A line as a dictionary: from JSON or, if that fails, from a Python literal."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(line)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            record = None
    if not isinstance(record, dict):
        raise _complaint(path, number, f"{shown_value(line)} is neither a JSON object nor a Python dictionary")
    return record


def _field(path: Path, number: int, record: dict[str, Any], name: str, is_optional: bool = False) -> str:
    """A field of text; "" where an optional one is missing."""
    value = record.get(name)
    if is_optional and value is None:
        return ""
    if not isinstance(value, str) or not (value.strip() or is_optional):
        raise _wrong_field(path, number, name, value, "text")
    return value


def _categories(path: Path, number: int, entry: dict[str, Any]) -> list[list[str]]:
    paths = entry.get("categories") or []
    is_nested = isinstance(paths, list) and all(isinstance(names, list) for names in paths)
    if not is_nested or not all(isinstance(name, str) for names in paths for name in names):
        raise _wrong_field(path, number, "categories", paths, "a list of lists of text")
    return [[_plain(name) for name in names] for names in paths]


def _plain(text: str) -> str:
    """The text without HTML entities, and without unpaired surrogates, which JSON can hold but UTF-8 cannot."""
    return html.unescape(text).encode("utf-8", "replace").decode("utf-8")


def _wrong_field(path: Path, number: int, name: str, value: Any, expected: str) -> InputError:
    shown = "nothing" if value is None else shown_value(value)
    return _complaint(path, number, f"it has {shown} as {name}, which must be {expected}")


def _complaint(path: Path, number: int, problem: str) -> InputError:
    return InputError(f"{path.name}, line {number}: {problem}; correct the line, or download the file again.")
