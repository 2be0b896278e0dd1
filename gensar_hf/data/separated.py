"""Strict reading of files with separators: every row is as long as the header, no quotation mark swallows rows."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

logger = logging.getLogger(__name__)

_BLOCK_SIZE = 1 << 26  # bytes; no row may be longer
# Cells as RFC 4180 has them. A quotation mark inside a cell that does not begin with one is a character. One pattern
# for a whole file needs possessive alternatives, which Python 3.11.2 (that of Debian 12) matches wrongly.
_QUOTED = rb'"(?<![^SEP\r\n]")[^"]*+(?:""[^"]*+)*+"(?![^SEP\r\n])'
_STRAY = rb'"(?<![^SEP\r\n]")'  # outside of these


def read_separated(
    path: Path,
    separator: str,
    names: Sequence[str] = (),
    *,
    num_header_rows: int = 1,
    is_quoted: bool = True,
    encoding: str = "utf-8",
) -> pd.DataFrame:
    """Read all columns as text, "" where empty. Blank lines are skipped.

    Args:
        path: the file.
        separator: one character.
        names: of the columns; default: those in the header.
        num_header_rows: lines before the first row.
        is_quoted: whether cells with separators or line breaks are in quotation marks.
        encoding: of the file.

    Raises:
        ValueError: a row is longer or shorter than the header, a quotation mark is out of place or seems to swallow
            rows, or the file holds NUL bytes or bytes of another encoding.
    """
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    data.decode(encoding)
    is_cut = data[-1:] not in b"\r\n"
    data = data + b"\n" if is_cut else data
    if is_quoted:
        _check_characters(data, separator)
    if not names:
        csv.field_size_limit(max(csv.field_size_limit(), len(data)))
        names = next(csv.reader(io.TextIOWrapper(io.BytesIO(data), encoding, newline=""), delimiter=separator), [])
    places, skipped, invalid = [str(place) for place in range(len(names))], list[int](), list[str]()

    def on_invalid(row: arrow_csv.InvalidRow) -> str:
        if not row.text.strip(" "):
            skipped.append(row.number)
            return "skip"
        number = row.number - num_header_rows - len(skipped)
        invalid.append(f"number of cells in row {number}: {row.actual_columns}, in the header: {row.expected_columns}")
        return "error"

    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            arrow_csv.ReadOptions(
                use_threads=False, block_size=_BLOCK_SIZE, column_names=places, skip_rows_after_names=num_header_rows,
                encoding=encoding,
            ),
            arrow_csv.ParseOptions(
                delimiter=separator, quote_char='"' if is_quoted else False, newlines_in_values=is_quoted,
                invalid_row_handler=on_invalid,
            ),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(places, pa.string()), strings_can_be_null=False),
        )  # fmt: skip
    except pa.ArrowInvalid as error:
        raise ValueError(invalid[0] if invalid else error) from None
    if is_quoted:
        _check_line_breaks(table, separator)
    if is_cut and len(table):
        logger.warning("%s ends without a line break, so its last row (%d) may be cut.", path.name, len(table))
    frame = table.to_pandas()
    frame.columns = [name or f"Unnamed: {place}" for place, name in enumerate(names)]
    return frame


def _check_characters(data: bytes, separator: str) -> None:
    quoted, stray = (pattern.replace(b"SEP", separator.encode()) for pattern in (_QUOTED, _STRAY))
    end, problem = data.find(b"\0"), "holds a NUL byte, so the file is damaged"
    outside = re.sub(quoted, b"", data if end < 0 else data[:end])  # of the quoted cells; as many rows
    if end < 0:
        found = re.search(stray, outside)
        if found is None:
            return
        outside = outside[: found.start()]
        problem = (
            "has a cell that begins with a quotation mark and is never closed, or goes on after the closing one; put "
            'the whole cell in quotation marks, and write "" for one inside'
        )
    row = len(re.findall(rb"[^\r\n]+", outside + b"x")) - 1
    raise ValueError(f"row {row} {problem}")


def _check_line_breaks(table: pa.Table, separator: str) -> None:
    """Refuse a cell whose lines are rows of the table: two stray quotation marks make one cell of all between them.

    The lines of such a cell have as many separators as the rows that they were. Prose has a space after a comma.
    """
    last = table.num_columns - 1
    for place, column in enumerate(table.columns if last else ()):
        for row in np.flatnonzero(pc.match_substring_regex(column, r"[\r\n]").to_numpy()):
            cell = column[int(row)].as_py()
            first, *middle, end = [line.count(separator) for line in re.split(r"[\r\n]+", cell)]
            if [first, *middle, end] == [last - place, *[last] * len(middle), place] and f"{separator} " not in cell:
                raise ValueError(
                    f"row {row + 1} has a cell in quotation marks that spans {len(middle) + 2} lines, each like a row "
                    "of the table; remove the stray quotation marks, or save the table as .parquet if they are text"
                )
