"""Amazon's reviews of 2014 as a log with searches (McAuley et al. 2015): the paper's public data set is Electronics."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pandas as pd

from gensar_hf.data.amazon_files import (
    QRELS,
    QUERY_TEXTS,
    TEXT_FIELDS,
    Reviews,
    read_metadata,
    read_qrels,
    read_query_texts,
    read_reviews,
)
from gensar_hf.data.dataset import InteractionDataset
from gensar_hf.data.queries import assign_search_clicks
from gensar_hf.errors import InputError

logger = logging.getLogger(__name__)


def load_amazon(
    reviews: str | os.PathLike[str],
    metadata: str | os.PathLike[str],
    query_dir: str | os.PathLike[str] | None = None,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    reviews_are: Literal["split", "both"] = "split",
    search_fraction: float = 0.4,
    seed: int = 0,
    text_columns: Sequence[str] | None = None,
) -> InteractionDataset:
    """Load a category of the Amazon reviews of 2014, such as Electronics; each review is a click.

    The reviews hold no searches. Queries come from the items' category paths (`queries.query_from_categories`) or, with
    `query_dir`, from the files that Ai et al. published ("Learning a Hierarchical Embedding Model for Personalized
    Product Search", SIGIR 2017; https://github.com/QingyaoAi/Amazon-Product-Search-Datasets): line n of
    `query_text.txt.gz`, counted from 0, is query n, and a line `USER_n 0 ITEM 1` of `train.qrels.gz` or
    `test.qrels.gz` says that USER bought ITEM, which query n finds. The two relevance files are read as one, since
    what is held out is this package's to say. A pair of user and item with several queries gets one of them, drawn.

    Reviews are dated by the day. Those of one user and day keep the order of the file, which is that of the items.

    Args:
        reviews: the 5-core reviews, such as `reviews_Electronics_5.json.gz`; one JSON object a line.
        metadata: such as `meta_Electronics.json.gz`; one Python literal or JSON object a line.
        query_dir: folder with the three published files.
        repo_id: a data set repository on the Hub, such as `user/amazon-2014`; files and folder are then names inside
            it.
        revision: branch, tag or commit of that repository.
        reviews_are: `"split"`: a seeded share of the reviews becomes search clicks, the others are clicks on
            recommendations. `"both"`: as in the paper's data, every review is a click on a recommendation and, where
            it has a query, a search at the same moment, too; `k_core` then counts such a review twice.
        search_fraction: that share, from 0 to 1; not used with `"both"`. Reviews without a query stay recommendations.
        seed: of that draw, and of the draw among several queries.
        text_columns: the columns that make an item's text; title, brand, categories and description by default.

    Returns:
        A log with every reviewed item and the columns `item_id`, `title`, `brand`, `description` and `categories`
        ("Electronics > Cameras, Electronics > Bags": two paths). Items that the metadata do not know have no text.

    Raises:
        ValueError: `reviews_are` or `search_fraction` is none of the values above.
        InputError: one sentence with the file, the line and what is wrong with it; or a download that fails.
    """
    if reviews_are not in ("split", "both"):
        raise ValueError(f"`reviews_are` must be 'split' or 'both'; got {reviews_are!r}.")
    if not 0 <= search_fraction <= 1:
        raise ValueError(f"`search_fraction` is a share of the reviews, from 0 to 1; got {search_fraction}.")
    reviews_path, metadata_path = _located(reviews, repo_id, revision), _located(metadata, repo_id, revision)
    query_paths = None
    if query_dir is not None:
        query_paths = [_located(_inside(query_dir, name, repo_id), repo_id, revision) for name in (QUERY_TEXTS, *QRELS)]
    read = read_reviews(reviews_path)
    queries = _published_queries(read, query_paths, seed) if query_paths else None
    log = load_log(_item_table(read.item_ids, metadata_path), _click_table(read, queries), text_columns)
    if queries is None:
        log = assign_search_clicks(log, 1.0 if reviews_are == "both" else search_fraction, seed)
    elif reviews_are == "split":
        log = _with_fewer_searches(log, search_fraction, seed)
    return _with_recommendations(log) if reviews_are == "both" else log


def _inside(folder: str | os.PathLike[str], name: str, repo_id: str | None) -> str | Path:
    return (PurePosixPath(folder) / name).as_posix() if repo_id else Path(folder) / name


def _located(name: str | os.PathLike[str], repo_id: str | None, revision: str | None) -> Path:
    """The path of a file: as given, or where the Hub's cache has it."""
    if repo_id is None:
        return Path(name)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repo_id, os.fspath(name), repo_type="dataset", revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise InputError(
            f"{os.fspath(name)} could not be fetched from the data set repository {repo_id} ({reason}); correct the "
            "names, or download the file and give its path without a repository."
        ) from error


def _item_table(item_ids: list[str], metadata_path: Path) -> pd.DataFrame:
    """The reviewed items with their texts."""
    known = read_metadata(metadata_path, set(item_ids))
    if not known:
        raise InputError(
            f"{metadata_path.name} describes none of the {len(item_ids):,} reviewed items; give the metadata of the "
            "same category as the reviews."
        )
    num_missing = len(item_ids) - len(known)
    if num_missing:
        logger.warning(
            "%s does not describe %d of the %d reviewed items; they have no text.",
            metadata_path.name, num_missing, len(item_ids),
        )  # fmt: skip
    columns = {name: [known[item][name] if item in known else "" for item in item_ids] for name in TEXT_FIELDS}
    categories = [known[item]["categories"] if item in known else [] for item in item_ids]
    return pd.DataFrame({"item_id": item_ids, **columns, "categories": pd.Series(categories, dtype=object)})


def _click_table(reviews: Reviews, queries: np.ndarray | None) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "user_id": pd.Index(reviews.user_ids).take(reviews.users),
            "item_id": pd.Index(reviews.item_ids).take(reviews.items),
            "timestamp": reviews.timestamps,
        }
    )
    return table if queries is None else table.assign(query=queries)


def _published_queries(reviews: Reviews, paths: Sequence[Path], seed: int) -> np.ndarray:
    """The published query of each review, "" where there is none, `(num_reviews,)` str."""
    texts = read_query_texts(paths[0])
    user_codes = {user: code for code, user in enumerate(reviews.user_ids)}
    item_codes = {item: code for code, item in enumerate(reviews.item_ids)}
    users, items, queries = array("q"), array("q"), array("q")
    for path in paths[1:]:
        for user, query, item in read_qrels(path, len(texts)):
            if user in user_codes and item in item_codes:
                users.append(user_codes[user])
                items.append(item_codes[item])
                queries.append(query)
    pairs = reviews.pair_codes(np.array(users, dtype=np.int64), np.array(items, dtype=np.int64))
    numbers = np.array(queries, dtype=np.int64)
    chosen_pairs, chosen_queries = _one_query_per_pair(pairs, numbers, len(texts), seed)

    wanted = reviews.pair_codes(reviews.users, reviews.items)
    has_query = np.isin(wanted, chosen_pairs)
    if not has_query.any():
        raise InputError(
            f"{' and '.join(path.name for path in paths[1:])} name none of the reviews; give the published files of "
            "the same category."
        )
    logger.info("%d of %d reviews have a published query.", int(has_query.sum()), len(wanted))
    found = np.full(len(wanted), "", dtype=object)
    rows = chosen_queries[np.searchsorted(chosen_pairs, wanted[has_query])]
    found[has_query] = np.array(texts, dtype=object)[rows]
    return found


def _one_query_per_pair(
    pairs: np.ndarray, queries: np.ndarray, num_queries: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs in ascending order, and for each one of its distinct queries, drawn; both int64."""
    distinct = np.unique(pairs * num_queries + queries)  # sorted by pair, then by query
    chosen_pairs, starts, counts = np.unique(distinct // num_queries, return_index=True, return_counts=True)
    # A stream of its own: the same seed also draws which reviews are searches.
    draws = np.random.default_rng([seed, 2]).random(len(chosen_pairs))
    return chosen_pairs, distinct[starts + (draws * counts).astype(np.int64)] % num_queries


def _with_fewer_searches(log: InteractionDataset, fraction: float, seed: int) -> InteractionDataset:
    """The log in which a random share of the rows keeps its query; the others are clicks on recommendations."""
    rows = log.interactions
    keeps = np.random.default_rng(seed).random(len(rows)) < fraction
    return InteractionDataset(log.items, rows.assign(query=rows["query"].where(keeps, "")), log.text_columns)


def _with_recommendations(log: InteractionDataset) -> InteractionDataset:
    """The log in which a click on a recommendation, at the same moment, stands before every search click."""
    rows = log.interactions
    copies = np.repeat(np.arange(len(rows)), np.where(rows["query"] == "", 1, 2))
    is_first = np.ones(len(copies), dtype=bool)
    is_first[1:] = copies[1:] != copies[:-1]
    doubled = rows.iloc[copies].reset_index(drop=True)
    return InteractionDataset(log.items, doubled.assign(query=doubled["query"].mask(is_first, "")), log.text_columns)
