import json

import pytest

from gensar_hf.artifacts import DataError


@pytest.fixture
def work():
    """A stage's work that counts how often it ran."""

    def run(folder, checkpoints):
        run.calls += 1
        checkpoints.mkdir(parents=True)
        (folder / "answer.txt").write_text("42")
        return {"answer": 42}

    run.calls = 0
    return run


def test_a_finished_stage_is_skipped_until_an_input_changes(tmp_path, work):
    from stages import run_stage

    source = tmp_path / "source.csv"
    source.write_text("a\n1\n")
    first = run_stage(tmp_path / "run", "data", [{"seed": 0}, source], work)
    second = run_stage(tmp_path / "run", "data", [{"seed": 0}, source], work)
    assert (first.skipped, second.skipped, work.calls) == (False, True, 1)
    assert second.details == first.details
    assert not any((tmp_path / "run" / "checkpoints").iterdir())
    assert not run_stage(tmp_path / "run", "data", [{"seed": 1}, source], work).skipped
    source.write_text("a\n2\n")
    assert not run_stage(tmp_path / "run", "data", [{"seed": 1}, source], work).skipped
    assert work.calls == 3


def test_a_failing_stage_leaves_what_was_finished(tmp_path, work):
    from stages import run_stage

    def fails(folder, checkpoints):
        (folder / "answer.txt").write_text("half")
        raise DataError("It cannot be done.")

    run_stage(tmp_path, "data", [0], work)
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with pytest.raises(DataError):
        run_stage(tmp_path, "data", [1], fails)
    with pytest.raises(DataError):
        run_stage(tmp_path, "model", [1], fails)
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "data"]


def test_a_half_written_or_emptied_folder_is_not_finished(tmp_path, work):
    from stages import run_stage

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "answer.txt").write_text("half")
    assert not run_stage(tmp_path, "data", [0], work).skipped
    (tmp_path / "data" / "answer.txt").unlink()
    assert not run_stage(tmp_path, "data", [0], work).skipped
    (tmp_path / "data" / "stage.json").write_text('{"stage": "da')
    assert not run_stage(tmp_path, "data", [0], work).skipped
    assert (tmp_path / "data" / "answer.txt").read_text() == "42"


def test_a_training_that_diverged_is_no_result(tmp_path):
    from stages import run_stage

    with pytest.raises(DataError, match=r"loss is nan; lower --model.learning_rate"):
        run_stage(tmp_path, "model", [0], lambda folder, checkpoints: {"loss": float("nan")})
    assert not (tmp_path / "model").exists()


def test_how_a_stage_is_watched_saved_and_spread_is_no_input(tmp_path, work, monkeypatch):
    import transformers
    from sections import training_defaults
    from stages import run_stage

    def run(**changes):
        training = transformers.TrainingArguments(**{**training_defaults(), "learning_rate": 0.1, **changes})
        return run_stage(tmp_path, "model", [training], work)

    assert not run().skipped
    for change in (
        {"save_steps": 3}, {"logging_steps": 1}, {"disable_tqdm": True}, {"dataloader_num_workers": 1},
        {"save_strategy": "no"}, {"output_dir": str(tmp_path)}, {"use_cpu": True},
    ):  # fmt: skip
        assert run(**change).skipped, change
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run().skipped
    for change in ({"seed": 1}, {"per_device_train_batch_size": 3}, {"gradient_accumulation_steps": 2}):
        assert not run(**change).skipped, change


def test_checkpoints_are_those_of_the_same_settings_and_number_of_processes(tmp_path, monkeypatch):
    from stages import run_stage

    folders = []

    def work(folder, checkpoints):
        folders.append(checkpoints.name)
        (folder / "a").write_text("a")
        return {}

    for settings, processes in (({"seed": 0}, "1"), ({"seed": 1}, "1"), ({"seed": 0}, "2")):
        monkeypatch.setenv("WORLD_SIZE", processes)
        run_stage(tmp_path, "model", [settings], work)
    assert len(set(folders)) == 3
    record = json.loads((tmp_path / "model" / "stage.json").read_text())
    assert record["details"]["files"] == ["a"]
