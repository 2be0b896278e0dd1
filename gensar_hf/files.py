"""Atomic files and folders, content fingerprints, JSON and safetensors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from gensar_hf.errors import InputError

logger = logging.getLogger(__name__)

STAGE_FILE = "stage.json"
CARD_FILE = "README.md"
_CHUNK_BYTES = 1 << 20
_ASIDE_MARK = ".aside-"  # part of every temporary name, so that fingerprints can ignore leftovers of a killed run


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file or folder under a temporary name, then rename it to `path`.

    Readers see the old content or the new one, never a part: the temporary lies in the same folder (so that the
    rename is atomic) and is flushed to disk first. An existing folder is moved out of the way, and moved back if the
    rename fails. On an exception in the `with` block the temporary is removed and `path` is left as it was.

    Args:
        path: the file or folder to be written; its parent folders are created.

    Yields:
        The temporary path, at which the caller creates a file or a folder.

    Raises:
        FileNotFoundError: the block ended without creating anything.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}{_ASIDE_MARK}{secrets.token_hex(4)}")
    try:
        yield aside
        if not aside.exists():
            raise FileNotFoundError(f"Nothing was written at {aside}, so {path} was left as it was.")
        _flush_tree(aside)
        _move_into_place(aside, path)
    except BaseException:
        _remove(aside)
        raise
    _flush(path.parent)


def _move_into_place(aside: Path, path: Path) -> None:
    if not path.is_dir():  # a file, or nothing: one atomic rename replaces it, and refuses to put a folder over a file
        os.replace(aside, path)
        return
    old = path.with_name(f".{path.name}{_ASIDE_MARK}old-{secrets.token_hex(4)}")
    os.rename(path, old)
    try:
        os.rename(aside, path)
    except OSError:
        os.rename(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush_tree(path: Path) -> None:
    for inner in sorted(path.rglob("*")) if path.is_dir() else []:
        _flush(inner)
    _flush(path)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # other systems cannot open a folder to flush its entries
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fingerprint(*inputs: Any) -> str:
    """SHA-256 over everything a stage depends on, in order.

    A `Path` stands for its content: a file's bytes, or a folder's relative file names and bytes. `stage.json` and
    leftovers of a killed run do not count (the first holds durations, so it differs when the same stage runs twice),
    nor does the card (`README.md`), which is written last and describes the rest.
    Where a file lies does not count either. A `str` is just a string. Mappings are read in the order of their keys.

    Args:
        inputs: paths, strings, numbers, booleans, None, enums, dataclasses, mappings, sequences, sets, numpy arrays.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: a path that does not exist.
        TypeError: an input of another type.
    """
    digest = hashlib.sha256()
    for value in inputs:
        _add(digest, value)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, value: Any) -> None:
    """Feed one value, with its kind and length first, so that no two different inputs give the same bytes."""
    if isinstance(value, Path):
        _add_path(digest, value)
    elif isinstance(value, np.ndarray):
        _add_array(digest, value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _add(digest, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, Enum):
        _add(digest, value.value)
    elif isinstance(value, Mapping):
        digest.update(b"map %d;" % len(value))
        for key in sorted(value, key=str):
            _add(digest, str(key))
            _add(digest, value[key])
    elif isinstance(value, set | frozenset):
        _add(digest, sorted(value, key=str))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        digest.update(b"list %d;" % len(value))
        for inner in value:
            _add(digest, inner)
    else:
        _add_scalar(digest, value)


def _add_scalar(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        content = value
    elif value is None or isinstance(value, str | bool | int | float):
        content = json.dumps(value).encode()
    else:
        raise TypeError(f"A fingerprint cannot be taken of {value!r}, which is a {type(value).__name__}.")
    digest.update(b"%s %d;" % (type(value).__name__.encode(), len(content)))
    digest.update(content)


def _add_array(digest: hashlib._Hash, array: np.ndarray) -> None:
    digest.update(f"array {array.dtype.str} {array.shape};".encode())
    if array.dtype.hasobject:
        _add(digest, array.tolist())
    else:
        digest.update(np.asarray(array, order="C").tobytes())


def _add_path(digest: hashlib._Hash, path: Path) -> None:
    if not path.exists():
        raise InputError(
            f"{path} does not exist, but a stage reads it; run the stage that writes it, or correct the path."
        )
    if path.is_file():
        digest.update(b"file %d;" % path.stat().st_size)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return
    inner = [file for file in path.rglob("*") if file.is_file() and _counts(file.relative_to(path))]
    digest.update(b"folder %d;" % len(inner))
    for name in sorted(file.relative_to(path).as_posix() for file in inner):
        _add(digest, name)
        _add_path(digest, path / name)


def _counts(relative_path: Path) -> bool:
    is_leftover = any(_ASIDE_MARK in part for part in relative_path.parts)
    return relative_path.name not in (STAGE_FILE, CARD_FILE) and not is_leftover


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, or is not JSON (the message names the line).
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run the stage that writes it, or correct the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged, it is not JSON ({error}); delete it and run the stage again.") from None


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` aside and rename it: keys sorted, two spaces of indent, a line feed at the end.

    numpy numbers and arrays, paths and dataclasses are written as the plain values they stand for.

    Raises:
        ValueError: `obj` holds NaN or an infinity, which JSON does not know.
    """
    try:
        text = json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        raise ValueError(f"{path} was not written, because its content is not valid JSON: {error}.") from error
    with atomic_path(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON.")


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays, aside and renamed, as one safetensors file.

    Args:
        path: the `.safetensors` file.
        arrays: numeric or boolean arrays of any shape, 0-d and empty ones included.
        metadata: text kept in the file's header; `load_array_metadata` returns it.
    """
    # safetensors writes the buffer of a transposed view as it lies in memory, which would be another array.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with atomic_path(path) as aside:
        save_file(contiguous, aside, metadata=dict(metadata) if metadata else None)


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote.

    Raises:
        InputError: the file is missing, truncated or not a safetensors file.
    """
    with _damage_reported(path):
        return load_file(path)


def load_array_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The `metadata` that `save_arrays` was given, without reading the arrays; empty when there was none.

    Raises:
        InputError: as in `load_arrays`.
    """
    with _damage_reported(path), safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


@contextmanager
def _damage_reported(path: str | os.PathLike[str]) -> Iterator[None]:
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; run the stage that writes it, or correct the path.")
    try:
        yield
    except (SafetensorError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run the stage again.") from error


def last_checkpoint(checkpoints: Path) -> str | None:
    """The newest complete checkpoint of a `Trainer`; it writes `trainer_state.json` last, a killed write leaves none.

    Args:
        checkpoints: the `output_dir` of its `TrainingArguments`.
    """
    complete = [path for path in checkpoints.glob("checkpoint-*") if _is_json(path / "trainer_state.json")]
    if not complete:
        return None
    newest = max(complete, key=lambda path: int(path.name.rpartition("-")[2]))
    logger.info("Going on from %s.", newest)
    return str(newest)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
