"""The decoding benchmarks at tiny sizes: they run, check what they compare, and report all of it."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from gensar_hf.decoding import Trie

TINY_MODEL = ["--d_model", "16", "--num_layers", "1", "--num_heads", "2", "--d_ff", "16", "--num_input_tokens", "5"]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # as if run as a script
    return {name: importlib.import_module(name) for name in ("decoding_setup", "decoding_speed", "trie_scale")}


@pytest.mark.slow
def test_speed_is_measured_for_every_variant(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    sizes = ["--num_items", "500", "--num_candidates", "20", "--num_beams", "6", "--num_returned", "3"]
    batches = ["--batch_sizes", "1", "2", "--ranking_batch_sizes", "2", "--repeats", "1"]
    scripts["decoding_speed"].main(["--output_dir", str(tmp_path), *sizes, *batches, *TINY_MODEL])
    record = json.loads((tmp_path / "decoding_speed.json").read_text())
    assert set(record["search"]) == {"1", "2"}
    assert len(record["search"]["1"]) == len(record["ranking"]["2"]) == 3
    assert record["floors"]["TrieBeamSearch"]["2"]["flops"] > record["floors"]["TrieBeamSearch"]["1"]["flops"] > 0
    assert "TrieBeamSearch" in (tmp_path / "decoding_speed.md").read_text()


def test_a_variant_with_other_scores_is_refused(scripts: dict[str, ModuleType]) -> None:
    speed = scripts["decoding_speed"]
    scores = torch.tensor([[-1.0, -2.0]])
    speed.check_same_ranking({speed.EXACT: scores, "other": torch.tensor([[-1.0, -np.inf]])})
    with pytest.raises(RuntimeError, match="other has scores that differ"):
        speed.check_same_ranking({speed.EXACT: scores, "other": torch.tensor([[-1.1, -np.inf]])})


@pytest.mark.slow
def test_every_size_of_a_catalogue_is_measured(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    sizes = ["--sizes", "300", "900", "--swap_sizes", "300", "--repeats", "1", "--num_beams", "4"]
    scripts["trie_scale"].main(["--output_dir", str(tmp_path), *sizes, *TINY_MODEL])
    record = json.loads((tmp_path / "trie_scale.json").read_text())
    assert set(record) == {"300", "900"}
    assert "swap" in record["300"]
    assert "swap" not in record["900"]
    assert record["900"]["bytes, sorted"] > record["300"]["bytes, sorted"]


def test_random_identifiers_are_distinct_and_sorted(scripts: dict[str, ModuleType]) -> None:
    setup = scripts["decoding_setup"]
    shape = setup.Shape(num_levels=2, codebook_size=16)
    identifiers = setup.random_identifiers(200, shape)
    assert identifiers.shape == (200, 3)
    assert Trie(identifiers).token_ranges[1:] == [
        (setup.FIRST_CODE, setup.FIRST_CODE + 16), (setup.FIRST_CODE + 16, setup.FIRST_CODE + 32),
    ]  # fmt: skip
    assert (np.diff(identifiers[:, 1] * 10**6 + identifiers[:, 2]) > 0).all()
    prefixes = setup.dict_trie(identifiers)
    assert sum(len(seconds) for firsts in prefixes.values() for seconds in firsts.values()) == 200
