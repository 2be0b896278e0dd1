"""Tables as people have them: folders and patterns of parts, URLs, streams."""

from pathlib import Path

import datasets
import fsspec
import pandas as pd
import pytest

from gensar_hf.data import InteractionDataset
from gensar_hf.errors import InputError

ITEMS = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["Lip balm", "Cream", "Soap"]})
CLICKS = pd.DataFrame(
    {"user_id": ["v", "u", "u", "u"], "item_id": ["a", "c", "b", "a"], "timestamp": [9, 3, 2, 1], "query": [None] * 4}
)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """The clicks as Spark writes them, in folders by day, with its marks beside the parts."""
    folder = tmp_path / "clicks.parquet"
    for number, day in enumerate(("day=1", "day=2")):
        (folder / day).mkdir(parents=True)
        CLICKS[2 * number : 2 * number + 2].to_parquet(folder / day / f"part-{number}.parquet", index=False)
        (folder / day / f".part-{number}.parquet.crc").write_bytes(b"x")
    (folder / "_SUCCESS").touch()
    return folder


def same(dataset: InteractionDataset) -> bool:
    expected = InteractionDataset(ITEMS, CLICKS)
    return dataset.interactions.equals(expected.interactions) and dataset.items.equals(expected.items)


def test_a_folder_and_a_pattern_are_one_table(parts: Path) -> None:
    for source in (parts, f"{parts}/*/part-*.parquet", f"{parts}/**/*.parquet", f"file://{parts}"):
        assert same(InteractionDataset(ITEMS, source)), source


def test_a_url_is_read_through_fsspec(parts: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(parts), "/logs/clicks", recursive=True)
    memory.pipe("/logs/items.csv", ITEMS.to_csv(index=False).encode())
    for source in ("memory://logs/clicks", "memory://logs/clicks/day=*/*.parquet"):
        assert same(InteractionDataset("memory://logs/items.csv", source)), source


def test_a_stream_of_datasets_is_a_table() -> None:
    stream = datasets.Dataset.from_pandas(CLICKS).to_iterable_dataset(num_shards=2)
    assert same(InteractionDataset(ITEMS, stream))


def test_a_bad_row_is_named_by_its_part(parts: Path) -> None:
    part = parts / "day=2" / "part-1.parquet"
    pd.read_parquet(part).assign(item_id=["b", "gone"]).to_parquet(part, index=False)
    with pytest.raises(InputError, match=r"^day=2/part-1\.parquet, row 2, column item_id: 'gone' is not an item"):
        InteractionDataset(ITEMS, parts)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "a.csv").write_text("user_id\nu"), r"clicks\.parquet holds files of several kinds"),
        (lambda folder: ITEMS.to_parquet(folder / "a.parquet"), r"only one of a\.parquet and day=1/part-0\.p"),
        (lambda folder: (folder / "day=2/z.parquet").write_bytes(b"PAR1"), r"^day=2/z\.parquet cannot be read as p"),
    ],
)  # fmt: skip
def test_parts_that_are_no_table_are_one_sentence(parts: Path, change, sentence: str) -> None:
    change(parts)
    with pytest.raises(InputError, match=sentence) as caught:
        InteractionDataset(ITEMS, parts)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "source", ["empty", "none-*.parquet", "memory://nothing/here.parquet", "nosuchsystem://a/b.parquet"]
)
def test_nothing_to_read_is_one_sentence(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"pass the path of the interactions|correct the address") as caught:
        InteractionDataset(ITEMS, source if "://" in source else tmp_path / source)
    assert len(str(caught.value)) < 500
