import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import fuzz_calls

from gensar_hf import GenSARPipeline


def test_a_sample_of_random_calls_ends_well(tiny_pipe: GenSARPipeline) -> None:
    calls = fuzz_calls.Calls(tiny_pipe, seed=1)
    for number in range(30):
        calls.run(number)
    assert calls.bad == []
    assert {outcome for _, outcome in calls.counts} == {"right", "refused"}


@pytest.mark.slow
def test_random_calls_end_well(tiny_run: Path) -> None:
    command = [sys.executable, fuzz_calls.__file__, "--calls", "10000", "--seed", "0", "--model", tiny_run / "model"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
