import json

import pytest
import yaml


@pytest.fixture
def comparison(tmp_path, encoder, tiny):
    """Writes a comparison of two kinds of identifiers over tiny settings; returns its path and the folder."""

    def write(**changes):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({"semantic": {"model": str(encoder)}}))
        content = {
            "base": "base.yaml",
            "output_dir": str(tmp_path / "runs"),
            "seeds": [0, 1],
            "variants": {"Both kinds": None, "Semantic alone": {"rqvae": {"embeddings": "semantic"}}},
            **changes,
        }
        path = tmp_path / "comparison.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path, tmp_path / "runs"

    return write


@pytest.mark.slow
def test_every_variant_and_seed_runs_once_and_shares_what_it_can(script, comparison, tables, tiny):
    path, folder = comparison()
    options = ["--items", tables[0], "--interactions", tables[1], *tiny(), "--results.baselines=false"]
    status, printed, complaint = script("compare_runs.py", path, *options)
    assert status == 0, complaint
    assert "| Semantic alone | 4 (4) |" in printed
    first, others = folder / "both-kinds-seed-0", ("both-kinds-seed-1", "semantic-alone-seed-0")
    assert (first / "collaborative").is_dir()
    assert not (first / "collaborative").is_symlink()
    assert all((folder / name / "collaborative").resolve() == (first / "collaborative").resolve() for name in others)
    assert all(not (folder / name / "rqvae").is_symlink() for name in others)
    content = json.loads((folder / "results" / "comparison.json").read_text())
    assert content["variants"]["Semantic alone"]["seeds"] == [0, 1]
    made = {
        stage: (folder / stage).stat().st_mtime_ns
        for stage in ("semantic-alone-seed-1/model", "both-kinds-seed-0/data")
    }
    status, again, _ = script("compare_runs.py", path, *options)
    assert status == 0
    assert again == printed  # all stages were finished
    assert made == {stage: (folder / stage).stat().st_mtime_ns for stage in made}


def test_a_run_that_fails_is_reported_and_the_others_go_on(script, comparison, tables, tiny):
    path, folder = comparison(seeds=[0], variants={"Plain": None, "Too few": {"rqvae": {"num_shared_levels": 0}}})
    options = ["--items", tables[0], "--interactions", tables[1], *tiny(), "--results.baselines=false"]
    status, printed, _ = script(
        "compare_runs.py", path, *options, "--rqvae.num_specific_levels=1", "--results.max_users=5"
    )
    assert status == 1
    content = json.loads((folder / "results" / "comparison.json").read_text())
    assert list(content["variants"]) == ["Plain"]
    assert "30 items" in content["failures"]["Too few, seed 0"]
    assert "Too few, seed 0 failed" in printed
    assert content["tasks"]["recommendation"]["num_users"] <= 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"variants": []}, "no `output_dir` or no `variants`"), ({"sweep": 1}, "the unknown entry 'sweep'")],
)
def test_a_file_that_is_no_comparison_is_refused_in_one_sentence(script, comparison, changes, sentence):
    path, _ = comparison(**changes)
    status, _, complaint = script("compare_runs.py", path)
    assert status == 2
    assert sentence in complaint
    assert "Traceback" not in complaint


def test_without_a_file_it_says_how_it_is_called(script):
    status, _, complaint = script("compare_runs.py")
    assert status == 2
    assert "compare_runs.py training_scripts/configs/" in complaint
