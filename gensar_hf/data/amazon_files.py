"""The files of the Amazon reviews of 2014 and of the queries published for them, read line by line."""

from __future__ import annotations

import ast
import gzip
import html
import json
import re
import zlib
from array import array
from collections.abc import Container, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from gensar_hf.errors import InputError

QUERY_TEXTS, QRELS = "query_text.txt.gz", ("train.qrels.gz", "test.qrels.gz")
TEXT_FIELDS = ("title", "brand", "description")

_GZIP_MARK = b"\x1f\x8b"
_LINES_PER_UPDATE = 5_000
_EXACT_SECONDS = 2**53  # whole numbers beyond it are no longer told apart as float64; NaN is below nothing
_SHOWN_CHARACTERS = 60
_ITEM_FIRST = re.compile(r"""^\{\s*(['"])asin\1\s*:\s*(['"])([^'"\\]+)\2\s*[,}]""")


@dataclass(frozen=True, eq=False)
class Reviews:
    """Who reviewed what, and when, in the order of the file.

    Attributes:
        user_ids: the distinct users, in the order of their first review.
        item_ids: the distinct items, likewise.
        users: `(num_reviews,)` int64, positions in `user_ids`.
        items: `(num_reviews,)` int64, positions in `item_ids`.
        timestamps: `(num_reviews,)` float64, seconds since 1970; Amazon's are whole days.
    """

    user_ids: list[str]
    item_ids: list[str]
    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray

    def pair_codes(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """One number per pair of a user's and an item's position, equal for equal pairs only."""
        return users * len(self.item_ids) + items


def read_reviews(path: Path) -> Reviews:
    """Read a file of reviews, of which only user, item and time are kept.

    Args:
        path: gzipped or not; one object a line with `reviewerID`, `asin` and `unixReviewTime`.

    Raises:
        InputError: the file is missing or damaged, has no reviews, or a line is not a review.
    """
    user_codes: dict[str, int] = {}
    item_codes: dict[str, int] = {}
    users, items, timestamps = array("q"), array("q"), array("d")
    for number, line in _lines(path):
        review = _record(path, number, line)
        user, item = _identity(path, number, review, "reviewerID"), _identity(path, number, review, "asin")
        users.append(user_codes.setdefault(user, len(user_codes)))
        items.append(item_codes.setdefault(item, len(item_codes)))
        timestamps.append(_time(path, number, review))
    if not users:
        raise InputError(f"{path.name} holds no reviews; give a file such as reviews_Electronics_5.json.gz.")
    return Reviews(
        list(user_codes),
        list(item_codes),
        np.array(users, dtype=np.int64),
        np.array(items, dtype=np.int64),
        np.array(timestamps, dtype=np.float64),
    )


def read_metadata(path: Path, item_ids: Container[str]) -> dict[str, dict[str, Any]]:
    """Read the texts of some items; entities such as `&amp;` become the characters they stand for.

    Args:
        path: gzipped or not; one Python literal (as published) or JSON object a line, with `asin` and, as far as
            known, `title`, `brand`, `description` and `categories` (a list of paths, each a list of names).
        item_ids: the items to keep. Lines that begin with the `asin` of another item are not read any further.

    Returns:
        item → `title`, `brand`, `description` ("" where missing) and `categories` (empty where missing). Of an item
        that is described twice, the first description counts.

    Raises:
        InputError: the file is missing or damaged, or a line does not describe an item.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, line in _lines(path):
        # A Python literal takes far longer to read than JSON, and most items of a category are not in its 5-core.
        first = _ITEM_FIRST.match(line)
        if first and first[3].strip() not in item_ids:
            continue
        entry = _record(path, number, line)
        item = _identity(path, number, entry, "asin")
        if item not in item_ids or item in found:
            continue
        texts: dict[str, Any] = {name: _text(path, number, entry, name) for name in TEXT_FIELDS}
        found[item] = {**texts, "categories": _categories(path, number, entry)}
    return found


def read_query_texts(path: Path) -> list[str]:
    """The published queries, one a line; a query's number in the relevance files is its line, counted from 0."""
    return [" ".join(line.split()) for _, line in _lines(path, keep_blank=True)]


def read_qrels(path: Path, num_queries: int) -> Iterator[tuple[str, int, str]]:
    """Read a published relevance file, whose lines are `USER_QUERY 0 ITEM LABEL`.

    Args:
        path: gzipped or not.
        num_queries: how many published queries there are; queries are counted from 0.

    Yields:
        user, query and item of every line with a label above 0: the user bought the item, which the query finds.

    Raises:
        InputError: the file is missing or damaged, or a line is not of that form.
    """
    for number, line in _lines(path):
        fields = line.split()
        user, _, query = fields[0].rpartition("_")
        if len(fields) != 4 or not user or not _is_digits(query) or not _is_digits(fields[3]):
            raise _complaint(path, number, f"{_shown(line)} is not of the form 'USER_QUERY 0 ITEM LABEL'")
        if int(query) >= num_queries:
            raise _complaint(
                path, number, f"the query {query} is not among the {num_queries:,} lines (from 0) of {QUERY_TEXTS}"
            )
        if int(fields[3]) > 0:
            yield user, int(query), fields[2]


def _lines(path: Path, keep_blank: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a text file, gzipped or not, with their numbers from 1."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {found}; give the path of a file.")
    number = 0
    with (
        path.open("rb") as raw,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, leave=False, delay=2) as bar,
    ):
        is_gzipped = raw.read(len(_GZIP_MARK)) == _GZIP_MARK
        raw.seek(0)
        try:
            with gzip.open(raw) if is_gzipped else nullcontext(raw) as lines:
                for number, line in enumerate(lines, start=1):
                    if number % _LINES_PER_UPDATE == 0:
                        bar.update(raw.tell() - bar.n)
                    text = line.decode("utf-8").strip()
                    if text or keep_blank:
                        yield number, text
        except UnicodeDecodeError as error:
            raise _complaint(path, number, f"it is not UTF-8 text ({error.reason})") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path.name} is damaged after line {number} ({error}); download it again.") from None


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    """A line as a dictionary: from JSON or, where that fails, from a Python literal."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(line)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            record = None
    if not isinstance(record, dict):
        raise _complaint(path, number, f"{_shown(line)} is neither a JSON object nor a Python dictionary")
    return record


def _identity(path: Path, number: int, record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _complaint(path, number, f"it has {_or_none(value)} as {name}, which must be text")
    return value.strip()


def _time(path: Path, number: int, review: dict[str, Any]) -> float:
    value = review.get("unixReviewTime")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _EXACT_SECONDS:
        raise _complaint(path, number, f"it has {_or_none(value)} as unixReviewTime, which must be a number of seconds")
    return float(value)


def _text(path: Path, number: int, entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _complaint(path, number, f"it has {_or_none(value)} as {name}, which must be text")
    return _plain(value)


def _categories(path: Path, number: int, entry: dict[str, Any]) -> list[list[str]]:
    paths = entry.get("categories") or []
    if not isinstance(paths, list) or not all(isinstance(names, list) for names in paths):
        raise _complaint(path, number, f"it has {_or_none(paths)} as categories, which must be a list of lists")
    if not all(isinstance(name, str) for names in paths for name in names):
        raise _complaint(path, number, f"it has {_or_none(paths)} as categories, whose names must be text")
    return [[_plain(name) for name in names] for names in paths]


def _plain(text: str) -> str:
    """A text without entities, and without the halves of characters that JSON can hold but UTF-8 cannot."""
    return html.unescape(text).encode("utf-8", "replace").decode("utf-8")


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _or_none(value: Any) -> str:
    return "nothing" if value is None else _shown(value)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…"


def _complaint(path: Path, number: int, problem: str) -> InputError:
    return InputError(f"{path.name}, line {number}: {problem}; correct the line, or download the file again.")
