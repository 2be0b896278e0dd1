import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULT = "results/ml-100k-identifiers/comparison.json"


@pytest.fixture
def document(tmp_path):
    """A Markdown file with an empty table of a real comparison beside it."""
    (tmp_path / "results" / "ml-100k-identifiers").mkdir(parents=True)
    shutil.copy(ROOT / RESULT, tmp_path / RESULT)
    path = tmp_path / "page.md"
    path.write_text(f"before\n\n<!-- table: {RESULT} search note -->\n<!-- end of table -->\n\nafter\n")
    return path


def test_the_tables_of_all_pages_are_those_of_their_files(script, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert script("readme_tables.py", "--check") == (0, "", "")


def test_tables_are_written_and_stay(script, document):
    assert script("readme_tables.py", document)[0] == 0
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    figures = json.loads((document.parent / RESULT).read_text())["variants"]["RQ k-means"]["tasks"]["search"]["HR@1"]
    (row,) = [line for line in text.splitlines() if line.startswith("| RQ k-means |")]
    assert row.split(" | ")[1].startswith(f"{figures['mean']:.3f}".removeprefix("0"))
    assert script("readme_tables.py", document, "--check")[0] == 0


def test_a_table_that_was_typed_is_found(script, document):
    script("readme_tables.py", document)
    document.write_text(document.read_text().replace("| RQ k-means | .2", "| RQ k-means | .3", 1))
    before = document.read_text()
    status, _, complaint = script("readme_tables.py", "--check", document)
    assert status == 2
    assert "A table of" in complaint
    assert document.read_text() == before


@pytest.mark.parametrize(
    ("head", "complaint"),
    [(f"{RESULT} pictures", "has no part 'pictures'"), ("results/none.json search", "does not exist")],
)
def test_a_table_without_a_source_is_refused(head, complaint, script, document):
    document.write_text(f"<!-- table: {head} -->\n<!-- end of table -->\n")
    status, _, said = script("readme_tables.py", document)
    assert status == 2
    assert complaint in said
