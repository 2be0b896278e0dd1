"""A killed training goes on from its last checkpoint, to the same weights to the last bit."""

import shutil
import signal
import time

import pytest

CASES = {
    # Dropout, so that torch's random state matters; a step of two batches; SASRec's epochs have 5 steps, so that it
    # stops inside of one.
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
