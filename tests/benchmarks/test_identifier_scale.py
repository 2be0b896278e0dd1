"""The benchmark script at sizes that take no time: it runs, and what it reports is what happened."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("identifier_scale.py")
SMALL = ["--sizes", "300", "600", "--codebook_size", "8"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("identifier_scale", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_embeddings_are_seeded_and_of_one_catalogue(script: ModuleType, tmp_path: Path):
    for prefix, num_items, seed in (("a_", 500, 0), ("b_", 500, 0), ("c_", 500, 1)):
        script.write_embeddings(tmp_path, num_items, noise=0.0, seed=seed, prefix=prefix)
    first, again, other = (script.read_embeddings(tmp_path, prefix) for prefix in ("a_", "b_", "c_"))
    for kind, dim in enumerate(script.DIMS.values()):
        assert first[kind].shape == (500, dim)
        assert (first[kind] == again[kind]).all()
        assert not (first[kind] == other[kind]).any()
    # Without noise in the factors only the centres are left: items of another seed that have the same one are near.
    nearest = np.array([(first[0] - row).square().mean(dim=1).min().sqrt().item() for row in other[0]])
    assert (nearest < 0.05).any()
    assert (nearest > 0.1).any()


@pytest.mark.slow
def test_all_stages_of_two_sizes(script: ModuleType, tmp_path: Path):
    arguments = script.parse_arguments(["--output_dir", str(tmp_path), *SMALL])
    results = script.measure(arguments, script.run_stage_here)
    script.report(arguments, results)
    assert list(results) == [300, 600]
    for records in results.values():
        assert list(records) == list(script.STAGES)
        assert all(record["seconds"] > 0 and record["peak_gb"] > 0 for record in records.values())
        for kind in script.KINDS:
            report = records["assign"]["report"][kind]
            assert report["collision_rate_after"] == 0
            assert report["distortion_after"] >= report["distortion_before"]
            before, after = (records[stage]["reconstruction_error"][kind] for stage in ("encode", "assign"))
            assert 0 < before <= after + 1e-6 < 1
        assert records["add"]["report"]["num_items"] == script.NUM_NEW_ITEMS
    written = json.loads((tmp_path / "identifier_scale.json").read_text())
    assert written["results"]["600"]["assign"]["report"] == results[600]["assign"]["report"]
    assert written["settings"]["codebook_size"] == 8
    assert "| 600 | semantic |" in (tmp_path / "identifier_scale.md").read_text()
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.slow
def test_every_stage_in_a_process_of_its_own(tmp_path: Path):
    options = ["--sizes", "300", "--codebook_size", "8", "--quantizer", "rq-vae", "--epochs", "1", "--batch_size", "64"]
    subprocess.run([sys.executable, str(SCRIPT), "--output_dir", str(tmp_path), *options], check=True)
    records = json.loads((tmp_path / "identifier_scale.json").read_text())["results"]["300"]
    assert records["load"]["peak_gb"] <= records["train"]["peak_gb"]  # what training held does not count for loading
    assert records["assign"]["report"]["semantic"]["collision_rate_after"] == 0
