import copy

import pandas as pd
import pytest

from gensar_hf.artifacts import read_json, write_json
from gensar_hf.evaluation.comparison import compare, comparison_tables, save_figures

KIND = {
    "reconstruction_error_before": 0.5, "collision_rate_before": 0.01, "collision_rate_after": 0.0,
    "codebook_use_before": [1.0, 0.75], "perplexity_before": [3.0, 2.0], "distortion_before": 2.0,
    "distortion_after": 2.5,
}  # fmt: skip
REPORT = {
    "num_items": 9,
    "codebook_size": 4,
    "num_levels": 2,
    "num_shared_levels": 1,
    "semantic": KIND,
    "collaborative": KIND,
}
METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10")


@pytest.fixture
def outcome(tmp_path):
    """Makes a finished run from the ranks of four requests of three users; every metric's value is `value`."""

    def make(variant, seed, ranks, value):
        folder = tmp_path / f"{variant}-{seed}"
        (folder / "results").mkdir(parents=True)
        table = {"system": "GenSAR", "task": "search", "user_id": ["a", "a", "b", "c"], "item_id": ["1", "2", "1", "3"]}
        pd.DataFrame({**table, "rank": ranks}).to_parquet(folder / "results" / "ranks.parquet")
        figures = {metric: {"value": value, "low": value, "high": value} for metric in METRICS}
        task = {"protocol": "bm25-hard-99", "num_requests": 4, "num_users": 3, "num_candidates": 100}
        return {
            "variant": variant,
            "seed": seed,
            "folder": str(folder),
            "seconds": {"rqvae": 2.0 + 2 * seed},
            "details": {"rqvae": copy.deepcopy(REPORT), "model": {"parameters": 7}},
            "metrics": {"tasks": {"search": {**task, "systems": {"GenSAR": figures}}}},
        }

    return make


def test_means_deviations_and_differences_by_hand(outcome):
    runs = [
        outcome("first", 0, [1, 1, 20, 20], 0.5), outcome("first", 1, [1, 20, 20, 20], 0.25),
        outcome("second", 0, [1, 1, 1, 1], 1.0), outcome("second", 1, [1, 1, 1, 1], 1.0),
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


def test_variants_keep_their_order_through_a_file(outcome, tmp_path):
    runs = [outcome(name, 0, [1, 2, 3, 4], 0.5) for name in ("zebra", "ape")]
    comparison = compare(runs, {})
    write_json(tmp_path / "comparison.json", comparison)
    tables = comparison_tables(read_json(tmp_path / "comparison.json"))
    assert tables == comparison_tables(comparison)
    assert tables.index("| zebra |") < tables.index("| ape |")


def test_requests_are_matched_by_user_and_target_and_not_by_their_order(outcome):
    first, second = outcome("first", 0, [1, 2, 3, 4], 0.5), outcome("second", 0, [1, 2, 3, 4], 0.5)
    path = f"{second['folder']}/results/ranks.parquet"
    pd.read_parquet(path).iloc[::-1].to_parquet(path)
    difference = compare([first, second], {})["variants"]["second"]["tasks"]["search"]["NDCG@10"]["difference"]
    assert (difference["mean"], difference["low"], difference["high"]) == (0, 0, 0)


def test_other_requests_give_no_difference(outcome):
    first, second = outcome("first", 0, [1, 2, 3, 4], 0.5), outcome("second", 0, [1, 2, 3, 4], 0.5)
    path = f"{second['folder']}/results/ranks.parquet"
    pd.read_parquet(path).assign(item_id="other").drop_duplicates("user_id").to_parquet(path)
    assert "difference" not in compare([first, second], {})["variants"]["second"]["tasks"]["search"]["NDCG@10"]


def test_tables_and_figures_show_every_variant_and_every_failure(outcome, tmp_path):
    comparison = compare([outcome("plain", 0, [1, 2, 3, 4], 0.5)], {"broken, seed 0": "no codes."})
    tables = comparison_tables(comparison)
    assert "| plain | 2 (1) | 0.500 / 0.500 | 1.00% / 1.00% | 0% | 25.00% | 75% | 50% | 2.0 |" in tables
    assert "| plain | .500 | .500 | .500 | .500 | .500 |  |" in tables
    assert "broken, seed 0 failed: no codes." in tables
    paths = save_figures(comparison, tmp_path / "figures")
    assert [path.name for path in paths] == ["collisions.png", "ndcg.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
