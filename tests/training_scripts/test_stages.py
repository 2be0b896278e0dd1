import json

import pytest

from gensar_hf.errors import InputError


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
        raise InputError("It cannot be done.")

    run_stage(tmp_path, "data", [0], work)
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with pytest.raises(InputError):
        run_stage(tmp_path, "data", [1], fails)
    with pytest.raises(InputError):
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

    with pytest.raises(InputError, match=r"loss is nan; lower --model.learning_rate"):
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


def test_checkpoints_are_those_of_the_same_settings_and_rows_of_a_step(tmp_path, caplog):
    import transformers
    from sections import training_defaults
    from stages import run_stage

    def checkpoints_of(per_device, accumulated, **changes):
        def killed(folder, checkpoints):
            (checkpoints / "checkpoint-7").mkdir(parents=True, exist_ok=True)
            raise InputError(checkpoints.name)

        sizes = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulated, "use_cpu": True}
        training = transformers.TrainingArguments(**{**training_defaults(), **sizes, **changes})
        caplog.clear()
        with pytest.raises(InputError) as ended:
            run_stage(tmp_path, "model", [0.5, training], killed)
        return str(ended.value)

    eight = checkpoints_of(8, 1)
    assert checkpoints_of(2, 4) == checkpoints_of(4, 2) == eight
    assert not caplog.records
    assert checkpoints_of(8, 1, seed=1) != eight
    assert not caplog.records
    assert checkpoints_of(8, 2) != eight
    assert [record.getMessage() for record in caplog.records] == [
        "Stage model starts anew: its training was stopped at steps of 8 rows, and these settings make steps of 16; "
        "to go on, let per_device_train_batch_size × gradient_accumulation_steps × processes (1) be 8."
    ]


def test_a_finished_stage_has_no_checkpoints_and_names_its_files(tmp_path, work):
    from stages import run_stage

    (tmp_path / "checkpoints" / "data-of-other-settings").mkdir(parents=True)
    run_stage(tmp_path, "data", [0], work)
    assert not list((tmp_path / "checkpoints").iterdir())
    record = json.loads((tmp_path / "data" / "stage.json").read_text())
    assert record["details"]["files"] == ["answer.txt"]
