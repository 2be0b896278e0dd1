"""`training_scripts/paper/tables.py`: the pages agree with the JSON files of the results."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from gensar_hf.errors import InputError

ROOT = Path(__file__).parents[2]
RESULT = "results/ml-100k-identifiers/comparison.json"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("paper_tables", ROOT / "training_scripts/paper/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(tmp_path):
    """A page with an empty table of a real comparison."""
    (tmp_path / "results" / "ml-100k-identifiers").mkdir(parents=True)
    shutil.copy(ROOT / RESULT, tmp_path / RESULT)
    path = tmp_path / "page.md"
    path.write_text(f"before\n\n<!-- table: {RESULT} search note -->\n<!-- end of table -->\n\nafter\n")
    return path


def test_the_tables_of_all_pages_are_those_of_their_files(tables, monkeypatch):
    monkeypatch.chdir(ROOT)
    tables.main(["--check"])


def test_tables_are_written_once(tables, page):
    tables.main([str(page)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    metrics = json.loads((page.parent / RESULT).read_text())["variants"]["RQ k-means"]["tasks"]["search"]["HR@1"]
    (row,) = [line for line in text.splitlines() if line.startswith("| RQ k-means |")]
    assert row.split(" | ")[1].startswith(f"{metrics['mean']:.3f}".removeprefix("0"))
    tables.main([str(page), "--check"])
    page.write_text(text.replace("| RQ k-means | .2", "| RQ k-means | .3", 1))
    with pytest.raises(InputError, match=r"A table of .* differs from its file"):
        tables.main([str(page), "--check"])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (f"{RESULT} pictures", "has no part 'pictures'"),
        ("results/none.json search", "does not exist"),
        ("results/none.md all", "cannot be read"),
    ],
)
def test_a_table_without_a_source_is_refused(tables, page, head, message):
    page.write_text(f"<!-- table: {head} -->\n<!-- end of table -->\n")
    with pytest.raises(InputError, match=message):
        tables.main([str(page)])
