"""Folders that this package writes: one writer at a time, a record of its own files, saves that are whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gensar_hf.errors import InputError, shown
from gensar_hf.files import ASIDE_MARK, CARD_FILE, RECORD_FILE, STAGE_FILE, flush, read_json, recorded_files, write_json

logger = logging.getLogger(__name__)

LOCK_FILE = ".gensar.lock"
_READY_DIR = f".files{ASIDE_MARK}ready"  # a complete save whose files are moved into place
_LEFTOVER = re.compile(rf"\.(.+){re.escape(ASIDE_MARK)}(old-)?[0-9a-f]{{8}}")
_BOOKKEEPING = (RECORD_FILE, LOCK_FILE)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)

_held: dict[Path, tuple[tuple[int, int], int]] = {}  # folder → process and thread that hold its lock, how many times
_guard = threading.Lock()


# ---- one writer at a time


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes and threads from writing a folder; it is made if it does not exist.

    The lock is the operating system's (`fcntl.lockf`): it ends with the process, however that ends. A thread can take
    it several times, and a folder that was made for nothing is removed. A stage's folder is locked with its run. Under
    `torchrun` the first process alone takes the lock. There is no lock on Windows, in file systems without locks, and
    in folders that cannot be written to.

    Raises:
        InputError: another process or thread writes the folder, or it cannot be made.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    is_new = not os.path.lexists(folder)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        place = Path(folder).resolve()
    except (OSError, ValueError) as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else getattr(error, "strerror", None) or error
        raise InputError(f"The folder {_short(folder)} cannot be made ({reason}); name another folder.") from error
    if (place / STAGE_FILE).is_file() and stage_of(place) == place.name:
        place = place.parent
    descriptor, me = None, (os.getpid(), threading.get_ident())
    with _guard:
        owner, depth = _held.get(place, (me, 0))
        if owner[0] != me[0]:  # of the process that this one was forked from
            owner, depth = me, 0
        if owner != me:
            raise InputError(f"{_short(place)} is being written by another thread; wait until it has finished.")
        if depth == 0:
            descriptor = _take_lock(place)
        _held[place] = me, depth + 1
    try:
        yield
    finally:
        with _guard:
            if depth:
                _held[place] = me, depth
            else:
                del _held[place]
                if descriptor is not None:
                    (place / LOCK_FILE).unlink(missing_ok=True)
                    os.close(descriptor)
        if is_new:
            with contextlib.suppress(OSError):  # it holds something
                os.rmdir(folder)


def _take_lock(folder: Path) -> int | None:
    """The open lock file; None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    path = folder / LOCK_FILE
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                return None  # what is finished can still be read
            raise InputError(f"The folder {_short(folder)} cannot be written to ({error.strerror}).") from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = os.fstat(descriptor).st_ino == os.stat(path).st_ino
        except FileNotFoundError:  # its last owner has just deleted it
            is_current = False
        except OSError as error:
            owner = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("%s cannot be locked (%s); start no second process in it.", folder, error.strerror)
                return None
            raise InputError(
                f"{_short(folder)} is being written by another process (number {owner or 'unknown'}); wait until it "
                "has finished, or name another folder."
            ) from None
        if is_current:
            with contextlib.suppress(OSError):
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)


@contextmanager
def write_errors_reported(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Report a full disk or a folder that cannot be written to.

    Raises:
        InputError: the disk is full, a quota or a limit is reached, or writing is not permitted.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # of Python, torch and safetensors
        code = getattr(error, "errno", None)
        inside = Path(os.path.abspath(folder))
        file = getattr(error, "filename", None)
        is_inside = not isinstance(file, str) or inside in Path(os.path.abspath(file)).parents
        if code in _NO_SPACE or (code in _NOT_WRITABLE and is_inside):
            reason = os.strerror(code)
        else:
            known = [os.strerror(code) for code in _NO_SPACE if os.strerror(code) in str(error)]
            if not known and ("inline_container.cc" not in str(error) or "Reader" in str(error)):  # torch.save
                raise
            reason = known[0] if known else "writing a file failed, is the disk full?"
        raise InputError(
            f"{_short(folder)} could not be written ({reason}); what was finished before is kept. Make room or choose "
            "another folder, then repeat the call."
        ) from error


def _short(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-90:]}"


# ---- whose files they are


def stage_of(folder: Path) -> str | None:
    """The stage that wrote a folder, by its `stage.json`."""
    try:
        record = read_json(folder / STAGE_FILE)
    except InputError:
        return None
    return record.get("stage") if isinstance(record, dict) else None


def content_hashes(folder: Path) -> dict[str, str]:
    """The files in a folder and below, name → SHA-256, without this package's records and locks."""
    return {name: _hash(folder / name) for name in _content(folder)}


def _content(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = {path.relative_to(folder).as_posix() for path in files if path.name not in _BOOKKEEPING}
    return sorted(names - {STAGE_FILE})


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_changed(folder: Path, name: str, digest: str | None) -> bool:
    """Whether a file differs from the one that was recorded; records of earlier versions have no `digest`."""
    return digest is not None and (folder / name).is_file() and _hash(folder / name) != digest


def refuse_foreign_stage(folder: Path, stage: str) -> None:
    """Refuse a folder that a stage is about to replace, unless all files in it are of that stage, as it wrote them.

    Raises:
        InputError: a file of somebody else, or a file that was changed.
    """
    if not os.path.lexists(folder) or (folder.is_symlink() and folder.is_dir()):
        return  # of a link to a folder, the link alone is replaced
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, but the stage '{stage}' writes there; move it away.")
    own = recorded_files(folder) if stage_of(folder) == stage else None
    foreign = [name for name in _content(folder) if name not in (own or {})]
    if own is None and (folder / STAGE_FILE).is_file():
        foreign.append(STAGE_FILE)
    if foreign:
        raise InputError(
            f"{folder} holds files that no earlier run of this package wrote ({foreign[0]}), and the stage '{stage}' "
            "would replace them; name another `output_dir`, or move them away."
        )
    refuse_changed_stage(folder, own or {})


def refuse_changed_stage(folder: Path, files: dict[str, str | None]) -> None:
    """Refuse a stage with a file that has other content than when it was written.

    Raises:
        InputError: a file is damaged or was edited.
    """
    for name, digest in files.items():
        if is_changed(folder, name, digest):
            raise InputError(
                f"{folder / name} is damaged, or was edited after its stage wrote it; put the file back, or delete the "
                f"folder {folder}, which makes it again."
            )


# ---- saving several files as a whole


@contextmanager
def saving(
    folder: str | os.PathLike[str],
    *,
    replace: bool = False,
    is_own: bool = False,
    stale: Collection[str] = (),
    names: Collection[str] = (),
    stage: str | None = None,
) -> Iterator[Path]:
    """Write several files of a folder as a whole: all of them appear, or none.

    The block writes into a new folder inside. When it has ended, that folder is renamed, which completes the save, and
    the files are moved into place. If the process is killed meanwhile, `finish_saving` moves the rest. The files'
    hashes are recorded; only recorded files are ever replaced, and of model cards only those that nobody has edited.

    Args:
        folder: made if it does not exist.
        replace: delete the files of earlier saves that this one does not write.
        is_own: the folder is known to hold what this package wrote, recorded or not (a model that was loaded from it).
        stale: further files to delete unless this save writes them.
        names: files that will be written; they are checked before the block.
        stage: of a run, whose folder may be written; those of other stages are refused.

    Yields:
        The folder to write into.

    Raises:
        InputError: another process writes the folder, a file is in the way, or the disk is full.
    """
    folder = Path(folder)
    with locked(folder), write_errors_reported(folder):
        finish_saving(folder)
        remove_leftovers(folder)
        own, own_stage = recorded_files(folder) or {}, stage_of(folder)
        if own_stage not in (None, stage):
            raise InputError(
                f"{folder} holds the stage {shown(own_stage)} of a run, whose files would be replaced; name another "
                "folder."
            )
        refuse_foreign(folder, names, is_own)
        aside = folder / f".files{ASIDE_MARK}{secrets.token_hex(4)}"
        aside.mkdir()
        try:
            yield aside
            new = content_hashes(aside)
            refuse_foreign(folder, new, is_own)
            others = {name: digest for name, digest in own.items() if name not in new}
            dropped = [name for name in others if not is_changed(folder, name, others[name])] if replace else []
            dropped += [name for name in stale if name not in new]
            kept = {name: digest for name, digest in others.items() if name not in dropped}
            write_json(aside / RECORD_FILE, {"files": {**kept, **new}, "new": list(new), "stale": dropped})
            for path in [*aside.rglob("*"), aside]:
                flush(path)
            os.rename(aside, folder / _READY_DIR)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        finish_saving(folder)


def refuse_foreign(folder: Path, names: Collection[str], is_own: bool = False) -> None:
    """Refuse to write files in the place of others that this package did not write in this folder.

    Args:
        folder: as it is.
        names: files that will be written; a mapping to their hashes lets equal ones pass.
        is_own: see `saving`.

    Raises:
        InputError: a file is in the way.
    """
    own, hashes = recorded_files(folder) or {}, names if isinstance(names, dict) else {}
    for name in names:
        path = folder / name
        blocked = [parent for parent in path.parents if folder in parent.parents and parent.is_file()]
        is_in_the_way = bool(blocked) or (os.path.lexists(path) and not path.is_file())
        if path.is_file():
            if name == CARD_FILE:  # cards are made to be edited
                is_ours = name in own and not is_changed(folder, name, own[name])
            else:
                is_ours = is_own or name in own
            is_in_the_way = not is_ours and _hash(path) != hashes.get(name)
        if is_in_the_way:
            raise InputError(
                f"{blocked[0] if blocked else path} would be replaced, but it was not written here by this package, or "
                "was edited since; move it away, or name another folder."
            )


def finish_saving(folder: str | os.PathLike[str]) -> None:
    """Move the files of a save into place that was complete when its process was killed.

    Raises:
        InputError: another process is doing so, or the folder cannot be written to.
    """
    folder = Path(folder)
    ready = folder / _READY_DIR
    if not ready.is_dir():
        return
    with locked(folder), write_errors_reported(folder):
        record = read_json(ready / RECORD_FILE)
        for name in [*record["stale"], *record["new"]]:
            if folder.resolve() not in (folder / name).parent.resolve().joinpath("file").parents:
                raise InputError(f"{ready} holds the file {name}, which lies elsewhere; delete {ready}.")
        for name in record["stale"]:
            (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # raised by the first one that is not empty
                for parent in Path(name).parents[:-1]:
                    (folder / parent).rmdir()
        for name in record["new"]:
            if (ready / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(ready / name, folder / name)
        if (folder / STAGE_FILE).is_file():  # the record of a stage is its `stage.json`
            write_json(folder / STAGE_FILE, {**read_json(folder / STAGE_FILE), "files": record["files"]})
        else:
            write_json(folder / RECORD_FILE, {"files": record["files"]})
        remove_leftovers(folder)  # a record that was being written
        done = ready.with_name(f".files{ASIDE_MARK}{secrets.token_hex(4)}")
        os.rename(ready, done)
        flush(folder)
        shutil.rmtree(done, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes had begun to write in a folder, and put a folder back that they had moved away.

    The folder's lock must be held.
    """
    for path in folder.glob(f".*{ASIDE_MARK}*"):
        match = _LEFTOVER.fullmatch(path.name)
        if match and match[2] and not os.path.lexists(folder / match[1]):
            path.rename(folder / match[1])
        elif match and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif match:
            path.unlink(missing_ok=True)
