"""A sample of `fuzz_folders.py`; the slow one is as large as its default."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import fuzz_folders


def test_a_few_changed_folders_are_answered_from_or_refused(tmp_path: Path) -> None:
    fuzz_folders.make_folders(tmp_path)
    expected = {kind: fuzz_folders.answers_of(tmp_path / kind) for kind in fuzz_folders.KINDS}
    watch = fuzz_folders.Watch(tmp_path / "outside")
    for number in range(4):
        case, found, words = fuzz_folders.try_case(tmp_path, number, 7, expected, watch)
        assert found in fuzz_folders.GOOD, (number, case, words)


@pytest.mark.slow
def test_many_changed_folders_are_answered_from_or_refused() -> None:
    done = subprocess.run([sys.executable, fuzz_folders.__file__, "--cases", "400"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
