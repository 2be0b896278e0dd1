"""MovieLens-100k as a log with searches. Its terms forbid redistribution, so it is fetched, never shipped."""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
from pathlib import Path

import pandas as pd

from gensar_hf.data.interactions import InteractionLog, load_log
from gensar_hf.data.queries import assign_search_clicks
from gensar_hf.errors import InputError
from gensar_hf.wheels import Wheel

RECBOLE_REQUIREMENT = "recbole==1.2.1"
WHEEL_NAME = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
_REMEDY = "give a folder that holds GroupLens' u.data and u.item (`folder`), from https://grouplens.org/datasets/movielens/100k"

TEXT_COLUMNS = ("title", "year", "genres")
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
    folder: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    search_fraction: float = 0.4,
    seed: int = 0,
) -> InteractionLog:
    """Load MovieLens-100k: 943 users, 1,682 films, 100,000 ratings, each of them a click.

    The data hold no searches: a seeded share of the clicks becomes search clicks, with a query made from the film's
    genres and decade (`queries.assign_search_clicks`).

    Args:
        folder: holds `u.data` and `u.item` (GroupLens), or `ml-100k.inter` and `ml-100k.item` (RecBole). By default
            the PyPI wheel of RecBole 1.2.1, which contains the second pair, is downloaded with pip (2 MB), checked, and
            read without being installed.
        cache_dir: where the wheel is kept, and found again without a network; `~/.cache/gensar-hf` by default.
        search_fraction: share of the clicks that become search clicks, 0 for none.
        seed: of that draw.

    Returns:
        A log whose items have the columns `item_id`, `title` ("The Shawshank Redemption"), `year`, `genres`
        ("Animation, Children's, Comedy") and `categories` ("Animation > Children's > Comedy > 1990s").

    Raises:
        InputError: the folder has neither pair of files, or the download fails.
    """
    items, interactions = _read_folder(Path(folder)) if folder is not None else _read_wheel(_wheel().fetch(cache_dir))
    log = load_log(_tidy(items), interactions, TEXT_COLUMNS)
    return assign_search_clicks(log, search_fraction, seed)


def _read_folder(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    if (folder / "u.data").is_file() and (folder / "u.item").is_file():
        return _read_grouplens((folder / "u.item").read_bytes(), (folder / "u.data").read_bytes())
    if (folder / "ml-100k.item").is_file() and (folder / "ml-100k.inter").is_file():
        return _read_recbole((folder / "ml-100k.item").read_bytes(), (folder / "ml-100k.inter").read_bytes())
    raise InputError(f"{folder} holds neither u.data and u.item nor ml-100k.inter and ml-100k.item; {_REMEDY}.")


def _read_grouplens(items: bytes, interactions: bytes) -> tuple[pd.DataFrame, pd.DataFrame]:
    names = ["item_id", "title", "released", "video_released", "url", *GENRES]
    films = _read_text(items, "u.item", "|", names, encoding="latin-1")
    flags = films[list(GENRES)].to_numpy() == "1"
    genres = [[genre for genre, flag in zip(GENRES, row, strict=True) if flag] for row in flags]
    year = films["title"].str.extract(_YEAR_AT_END)[0].fillna(films["released"].str.extract(r"(\d{4})$")[0])
    frame = pd.DataFrame({"item_id": films["item_id"], "title": films["title"], "year": year, "genres": genres})
    return frame, _read_text(interactions, "u.data", "\t", ["user_id", "item_id", "rating", "timestamp"])


def _read_recbole(items: bytes, interactions: bytes) -> tuple[pd.DataFrame, pd.DataFrame]:
    films = _read_text(items, "ml-100k.item", "\t", ["item_id", "title", "year", "genres"], header_rows=1)
    # Its converter took the last bracket of a title for the year: "(1995) (V)" left the year V; "unkonwn" is its word.
    is_year = films["year"].str.fullmatch(r"\d{4}")
    year = films["year"].where(is_year, films["title"].str.extract(_YEAR_AT_END)[0])
    title = films["title"].replace("unkonwn", "unknown")
    frame = pd.DataFrame(
        {"item_id": films["item_id"], "title": title, "year": year, "genres": films["genres"].str.split(" ")}
    )
    names = ["user_id", "item_id", "rating", "timestamp"]
    return frame, _read_text(interactions, "ml-100k.inter", "\t", names, header_rows=1)


def _read_text(
    content: bytes, name: str, separator: str, names: list[str], encoding: str = "utf-8", header_rows: int = 0
) -> pd.DataFrame:
    try:
        return pd.read_csv(
            io.BytesIO(content),
            sep=separator,
            names=names,
            skiprows=header_rows,
            dtype=str,
            keep_default_na=False,
            index_col=False,
            quoting=csv.QUOTE_NONE,
            encoding=encoding,
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{name} is not the file of MovieLens-100k ({error}); {_REMEDY}.") from error


def _tidy(films: pd.DataFrame) -> pd.DataFrame:
    """The item table from title, year ("" or NaN if unknown) and lists of genres."""
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
    """A title as it is spoken: the year at its end dropped, articles in front, in the second title, too.

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
    space = "" if match["article"].endswith("'") else " "
    return f"{match['article']}{space}{match['rest']}"


def _read_wheel(wheel: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    with zipfile.ZipFile(wheel) as archive:
        return _read_recbole(
            archive.read(f"{_WHEEL_FOLDER}/ml-100k.item"), archive.read(f"{_WHEEL_FOLDER}/ml-100k.inter")
        )


def _wheel() -> Wheel:
    return Wheel(RECBOLE_REQUIREMENT, WHEEL_NAME, WHEEL_SHA256, "MovieLens-100k", "2 MB", _REMEDY)
