"""FSDP2 through accelerate and `Trainer`, on CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs
from sharded_training import losses_of

from gensar_hf import GenSARPipeline, GenSARTrainer
from gensar_hf.files import read_json

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.slow
def test_a_sharded_model_learns_as_a_whole_one(tiny_run: Path, tmp_path: Path) -> None:
    """T5's four tables share one weight, which torch allows in one unit only."""
    script, folders = Path(__file__).parents[1] / "sharded_training.py", os.pathsep.join([*sys.path, str(Path.cwd())])
    command = [*TORCHRUN, str(script), str(tiny_run / "model"), str(tmp_path / "sharded")]
    environment = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = losses_of(GenSARTrainer, str(tiny_run / "model"), tmp_path / "whole", batch_size=8)
    assert read_json(tmp_path / "sharded" / "losses.json")["losses"] == pytest.approx(whole, abs=2e-3)
    loaded = [GenSARPipeline.from_pretrained(tmp_path / run / "model", device="cpu") for run in ("sharded", "whole")]
    tiny_runs.assert_same_answers(*loaded)
