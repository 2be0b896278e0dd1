import builtins
import io
import logging

import pytest
from rich.console import Console

from gensar_hf.evaluation.metrics import METRICS
from gensar_hf.evaluation.report import describe_protocol, markdown_report, save_figure, terminal_table


def system_figures(value):
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
                "systems": {"SASRec": system_figures(0.5834), "GenSAR": system_figures(0.575)},
            },
            "search": {
                "protocol": "bm25-hard-99",
                "num_requests": 1943,
                "num_users": 943,
                "num_candidates": 100,
                "systems": {"BM25": system_figures(0.2), "GenSAR": system_figures(1.0)},
            },
        },
    }


def test_markdown_has_a_table_per_protocol_with_the_best_in_bold(metrics):
    blocks = markdown_report(metrics).split("\n\n")
    assert blocks[0] == (
        "**Recommendation: the target against 99 random items its user has not interacted with "
        "(random-99, 100 candidates, 943 requests)**"
    )
    assert blocks[1].splitlines() == [
        "| System | HR@1 | HR@5 | HR@10 | NDCG@5 | NDCG@10 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| GenSAR |" + " .575 ± .031 |" * 5,
        "| SASRec |" + " **.583 ± .031** |" * 5,
    ]
    assert "(bm25-hard-99, 100 candidates, 1,943 requests)" in blocks[2]
    assert blocks[3].splitlines()[2:] == ["| GenSAR |" + " **1.000 ± .015** |" * 5, "| BM25 |" + " .200 ± .031 |" * 5]
    assert "95% bootstrap interval over users (1,000 resamples)" in blocks[4]
    assert blocks[5] == "Broken failed in search: RuntimeError: no memory [left]\n"


def test_values_that_look_equal_are_both_best(metrics):
    metrics["tasks"]["recommendation"]["systems"]["GenSAR"] = system_figures(0.5831)
    assert markdown_report(metrics).count("**.583 ± .031**") == 2 * len(METRICS)


def test_a_task_without_requests_is_named(metrics):
    del metrics["tasks"]["search"]
    metrics["empty_tasks"] = ["search"]
    assert "Search: there are no requests to evaluate." in markdown_report(metrics)


def test_a_task_that_no_system_could_do_has_an_empty_table(metrics, tmp_path):
    metrics["tasks"]["search"]["systems"] = {}
    assert "| System |" in markdown_report(metrics)
    assert terminal_table(metrics).row_count == 4
    save_figure(metrics, tmp_path / "figure.png")  # draws an empty panel, or nothing without matplotlib


def test_terminal_table_fits_120_columns(metrics):
    metrics["systems"].append("Dense retrieval, all-MiniLM-L6-v2 [384 dimensions]")
    metrics["tasks"]["search"]["systems"][metrics["systems"][-1]] = system_figures(0.3)
    text = io.StringIO()
    Console(file=text, width=200).print(terminal_table(metrics))
    lines = text.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 120
    assert text.getvalue().count(".583 ± .031") == text.getvalue().count("1.000 ± .015") == len(METRICS)
    joined = " ".join(" ".join(lines).split())
    for part in ("random-99, 100 candidates, 943 requests", "bm25-hard-99", "no memory [left]", "[384"):
        assert part in joined


def test_only_the_best_values_are_bold(metrics):
    text = io.StringIO()
    Console(file=text, width=120, force_terminal=True, color_system="standard", legacy_windows=False).print(
        terminal_table(metrics)
    )
    assert "\x1b[1m.583 ± .031\x1b[0m" in text.getvalue()
    assert "\x1b[1m.575 ± .031\x1b[0m" not in text.getvalue()


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("random-37", "the target against 37 random items its user has not interacted with"),
        ("full-ranking", "the target among all items"),
        ("full-ranking-unseen", "the target among all items that its user's history does not hold"),
        ("by-hand-5", "protocol by-hand-5"),
    ],
)
def test_protocols_in_words(protocol, words):
    assert describe_protocol(protocol) == words


def test_figure_is_a_png(metrics, tmp_path):
    pytest.importorskip("matplotlib")
    assert save_figure(metrics, tmp_path / "figures" / "ndcg.png")
    assert (tmp_path / "figures" / "ndcg.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_figure_is_left_out(metrics, tmp_path, monkeypatch, caplog):
    true_import = builtins.__import__

    def import_all_but_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_all_but_matplotlib)
    with caplog.at_level(logging.WARNING):
        assert not save_figure(metrics, tmp_path / "figure.png")
    assert "matplotlib is not installed" in caplog.text
    assert list(tmp_path.iterdir()) == []
