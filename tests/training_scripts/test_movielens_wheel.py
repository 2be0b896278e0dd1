"""MovieLens-100k out of RecBole's wheel."""

import hashlib
import subprocess
import zipfile

import movielens_wheel
import pytest
from movielens_wheel import FILES, WHEEL_NAME, fetch_movielens_100k

from gensar_hf.data import SEARCH, load_movielens_100k, training_mask
from gensar_hf.errors import InputError


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel like RecBole's, with its checksum expected."""
    path = tmp_path / "wheel" / WHEEL_NAME
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name in FILES:
            archive.writestr(f"recbole/dataset_example/ml-100k/{name}", f"content of {name}")
    monkeypatch.setattr(movielens_wheel, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def pip_calls(monkeypatch):
    """Replaces pip: each call takes the next of the prepared answers, (exit status, stderr, file to deliver)."""
    calls, answers = [], []

    def run(command, **options):
        calls.append(command)
        status, stderr, delivered = answers.pop(0)
        if delivered is not None:
            with open(f"{command[command.index('--dest') + 1]}/{WHEEL_NAME}", "wb") as file:
                file.write(delivered)
        return subprocess.CompletedProcess(command, status, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls, answers


def test_the_wheel_is_downloaded_once_and_a_present_one_is_read(wheel, pip_calls, tmp_path):
    calls, answers = pip_calls
    answers.append((0, "", wheel.read_bytes()))
    folders = [fetch_movielens_100k(tmp_path / "cache") for _ in range(2)] + [fetch_movielens_100k(wheel.parent)]
    assert len(calls) == 1
    assert calls[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    assert calls[0][-1] == "recbole==1.2.1"
    for folder in folders:
        assert {path.name: path.read_text() for path in folder.iterdir()} == {n: f"content of {n}" for n in FILES}


def test_a_failed_download_says_why_and_what_to_do(wheel, pip_calls, tmp_path):
    pip_calls[1].append((1, "noise\nERROR: No matching distribution found", None))
    with pytest.raises(InputError, match=r"\(ERROR: No matching distribution found\); pass a folder with GroupLens'"):
        fetch_movielens_100k(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_wheel_with_another_content_is_refused(wheel, pip_calls, tmp_path):
    pip_calls[1].append((0, "", b"something else"))
    with pytest.raises(InputError, match=r"SHA-256 .* instead of .*delete it and try again"):
        fetch_movielens_100k(tmp_path / "cache")
    wheel.write_bytes(b"damaged later")
    with pytest.raises(InputError, match="SHA-256"):
        fetch_movielens_100k(wheel.parent)
    assert len(pip_calls[0]) == 1


@pytest.mark.slow
def test_the_real_data():
    data = load_movielens_100k(fetch_movielens_100k())
    assert repr(data) == "InteractionDataset(943 users, 1,682 items, 100,000 interactions, 354 queries)"
    assert abs((data.interactions["query"] != "").mean() - 0.4) < 0.01
    assert int(training_mask(data.split).sum()) == 129_792
    assert [len(requests) for requests in data.split.test.values()] == [943, 943]
    assert int((data.events.behaviors == 1).sum()) == 39_158
    assert len(data.split.test[SEARCH].query_texts) == 943
