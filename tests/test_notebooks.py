"""The notebooks run from the first cell to the last, offline, and hold no outputs."""

import json
import shutil
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def code_cells(path: Path) -> list[str]:
    """Sources of the notebook's code cells, in their order."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    for number, source in enumerate(code_cells(path)):
        compile(source, f"{path.name}, code cell {number}", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in NOTEBOOKS.glob("*.csv"):
        shutil.copy(table, tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(path)):
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)
    if path.stem == "own_data":
        assert len(namespace["recommended"]) == len(namespace["found"]) == 5
        assert not {"alien", "poltergeist"} & {answer["item_id"] for answer in namespace["recommended"]}
    if path.stem == "newer_interactions":
        assert len(namespace["new_items"]) > 0
        assert {"eval_recommendation_ndcg@10", "eval_search_ndcg@10"} <= set(namespace["comparison"].index)
