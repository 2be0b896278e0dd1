"""MovieLens-100k (Harper and Konstan 2015). Its terms forbid redistribution, so the user provides the files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd

from gensar_hf.data.dataset import InteractionDataset
from gensar_hf.data.separated import read_separated
from gensar_hf.errors import InputError

_REMEDY = "pass a folder with GroupLens' u.data and u.item, from https://grouplens.org/datasets/movielens/100k"
TEXT_COLUMNS = ("title", "year", "genres")
_CLICK_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
# The order of the 19 flags in u.item, as in GroupLens' u.genre.
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_ARTICLES = "The|An|A|Les|Le|La|L'|Il|Lo|El|Los|Las|Das|Der|Die|Det|Den|Une|Un|O"
_ARTICLE_AT_END = re.compile(rf"^(?P<rest>[^()]+), (?P<article>{_ARTICLES})$")
_YEAR_AT_END = re.compile(r"\s*\((\d{4})\)\s*(?:\((?:V|TV)\))?\s*$")
_OTHER_TITLE = re.compile(r"^(?P<title>.*\S)\s*\((?P<other>[^()]+)\)$")


def load_movielens_100k(
    folder: str | os.PathLike[str], search_fraction: float = 0.4, seed: int = 0
) -> InteractionDataset:
    """Load MovieLens-100k: 943 users, 1,682 films, 100,000 ratings, each of which is a click; split by leave-one-out.

    The data contain no searches: a seeded share of the clicks, `search_fraction`, becomes search clicks, with a query
    made from the film's genres and decade (`queries.assign_search_clicks`). The items have the columns `item_id`,
    `title` ("The Shawshank Redemption"), `year`, `genres` ("Animation, Children's, Comedy") and `categories`
    ("Animation > Children's > Comedy > 1990s"). The folder holds `u.data` and `u.item` (GroupLens), or `ml-100k.inter`
    and `ml-100k.item` (RecBole).

    Raises:
        ValueError: `search_fraction` is outside its range.
        InputError: the folder has neither pair of files, or a file is not that of MovieLens-100k.
    """
    folder = Path(folder)
    for items_name, clicks_name, read in _FORMATS:
        if (folder / items_name).is_file() and (folder / clicks_name).is_file():
            films, clicks = read(folder / items_name, folder / clicks_name)
            return InteractionDataset(
                _tidy(films), clicks, text_columns=TEXT_COLUMNS, search_fraction=search_fraction, seed=seed
            )
    raise InputError(f"{folder} holds neither u.data and u.item nor ml-100k.inter and ml-100k.item; {_REMEDY}.")


def _read_grouplens(items: Path, interactions: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    names = ["item_id", "title", "released", "video_released", "url", *GENRES]
    films = _read_text(items, "|", names, encoding="latin-1")
    flags = films[list(GENRES)].to_numpy() == "1"
    genres = [[genre for genre, flag in zip(GENRES, row, strict=True) if flag] for row in flags]
    year = films["title"].str.extract(_YEAR_AT_END)[0].fillna(films["released"].str.extract(r"(\d{4})$")[0])
    frame = pd.DataFrame({"item_id": films["item_id"], "title": films["title"], "year": year, "genres": genres})
    return frame, _read_text(interactions, "\t", _CLICK_COLUMNS)


def _read_recbole(items: Path, interactions: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    films = _read_text(items, "\t", ["item_id", "title", "year", "genres"], header_rows=1)
    # Its converter read the last bracket of a title as the year: "(1995) (V)" left the year V. It writes "unkonwn".
    is_year = films["year"].str.fullmatch(r"\d{4}")
    year = films["year"].where(is_year, films["title"].str.extract(_YEAR_AT_END)[0])
    title = films["title"].replace("unkonwn", "unknown")
    frame = pd.DataFrame(
        {"item_id": films["item_id"], "title": title, "year": year, "genres": films["genres"].str.split(" ")}
    )
    return frame, _read_text(interactions, "\t", _CLICK_COLUMNS, header_rows=1)


_FORMATS = (("u.item", "u.data", _read_grouplens), ("ml-100k.item", "ml-100k.inter", _read_recbole))


def _read_text(
    path: Path, separator: str, names: list[str], encoding: str = "utf-8", header_rows: int = 0
) -> pd.DataFrame:
    try:
        return read_separated(path, separator, names, num_header_rows=header_rows, is_quoted=False, encoding=encoding)
    except ValueError as error:
        raise InputError(f"{path.name} is not the file of MovieLens-100k ({error}); {_REMEDY}.") from error


def _tidy(films: pd.DataFrame) -> pd.DataFrame:
    """The item table, from titles, years ("" or NaN if unknown) and lists of genres."""
    year = films["year"].fillna("").astype("str")
    genres = films["genres"].map(lambda names: [name for name in names if name and name != "unknown"])
    decade = year.str.slice(0, 3).where(year == "", year.str.slice(0, 3) + "0s")
    paths = [[*names, when] if when else names for names, when in zip(genres, decade, strict=True)]
    return pd.DataFrame(
        {
            "item_id": films["item_id"],
            "title": films["title"].map(tidy_title),
            "year": year,
            "genres": genres.map(", ".join),
            "categories": [" > ".join(path) for path in paths],
        }
    )


def tidy_title(title: str) -> str:
    """Move trailing articles to the front, also in a second title, and drop the year.

    >>> tidy_title("Horseman on the Roof, The (Hussard sur le toit, Le) (1995)")
    'The Horseman on the Roof (Le Hussard sur le toit)'
    """
    title = _YEAR_AT_END.sub("", title).strip()
    if match := _OTHER_TITLE.match(title):
        return f"{_article_first(match['title'])} ({_article_first(match['other'])})"
    return _article_first(title)


def _article_first(title: str) -> str:
    match = _ARTICLE_AT_END.match(title)
    if match is None:
        return title
    return match["article"] + ("" if match["article"].endswith("'") else " ") + match["rest"]
