import doctest

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data import InteractionDataset, queries, query_from_categories
from gensar_hf.data.queries import assign_search_clicks
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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_queries_are_lower_case_without_repeats_and_stable(names):
    query = query_from_categories(names)
    words = query.split()
    assert len(words) == len(set(words))
    assert query == " ".join(words)
    assert not set(words) & queries.STOP_WORDS
    assert query_from_categories(query) == query


ITEMS = pd.DataFrame({"item_id": ["a", "b", "c"], "title": "t", "categories": ["Hair Care", "Soap", None]})


def make_rows(num_clicks: int = 2000) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": [f"u{row % 7}" for row in range(num_clicks)],
            "item_id": [("a", "b", "c")[row % 3] for row in range(num_clicks)],
            "timestamp": range(num_clicks),
            "query": ["typed" if row % 10 == 0 else "" for row in range(num_clicks)],
        }
    )


def test_a_share_of_the_clicks_carries_the_query_of_its_item():
    rows = make_rows()
    searched = assign_search_clicks(ITEMS, rows, fraction=0.4, seed=3)
    had_query = rows["query"] != ""
    assert (searched["query"][had_query] == "typed").all()
    for item, query in (("a", "hair care"), ("b", "soap"), ("c", "")):
        drawn = searched["query"][~had_query & (rows["item_id"] == item)]
        assert set(drawn) == {"", query}
        if query:
            assert abs((drawn == query).mean() - 0.4) < 0.08  # 600 draws: four standard errors
    same = [column for column in searched if column != "query"]
    pd.testing.assert_frame_equal(searched[same], rows[same])


def test_the_draw_depends_on_the_seed_and_on_no_other_row():
    rows = make_rows(300)
    first, again, other = (assign_search_clicks(ITEMS, rows, 0.4, seed)["query"] for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
    changed = rows.copy()
    changed.loc[200:, ["user_id", "item_id"]] = ["somebody", "b"]
    assert assign_search_clicks(ITEMS, changed, 0.4, 1)["query"][:200].equals(first[:200])


def test_refusals():
    with pytest.raises(ValueError, match="from 0 to 1; got 40"):
        assign_search_clicks(ITEMS, make_rows(30), 40)
    with pytest.raises(
        InputError, match="no column genre, which queries are made from, only item_id, title, categories"
    ):
        assign_search_clicks(ITEMS, make_rows(30), 0.4, category_column="genre")


def test_lists_of_categories_that_are_not_a_text_column():
    items = pd.DataFrame({"item_id": ["a", "b"], "title": "t", "paths": [["Hair", "Care"], None]})
    rows = pd.DataFrame({"user_id": "u", "item_id": ["a", "b"], "timestamp": [1, 2]})
    data = InteractionDataset(items, rows, text_columns=["title"], search_fraction=1.0, category_column="paths")
    assert data.interactions["query"].tolist() == ["hair care", ""]
