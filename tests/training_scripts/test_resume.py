"""A killed training goes on from its last checkpoint, to the same weights to the last bit."""

import os
import shutil
import signal
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

CASES = {
    # Dropout, so that torch's random state matters; a step of two batches; SASRec's epochs have 5 steps, so that a
    # checkpoint is written inside of one.
    "train_generator.py": (
        "model",
        [
            "--model.max_steps=60",
            "--model.save_steps=7",
            "--model.dropout_rate=0.1",
            "--model.per_device_train_batch_size=8",
        ],
    ),
    "train_sasrec.py": ("collaborative", ["--collaborative.max_steps=400", "--collaborative.save_steps=7"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_gives_the_weights_of_an_uninterrupted_run(prepared_run, start_script, tiny, tmp_path, name):
    stage, options = CASES[name]
    argv = {run: ["--output_dir", tmp_path / run, *tiny(stage), *options] for run in ("straight", "killed")}
    for run in argv:
        shutil.copytree(prepared_run, tmp_path / run)
        shutil.rmtree(tmp_path / run / stage, ignore_errors=True)
    process = start_script(name, *argv["straight"])
    _, complaint = process.communicate()
    assert process.returncode == 0, complaint

    process = start_script(name, *argv["killed"])
    _wait_for_checkpoint(tmp_path / "killed" / "checkpoints", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / stage).exists()

    process = start_script(name, *argv["killed"])
    _, complaint = process.communicate()
    assert process.returncode == 0, complaint
    assert "Going on from" in complaint
    straight, resumed = ((tmp_path / run / stage / "model.safetensors").read_bytes() for run in argv)
    assert resumed == straight
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())
    assert not [path.name for path in (tmp_path / "killed").iterdir() if path.name.startswith(".")]
    pickles = [path for path in (tmp_path / "killed" / stage).rglob("*") if path.suffix in {".pt", ".pth", ".bin"}]
    assert pickles == []


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
WAYS = {
    "one": ((sys.executable,), {"per_device_train_batch_size": 8}),
    "one, accumulated": ((sys.executable,), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
    "two": (TORCHRUN, {"per_device_train_batch_size": 4}),
}
# Dropout draws differ between processes; plain gradient descent does not blow rounding up.
EXACT = {
    "train_generator.py": ("model", 60, ["--model.item_dropout=0.0", "--model.learning_rate=0.3"]),
    "train_sasrec.py": ("collaborative", 200, ["--collaborative.dropout=0.0", "--collaborative.learning_rate=0.3"]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("train_generator.py", "two", "one"),
        ("train_generator.py", "one", "two"),
        ("train_sasrec.py", "two", "one, accumulated"),
    ],
)
def test_a_training_goes_on_in_another_number_of_processes(
    prepared_run, start_script, tiny, tmp_path, name, before, after
):
    stage, num_steps, options = EXACT[name]
    options = options + [f"--{stage}.{text}" for text in ("use_cpu=true", "bf16=false", "optim=sgd", "warmup_steps=0")]
    options += [f"--{stage}.save_steps=7", f"--{stage}.max_steps={num_steps}"]

    def start(run, way):
        launcher, sizes = WAYS[way]
        division = [f"--{stage}.{setting}={value}" for setting, value in sizes.items()]
        argv = ["--output_dir", tmp_path / run, *tiny(stage), *options, *division]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return start_script(name, *argv, launcher=launcher, env=environment)

    for run in ("straight", "killed"):
        shutil.copytree(prepared_run, tmp_path / run)
        shutil.rmtree(tmp_path / run / stage, ignore_errors=True)
    process = start("straight", after)
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint

    process = start("killed", before)
    _wait_for_checkpoint(tmp_path / "killed" / "checkpoints", process)
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        each.kill()  # torchrun, then its processes
    process.communicate()
    assert not (tmp_path / "killed" / stage).exists()

    process = start("killed", after)
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    assert "Going on from" in complaint
    straight, resumed = (load_file(tmp_path / run / stage / "model.safetensors") for run in ("straight", "killed"))
    for parameter, values in straight.items():
        torch.testing.assert_close(resumed[parameter], values, atol=1e-4, rtol=1e-4, msg=parameter)


def _wait_for_checkpoint(checkpoints, process, seconds=120):
    """Until a checkpoint beyond the first is complete, so that the kill falls into the middle."""
    deadline = time.monotonic() + seconds
    while len({path.parent.name for path in checkpoints.glob("*/checkpoint-*/trainer_state.json")}) == 0:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)


@pytest.mark.slow
def test_an_interrupt_ends_with_130_and_one_line(prepared_run, start_script, tiny, tmp_path):
    shutil.copytree(prepared_run, tmp_path / "run")
    options = ["--model.max_steps=2000", "--model.save_steps=7"]
    process = start_script("train_generator.py", "--output_dir", tmp_path / "run", *tiny("model"), *options)
    _wait_for_checkpoint(tmp_path / "run" / "checkpoints", process)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "\nInterrupted. The same command goes on where it stopped.\n" in complaint
    assert "Traceback" not in complaint
    assert not (tmp_path / "run" / "model").exists()
    assert list((tmp_path / "run" / "checkpoints").glob("model-*/checkpoint-*"))
