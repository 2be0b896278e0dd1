import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gensar_hf.evaluation.comparison import compare, paired_t_test
from gensar_hf.evaluation.metrics import ndcg_per_request
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


def test_full_ranking_compares_the_folder_inside_the_results(run_result):
    run, without = run_result("first", 0, [1, 2, 3, 4], 0.5), run_result("second", 0, [1, 2, 3, 4], 0.5)
    inner = dataclasses.replace(run_result("inner", 0, [9, 9, 9, 9], 0.25), system="first")
    inner.results.rename(run.results / "full_ranking")
    comparison = compare([run, without], {}, full_ranking=True)
    assert comparison["order"] == ["first"]
    assert comparison["variants"]["first"]["tasks"]["search"]["HR@1"]["mean"] == 0.25


def test_paired_t_test_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3); for 2 degrees of freedom p = 1 - t / sqrt(t² + 2).
    test = paired_t_test(np.array([3.0, 5.0, 4.0]), np.array([2.0, 3.0, 1.0]))
    assert test["difference"] == pytest.approx(2)
    assert test["t"] == pytest.approx(2 * math.sqrt(3))
    assert test["p_value"] == pytest.approx(1 - math.sqrt(12 / 14))


def test_constant_differences_have_no_t():
    assert paired_t_test(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == {"difference": 0, "t": 0, "p_value": 1}
    assert paired_t_test(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == {"difference": -1, "t": None, "p_value": 0}
