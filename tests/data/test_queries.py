import doctest

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data import assign_search_clicks, load_log, queries, query_from_categories
from gensar_hf.errors import InputError


def test_docstring_examples():
    results = doctest.testmod(queries)
    assert results.failed == 0
    assert results.attempted == 2


@pytest.mark.parametrize(
    ("categories", "query"),
    [
        ("Beauty | Hair Care | Styling Tools | Hot-Air Brushes", "beauty hair care styling tools hot air brushes"),
        ("Beauty > Fragrance > Women's > Eau de Parfum", "beauty fragrance womens eau de parfum"),
        ("Toys & Games > Games for the Family", "toys games family"),
        ([["Beauty", "Hair Care"], ["Beauty", "Skin Care"]], "beauty hair care skin"),
        (np.array(["Film-Noir", "1940s"]), "film noir 1940s"),
        ("Kühl > Été", "kühl été"),
        ("पुरुषों > कपड़े", "पुरुषों कपड़े"),
        ("", ""),
        ("And > The", ""),
        ([], ""),
    ],
)
def test_query_of_a_category_path(categories, query):
    assert query_from_categories(categories) == query


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_queries_are_lower_case_without_repeats_and_stable(names):
    query = query_from_categories(names)
    words = query.split()
    assert len(words) == len(set(words))
    assert query == " ".join(words)
    assert not set(words) & queries.STOP_WORDS
    assert query_from_categories(query) == query


def make_log(num_clicks: int = 2000):
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "title": "t", "categories": ["Hair Care", "Soap", None]})
    interactions = pd.DataFrame(
        {
            "user_id": [f"u{row % 7}" for row in range(num_clicks)],
            "item_id": [("a", "b", "c")[row % 3] for row in range(num_clicks)],
            "timestamp": range(num_clicks),
            "query": ["typed" if row % 10 == 0 else "" for row in range(num_clicks)],
        }
    )
    return load_log(items, interactions)


def test_a_share_of_the_clicks_carries_the_query_of_its_item():
    log = make_log()
    searched = assign_search_clicks(log, fraction=0.4, seed=3)
    had_query = log.interactions["query"] != ""
    assert (searched.interactions["query"][had_query] == "typed").all()
    for item, query in (("a", "hair care"), ("b", "soap"), ("c", "")):
        drawn = searched.interactions["query"][~had_query & (log.interactions["item_id"] == item)]
        assert set(drawn) == {"", query}
        if query:
            assert abs((drawn == query).mean() - 0.4) < 0.08  # 600 draws: four standard errors
    same = [column for column in searched.interactions if column != "query"]
    pd.testing.assert_frame_equal(searched.interactions[same], log.interactions[same])


def test_the_draw_depends_on_the_seed_alone():
    log = make_log(300)
    first, again, other = (assign_search_clicks(log, 0.4, seed).interactions["query"] for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


def test_the_fate_of_a_row_does_not_depend_on_other_rows():
    log = make_log(300)
    changed = log.interactions.copy()
    changed.loc[200:, ["user_id", "item_id"]] = ["somebody", "b"]
    other = type(log)(log.items, changed, log.text_columns)
    one, two = (assign_search_clicks(entry, 0.4, 5).interactions["query"][:200] for entry in (log, other))
    assert one.equals(two)


@pytest.mark.parametrize("fraction", [0, 1])
def test_none_and_all(fraction):
    log = make_log(30)
    queries_after = assign_search_clicks(log, fraction).interactions["query"]
    has_categories = log.interactions["item_id"] != "c"
    expected = (log.interactions["query"] != "") | (has_categories & (fraction == 1))
    assert ((queries_after != "") == expected).all()


def test_refusals():
    with pytest.raises(ValueError, match="from 0 to 1; got 40"):
        assign_search_clicks(make_log(30), 40)
    with pytest.raises(
        InputError, match="no column genre, which queries are made from, only item_id, title, categories"
    ):
        assign_search_clicks(make_log(30), 0.4, category_column="genre")


def test_lists_of_categories_that_are_no_text_column_work():
    items = pd.DataFrame({"item_id": ["a", "b"], "title": "t", "paths": [["Hair", "Care"], None]})
    log = load_log(items, pd.DataFrame({"user_id": "u", "item_id": ["a", "b"], "timestamp": [1, 2]}), ["title"])
    searched = assign_search_clicks(log, 1.0, category_column="paths")
    assert searched.interactions["query"].tolist() == ["hair care", ""]
