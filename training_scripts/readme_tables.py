"""Write the tables of README.md and of the pages in docs/ from the JSON files behind them.

    python training_scripts/readme_tables.py
    python training_scripts/readme_tables.py --check README.md

A table stands between `<!-- table: FILE PART … -->` and `<!-- end of table -->`. FILE is a `comparison.json` with the
parts `identifiers`, `recommendation`, `search` and `note`, a `metrics.json` with the part `report`, or another Markdown
file with the part `all`; its path is relative to the page. With `--check` nothing is written, and a table that differs
is an error.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from console import reported_errors

from gensar_hf.errors import InputError
from gensar_hf.evaluation.comparison_report import identifier_table, spread_note, task_caption, task_table
from gensar_hf.evaluation.report import markdown_report
from gensar_hf.files import atomic_path, read_json

_BLOCK = re.compile(r"<!-- table: (\S+) ([^>]+?) -->\n.*?<!-- end of table -->", re.DOTALL)
_PARTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "identifiers": identifier_table,
    "note": spread_note,
    "report": lambda metrics: markdown_report(metrics).rstrip(),
}


def generated(text: str, folder: Path) -> str:
    """The text with all of its tables made anew.

    Args:
        text: of a Markdown file.
        folder: of that file.

    Raises:
        InputError: a JSON file is missing, or has no such part.
    """

    def block(match: re.Match[str]) -> str:
        name, parts = match.group(1), match.group(2).split()
        if name.endswith(".md"):
            body = _markdown(folder / name)
        else:
            content = read_json(folder / name)
            body = "\n\n".join(_part(content, name, part) for part in parts)
        return f"<!-- table: {name} {' '.join(parts)} -->\n{body}\n<!-- end of table -->"

    return _BLOCK.sub(block, text)


def _markdown(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run the command that writes it.") from None


def _part(content: Mapping[str, Any], name: str, part: str) -> str:
    if part in content.get("tasks", {}):
        return f"**{task_caption(content, part)}**\n\n{task_table(content, part)}"
    if part not in _PARTS:
        known = ", ".join([*_PARTS, *content.get("tasks", {})])
        raise InputError(f"{name} has no part '{part}'; its parts are {known}.")
    return _PARTS[part](content)


def main(argv: list[str] | None = None) -> None:
    """Write or check each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pages = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    parser.add_argument("files", type=Path, nargs="*", default=pages)
    parser.add_argument("--check", action="store_true", help="write nothing; complain about a table that differs")
    arguments = parser.parse_args(argv)
    for path in arguments.files:
        text = path.read_text(encoding="utf-8")
        fresh = generated(text, path.parent)
        if fresh == text:
            continue
        if arguments.check:
            raise InputError(f"A table of {path} differs from its JSON file; run training_scripts/readme_tables.py.")
        with atomic_path(path) as aside:
            aside.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    with reported_errors():
        main()
