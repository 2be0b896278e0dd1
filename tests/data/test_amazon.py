import gzip
import html
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data import leave_one_out, load_amazon
from gensar_hf.errors import InputError

DAY = 86_400
REVIEWS = [  # user, item, day; the file is sorted by item, as Amazon's are
    ("A1", "B001", 3),
    ("A2", "B001", 1),
    ("A1", "B002", 1),
    ("A1", "B003", 1),
    ("A2", "B003", 5),
    ("A2", "B009", 4),
]
METADATA = [
    {
        "asin": "B003",
        "title": "Lens &amp; Cap, 50mm",
        "brand": "Zorn's",
        "price": 9.99,
        "categories": [["Electronics", "Camera & Photo", "Lenses"], ["Electronics", "Bags"]],
        "related": {"also_bought": ["B001"]},
        "description": 'The "best" lens.\n\nSays   who?',
    },
    {"asin": "B777", "title": "Never reviewed", "categories": [["Electronics"]]},
    {"asin": "B001", "title": "Cable", "imUrl": "http://x/y.jpg", "categories": [["Electronics", "Cables"]]},
    {"price": 1.5, "asin": "B002", "categories": [["Electronics"]], "description": "Only a description"},
]
QUERIES = ["camera lenses", "electronics cables", "bags", "unused"]
TRAIN = ["A1_1 0 B001 1", "A2_1 0 B001 1", "A1_0 0 B003 1", "A1_2 0 B003 1", "A2_0 0 B009 0", "A9_0 0 B001 1"]
TEST = ["A2_2 0 B003 1"]


def write_lines(path, lines):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    return path


def review_line(user, item, day):
    record = {"reviewerID": user, "asin": item, "reviewerName": "n", "helpful": [0, 0], "reviewText": "Good.\nVery."}
    record |= {"overall": 5.0, "summary": "s", "unixReviewTime": day * DAY, "reviewTime": "01 1, 2014"}
    return json.dumps(record)


@pytest.fixture
def folder(tmp_path):
    """A category in the published formats: JSON reviews, metadata as Python literals, queries and relevance."""
    write_lines(tmp_path / "reviews.json.gz", [review_line(*review) for review in REVIEWS])
    write_lines(tmp_path / "meta.json.gz", [repr(entry) for entry in METADATA])
    write_lines(tmp_path / "query_text.txt.gz", QUERIES)
    write_lines(tmp_path / "train.qrels.gz", TRAIN)
    write_lines(tmp_path / "test.qrels.gz", TEST)
    return tmp_path


@pytest.fixture
def load(folder):
    def load(published=False, **options):
        query_dir = folder if published else None
        return load_amazon(folder / "reviews.json.gz", folder / "meta.json.gz", query_dir, **options)

    return load


def rows_of(data):
    frame = data.interactions.assign(day=data.interactions["timestamp"] / DAY)
    return list(frame[["user_id", "item_id", "day", "query"]].itertuples(index=False, name=None))


def test_reviewed_items_with_their_texts(load, caplog):
    with caplog.at_level(logging.WARNING, logger="gensar_hf"):
        data = load(search_fraction=0)
    assert list(data.items.columns) == ["item_id", "title", "brand", "description", "categories"]
    assert list(data.items.itertuples(index=False, name=None)) == [
        ("B001", "Cable", "", "", "Electronics > Cables"),
        ("B002", "", "", "Only a description", "Electronics"),
        (
            "B003", "Lens & Cap, 50mm", "Zorn's", 'The "best" lens. Says who?',
            "Electronics > Camera & Photo > Lenses, Electronics > Bags",
        ),
        ("B009", "", "", "", ""),
    ]  # fmt: skip
    assert data.text_columns == ("title", "brand", "categories", "description")
    assert data.item_texts()[0] == "Cable. Electronics > Cables"
    assert "meta.json.gz does not describe 1 of the 4 reviewed items" in caplog.text
    assert load(text_columns=["title"]).item_texts() == ["Cable", "", "Lens & Cap, 50mm", ""]


def test_reviews_in_the_order_of_time_and_within_a_day_of_the_file(load):
    assert rows_of(load(search_fraction=0)) == [
        ("A1", "B002", 1, ""),
        ("A1", "B003", 1, ""),
        ("A1", "B001", 3, ""),
        ("A2", "B001", 1, ""),
        ("A2", "B009", 4, ""),
        ("A2", "B003", 5, ""),
    ]


def test_queries_from_the_categories_make_searches_of_a_seeded_share(load):
    assert load(search_fraction=1).interactions["query"].tolist() == [
        "electronics",
        "electronics camera photo lenses bags",
        "electronics cables",
        "electronics cables",
        "",
        "electronics camera photo lenses bags",
    ]
    halves = [(load(search_fraction=0.5, seed=seed).interactions["query"] != "").tolist() for seed in (0, 0, 1)]
    assert halves[0] == halves[1]
    assert halves[0] != halves[2]


def test_published_queries_reach_the_reviews_of_their_pairs(load):
    queries = [load(published=True, search_fraction=1, seed=seed).interactions["query"].tolist() for seed in range(10)]
    for answer in queries:
        assert answer[0] == ""
        assert answer[2:] == ["electronics cables", "electronics cables", "", "bags"]
    assert {answer[1] for answer in queries} == {"camera lenses", "bags"}, "one of the pair's two, by the seed"


@pytest.mark.parametrize("published", [False, True])
def test_a_review_as_both_is_a_recommendation_and_a_search(load, published):
    data = load(published=published, reviews_are="both", search_fraction=0)
    searches = load(published=published, search_fraction=1)
    expected = []
    for user, item, day, query in rows_of(searches):
        expected += [(user, item, day, "")] + ([(user, item, day, query)] if query else [])
    assert rows_of(data) == expected
    assert len(expected) == (10 if published else 11)
    events = data.events
    split = leave_one_out(events, min_train_events=0)
    (request,) = np.flatnonzero(split.test["search"].users == events.user_ids.index("A2"))
    history = split.test["search"].history(int(request))
    assert events.item_ids.index("B003") not in events.items[history], "the twin gives the answer away"


@settings(max_examples=10, deadline=None)
@given(text=st.text(max_size=20), as_json=st.booleans(), escaped=st.booleans(), other=st.text(max_size=10))
def test_awkward_texts_survive(tmp_path_factory, text, as_json, escaped, other):
    folder = tmp_path_factory.mktemp("awkward")
    entry = {"asin": "B1", "title": html.escape(text) if escaped else text, "categories": [[other]], "brand": "b"}
    (folder / "reviews").write_text(review_line("A1", "B1", 1))
    (folder / "meta").write_text(f"{json.dumps(entry) if as_json else repr(entry)}\n", encoding="utf-8")
    item = load_amazon(folder / "reviews", folder / "meta", search_fraction=0).items.iloc[0]
    assert item["title"].split() == (text if escaped else html.unescape(text)).split()
    assert item["categories"].split() == html.unescape(other).split()


def test_half_characters_and_repeated_items(folder, load):
    lines = ['{"asin": "B001", "title": "half \\ud83d"}', '{"asin": "B001", "title": "again"}']
    write_lines(folder / "meta.json.gz", lines)
    assert load(search_fraction=0).titles == ["half ?", "", "", ""]


DAMAGE = {
    "reviews.json.gz": [
        ("{'reviewerID': 'A1', 'asin'", "is neither a JSON object nor a Python dictionary"),
        ('["A1"]', "is neither a JSON object nor a Python dictionary"),
        ('{"asin": "B1", "unixReviewTime": 1}', "it has nothing as reviewerID, which must be text"),
        ('{"reviewerID": "A1", "asin": " ", "unixReviewTime": 1}', "it has ' ' as asin"),
        ('{"reviewerID": "A1", "asin": "B1"}', "it has nothing as unixReviewTime, which must be a number of seconds"),
        ('{"reviewerID": "A1", "asin": "B1", "unixReviewTime": NaN}', "it has nan as unixReviewTime"),
    ],
    "meta.json.gz": [
        ("{'asin': 'B001', 'title': open('x')}", "is neither a JSON object nor a Python dictionary"),
        ("{'asin': 'B001', 'title': ['x']}", "it has ['x'] as title, which must be text"),
        ("{'asin': 'B001', 'categories': ['x']}", "it has ['x'] as categories, which must be a list of lists"),
        ("{'asin': 'B001', 'categories': [[1]]}", "it has [[1]] as categories, which must be a list of lists of text"),
        ("{'title': 'no item'}", "it has nothing as asin"),
    ],
    "train.qrels.gz": [
        ("A1_1 0 B001", "is not of the form 'USER_QUERY 0 ITEM LABEL'"),
        ("A1-1 0 B001 1", "is not of the form"),
        ("A1_x 0 B001 1", "is not of the form"),
        ("A1_4 0 B001 1", "the query 4 is not among the 4 lines (from 0) of query_text.txt.gz"),
    ],
}


@pytest.mark.parametrize(("name", "line", "problem"), [(name, *case) for name in DAMAGE for case in DAMAGE[name]])
def test_a_damaged_line_is_named(folder, load, name, line, problem):
    lines = gzip.decompress((folder / name).read_bytes()).decode().splitlines()
    write_lines(folder / name, [lines[0], "", line, *lines[1:]])
    with pytest.raises(InputError) as raised:
        load(published=True)
    message = str(raised.value)
    assert message.startswith(f"{name}, line 3: ")
    assert problem in message
    assert message.endswith("; correct the line, or download the file again.")
    assert len(message.splitlines()) == 1


def test_a_line_of_an_item_without_reviews_is_passed_over(folder, load):
    write_lines(folder / "meta.json.gz", ["{'asin': 'B555', 'title': damaged", *map(repr, METADATA)])
    assert load().items["title"].tolist() == ["Cable", "", "Lens & Cap, 50mm", ""]


def test_damaged_files(folder, load):
    path = folder / "reviews.json.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(InputError, match=r"^reviews\.json\.gz is damaged after line \d+ \(.*\); download it again\.$"):
        load()
    path.write_bytes(gzip.compress(b'{"reviewerID": "\xff"}\n'))
    with pytest.raises(InputError, match=r"^reviews\.json\.gz, line 1: it is not UTF-8 text"):
        load()
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(InputError, match=r"^reviews\.json\.gz holds no reviews; give a file such as"):
        load()
    path.unlink()
    with pytest.raises(InputError, match=r"reviews\.json\.gz does not exist; give the path of a file"):
        load()


def test_files_of_different_categories(folder, load):
    write_lines(folder / "train.qrels.gz", ["A9_0 0 B001 1"])
    write_lines(folder / "test.qrels.gz", [])
    with pytest.raises(InputError, match=r"^train\.qrels\.gz and test\.qrels\.gz name none of the reviews; give the"):
        load(published=True)
    write_lines(folder / "meta.json.gz", [repr(METADATA[1])])
    with pytest.raises(InputError, match=r"^meta\.json\.gz describes none of the 4 reviewed items; give the metadata"):
        load()


def test_impossible_settings(load):
    with pytest.raises(ValueError, match="`reviews_are` must be 'split' or 'both'; got 'all'"):
        load(reviews_are="all")
    with pytest.raises(ValueError, match="from 0 to 1; got 2"):
        load(search_fraction=2)
