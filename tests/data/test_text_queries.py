import doctest
import pickle
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.data import InteractionDataset, text_queries
from gensar_hf.data.text_queries import MISSPELLED_SHARE, TextQueries, misspell, words
from gensar_hf.errors import InputError

TITLES = ["Toy Story", "The Story of Us", "Star Wars", "Star Trek: The Wrath of Khan", "The Wrath", "Schindler's List"]
COLUMNS = {
    "year": ["1995", "1999", "1977", "1982", "", "1993"],
    "genres": ["Animation, Children's, Comedy", "Comedy > Drama", "Sci-Fi|Action", "Sci-Fi; Action", "", "Drama"],
    "description": [
        "A cowboy doll is jealous when a new spaceman figure becomes the favorite toy of his boy.",
        "",
        "Too short.",
        "The crew of the Enterprise fights a genetically engineered tyrant who has escaped from his exile planet.",
        "",
        "A businessman saves the lives of more than a thousand refugees by employing them in his factories.",
    ],
}
TOY_STORY_WORDS = ["cowboy", "doll", "jealous", "new", "spaceman", "figure", "becomes", "favorite", "toy", "boy"]


def films() -> TextQueries:
    return TextQueries(TITLES, COLUMNS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draws(queries: TextQueries, item: int, count: int = 2000, seed: int = 0) -> list[str]:
    generator = rng(seed)
    return [queries.draw(item, generator) for _ in range(count)]


def is_part_of(chosen: list[str], found: list[str]) -> bool:
    """Whether the words are among `found` in this order."""
    rest = iter(found)
    return all(word in rest for word in chosen)


def test_docstring_examples():
    results = doctest.testmod(text_queries)
    assert results.failed == 0
    assert results.attempted == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2001: A Space Odyssey", ["2001", "a", "space", "odyssey"]),
        ("snake_case and-dash", ["snake", "case", "and", "dash"]),
        ("’n’ Rock 'n' Roll's ''", ["n", "rock", "n", "roll's"]),
        ("ÉTÉ Straße e\u0301te\u0301", ["été", "straße", "été"]),
        ("पुरुषों के कपड़े", ["पुरुषों", "के", "कपड़े"]),
        ("千と千尋の神隠し、映画", ["千と千尋の神隠し", "映画"]),
        ("❤️ love \U0001f600", ["love"]),
        ("... & !", []),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_words_of_words_are_the_same(text):
    found = words(text)
    assert words(" ".join(found)) == found


def test_every_error_is_one_of_four_kinds_and_each_is_a_quarter():
    generator, counts = rng(), Counter()
    for _ in range(4000):
        changed = misspell("planet", generator)
        if len(changed) == 5:
            counts["missing"] += 1
            assert any(changed == "planet"[:i] + "planet"[i + 1 :] for i in range(6))
        elif len(changed) == 7:
            counts["doubled"] += 1
            assert any(changed == "planet"[: i + 1] + "planet"[i:] for i in range(6))
        else:
            is_swapped = sorted(changed) == sorted("planet")
            counts["swapped" if is_swapped else "wrong"] += 1
            assert sum(map(str.__ne__, changed, "planet")) == 1 + is_swapped
    assert set(counts) == {"missing", "doubled", "swapped", "wrong"}
    assert all(abs(count / 4000 - 0.25) < 0.03 for count in counts.values())  # more than four standard errors


def test_errors_are_in_a_word_of_at_least_three_letters():
    for seed in range(50):
        first, second, third = misspell("of khan a", rng(seed)).split(" ")
        assert (first, third) == ("of", "a")
        assert second != "khan"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12), st.integers(0, 1000))
def test_a_text_with_a_letter_always_changes_and_any_other_never(text, seed):
    has_letter = any(character.isalnum() for character in text)
    assert (misspell(text, rng(seed)) != text) == has_letter


def test_the_part_is_the_two_rarest_words_in_their_order():
    queries = films()
    # Titles with the word: the 3, star 2, story 2, of 2, wrath 2, us 1, trek 1, khan 1.
    assert [queries.part(item) for item in range(6)] == [
        "toy story", "story us", "star wars", "trek khan", "the wrath", "schindler's list",
    ]  # fmt: skip
    assert TextQueries(["a bb cc d"], {}).part(0) == "bb cc"  # equally rare: the longer ones
    assert TextQueries(["aa bb cc", "Big Big Fish", "!"], {}).part(0) == "aa bb"  # and equally long: the earlier ones
    assert TextQueries(["aa bb cc", "Big Big Fish", "!"], {}).part(1) == "big fish"
    assert TextQueries(["!"], {}).part(0) == ""


def test_attributes_are_one_or_two_values_in_any_order():
    queries, generator = films(), rng()
    seen = Counter(queries.attributes(0, generator) for _ in range(3000))
    single = ["1995", "1990s", "animation", "children's", "comedy"]
    pairs = {f"{a} {b}" for a in single for b in single if a != b} - {"1995 1990s", "1990s 1995"}
    assert set(seen) == {*single, *pairs}
    assert seen["1995"] + seen["1990s"] > 300
    assert {queries.attributes(2, rng(seed)) for seed in range(200)} >= {"sci fi", "action", "1970s", "action sci fi"}
    assert queries.attributes(4, generator) == ""


def test_only_a_column_of_years_has_decades():
    queries = TextQueries(["Lens"], {"model": ["1995"]})
    assert {queries.attributes(0, rng(seed)) for seed in range(20)} == {"1995"}


def test_descriptions_are_content_words_in_order():
    queries = films()
    lengths = Counter()
    for seed in range(200):
        chosen = queries.description(0, rng(seed)).split()
        lengths[len(chosen)] += 1
        assert is_part_of(chosen, TOY_STORY_WORDS)
    assert set(lengths) == {3, 4}
    assert min(lengths.values()) > 60
    assert [queries.description(item, rng()) for item in (1, 2, 4)] == ["", "", ""]


def test_common_words_of_any_language_are_no_content():
    texts = [f"ein kurzer satz über das ding wort{n} und noch ding name{n} oder auch zahl{n}" for n in range(60)]
    queries = TextQueries([str(n) for n in range(60)], {"description": texts})
    for seed in range(20):
        assert queries.description(7, rng(seed)) == "wort7 name7 zahl7"


def test_a_catalogue_of_one_text_column_has_descriptions():
    queries = TextQueries(COLUMNS["description"], {})
    assert is_part_of(queries.description(0, rng()).split(), TOY_STORY_WORDS)
    assert max(len(words(query)) for query in draws(TextQueries(["word " * 100], {}), 0, 200)) == 16


def test_draws_mix_all_kinds():
    drawn = Counter(draws(films(), 3, 20_000))
    for query in ("Star Trek: The Wrath of Khan", "star trek the wrath of khan", "trek khan", "wrath", "star trek"):
        assert drawn[query] > 20
    for query in ("sta", "star tr", "trek star", "sci fi", "1980s action", "star trek sci fi", "khan 1982"):
        assert drawn[query] > 0
    assert any("tyrant" in query and "star" not in query for query in drawn)
    assert "of" not in drawn
    assert "the" not in drawn
    assert "" not in drawn


def test_a_fifth_of_the_draws_is_misspelled():
    drawn = draws(TextQueries(["Khan"], {}), 0, 4000)
    correct = {"Khan", "khan", "kha", "kh"}
    # An error in "khan" can give "kha", so that the share of other words is a little lower.
    share = sum(query not in correct for query in drawn) / 4000
    assert MISSPELLED_SHARE - 0.05 < share < MISSPELLED_SHARE + 0.02


def test_apostrophes_are_typed_half_of_the_time():
    drawn = Counter(draws(films(), 5, 4000))
    assert drawn["schindler's list"] > 100
    assert 0.7 < drawn["schindlers list"] / drawn["schindler's list"] < 1.4


def test_equal_seeds_draw_equal_queries():
    assert draws(films(), 0, 100, seed=3) == draws(pickle.loads(pickle.dumps(films())), 0, 100, seed=3)
    assert draws(films(), 0, 100, seed=3) != draws(films(), 0, 100, seed=4)


@pytest.mark.parametrize(
    ("titles", "columns"),
    [
        (["Solo"], {}),
        (["映画"], {"genres": ["ドラマ、戦争"]}),
        (["of"], {}),
        (["x"], {"year": [""]}),
        (["", "other"], {"brand": ["Acme", ""]}),
        (["!"], {"description": [COLUMNS["description"][0]]}),
    ],
)
def test_every_item_with_a_word_has_queries(titles, columns):
    assert all(draws(TextQueries(titles, columns), 0, 300))


def test_an_item_without_words_has_none():
    queries = TextQueries(["...", "a word"], {"genres": ["", "Drama"]})
    assert set(draws(queries, 0, 100)) == {""}
    assert [queries.title(0), queries.part(0), queries.attributes(0, rng())] == [""] * 3


def test_columns_of_a_dataset():
    clicks = pd.DataFrame({"user_id": "u", "item_id": ["a", "b"], "timestamp": [1, 2]})
    items = pd.DataFrame({"item_id": ["a", "b"], "title": ["Red", "Blue"], "genres": ["Drama", None], "note": "x"})
    queries = TextQueries.of_dataset(InteractionDataset(items, clicks))
    assert list(queries.titles) == ["Red", "Blue"]
    assert {name: list(texts) for name, texts in queries.columns.items()} == {"genres": ["Drama", ""]}
    named = TextQueries.of_dataset(InteractionDataset(items.rename(columns={"title": "name"}), clicks))
    assert list(named.titles) == ["Red", "Blue"]
    assert list(named.columns["genres"]) == ["Drama", ""]


def test_a_column_of_another_length_is_refused():
    with pytest.raises(InputError, match="The column genres has 1 texts for 2 items"):
        TextQueries(["a", "b"], {"genres": ["Drama"]})
