"""The text stage on workers of Ray. Slow; needs the extra `[ray]`."""

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_runs

from gensar_hf import cli, train
from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.errors import InputError
from gensar_hf.training import stages

TEXTS = [f"film {number} of the {number % 7} seas" for number in range(60)]
SCRIPT = """
import sys
from functools import partial
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_ray_encoding as test
from gensar_hf.embeddings.ray_encoding import encode_on_ray
test.encode(Path(sys.argv[1]), partial(encode_on_ray, num_workers=2, num_gpus=0))
"""


def encode(checkpoints: Path, encode_parts: stages.EncodeParts | None = None) -> np.ndarray:
    stages._PART_TEXTS = 5
    return stages.encode_in_parts(TextEncoder.load(None, TEXTS), TEXTS, checkpoints, encode_parts)


def encoded(checkpoints: Path) -> list[Path]:
    return list(checkpoints.glob(f"checkpoint-*/{stages.EMBEDDINGS_FILE}"))


def test_without_the_extra_it_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "gensar_hf.ray_workers", raising=False)
    monkeypatch.delitem(sys.modules, "gensar_hf.embeddings.ray_encoding", raising=False)
    with pytest.raises(InputError, match=r"pip install 'gensar-hf\[ray\]'"):
        train(tiny_runs.make_dataset(), tiny_runs.arguments(tmp_path / "run"), engine="ray")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_workers_encode_what_one_process_encodes_and_go_on_after_a_kill(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    from gensar_hf.embeddings.ray_encoding import encode_on_ray

    monkeypatch.setattr(stages, "_PART_TEXTS", 5)
    expected = encode(tmp_path / "local")
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "ray"), *map(str, Path(__file__).parents[:2])]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        while not encoded(tmp_path / "ray"):
            assert process.poll() is None, (tmp_path / "log").read_text()[-5000:]
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in encoded(tmp_path / "ray")}
    found = encode(tmp_path / "ray", partial(encode_on_ray, num_workers=2, num_gpus=0))
    np.testing.assert_array_equal(found, expected)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert len(encoded(tmp_path / "ray")) == 12


@pytest.mark.slow
def test_a_run_on_ray_is_the_run_of_one_process(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    monkeypatch.setattr(stages, "_PART_TEXTS", 3)
    dataset = tiny_runs.make_dataset()
    for name, engine in (("local", "local"), ("ray", "ray")):
        train(dataset, tiny_runs.arguments(tmp_path / name), engine=engine)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(stages.STAGES)
    files = [path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*.safetensors")]
    assert files
    for file in files:
        assert (tmp_path / "local" / file).read_bytes() == (tmp_path / "ray" / file).read_bytes()


def test_help_names_the_workers(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.train_command(["--help"])
    assert "--engine" in capsys.readouterr().out
