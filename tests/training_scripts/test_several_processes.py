"""torchrun on CPU (gloo): one process writes, all of them train."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from gensar_hf import GenSARPipeline

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.slow
def test_two_processes_train_one_generator(prepared_run, start_script, tiny, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(prepared_run, run_dir)
    argv = ["--output_dir", run_dir, *tiny("model"), "--model.use_cpu", "true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = start_script("train_generator.py", *argv, launcher=TORCHRUN, env=environment)
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    record = json.loads((run_dir / "model" / "stage.json").read_text())
    assert record["details"]["steps"] == 3
    assert {path.name for path in run_dir.iterdir()} == {
        "data", "semantic", "collaborative", "rqvae", "model", "checkpoints",
    }  # fmt: skip
    assert len(GenSARPipeline.from_pretrained(run_dir / "model").recommend([], top_k=3)) == 3

    # The number of processes is no input: one process finds the stage finished.
    written = (run_dir / "model" / "stage.json").stat().st_mtime_ns
    process = start_script("train_generator.py", *argv)
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    assert (run_dir / "model" / "stage.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_the_same_global_batch(prepared_run, start_script, tiny, tmp_path):
    weights = []
    for name, launcher, batch_size in (("two", TORCHRUN, 2), ("one", (sys.executable,), 4)):
        shutil.copytree(prepared_run, tmp_path / name)
        process = start_script(
            "train_generator.py", "--output_dir", tmp_path / name, *tiny("model"), "--model.use_cpu", "true",
            f"--model.per_device_train_batch_size={batch_size}", "--model.bf16=false",
            "--model.optim=sgd", "--model.learning_rate=0.3", "--model.warmup_steps=0", "--model.item_dropout=0.0",
            launcher=launcher, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        _, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, complaint
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    for parameter, values in weights[0].items():
        assert torch.allclose(values, weights[1][parameter], atol=1e-4), parameter


@pytest.mark.slow
def test_two_processes_run_the_whole_pipeline(start_script, tables, encoder, tiny, tmp_path):
    argv = ["--items", tables[0], "--interactions", tables[1], "--output_dir", tmp_path / "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = start_script(
        "run_pipeline.py", *argv, "--semantic.model", encoder, *tiny(), launcher=TORCHRUN, env=environment
    )
    printed, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    assert printed.count("6/6 results") == 1
    assert (tmp_path / "run" / "results" / "stage.json").is_file()


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does_and_each_user_once(prepared_run, start_script, tiny, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shutil.copytree(prepared_run, tmp_path / "one")
    process = start_script("train_generator.py", "--output_dir", tmp_path / "one", *tiny("model"), env=environment)
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name, launcher in (("one", (sys.executable,)), ("two", TORCHRUN)):
        options = ["--results.num_negatives=9", "--results.full_ranking=true"]
        process = start_script(
            "evaluate.py", "--output_dir", tmp_path / name, *options, launcher=launcher, env=environment
        )
        _, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, complaint
    one, two = (tmp_path / name / "results" for name in ("one", "two"))
    files = sorted(path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two).as_posix() for path in two.rglob("*") if path.is_file())
    for folder in ("", "full_ranking"):
        ranks = [pd.read_parquet(results / folder / "ranks.parquet") for results in (one, two)]
        pd.testing.assert_frame_equal(*ranks)
        assert not ranks[1].duplicated(["system", "task", "user_id"]).any()
        assert (one / folder / "metrics.json").read_bytes() == (two / folder / "metrics.json").read_bytes()


@pytest.mark.slow
def test_layers_spread_over_processes_train_what_whole_ones_do():
    """accelerate does not use FSDP on processors, so torch is asked for it, with the layers of configs/accelerate."""
    command = [*TORCHRUN, str(Path(__file__).parents[1] / "sharded_training.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["num_sharded"] == answer["num_parameters"]
    assert answer["is_tied"]
    assert answer["loss"] < 1e-5
    assert answer["weights"] < 1e-5
