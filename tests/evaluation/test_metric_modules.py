"""The folders under `metrics/`, loaded by the `evaluate` library: offline, with its caches in a temporary folder."""

import doctest
import importlib
import math
import socket
import sys
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.evaluation import metrics

ROOT = Path(__file__).parents[2]
METRICS = {"hit_rate": (metrics.hit_rate, ir_measures.Success), "ndcg": (metrics.ndcg, ir_measures.nDCG)}
NAMES = list(METRICS)


def modules_of_evaluate():
    return {name: sys.modules[name] for name in list(sys.modules) if name.partition(".")[0].startswith("evaluate")}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The `evaluate` library without a network, and without the caches of this machine.

    training_scripts/evaluate.py has the same name, and other tests put its folder on the path.
    """

    def refuse(*_):
        raise AssertionError("a metric module must not need the network")

    before = modules_of_evaluate()
    for name in before:
        del sys.modules[name]
    caches = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [path for path in sys.path if Path(path).name != "training_scripts"])
        patch.setattr(socket.socket, "connect", refuse)
        evaluate = importlib.import_module("evaluate")
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", caches / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", caches / "metrics")
        patch.chdir(ROOT)
        yield evaluate
    for name in modules_of_evaluate():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="module")
def modules(library):
    return {name: library.load(f"metrics/{name}") for name in NAMES}


def test_fractions(modules):
    rankings = [["a", "b", "c"], ["b", "a"], ["b", "c", "d", "a"], ["b", "c"], []]  # a at 1, 2, 4, nowhere, nowhere
    given = {"predictions": rankings, "references": ["a"] * 5}
    assert modules["hit_rate"].compute(**given, k=[1, 3, 4]) == {
        "hit_rate@1": 1 / 5,
        "hit_rate@3": 2 / 5,
        "hit_rate@4": 3 / 5,
    }
    gains = [1, 1 / math.log2(3), 1 / math.log2(5)]
    assert modules["ndcg"].compute(**given, k=3) == {"ndcg@3": pytest.approx(sum(gains[:2]) / 5)}
    assert modules["ndcg"].compute(**given) == {"ndcg@10": pytest.approx(sum(gains) / 5)}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.permutations(range(8)), st.integers(1, 8), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(1, 9),
    st.booleans(),
)
def test_the_package_and_ir_measures_agree(modules, requests, k, is_text):
    """Rankings of 1 to 8 of ten items; targets 8 and 9 are in none."""
    as_id = (lambda item: f"item {item}") if is_text else int
    rankings = [[as_id(item) for item in order[:length]] for order, length, _ in requests]
    targets = [as_id(target) for *_, target in requests]
    ranks = [
        ranking.index(target) + 1 if target in ranking else 1000
        for ranking, target in zip(rankings, targets, strict=True)
    ]
    qrels = [ir_measures.Qrel(str(row), str(target), 1) for row, target in enumerate(targets)]
    run = [
        ir_measures.ScoredDoc(str(row), str(item), -float(place))
        for row, ranking in enumerate(rankings)
        for place, item in enumerate(ranking)
    ]
    for name, (of_package, measure) in METRICS.items():
        value = modules[name].compute(predictions=rankings, references=targets, k=k)[f"{name}@{k}"]
        assert value == pytest.approx(of_package(np.array(ranks), k))
        assert value == pytest.approx(ir_measures.calc_aggregate([measure @ k], qrels, run)[measure @ k])


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_single_requests_add_up(modules, name):
    modules[name].add_batch(predictions=[[3, 1], [2, 3]], references=[1, 1])
    modules[name].add(prediction=[1, 2], reference=1)
    in_parts = modules[name].compute(k=2)
    assert in_parts == modules[name].compute(predictions=[[3, 1], [2, 3], [1, 2]], references=[1, 1, 1], k=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("rankings", "targets", "k", "message"),
    [
        ([["a", "b", "a"]], ["b"], 5, r"predictions\[0\] names an item twice"),
        ([["a"]], ["a"], 0, "at least 1; got 0"),
        ([["a"]], ["a"], [1, 2.5], "whole number, at least 1; got 2.5"),
        ([["a"], ["b"]], ["a"], 5, "Mismatch in the number of predictions"),
        ([[1]], ["a"], 5, "don't match the expected format"),
        (["a"], ["a"], 5, "don't match the expected format"),
    ],
)
def test_impossible_input_is_refused(library, tmp_path, name, rankings, targets, k, message):
    module = library.load(f"metrics/{name}", cache_dir=str(tmp_path))  # the library keeps a failed call's lock
    with pytest.raises(ValueError, match=message):
        module.compute(predictions=rankings, references=targets, k=k)


@pytest.mark.parametrize("name", NAMES)
def test_it_describes_itself_and_its_examples_are_true(library, modules, name):
    info = modules[name].info
    assert info.module_name == name
    assert info.description.strip()
    assert info.citation.strip().startswith("@article{")
    text = (ROOT / "metrics" / name / "README.md").read_text(encoding="utf-8")
    _, front_matter, readme = text.split("---\n", 2)
    assert yaml.safe_load(front_matter)["tags"] == ["evaluate", "metric"]
    readme = "\n".join(line for line in readme.splitlines() if not line.startswith("```"))
    for where, examples in (("README.md", readme), ("docstring", info.inputs_description)):
        test = doctest.DocTestParser().get_doctest(examples, {"evaluate": library}, f"{name} {where}", None, 0)
        outcome = doctest.DocTestRunner().run(test)
        assert outcome.attempted >= 3
        assert outcome.failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_elsewhere_loads_without_the_package(library, name, tmp_path, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.py").write_text((ROOT / "metrics" / name / f"{name}.py").read_text(encoding="utf-8") + "\n#\n")
    monkeypatch.setitem(sys.modules, "gensar_hf", None)  # an import of it fails
    assert library.load(str(folder)).compute(predictions=[["a"]], references=["a"], k=1) == {f"{name}@1": 1.0}
