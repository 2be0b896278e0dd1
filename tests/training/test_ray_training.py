"""`training_scripts/ray_train.py` in two processes on this machine, killed and started again. Slow; needs `[ray]`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_runs
import yaml

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "ray_train.py"


@pytest.mark.slow
def test_a_killed_training_on_ray_ends_as_that_of_torchrun(tmp_path: Path) -> None:
    pytest.importorskip("ray.train", reason="needs the extra [ray]")
    for name, table in zip(("items", "interactions"), tiny_runs.make_tables(), strict=True):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    tables = {name: str(tmp_path / f"{name}.csv") for name in ("items", "interactions")}
    settings = {**tiny_runs.SETTINGS, "max_steps": 40, "save_steps": 2, **tables}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEFAULT_NUM_CPUS": "4"}

    def words(folder: str, *first: str) -> list[str]:
        last = ["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / folder)]
        return [sys.executable, *first, *last]

    torchrun = words("torchrun", "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "gensar_hf", "train")
    subprocess.run(torchrun, env=environment, check=True, capture_output=True)

    ray = words("ray", str(SCRIPT), "--num_workers=2")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(ray, env=environment, stdout=log, stderr=log, start_new_session=True)
        while not list((tmp_path / "ray" / "checkpoints").glob("model-*/checkpoint-*/trainer_state.json")):
            assert process.poll() is None, (tmp_path / "log").read_text()[-5000:]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "ray" / "model").exists()
    again = subprocess.run(ray, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-5000:]
    weights = [tmp_path / folder / "model" / "model.safetensors" for folder in ("torchrun", "ray")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
