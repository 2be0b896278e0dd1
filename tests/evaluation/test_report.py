import builtins
import io
import logging

import pytest
from rich.console import Console

from gensar_hf.evaluation.comparison import compare
from gensar_hf.evaluation.metrics import METRICS
from gensar_hf.evaluation.plots import plot_comparison, plot_metrics
from gensar_hf.evaluation.report import (
    Table,
    cold_start_tables,
    comparison_tables,
    describe_protocol,
    example_tables,
    group_tables,
    markdown,
    metrics_tables,
    stage_table,
    terminal,
)


def system_values(value):
    return {name: {"value": value, "low": max(value - 0.03, 0), "high": min(value + 0.032, 1)} for name in METRICS}


@pytest.fixture
def metrics():
    return {
        "confidence": 0.95,
        "num_resamples": 1000,
        "seed": 0,
        "systems": ["GenSAR", "SASRec", "BM25", "Broken"],
        "failures": {"Broken": {"search": "RuntimeError: no memory [left]"}},
        "empty_tasks": [],
        "tasks": {
            "recommendation": {
                "protocol": "random-99",
                "num_requests": 943,
                "num_users": 943,
                "num_candidates": 100,
                "systems": {"SASRec": system_values(0.5834), "GenSAR": system_values(0.575)},
            },
            "search": {
                "protocol": "bm25-hard-99",
                "num_requests": 1943,
                "num_users": 943,
                "num_candidates": 100,
                "systems": {"BM25": system_values(0.2), "GenSAR": system_values(1.0)},
            },
        },
    }


def test_markdown_has_a_table_per_protocol_with_the_best_in_bold(metrics):
    blocks = markdown(metrics_tables(metrics)).split("\n\n")
    assert blocks[0] == (
        "**Recommendation: the target against 99 random items its user has not interacted with "
        "(random-99, 100 candidates, 943 requests)**"
    )
    assert blocks[1].splitlines() == [
        "| System | HR@1 | HR@5 | HR@10 | NDCG@5 | NDCG@10 |",
        "| --- |" + " ---: |" * 5,
        "| GenSAR |" + " .575 ± .031 |" * 5,
        "| SASRec |" + " **.583 ± .031** |" * 5,
    ]
    assert "(bm25-hard-99, 100 candidates, 1,943 requests)" in blocks[2]
    assert blocks[3].splitlines()[2:] == ["| GenSAR |" + " **1.000 ± .015** |" * 5, "| BM25 |" + " .200 ± .031 |" * 5]
    assert "95% bootstrap interval over users (1,000 resamples)" in blocks[4]
    assert blocks[5] == "Broken failed in search: RuntimeError: no memory [left]\n"


def test_values_that_look_equal_are_both_best(metrics):
    metrics["tasks"]["recommendation"]["systems"]["GenSAR"] = system_values(0.5831)
    assert markdown(metrics_tables(metrics)).count("**.583 ± .031**") == 2 * len(METRICS)


def test_a_task_without_requests_is_named(metrics):
    del metrics["tasks"]["search"]
    metrics["empty_tasks"] = ["search"]
    assert "Search: there are no requests to evaluate." in markdown(metrics_tables(metrics))


def test_a_task_that_no_system_could_do_has_an_empty_table(metrics):
    metrics["tasks"]["search"]["systems"] = {}
    assert "| System |" in markdown(metrics_tables(metrics))
    assert [len(table.rows) for table in metrics_tables(metrics)] == [2, 0]


def test_terminal_table_fits_120_columns(metrics):
    metrics["systems"].append("Dense retrieval, all-MiniLM-L6-v2 [384 dimensions]")
    metrics["tasks"]["search"]["systems"][metrics["systems"][-1]] = system_values(0.3)
    text = io.StringIO()
    Console(file=text, width=200).print(terminal(metrics_tables(metrics)))
    lines = text.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 120
    assert text.getvalue().count(".583 ± .031") == text.getvalue().count("1.000 ± .015") == len(METRICS)
    joined = " ".join(" ".join(lines).split())
    for part in ("random-99, 100 candidates, 943 requests", "bm25-hard-99", "no memory [left]", "[384"):
        assert part in joined


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        (
            "bm25-hard(title, year-made)-9",
            "the target against the 9 best BM25 hits for the query in the columns title, year-made that are not the "
            "target",
        ),
        ("random-37", "the target against 37 random items its user has not interacted with"),
        ("full-ranking", "the target among all items"),
        ("full-ranking-unseen", "the target among all items that its user's history does not hold"),
        ("by-hand-5", "protocol by-hand-5"),
    ],
)
def test_protocols_in_words(protocol, words):
    assert describe_protocol(protocol) == words


def test_without_matplotlib_there_is_no_plot(metrics, tmp_path, monkeypatch, caplog):
    true_import = builtins.__import__

    def import_all_but_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_all_but_matplotlib)
    with caplog.at_level(logging.WARNING):
        plot_metrics(metrics, tmp_path / "figure.png")
    assert "matplotlib is not installed" in caplog.text
    assert list(tmp_path.iterdir()) == []


# ---- comparisons


def test_tables_and_figures_show_every_variant_and_every_failure(run_result, tmp_path):
    comparison = compare([run_result("plain", 0, [1, 2, 3, 4], 0.5)], {"broken, seed 0": "no codes."})
    tables = markdown(comparison_tables(comparison))
    assert "| plain | 2 (1) | 0.500 / 0.500 | 1.00% / 1.00% | 0% | 25.00% | 75% | 50% | 2.0 |" in tables
    assert "| plain |" + " **.500** |" * 6 + "  |  |" in tables
    assert "broken, seed 0 failed: no codes." in tables
    plot_comparison(comparison, tmp_path)
    assert (tmp_path / "ndcg.png").read_bytes().startswith(b"\x89PNG")


def test_figures_among_all_items_have_four_digits(run_result):
    runs = [run_result("plain", 0, [1, 2, 3, 4], 0.0476), run_result("other", 0, [1, 9, 9, 9], 0.0031)]
    comparison = compare(runs, {})
    comparison["tasks"]["search"]["protocol"] = "full-ranking-unseen"
    tables = markdown(comparison_tables(comparison))
    assert "| plain |" + " **.0476** |" * 6 + "  |  |" in tables
    # The difference by ranks: (1 + 3 / log2(10)) / 4 - (1 + 1 / log2(3) + 1 / 2 + 1 / log2(5)) / 4
    assert "| other |" + " .0031 |" * 6 + " -0.1646 (-" in tables


def test_systems_without_identifiers_bring_sizes_times_and_p_values(run_result, tmp_path):
    runs = [
        run_result("GenSAR", 0, [1, 1, 1, 1], 1.0, seconds={"rqvae": 30.0, "model": 60.0}, parameters=1_234_567),
        run_result(
            "BM25", 0, [20, 2, 30, 40], 0.25, row="BM25", identifiers=None, seconds={"training": 0.1}, parameters=0
        ),
    ]
    tables = markdown(comparison_tables(compare(runs, {})))
    assert "| GenSAR |" + " **1.000** |" * 6 + "  |  | 1.23 M | 1.5 |" in tables
    (row,) = [line for line in tables.splitlines() if line.startswith("| BM25 ")]
    assert row.endswith("| – | < 0.1 |")
    assert "p: paired t-test of NDCG@5 against GenSAR, corrected for the tests of the table (Holm)." in tables


def test_the_memory_of_a_system_is_the_most_of_its_seeds_and_is_shown_where_it_is_known_for_all(run_result):
    runs = [
        run_result("GenSAR", 0, [1, 1, 1, 1], 1.0, identifiers=None, memory=2**30),
        run_result("GenSAR", 1, [1, 1, 1, 1], 1.0, identifiers=None, memory=3 * 2**29),
        run_result("BM25", 0, [20, 2, 30, 40], 0.25, row="BM25", identifiers=None, memory=2**29),
        run_result("QEM", 0, [20, 2, 30, 40], 0.25, row="QEM", identifiers=None),
    ]
    header, _, *rows = markdown(comparison_tables(compare(runs[:3], {}))).splitlines()[2:6]
    assert header.endswith("| minutes | memory |")
    assert [row.split(" | ")[-1] for row in rows] == ["1.5 GiB |", "0.5 GiB |"]
    assert "memory" not in markdown(comparison_tables(compare(runs, {})))


def test_p_values_are_corrected_for_the_number_of_systems(run_result):
    """Two systems with the same ranks have the same p-value, which two tests double."""
    ranks = {"GenSAR": [1, 1, 1, 2], "first": [3, 5, 4, 4], "second": [3, 5, 4, 4]}
    alone, both = (
        comparison_tables(compare([run_result(f"{name}{len(names)}", 0, ranks[name], 0.5) for name in names], {}))
        for names in (["GenSAR", "first"], list(ranks))
    )
    p_of = {row[0]: float(row[-1]) for table in (alone, both) for row in table[-1].rows if row[-1]}
    assert p_of["first3"] == p_of["second3"] == pytest.approx(2 * p_of["first2"], abs=1e-3)


def test_the_trade_off_is_drawn_where_systems_do_both_tasks(run_result, tmp_path):
    search = compare([run_result("a", 0, [1, 2, 3, 4], 0.5), run_result("b", 0, [1, 2, 3, 4], 0.5)], {})
    both = {**search, "tasks": {"search": search["tasks"]["search"], "recommendation": search["tasks"]["search"]}}
    for name in both["order"]:
        figures = both["variants"][name]["tasks"]
        figures["recommendation"] = figures["search"]
    del both["variants"]["b"]["tasks"]["search"]  # b becomes a system of one task
    plot_comparison(both, tmp_path / "plots")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["ndcg.png", "trade_off.png"]


# ---- other tables


def test_no_text_is_markup_in_the_terminal():
    text = io.StringIO()
    words = ["[/] film", "[/b] user", "**[red]**", "back\\", "**[/x] [bold**"]
    Console(file=text, width=80).print(Table(words, [words], words[0], words[1]).terminal())
    for word in words:
        assert word.strip("*") in text.getvalue()


def test_cells_are_escaped_in_both_forms():
    table = Table(["Name", "a|b"], [["x|y [z]", "**.5** ± .1"]], "A [caption]", "A note.")
    assert (
        table.markdown()
        == "**A [caption]**\n\n| Name | a\\|b |\n| --- | ---: |\n| x\\|y [z] | **.5** ± .1 |\n\nA note."
    )
    text = io.StringIO()
    Console(file=text, width=80).print(table.terminal())
    for part in ("A [caption]", "x|y [z]", ".5 ± .1", "A note."):
        assert part in text.getvalue()
    assert "**" not in text.getvalue()


def test_group_tables_have_each_group_with_its_difference():
    def values(value):
        return {metric: {"value": value, "low": value - 0.05, "high": value + 0.15} for metric in METRICS}

    group = {
        "protocol": "random-99", "num_requests": 1234, "num_items": 5, "num_users": 67,
        "systems": {"before": values(0.25), "after": values(0.5)}, "difference": values(0.25),
    }  # fmt: skip
    result = {
        "systems": ["before", "after"], "groups": ["known items", "new items"],
        "tasks": {"recommendation": {"new items": group}, "search": {}},
    }  # fmt: skip
    (table,) = group_tables(result)
    assert "(random-99)**" in table.markdown()
    assert [list(row[:2]) for row in table.rows] == [
        ["new items (1,234 requests, 5 items, 67 users)", ""],
        ["before", ".250 ± .100"],
        ["after", ".500 ± .100"],
        ["difference", "+0.250 (+0.200 … +0.400)"],
    ]


def test_cold_start_tables_have_candidates_and_the_whole_catalogue():
    reach = {f"{what}@{depth}": 0.5 for what in ("requests", "items", "places") for depth in (10, 100)}
    task = {
        "protocol": "random-9", "num_requests": 7, "num_items": 2,
        "systems": {"GenSAR": system_values(0.5), "Chance": {metric: {"value": 0.1} for metric in METRICS}},
        "known_items": system_values(0.75), "whole_catalogue": {"New": reach},
    }  # fmt: skip
    result = {
        "num_known_items": 6,
        "num_new_items": 2,
        "titles": {"HR@1": 0.5, "HR@10": 1.0},
        "tasks": {"search": task},
    }
    titles, ranked, reached = cold_start_tables(result)
    assert (titles.header, titles.rows) == (["HR@1", "HR@10"], [[".500", "1.000"]])
    assert ranked.caption.startswith("Search of 2 new items: the target against 9 random items")
    assert [row[1] for row in ranked.rows] == [".500 ± .031", ".100"]
    assert "HR@1 .750 ± .031" in ranked.note
    assert reached.rows == [["New", *["50.0%"] * 6]]
    assert "25.0% of the catalogue" in reached.note


def test_stage_table_adds_up_the_new_stages():
    collisions = {"collision_rate_before": 0.0123, "collision_rate_after": 0.0}
    stages = {"data": (5.0, True, {"items": 1682}), "rqvae": (2.0, False, {"loss": 0.5, "semantic": collisions})}
    assert stage_table(stages).rows == [
        ["data", "5.0 (earlier)", "items 1,682"],
        ["rqvae", "2.0", "loss 0.500, semantic collisions 1.23% → 0.00%"],
        ["total", "2.0", ""],
    ]


def test_example_tables_show_history_and_answers_in_titles(events_pipe, tiny_split):
    history, recommended, found, suggested = example_tables(events_pipe, tiny_split.test["search"])
    assert history.caption == "User ann, the last 8 of 8 events"
    assert list(history.rows[:2]) == [["Toy Story", ""], ["(search)", "comedy 1990s"]]
    assert recommended.caption == "recommend(history, top_k=5, exclude_seen=True)"
    assert len(recommended.rows) == len(found.rows) == 5
    assert found.note == "The user clicked: Casablanca"
    assert suggested.header[0] == "Result"
    assert len(example_tables(events_pipe, tiny_split.test["recommendation"])) == 2
