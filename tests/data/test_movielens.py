import doctest

import pytest

from gensar_hf.data import load_movielens_100k, movielens
from gensar_hf.data.movielens import GENRES, tidy_title
from gensar_hf.errors import InputError

FILMS = [  # number, title, year, release date, genres
    ("1", "Toy Story", "1995", "01-Jan-1995", ["Animation", "Children's", "Comedy"]),
    ("64", "Shawshank Redemption, The", "1994", "01-Jan-1994", ["Drama"]),
    ("267", "unknown", "", "", ["unknown"]),
    ("543", "Misérables, Les", "1995", "01-Jan-1995", ["Drama", "Musical"]),
    ("1412", "Land Before Time III", "1995", "01-Jan-1995", ["Animation", "Children's"]),
    ("999", 'Say "Hi" (Salut, Le)', "2000", "", ["Film-Noir", "Sci-Fi"]),
]
RATINGS = [("196", "1", "3", "881250949"), ("22", "64", "1", "878887116"), ("196", "543", "5", "881250900")]


@pytest.fixture
def grouplens_folder(tmp_path):
    folder = tmp_path / "grouplens"
    folder.mkdir()
    lines = []
    for number, title, year, date, genres in FILMS:
        full = f"{title} ({year})" if year else title
        full += " (V)" if number == "1412" else ""
        flags = ["1" if genre in genres else "0" for genre in GENRES]
        lines.append("|".join([number, full, date, "", "http://us.imdb.com/x", *flags]))
    (folder / "u.item").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    (folder / "u.data").write_text("".join("\t".join(rating) + "\n" for rating in RATINGS))
    return folder


@pytest.fixture
def recbole_folder(tmp_path):
    folder = tmp_path / "recbole"
    folder.mkdir()
    odd = {"267": ("unkonwn", "unkonwn"), "1412": ("Land Before Time III (1995)", "V")}
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for number, title, year, _, genres in FILMS:
        items.append("\t".join([number, *odd.get(number, (title, year)), " ".join(genres)]))
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *map("\t".join, RATINGS)]
    (folder / "ml-100k.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    (folder / "ml-100k.inter").write_text("\n".join(ratings) + "\n", encoding="utf-8")
    return folder


def test_docstring_examples():
    results = doctest.testmod(movielens)
    assert (results.failed, results.attempted) == (0, 1)


@pytest.mark.parametrize("source", ["grouplens_folder", "recbole_folder"])
def test_both_formats_give_the_same_dataset(request, source):
    data = load_movielens_100k(request.getfixturevalue(source), search_fraction=0)
    assert list(data.items.itertuples(index=False, name=None)) == [
        ("1", "Toy Story", "1995", "Animation, Children's, Comedy", "Animation > Children's > Comedy > 1990s"),
        ("64", "The Shawshank Redemption", "1994", "Drama", "Drama > 1990s"),
        ("267", "unknown", "", "", ""),
        ("543", "Les Misérables", "1995", "Drama, Musical", "Drama > Musical > 1990s"),
        ("1412", "Land Before Time III", "1995", "Animation, Children's", "Animation > Children's > 1990s"),
        ("999", 'Say "Hi" (Le Salut)', "2000", "Film-Noir, Sci-Fi", "Film-Noir > Sci-Fi > 2000s"),
    ]
    assert list(data.items.columns) == ["item_id", "title", "year", "genres", "categories"]
    assert data.text_columns == ("title", "year", "genres")
    assert data.item_texts()[:3] == [
        "Toy Story. 1995. Animation, Children's, Comedy", "The Shawshank Redemption. 1994. Drama", "unknown"
    ]  # fmt: skip
    assert list(data.interactions.itertuples(index=False, name=None)) == [
        ("196", "543", 881250900.0, ""),
        ("196", "1", 881250949.0, ""),
        ("22", "64", 878887116.0, ""),
    ]


def test_searches_carry_genres_and_decade(grouplens_folder):
    data = load_movielens_100k(grouplens_folder, search_fraction=1)
    assert data.interactions["query"].tolist() == [
        "drama musical 1990s",
        "animation childrens comedy 1990s",
        "drama 1990s",
    ]


@pytest.mark.parametrize(
    ("title", "tidy"),
    [
        ("Star Maker, The (Uomo delle stelle, L') (1995)", "The Star Maker (L'Uomo delle stelle)"),
        ("Enfer, L' (1994)", "L'Enfer"),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly"),
        ("Paris, Texas (1984)", "Paris, Texas"),
        ("Maybe, Maybe Not (Bewegte Mann, Der) (1994)", "Maybe, Maybe Not (Der Bewegte Mann)"),
        ("Land Before Time III: The Great Giving (1995) (V)", "Land Before Time III: The Great Giving"),
        ("1-900 (1994)", "1-900"),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey"),
    ],
)  # fmt: skip
def test_titles_are_tidied(title, tidy):
    assert tidy_title(title) == tidy


def test_a_folder_without_the_files(tmp_path):
    with pytest.raises(InputError, match=r"holds neither u\.data and u\.item nor .*a folder with GroupLens'"):
        load_movielens_100k(tmp_path)


def test_a_file_of_another_kind(recbole_folder):
    (recbole_folder / "ml-100k.item").write_bytes(b"header\n\xff\xfe")
    with pytest.raises(InputError, match=r"^ml-100k\.item is not the file of MovieLens-100k .*; pass a folder with"):
        load_movielens_100k(recbole_folder)


def test_a_short_row_is_refused_by_its_number(grouplens_folder):
    path = grouplens_folder / "u.data"
    path.write_bytes(path.read_bytes() + b"1\t2\n")
    with pytest.raises(
        InputError, match=r"^u\.data is not the file of MovieLens-100k \(number of cells in row \d+: 2, "
    ):
        load_movielens_100k(grouplens_folder)
