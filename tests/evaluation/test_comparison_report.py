from gensar_hf.evaluation.comparison import compare
from gensar_hf.evaluation.comparison_report import comparison_tables, save_figures


def test_tables_and_figures_show_every_variant_and_every_failure(outcome, tmp_path):
    comparison = compare([outcome("plain", 0, [1, 2, 3, 4], 0.5)], {"broken, seed 0": "no codes."})
    tables = comparison_tables(comparison)
    assert "| plain | 2 (1) | 0.500 / 0.500 | 1.00% / 1.00% | 0% | 25.00% | 75% | 50% | 2.0 |" in tables
    assert "| plain | **.500** | **.500** | **.500** | **.500** | **.500** |  |  |" in tables
    assert "broken, seed 0 failed: no codes." in tables
    paths = save_figures(comparison, tmp_path / "figures")
    assert [path.name for path in paths] == ["ndcg.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_figures_among_all_items_have_four_digits(outcome):
    runs = [outcome("plain", 0, [1, 2, 3, 4], 0.0476), outcome("other", 0, [1, 9, 9, 9], 0.0031)]
    comparison = compare(runs, {})
    comparison["tasks"]["search"]["protocol"] = "full-ranking-unseen"
    tables = comparison_tables(comparison)
    assert "| plain | **.0476** | **.0476** | **.0476** | **.0476** | **.0476** |  |  |" in tables
    # The difference by ranks: (1 + 3 / log2(10)) / 4 - (1 + 1 / log2(3) + 1 / 2 + 1 / log2(5)) / 4
    assert "| other | .0031 | .0031 | .0031 | .0031 | .0031 | -0.1646 (-" in tables


def test_systems_without_identifiers_bring_sizes_times_and_p_values(outcome, tmp_path):
    runs = [
        outcome("GenSAR", 0, [1, 1, 1, 1], 1.0, seconds={"rqvae": 30.0, "model": 60.0}, parameters=1_234_567),
        outcome(
            "BM25", 0, [20, 2, 30, 40], 0.25, row="BM25", identifiers=None, seconds={"training": 0.1}, parameters=0
        ),
    ]
    tables = comparison_tables(compare(runs, {}))
    assert "| GenSAR | **1.000** | **1.000** | **1.000** | **1.000** | **1.000** |  |  | 1.23 M | 1.5 |" in tables
    (row,) = [line for line in tables.splitlines() if line.startswith("| BM25 ")]
    assert row.endswith("| – | < 0.1 |")
    assert "p: paired t-test of NDCG@5 against GenSAR." in tables


def test_the_trade_off_is_drawn_where_systems_do_both_tasks(outcome, tmp_path):
    search = compare([outcome("a", 0, [1, 2, 3, 4], 0.5), outcome("b", 0, [1, 2, 3, 4], 0.5)], {})
    both = {**search, "tasks": {"search": search["tasks"]["search"], "recommendation": search["tasks"]["search"]}}
    for name in both["order"]:
        figures = both["variants"][name]["tasks"]
        figures["recommendation"] = figures["search"]
    del both["variants"]["b"]["tasks"]["search"]  # b becomes a system of one task
    assert [path.name for path in save_figures(search, tmp_path / "one")] == ["ndcg.png", "collisions.png"]
    names = [path.name for path in save_figures(both, tmp_path / "two")]
    assert names == ["ndcg.png", "collisions.png", "trade_off.png"]
