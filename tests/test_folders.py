"""Locks, records of our own files, and saves that appear as a whole, whenever the process is killed."""

import errno
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from gensar_hf.errors import InputError
from gensar_hf.folders import finish_saving, locked, remove_leftovers, saving, write_errors_reported

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks and processes")


def in_a_fork(call):
    """Call in another process; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            call()
            os._exit(0)
        except InputError as error:
            os._exit(2 if len(str(error)) < 500 and "process" in str(error) else 3)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def save(folder, texts, **options):
    with saving(folder, **options) as aside:
        for name, text in texts.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(text.encode())


def texts_in(folder):
    names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    return {name: (folder / name).read_text() for name in names if not name.startswith(".")}


# ---- locks


@posix
def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    def lock():
        with locked(tmp_path / "run"):
            pass

    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        assert in_a_fork(lock) == 2
    assert in_a_fork(lock) == 0
    assert not (tmp_path / "run").exists()  # made for nothing


@posix
def test_a_kill_frees_the_lock(tmp_path):
    def die():
        with locked(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_fork(die) == -signal.SIGKILL
    with locked(tmp_path):
        pass


def test_another_thread_is_refused(tmp_path):
    errors = []

    def lock():
        try:
            save(tmp_path, {"a": "1"})
        except InputError as error:
            errors.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=lock)
        thread.start()
        thread.join()
    assert "is being written by another thread" in errors[0]


@posix
def test_the_stage_of_a_run_is_locked_with_it(tmp_path, monkeypatch):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "stage.json").write_text('{"stage": "model"}')
    with locked(tmp_path / "run"):
        assert in_a_fork(lambda: save(tmp_path / "run" / "model", {"a": "1"})) == 2
        monkeypatch.setenv("RANK", "1")  # another process of the same torchrun
        assert in_a_fork(lambda: locked(tmp_path / "run").__enter__()) == 0


@pytest.mark.parametrize("name", ["file", "file/x", "/proc/x", "x" * 300, "a\0b"])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made") as error, locked(tmp_path / name):
        pass
    assert len(str(error.value)) < 500


# ---- saves


def test_other_files_stay_and_files_of_earlier_saves_are_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path, {"a": "1", "inner/b": "1"})
    save(tmp_path, {"c": "1"})
    assert texts_in(tmp_path) == {"notes.txt": "mine", "a": "1", "inner/b": "1", "c": "1"}
    save(tmp_path, {"a": "2"}, replace=True)
    assert texts_in(tmp_path) == {"notes.txt": "mine", "a": "2"}
    assert sorted(os.listdir(tmp_path)) == [".gensar.json", "a", "notes.txt"]


@pytest.mark.parametrize("name", ["a", "a/b", "README.md"])
def test_a_file_in_the_way_is_refused_and_stays(tmp_path, name):
    blocker = tmp_path / name.partition("/")[0]
    if name == "README.md":  # one of ours, that somebody has edited
        save(tmp_path, {name: "ours"})
    blocker.write_text("mine")
    with pytest.raises(InputError, match="would be replaced, but it was not written here") as error:
        save(tmp_path, {"other": "1", name: "2"})
    assert str(blocker) in str(error.value)
    assert texts_in(tmp_path) == {blocker.name: "mine"}
    with pytest.raises(InputError, match="would be replaced"), saving(tmp_path, names=[name]):
        pytest.fail("the names are checked before the work")


def test_an_error_leaves_the_folder_as_it_was(tmp_path):
    save(tmp_path, {"a": "1"})
    with pytest.raises(AttributeError):
        save(tmp_path, {"a": "2", "b": None})
    assert texts_in(tmp_path) == {"a": "1"}
    assert sorted(os.listdir(tmp_path)) == [".gensar.json", "a"]


@posix
def test_a_kill_at_any_operation_leaves_the_old_files_or_the_new_ones(tmp_path):
    old, new = {"a": "old", "inner/b": "old", "c": "old"}, {"a": "new", "inner/b": "new", "d": "new"}

    def save_and_die(folder, operations):
        left = [operations]

        def dying(function):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        for name in ("open", "rename", "replace", "mkdir", "unlink", "rmdir", "fsync"):
            setattr(os, name, dying(getattr(os, name)))
        save(folder, new, replace=True)

    seen = []
    for operations in range(0, 200, 7):
        folder = tmp_path / str(operations)
        save(folder, old)
        status = in_a_fork(lambda: save_and_die(folder, operations))  # noqa: B023
        finish_saving(folder)
        found = texts_in(folder)
        assert found in (old, new), operations
        seen.append(found)
        save(folder, new, replace=True)
        assert texts_in(folder) == new
        assert [name for name in os.listdir(folder) if name.startswith(".")] == [".gensar.json"]
        if status == 0:
            break
    assert seen[0] == old
    assert seen[-1] == seen[-2] == new


@posix
def test_a_kill_while_the_files_are_recorded_leaves_nothing_after_the_save_is_finished(tmp_path):
    folder, replace = tmp_path / "model", os.replace
    save(folder, {"a": "old"})

    def dying(source, target):
        if Path(target) == folder / ".gensar.json":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def save_and_die():
        os.replace = dying
        save(folder, {"a": "new"})

    assert in_a_fork(save_and_die) == -signal.SIGKILL
    finish_saving(folder)
    assert texts_in(folder) == {"a": "new"}
    assert sorted(os.listdir(folder)) == [".gensar.json", "a"]


@pytest.mark.parametrize("name", ["../outside", "link/outside"])
@pytest.mark.parametrize("kind", ["stale", "new"])
def test_a_stranger_s_folder_names_no_file_outside(tmp_path, name, kind):
    (tmp_path / "outside").write_text("mine")
    ready = tmp_path / "model" / ".files.aside-ready"
    ready.mkdir(parents=True)
    (tmp_path / "model" / "link").symlink_to(tmp_path)
    (ready / ".gensar.json").write_text(json.dumps({"files": {}, "stale": [], "new": [], kind: [name]}))
    with pytest.raises(InputError, match="lies elsewhere"):
        finish_saving(tmp_path / "model")
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_folder_that_was_moved_away_when_its_process_was_killed_is_put_back(tmp_path):
    for name in (
        ".model.aside-old-0badcafe",
        ".data.aside-old-0badcafe",
        ".data.aside-0badcafe",
        "data",
        ".my.aside-x",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".my.aside-x", "data", "model"]
    assert (tmp_path / "data" / "file").read_text() == "data"


def test_stage_records_are_kept_current(tmp_path):
    record = {"stage": "model", "seconds": 1, "files": {"a": "hash"}}
    (tmp_path / "stage.json").write_text(json.dumps(record))
    (tmp_path / "a").write_text("old")
    save(tmp_path, {"a": "new"}, stage="model")
    written = json.loads((tmp_path / "stage.json").read_text())
    assert {**written, "files": None} == {**record, "files": None}
    assert len(written["files"]["a"]) == 64
    assert not (tmp_path / ".gensar.json").exists()


# ---- errors of the disk


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 20480 vs 20368"),
        RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence_that_names_the_folder(tmp_path, error):
    words = r"run could not be written \(.+\); what was finished before is kept"
    with pytest.raises(InputError, match=words), write_errors_reported(tmp_path / "run"):
        raise error


@pytest.mark.parametrize(
    "error", [OSError("no such model"), PermissionError(13, "denied", "/models/x"), RuntimeError("x")]
)
def test_other_errors_are_not_mistaken_for_a_full_disk(tmp_path, error):
    with pytest.raises(type(error)), write_errors_reported(tmp_path):
        raise error


@posix
def test_a_limit_of_the_file_size_is_one_sentence_and_the_old_files_stay(tmp_path):
    import resource

    save(tmp_path, {"a": "1"})

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            save(tmp_path, {"a": "2" * 5000})
        except InputError as error:
            os._exit(5 if "could not be written (File too large)" in str(error) else 6)

    assert in_a_fork(fill) == 5
    assert texts_in(tmp_path) == {"a": "1"}
