"""`metrics/ranking`, loaded by the `evaluate` library: offline, with its caches in a temporary folder."""

import doctest
import math
import socket
import sys
from pathlib import Path

import evaluate
import ir_measures
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.evaluation import metrics

ROOT = Path(__file__).parents[2]
METRICS = {"hit_rate": (metrics.hit_rate, ir_measures.Success), "ndcg": (metrics.ndcg, ir_measures.nDCG)}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The `evaluate` library without a network, and without the caches of this machine."""

    def refuse(*_):
        raise AssertionError("a metric module must not need the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        caches = tmp_path_factory.mktemp("caches")
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", caches / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", caches / "metrics")
        patch.chdir(ROOT)
        yield evaluate


@pytest.fixture(scope="module")
def ranking(library):
    return library.load("metrics/ranking")


def test_fractions(ranking):
    rankings = [["a", "b", "c"], ["b", "a"], ["b", "c", "d", "a"], ["b", "c"], []]  # a at 1, 2, 4, nowhere, nowhere
    requests = {"predictions": rankings, "references": ["a"] * 5}
    gains = [1, 1 / math.log2(3), 1 / math.log2(5)]
    assert ranking.compute(**requests, k=[1, 3]) == {
        "hit_rate@1": 1 / 5,
        "ndcg@1": 1 / 5,
        "hit_rate@3": 2 / 5,
        "ndcg@3": pytest.approx(sum(gains[:2]) / 5),
    }
    assert ranking.compute(**requests) == {"hit_rate@10": 3 / 5, "ndcg@10": pytest.approx(sum(gains) / 5)}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.permutations(range(8)), st.integers(1, 8), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(1, 9),
    st.booleans(),
)
def test_the_package_and_ir_measures_agree(ranking, requests, k, is_text):
    """Rankings of 1 to 8 of ten items; targets 8 and 9 are in none."""
    as_id = (lambda item: f"item {item}") if is_text else int
    rankings = [[as_id(item) for item in order[:length]] for order, length, _ in requests]
    targets = [as_id(target) for *_, target in requests]
    ranks = [
        items.index(target) + 1 if target in items else 1000 for items, target in zip(rankings, targets, strict=True)
    ]
    qrels = [ir_measures.Qrel(str(row), str(target), 1) for row, target in enumerate(targets)]
    run = [
        ir_measures.ScoredDoc(str(row), str(item), -float(place))
        for row, items in enumerate(rankings)
        for place, item in enumerate(items)
    ]
    results = ranking.compute(predictions=rankings, references=targets, k=k)
    for name, (of_package, measure) in METRICS.items():
        value = results[f"{name}@{k}"]
        assert value == pytest.approx(of_package(np.array(ranks), k))
        assert value == pytest.approx(ir_measures.calc_aggregate([measure @ k], qrels, run)[measure @ k])


@pytest.mark.parametrize(
    ("rankings", "targets", "k", "message"),
    [
        ([["a", "b", "a"]], ["b"], 5, r"predictions\[0\] has an item twice"),
        ([["a"]], ["a"], 0, "at least 1; got 0"),
        ([["a"]], ["a"], [1, 2.5], "whole number, at least 1; got 2.5"),
        ([["a"], ["b"]], ["a"], 5, "Mismatch in the number of predictions"),
        ([[1]], ["a"], 5, "don't match the expected format"),
        (["a"], ["a"], 5, "don't match the expected format"),
    ],
)
def test_impossible_input_is_refused(library, tmp_path, rankings, targets, k, message):
    module = library.load("metrics/ranking", cache_dir=str(tmp_path))  # the library keeps a failed call's lock
    with pytest.raises(ValueError, match=message):
        module.compute(predictions=rankings, references=targets, k=k)


def test_its_examples_are_true(library, ranking):
    info = ranking.info
    assert info.module_name == "ranking"
    assert info.citation.count("@article{") == 2
    text = (ROOT / "metrics" / "ranking" / "README.md").read_text(encoding="utf-8")
    _, front_matter, readme = text.split("---\n", 2)
    assert yaml.safe_load(front_matter)["tags"] == ["evaluate", "metric"]
    readme = "\n".join(line for line in readme.splitlines() if not line.startswith("```"))
    for source, examples in (("README.md", readme), ("docstring", info.inputs_description)):
        test = doctest.DocTestParser().get_doctest(examples, {"evaluate": library}, source, None, 0)
        outcome = doctest.DocTestRunner().run(test)
        assert outcome.attempted >= 3
        assert outcome.failed == 0


def test_a_copy_elsewhere_loads_without_the_package(library, tmp_path, monkeypatch):
    folder = tmp_path / "ranking"
    folder.mkdir()
    (folder / "ranking.py").write_text((ROOT / "metrics/ranking/ranking.py").read_text(encoding="utf-8") + "\n#\n")
    monkeypatch.setitem(sys.modules, "gensar_hf", None)  # an import of it fails
    results = library.load(str(folder)).compute(predictions=[["a"]], references=["a"], k=1)
    assert results == {"hit_rate@1": 1.0, "ndcg@1": 1.0}
