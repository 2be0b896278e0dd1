"""Atomic files and folders, content fingerprints, JSON and safetensors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gensar_hf.errors import InputError

STAGE_FILE = "stage.json"
RECORD_FILE = ".gensar.json"  # the files of a folder that this package wrote, where there is no `stage.json`
CARD_FILE = "README.md"
ASIDE_MARK = ".aside-"  # part of every temporary name, so that fingerprints can ignore leftovers of a killed run


@contextmanager
def atomic_path(path: str | os.PathLike[str], replace_folder: bool = False) -> Iterator[Path]:
    """Write a file or folder under a temporary name, then rename it to `path`.

    Readers see the old content or the new one, never a part: the temporary lies in the same folder (so that the
    rename is atomic) and is flushed to disk first. On an exception in the `with` block the temporary is removed and
    `path` is left as it was.

    Args:
        path: the file or folder to be written; its parent folders are created.
        replace_folder: whether a folder at `path` may be replaced that holds files. It is moved out of the way, and
            moved back if the rename fails.

    Yields:
        The temporary path, at which the caller creates a file or a folder.

    Raises:
        FileNotFoundError: the block ended without creating anything.
        OSError: the disk is full, or a folder at `path` holds files and may not be replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}{ASIDE_MARK}{secrets.token_hex(4)}")
    try:
        yield aside
        if not aside.exists():
            raise FileNotFoundError(f"Nothing was written at {aside}, so {path} was left as it was.")
        for inner in [*(aside.rglob("*") if aside.is_dir() else ()), aside]:
            flush(inner)
        if replace_folder and path.is_dir():
            _replace_folder(aside, path)
        else:
            os.replace(aside, path)
    except BaseException:
        _remove(aside)
        raise
    flush(path.parent)


def _replace_folder(aside: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}{ASIDE_MARK}old-{secrets.token_hex(4)}")
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


def flush(path: Path) -> None:
    """Have the operating system write a file or the entries of a folder to disk."""
    if path.is_dir() and os.name != "posix":
        return  # other systems cannot open a folder to flush its entries
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fingerprint(*inputs: Any) -> str:
    """SHA-256 of everything that a stage depends on, in order.

    A `Path` stands for its content, wherever it lies: a file's bytes, or a folder's relative file names and bytes,
    without `stage.json` (which holds durations), the card (`README.md`), leftovers of a killed run and, in a stage's
    folder, files that the stage did not write. A `str` is just a string. Mappings are read in the order of their keys.

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
        digest.update(f"array {value.dtype.str} {value.shape};".encode())
        if value.dtype.hasobject:
            _add(digest, value.tolist())
        else:
            digest.update(np.asarray(value, order="C").tobytes())
    elif isinstance(value, np.generic | Enum):
        _add(digest, value.item() if isinstance(value, np.generic) else value.value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _add(digest, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
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
    elif value is None or isinstance(value, str | bytes | bool | int | float):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        digest.update(b"%s %d;" % (type(value).__name__.encode(), len(content)))
        digest.update(content)
    else:
        raise TypeError(f"A fingerprint cannot be taken of {value!r}, which is a {type(value).__name__}.")


def _add_path(digest: hashlib._Hash, path: Path) -> None:
    if not path.exists():
        raise InputError(
            f"{path} does not exist, but a stage reads it; run the stage that writes it, or correct the path."
        )
    if path.is_file():
        digest.update(b"file %d;" % path.stat().st_size)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return
    own = recorded_files(path)  # what users have put beside a stage's files is no input
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    names = [name for name in names if Path(name).name not in (STAGE_FILE, CARD_FILE, RECORD_FILE)]
    names = [name for name in names if ASIDE_MARK not in name and (own is None or name in own)]
    digest.update(b"folder %d;" % len(names))
    for name in sorted(names):
        _add(digest, name)
        _add_path(digest, path / name)


def recorded_files(folder: str | os.PathLike[str]) -> dict[str, str | None] | None:
    """The files of a folder that this package wrote there, name → SHA-256, by its `stage.json` or `.gensar.json`.

    Records of earlier versions have names alone, with None for the hash. None without a record.
    """
    for name in (STAGE_FILE, RECORD_FILE):
        if (Path(folder) / name).is_file():
            with suppress(InputError):
                record = read_json(Path(folder) / name)
                for part in (record, record.get("details") if isinstance(record, dict) else None):
                    files = part.get("files") if isinstance(part, dict) else None
                    if isinstance(files, list | dict):
                        return dict.fromkeys(files) if isinstance(files, list) else files
    return None


RUN_AGAIN = "delete it and run the stage again"


def read_json(path: str | os.PathLike[str], remedy: str = RUN_AGAIN) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, or is not JSON (the message names the line, and ends with `remedy`).
    """
    _require_file(path)
    with damage_reported(path, remedy, "is damaged"):
        try:
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"it is not JSON: {error}") from None


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write JSON atomically: keys sorted, two spaces of indent, a line feed at the end.

    numpy numbers and arrays, paths and dataclasses are written as plain values.

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
    """Write named numeric or boolean arrays of any shape atomically, as one safetensors file.

    Args:
        path: the `.safetensors` file.
        arrays: name → array.
        metadata: text kept in the file's header, see `load_array_metadata`.
    """
    # safetensors writes the buffer of a transposed view as it lies in memory, which would be another array.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with atomic_path(path) as aside:
        save_file(contiguous, aside, metadata=dict(metadata) if metadata else None)
        _sort_header(aside)


def _sort_header(path: Path) -> None:
    """Bring the metadata into the order of their keys; safetensors writes them in an order that changes by the run."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            assert len(text) <= size
            file.seek(8)
            file.write(text.ljust(size))


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote.

    Raises:
        InputError: the file is missing, truncated or not a safetensors file.
    """
    _require_file(path)
    with damage_reported(path, problem="is damaged"):
        return load_file(path)


def load_array_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The `metadata` of a file that `save_arrays` wrote, without its arrays. Errors as in `load_arrays`."""
    _require_file(path)
    with damage_reported(path, problem="is damaged"), safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def _require_file(path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; run the stage that writes it, or correct the path.")


@contextmanager
def damage_reported(what: object, remedy: str = RUN_AGAIN, problem: str = "cannot be loaded") -> Iterator[None]:
    """Turn whatever goes wrong while files are read into one sentence: WHAT cannot be loaded (reason); REMEDY.

    Parsers of damaged or hostile files raise errors of any class, those in Rust even a plain `BaseException`.

    Raises:
        InputError: anything was raised but an interruption; an `InputError` stays as it is.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split()).strip(".") or type(error).__name__
        raise InputError(f"{what} {problem} ({reason[:200]}); {remedy}.") from error
