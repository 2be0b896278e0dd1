"""The benchmark script at sizes that take no time: its ways train alike, and it reports what happened."""

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

SMALL = ["--steps", "4", "--rows", "8"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return importlib.import_module("process_parity")


@pytest.fixture
def arguments(script: ModuleType, tmp_path: Path) -> argparse.Namespace:
    return script.parse_arguments(["--output_dir", str(tmp_path), *SMALL])


@pytest.mark.parametrize("name", ["GenSAR", "SASRec", "joint RQ-VAE"])
def test_accumulated_gradients_train_what_one_batch_does(
    script: ModuleType, arguments: argparse.Namespace, name: str
) -> None:
    whole, accumulated = (script.step_losses(name, way, arguments) for way in (script.ONE, script.ACCUMULATED))
    assert len(whole) == 4
    assert whole[0] != whole[-1]
    assert script.largest_difference(whole, accumulated) < 1e-4


def test_two_processes_are_no_one_process(script: ModuleType, arguments: argparse.Namespace) -> None:
    with pytest.raises(RuntimeError, match="needs 2 processes, but there are 1"):
        script.step_losses("SASRec", script.TWO, arguments)


def test_the_report(script: ModuleType, arguments: argparse.Namespace) -> None:
    curves = {script.ONE: [3.0, 2.0], script.TWO: [3.0, 2.25], script.ACCUMULATED: [3.0, 2.0]}
    curves[script.CONTROL] = [3.0, 2.125]

    def train(way: str, _: argparse.Namespace) -> dict[str, list[float]]:
        return {
            name: curves[way]
            for name, (_, ways) in script.TRAININGS.items()
            if way in (script.ONE, script.CONTROL, *ways)
        }

    results = script.measure(arguments, train)
    script.report(arguments, results)

    written = json.loads((arguments.output_dir / "process_parity.json").read_text())
    assert written["losses"] == results
    assert written["settings"]["rows"] == 8
    text = (arguments.output_dir / "process_parity.md").read_text()
    assert "| SASRec | 2 | 3.000 → 2.000 | 2.5e-01 | 0.0e+00 | 1.2e-01 |" in text
    assert "| joint RQ-VAE, Sinkhorn | 2 | 3.000 → 2.000 | 2.5e-01 |  | 1.2e-01 |" in text
    assert (arguments.output_dir / "process_parity.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="logged 1 steps, the other 2"):
        script.largest_difference([1.0], [1.0, 2.0])


@pytest.mark.slow
def test_two_processes_train_what_one_does(script: ModuleType, tmp_path: Path) -> None:
    script.main(["--output_dir", str(tmp_path), "--steps", "12"])
    losses = json.loads((tmp_path / "process_parity.json").read_text())["losses"]
    for name, by_way in losses.items():
        for way, curve in by_way.items():
            assert script.largest_difference(by_way[script.ONE], curve) < 1e-4, (name, way)
    assert not list(tmp_path.glob("* *.json"))
