import dataclasses
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from scipy import stats

from gensar_hf.errors import InputError
from gensar_hf.evaluation.comparison import RunResult, compare, paired_t_test, run_apart, save_comparison
from gensar_hf.evaluation.metrics import METRICS, ndcg_per_request
from gensar_hf.evaluation.report import comparison_tables, markdown
from gensar_hf.files import read_json, write_json


def test_means_deviations_and_differences_by_hand(run_result):
    runs = [
        run_result("first", 0, [1, 1, 20, 20], 0.5), run_result("first", 1, [1, 20, 20, 20], 0.25),
        run_result("second", 0, [1, 1, 1, 1], 1.0), run_result("second", 1, [1, 1, 1, 1], 1.0),
    ]  # fmt: skip
    comparison = compare(runs, {})
    first, second = comparison["variants"]["first"], comparison["variants"]["second"]
    assert first["tasks"]["search"]["HR@1"]["mean"] == 0.375
    assert first["tasks"]["search"]["HR@1"]["sd"] == pytest.approx(0.125 * 2**0.5)
    assert second["tasks"]["search"]["HR@1"]["difference"]["mean"] == pytest.approx(1 - 0.375)
    low, high = (second["tasks"]["search"]["HR@1"]["difference"][end] for end in ("low", "high"))
    assert 0 < low < 1 - 0.375 < high <= 1
    assert "difference" not in first["tasks"]["search"]["HR@1"]
    assert first["seconds"]["rqvae"] == 3.0
    assert first["identifiers"]["semantic"]["codebook_use"] == 0.75
    assert first["identifiers"]["semantic"]["perplexity_share"] == 0.5
    assert first["identifiers"]["distortion_added"] == 0.25


def test_variants_keep_their_order_through_a_file(run_result, tmp_path):
    runs = [run_result(name, 0, [1, 2, 3, 4], 0.5) for name in ("zebra", "ape")]
    comparison = compare(runs, {})
    write_json(tmp_path / "comparison.json", comparison)
    tables = markdown(comparison_tables(read_json(tmp_path / "comparison.json")))
    assert tables == markdown(comparison_tables(comparison))
    assert tables.index("| zebra |") < tables.index("| ape |")


def test_requests_are_matched_by_user_and_target_and_not_by_their_order(run_result):
    first, second = run_result("first", 0, [1, 2, 3, 4], 0.5), run_result("second", 0, [1, 2, 3, 4], 0.5)
    path = second.results / "ranks.parquet"
    pd.read_parquet(path).iloc[::-1].to_parquet(path)
    difference = compare([first, second], {})["variants"]["second"]["tasks"]["search"]["NDCG@10"]["difference"]
    assert (difference["mean"], difference["low"], difference["high"]) == (0, 0, 0)


def test_other_requests_give_no_difference(run_result):
    first, second = run_result("first", 0, [1, 2, 3, 4], 0.5), run_result("second", 0, [1, 2, 3, 4], 0.5)
    path = second.results / "ranks.parquet"
    pd.read_parquet(path).assign(item_id="other").drop_duplicates("user_id").to_parquet(path)
    assert "difference" not in compare([first, second], {})["variants"]["second"]["tasks"]["search"]["NDCG@10"]


def test_p_values_are_those_of_scipy_for_any_two_systems(run_result):
    ranks = {"first": [1, 2, 3, 4], "second": [2, 9, 1, 30], "third": [5, 5, 5, 7]}
    comparison = compare([run_result(name, 0, values, 0.5) for name, values in ranks.items()], {})
    tests = {(test["first"], test["second"]): test for test in comparison["tests"] if test["metric"] == "NDCG@5"}
    assert set(tests) == {("first", "second"), ("first", "third"), ("second", "third")}
    for (left, right), test in tests.items():
        per_request = [ndcg_per_request(np.array(ranks[name]), 5) for name in (left, right)]
        expected = stats.ttest_rel(*per_request)
        assert test["p_value"] == pytest.approx(expected.pvalue)
        assert test["t"] == pytest.approx(expected.statistic)
    difference = comparison["variants"]["second"]["tasks"]["search"]["NDCG@5"]["difference"]
    assert difference["p_value"] == pytest.approx(tests["first", "second"]["p_value"])


def test_a_system_of_one_task_is_in_the_table_of_that_task_only(run_result):
    joint = run_result("GenSAR", 0, [1, 2, 3, 4], 0.5)
    other = run_result("SASRec", 0, [4, 3, 2, 1], 0.4, task="recommendation", row="SASRec", identifiers=None)
    comparison = compare([joint, other], {})
    assert list(comparison["variants"]["SASRec"]["tasks"]) == ["recommendation"]
    assert comparison["variants"]["SASRec"]["identifiers"] is None
    assert comparison["tests"] == []  # they have no task in common
    assert sorted(comparison["tasks"]) == ["recommendation", "search"]


def test_systems_without_requests_of_their_tasks_are_left_out(run_result, caplog):
    """BM25, for example, where nobody searched."""
    bm25 = run_result("BM25", 0, [1, 2, 3, 4], 0.5, row="BM25")
    write_json(bm25.results / "metrics.json", {"tasks": {"recommendation": {"systems": {}}}})
    joint = run_result("GenSAR", 0, [1, 2, 3, 4], 0.5)
    assert compare([bm25, joint], {})["order"] == ["GenSAR"]
    assert "BM25 is left out, since there are no requests of its tasks." in caplog.text
    with pytest.raises(InputError, match="No system has requests of its tasks"):
        compare([bm25], {})


def test_full_ranking_compares_the_folder_inside_the_results(run_result):
    run, without = run_result("first", 0, [1, 2, 3, 4], 0.5), run_result("second", 0, [1, 2, 3, 4], 0.5)
    inner = dataclasses.replace(run_result("inner", 0, [9, 9, 9, 9], 0.25), system="first")
    inner.results.rename(run.results / "full_ranking")
    comparison = compare([run, without], {}, full_ranking=True)
    assert comparison["order"] == ["first"]
    assert comparison["variants"]["first"]["tasks"]["search"]["HR@1"]["mean"] == 0.25


def write_query_kinds(run, title, log, row="GenSAR"):
    """A `query_kinds.json` with HR@10 of two kinds; the row without history has half of it."""
    kinds = {}
    for kind, value in (("title", title), ("log", log)):
        systems = {
            name: {metric: {"value": part * value, "low": 0.0, "high": 1.0} for metric in METRICS}
            for name, part in ((row, 1.0), (f"{row}, no history", 0.5))
        }
        counts = {"num_requests": 7, "num_with_history": 3, "num_candidates": 9}
        kinds[kind] = {**counts, "example": {"query": f"{kind} words", "title": "x"}, "systems": systems}
    write_json(run.results / "query_kinds.json", {"systems": [row, f"{row}, no history"], "kinds": kinds})


def test_query_kinds_are_means_over_the_seeds(run_result, tmp_path):
    runs = [run_result(name, seed, [1, 2, 3, 4], 0.5) for name in ("big", "small") for seed in (0, 1)]
    baseline = run_result("BM25", 0, [1, 2, 3, 4], 0.5, row="BM25")
    without = run_result("plain", 0, [1, 2, 3, 4], 0.5)
    for run, values in zip(runs, [(0.5, 0.25), (1.0, 0.75), (0.25, 0.0), (0.25, 0.5)], strict=True):
        write_query_kinds(run, *values)
    write_query_kinds(baseline, 1.0, 0.25, row="BM25")
    comparison = compare([*runs, baseline, without], {})
    kinds = comparison["query_kinds"]
    assert kinds["systems"] == [
        "big", "big, no history", "small", "small, no history", "BM25", "BM25, no history",
    ]  # fmt: skip
    value = {system: each["HR@10"]["value"] for system, each in kinds["kinds"]["title"]["systems"].items()}
    assert (value["big"], value["big, no history"], value["small"], value["BM25"]) == (0.75, 0.375, 0.25, 1.0)
    assert kinds["kinds"]["log"]["systems"]["big"]["HR@1"] == {"value": 0.5}

    save_comparison(comparison, tmp_path / "out")
    table, *others = comparison_tables(read_json(tmp_path / "out" / "comparison.json"))
    assert table.header == ["System", "title", "log"]
    assert table.rows[0] == ["big", ".750 / .750", "**.500** / **.500**"]
    assert table.rows[4] == ["BM25", "**1.000** / **1.000**", ".250 / .250"]
    assert table.note.endswith("Means over 2 seeds.")
    assert len(others) == 2
    assert "| big, no history |" in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "query_kinds" not in compare([without], {})


def test_paired_t_test_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3); for 2 degrees of freedom p = 1 - t / sqrt(t² + 2).
    test = paired_t_test(np.array([3.0, 5.0, 4.0]), np.array([2.0, 3.0, 1.0]))
    assert test["difference"] == pytest.approx(2)
    assert test["t"] == pytest.approx(2 * math.sqrt(3))
    assert test["p_value"] == pytest.approx(1 - math.sqrt(12 / 14))


def test_constant_differences_have_no_t():
    assert paired_t_test(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == {"difference": 0, "t": 0, "p_value": 1}
    assert paired_t_test(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == {"difference": -1, "t": None, "p_value": 0}


# ---- systems in processes of their own


def result_with_its_process(name, was_finished):
    return RunResult(name, 0, Path(), parameters=os.getpid(), was_finished=was_finished)


def fail(error):
    raise error


def test_a_system_that_fails_or_is_killed_does_not_end_the_others():
    calls = {
        "finished": partial(result_with_its_process, "finished", True),
        "new": partial(result_with_its_process, "new", False),
        "refused": partial(fail, InputError("No.")),
        "killed": partial(os._exit, 9),
        "last": partial(result_with_its_process, "last", False),
    }
    told: list[str] = []
    runs, failures = run_apart(calls, os.getpid, told.append)
    assert told[:2] == ["1/5 finished", "2/5 new"]
    assert "refused failed: No." in told
    assert [run.system for run in runs] == ["finished", "new", "last"]
    assert failures["refused"] == "No."
    assert failures["killed"].startswith("its process was killed")
    first, second, third = (run.parameters for run in runs)
    assert first == second  # nothing was computed in it
    assert len({os.getpid(), second, third}) == 3


KILLED_COMPARISON = """
import os
import time
from functools import partial
from pathlib import Path

from gensar_hf.evaluation.comparison import run_apart


def begin():
    Path("begun").write_text(str(os.getpid()))


if __name__ == "__main__":
    run_apart({"a": partial(time.sleep, 60)}, begin, print)
"""


def test_a_system_ends_with_the_comparison_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(KILLED_COMPARISON)
    process = subprocess.Popen([sys.executable, script], cwd=tmp_path)
    until(lambda: (tmp_path / "begun").is_file() and (tmp_path / "begun").read_text())
    process.kill()
    process.wait()
    child = int((tmp_path / "begun").read_text())
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
