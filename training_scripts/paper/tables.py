"""Write the tables of README.md and docs/*.md from the JSON files of the results.

    python training_scripts/paper/tables.py [--check] [README.md]

A table is between `<!-- table: FILE PART … -->` and `<!-- end of table -->`. FILE is relative to the page. PART is a
name in `PARTS`, a task of a `comparison.json`, or `all` of a Markdown file. `--check` only compares.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gensar_hf.cli import exit_status
from gensar_hf.errors import InputError
from gensar_hf.evaluation import report
from gensar_hf.files import atomic_path, read_json

RIVALS = ("GenSAR", "GenSAR, no history", "BM25", "Dense retrieval", "Hybrid (RRF)")
BLOCK = re.compile(r"<!-- table: (\S+) ([^>]+?) -->\n.*?<!-- end of table -->", re.DOTALL)
PARTS: dict[str, Callable[[Any], str]] = {
    "report": lambda metrics: report.markdown(report.metrics_tables(metrics)),
    "query_kinds": lambda metrics: report.query_kinds_table(metrics.get("query_kinds", metrics)).markdown(),
    "rivals": lambda metrics: report.query_kinds_table(metrics, RIVALS).markdown(),
    "identifiers": lambda comparison: report.identifier_table(comparison).markdown(),
    "note": report.comparison_note,
    "groups": lambda result: report.markdown(report.group_tables(result)),
    "new_items": lambda result: report.markdown(report.cold_start_tables(result)),
}


def with_tables(text: str, folder: Path) -> str:
    """The text of a page in `folder` with the content of its tables replaced."""

    def block(match: re.Match[str]) -> str:
        name, parts = match.groups()
        content = _read(folder / name) if name.endswith(".md") else read_json(folder / name)
        texts = [content] if name.endswith(".md") else [_part(content, name, part) for part in parts.split()]
        body = "\n\n".join(map(str.strip, texts))
        return f"<!-- table: {name} {parts} -->\n{body}\n<!-- end of table -->"

    return BLOCK.sub(block, text)


def _part(content: Any, name: str, part: str) -> str:
    if "order" in content and part in content["tasks"]:
        return report.task_table(content, part).markdown()
    if part not in PARTS:
        parts = ", ".join([*PARTS, *content.get("tasks", {})])
        raise InputError(f"{name} has no part '{part}'; the parts are {parts}.")
    return PARTS[part](content)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run the command that writes it.") from None


def main(argv: list[str] | None = None) -> None:
    """Write or check each page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="*", default=[Path("README.md"), *sorted(Path("docs").glob("*.md"))])
    parser.add_argument("--check", action="store_true", help="write nothing; report a table that differs")
    arguments = parser.parse_args(argv)
    for path in arguments.pages:
        text = _read(path)
        new_text = with_tables(text, path.parent)
        if new_text != text and arguments.check:
            raise InputError(f"A table of {path} differs from its file; run python training_scripts/paper/tables.py.")
        if new_text != text:
            with atomic_path(path) as aside:
                aside.write_text(new_text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_status(main))
