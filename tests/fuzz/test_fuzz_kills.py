"""A few kills and double starts; `fuzz_kills.py` runs more of them."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")
def test_kills_and_double_starts_leave_whole_results():
    command = [sys.executable, str(Path(__file__).with_name("fuzz_kills.py")), "--kills", "6", "--double_starts", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
