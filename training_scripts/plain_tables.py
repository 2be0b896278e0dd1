"""Tables of text cells, in Markdown and for the terminal."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class PlainTable:
    """Text cells under a header, with a caption above and notes below."""

    caption: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def as_markdown(tables: Iterable[PlainTable]) -> str:
    """All tables in Markdown; ends with a line feed."""
    blocks = []
    for table in tables:
        lines = [table.header, ("---", *["---:"] * (len(table.header) - 1)), *table.rows]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        blocks += [f"**{table.caption}**", text, *([table.note] if table.note else [])]
    return "\n\n".join(blocks) + "\n"


def as_terminal(tables: Iterable[PlainTable]) -> list[Table]:
    """All tables for `rich`."""
    shown = []
    for plain in tables:
        table = Table(title=escape(plain.caption), title_justify="left", caption=escape(plain.note))
        table.caption_justify = "left"
        for number, name in enumerate(plain.header):
            table.add_column(name, justify="right" if number else "left", no_wrap=True)
        for row in plain.rows:
            table.add_row(*map(escape, row))
        shown.append(table)
    return shown
