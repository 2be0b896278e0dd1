import dataclasses
import json
import os
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gensar_hf.errors import InputError
from gensar_hf.files import (
    atomic_path,
    fingerprint,
    load_array_metadata,
    load_arrays,
    read_json,
    save_arrays,
    write_json,
)


@dataclasses.dataclass
class Settings:
    size: int
    rate: float


class Color(Enum):
    RED = "red"


def test_atomic_path_replaces_a_file_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    for content in ("first", "second"):
        with atomic_path(path) as aside:
            assert aside.parent == path.parent
            aside.write_text(content)
        assert path.read_text() == content
    assert os.listdir(path.parent) == ["file.txt"]


def test_atomic_path_replaces_a_whole_folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale.bin").write_text("old")
    with atomic_path(path, replace_folder=True) as aside:
        aside.mkdir()
        (aside / "fresh.bin").write_text("new")
        assert (path / "stale.bin").exists(), "the old folder must be whole until the new one is"
    assert os.listdir(path) == ["fresh.bin"]
    assert os.listdir(tmp_path) == ["model"]


def write_half_and_stop(path: Path, as_folder: bool) -> None:
    with atomic_path(path) as aside:
        if as_folder:
            aside.mkdir()
            aside = aside / "part"
        aside.write_text("half")
        raise KeyboardInterrupt


@pytest.mark.parametrize("as_folder", [False, True])
def test_atomic_path_leaves_the_old_content_when_the_block_fails(tmp_path, as_folder):
    path = tmp_path / "thing"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half_and_stop(path, as_folder)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["thing"]


def test_atomic_path_moves_the_old_folder_back_when_the_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    (path / "keep").write_text("old")
    rename = os.rename

    def failing_rename(source, target):
        if Path(target) == path and "old-" not in Path(source).name:
            raise OSError("disk trouble")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(OSError, match="disk trouble"), atomic_path(path, replace_folder=True) as aside:
        aside.mkdir()
    assert os.listdir(tmp_path) == ["model"]
    assert (path / "keep").read_text() == "old"


def test_atomic_path_refuses_a_block_that_wrote_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="Nothing was written"), atomic_path(tmp_path / "x"):
        pass
    assert os.listdir(tmp_path) == []


def test_fingerprint_follows_content_not_place_or_key_order(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x.txt").write_text("same")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint({"p": 1, "q": [2, None]}) == fingerprint({"q": [2, None], "p": 1})
    assert fingerprint(Settings(1, 0.5), Color.RED) == fingerprint({"size": 1, "rate": 0.5}, "red")
    before = fingerprint(tmp_path / "a")
    (tmp_path / "a" / "sub" / "x.txt").rename(tmp_path / "a" / "sub" / "y.txt")
    assert fingerprint(tmp_path / "a") != before


def test_fingerprint_passes_over_the_stage_file_and_leftovers(tmp_path):
    (tmp_path / "weights").write_text("w")
    before = fingerprint(tmp_path)
    (tmp_path / "stage.json").write_text("{}")
    (tmp_path / ".weights.aside-0badcafe").write_text("left by a killed run")
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        ((["a", "b"],), (["a"], "b")),
        ((1,), ("1",)),
        ((1,), (True,)),
        ((None,), ("null",)),
        ((np.array([1, 2]),), (np.array([[1, 2]]),)),
        ((np.array([1, 2], dtype=np.int32),), (np.array([1, 2], dtype=np.int64),)),
        (({"a": {"b": 1}},), ({"a": {"b": 2}},)),
        ((Settings(1, 0.5),), (Settings(1, 0.25),)),
    ],
)
def test_fingerprint_tells_inputs_apart(one, other):
    assert fingerprint(*one) != fingerprint(*other)


def test_fingerprint_of_a_transposed_array_is_that_of_its_values():
    array = np.arange(6).reshape(2, 3)
    assert fingerprint(array.T) == fingerprint(np.array([[0, 3], [1, 4], [2, 5]]))


def test_fingerprint_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match="gone does not exist"):
        fingerprint(tmp_path / "gone")
    with pytest.raises(TypeError, match="object"):
        fingerprint(object())


def test_json_round_trip_and_its_form(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"b": np.float32(0.5), "a": np.array([1, 2]), "é": Settings(1, 2.0)})
    assert path.read_text(encoding="utf-8").startswith('{\n  "a": [\n')
    assert read_json(path) == {"a": [1, 2], "b": 0.5, "é": {"size": 1, "rate": 2.0}}


def test_write_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"x\.json was not written"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}


def test_read_json_names_a_missing_and_a_damaged_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(InputError, match=r"bad\.json is damaged.*line 2"):
        read_json(tmp_path / "bad.json")


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=3).flatmap(
        lambda shape: st.tuples(st.just(shape), st.sampled_from(["f4", "f8", "i8", "i1", "u1", "?"]), st.booleans())
    )
)
def test_arrays_come_back_bit_by_bit(tmp_path_factory, drawn):
    shape, dtype, transposed = drawn
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    array = array.T if transposed else array
    save_arrays(path, {"x": array}, {"note": "é"})
    loaded = load_arrays(path)["x"]
    assert loaded.dtype == array.dtype
    assert loaded.shape == array.shape
    assert np.array_equal(loaded, array)
    assert load_array_metadata(path) == {"note": "é"}


@pytest.mark.parametrize("kept", [0, 4, 30, -1])
def test_a_truncated_array_file_is_named(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    save_arrays(path, {"x": np.arange(100)})
    path.write_bytes(path.read_bytes()[:kept])
    for read in (load_arrays, load_array_metadata):
        with pytest.raises(InputError, match=r"a\.safetensors is damaged.*delete it and run the stage again"):
            read(path)


def test_a_missing_array_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.safetensors does not exist"):
        load_arrays(tmp_path / "a.safetensors")
