import json

import pytest

TABLES = ["--items", "items.csv", "--interactions", "clicks.csv"]
ALL_SCRIPTS = {
    "prepare_data.py": ["--data.split", "--data.min_interactions"],
    "encode_items.py": ["--semantic.model", "--semantic.max_length"],
    "train_sasrec.py": ["--collaborative.hidden_size", "--collaborative.learning_rate"],
    "train_rqvae.py": ["--rqvae.codebook_size", "--rqvae.num_train_epochs"],
    "train_generator.py": ["--model.history_encoding", "--model.max_steps"],
    "evaluate.py": ["--results.num_negatives", "--results.full_ranking"],
}


@pytest.fixture
def parse():
    """Settings of run_pipeline.py's sections from words of a command line."""
    import run_pipeline
    from settings import parse_settings
    from stages import STAGES

    sections = [script.SECTION for script in run_pipeline.SCRIPTS]
    return lambda *argv: parse_settings(sections, STAGES, "", list(map(str, argv)))


def test_values_come_from_the_command_line_with_their_types(parse):
    settings = parse("--output_dir", "runs/a", "--model.max_steps", "7", "--model.learning-rate=1e-3", "--model.seed=3")
    _, training = settings["model"]
    assert (training.max_steps, training.learning_rate, training.seed) == (7, 0.001, 3)
    assert str(settings.run_dir) == "runs/a"
    lists = parse("--output_dir", "a", "--data.text_columns", "title", "brand", "--rqvae.hidden_sizes", "32", "16")
    assert lists["data"][0].text_columns == ["title", "brand"]
    assert lists["rqvae"][0].hidden_sizes == [32, 16]
    assert parse("--output_dir=a", "--results.full_ranking")["results"][0].full_ranking is True
    assert parse("--output_dir=a", "--model.max_steps", "-1")["model"][1].max_steps == -1


def test_the_command_line_wins_over_yaml_and_yaml_over_defaults(parse, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "output_dir: runs/b\nitems: a.csv\ndata:\n  text_columns: [title, year]\n  dataset_dir: null\nmodel:\n"
        "  learning_rate: 1e-3\n  save_strategy: no\n  max_steps: 9\n  task_weights: {next_query: 0.5}\nresults:\n"
    )
    settings = parse(config, "--model.max_steps", "11")
    arguments, training = settings["model"]
    assert (settings.run.output_dir, settings.run.items) == ("runs/b", "a.csv")
    assert (training.learning_rate, training.save_strategy, training.max_steps) == (0.001, "no", 11)
    assert arguments.task_weights == {"next_query": 0.5}
    assert settings["data"][0].text_columns == ["title", "year"]
    assert settings["data"][0].dataset_dir is None


def test_a_single_script_takes_the_configuration_of_the_whole_run(tmp_path):
    import train_sasrec
    from settings import parse_settings
    from stages import STAGES

    config = tmp_path / "config.yaml"
    config.write_text("output_dir: runs/b\ncollaborative:\n  hidden_size: 32\nmodel:\n  max_steps: 9\n")
    settings = parse_settings([train_sasrec.SECTION], STAGES, "", [str(config)])
    assert settings["collaborative"][0].hidden_size == 32


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "--output_dir"),
        (["--output_dir"], "--output_dir: expected one argument"),
        (["--output_dir", "a", "--model.max_steps"], "--model.max_steps: expected one argument"),
        (["--output_dir", "a", "--model.max_steps", "many"], "--model.max_steps: invalid int value: 'many'"),
        (["--output_dir", "a", "--model.max_stepz", "3"], "did you mean --model.max_steps?"),
        (["--output_dir", "a", "--modle.max_steps", "3"], "no section 'modle'"),
        (["--output_dir", "a", "--rqvae.codebook_size", "1"], "`codebook_size` must be at least 2"),
        (["--output_dir", "a", "--collaborative.num_heads", "3"], "`num_heads` must divide `hidden_size`"),
        (["--output_dir", "a", "--rqvae.quantizer", "vq"], "invalid choice: 'vq'"),
        (["--output_dir", "a", "--data.search_fraction", "1.5"], "`search_fraction` must lie between 0 and 1"),
        (["--output_dir", "a", "--model.task_weights", "many"], "expected a mapping"),
        (["--output_dir", "a", "--model.task_weights", "{swim: 1}"], "the unknown task 'swim'"),
        (["--output_dir", "a", "--model.lora_rank=-1"], "`lora_rank` must not be negative; got -1"),
        (["--output_dir", "a", "--model.gguf_file", "a.gguf"], "`gguf_file` needs the folder that holds it"),
        (["--output_dir", "a", "--model.history_encoding", "words"], "invalid choice: 'words'"),
        (["--output_dir", "a", "--model.save_strategy", "never"], "invalid choice: 'never'"),
        (["--output_dir", "a", "--model.output_dir", "b"], "--model.output_dir is decided by the run"),
        (["--output_dir", "a", "extra.csv"], "'extra.csv' is not understood"),
        (["missing.yaml"], "missing.yaml cannot be read (No such file or directory)"),
    ],
)
def test_a_mistake_is_one_sentence(parse, argv, named):
    from gensar_hf.errors import InputError

    with pytest.raises(InputError) as complaint:
        parse(*argv)
    assert named in str(complaint.value)
    assert "\n" not in str(complaint.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model:\n  a: [1\n", "is not YAML"),
        ("- 1\n- 2\n", "must hold settings"),
        ("output_dir: a\nmodle:\n  seed: 1\n", "no section 'modle'"),
        ("output_dir: a\nmodel: 3\n", "the section 'model' must hold settings"),
        ("output_dir: a\nmodel:\n  sead: 1\n", "did you mean --model.seed?"),
        ("output_dir: a\nmodel:\n  max_steps: many\n", "invalid int value: 'many'"),
        ("model:\n  seed: 1\n", "--output_dir"),
    ],
)
def test_a_mistake_in_a_configuration_is_one_sentence(parse, tmp_path, text, named):
    from gensar_hf.errors import InputError

    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as complaint:
        parse(path)
    assert named in str(complaint.value)
    assert "\n" not in str(complaint.value)


@pytest.mark.parametrize("name", ALL_SCRIPTS)
def test_help_lists_every_setting_with_its_default(script, name):
    status, printed, _ = script(name, "--help")
    assert status == 0
    for option in ["--output_dir", *ALL_SCRIPTS[name]]:
        assert f"  {option} " in printed
    assert printed.count("(default") >= 3
    if name == "train_rqvae.py":
        assert "(default: 256)" in printed  # of the configuration class
        assert "(default: 0.001)" in printed  # tuned


def test_help_of_the_pipeline_lists_every_dataclass_field(script):
    import dataclasses

    import run_pipeline

    status, printed, _ = script("run_pipeline.py", "-h")
    assert status == 0
    for module in run_pipeline.SCRIPTS:
        for field in dataclasses.fields(module.SECTION.arguments):
            assert f"--{module.SECTION.name}.{field.name}" in printed


def test_the_exit_status_is_two_and_nothing_is_written(script, tmp_path):
    status, printed, complaint = script(
        "run_pipeline.py", "--output_dir", tmp_path / "run", "--model.max_steps", "many"
    )
    assert (status, printed) == (2, "")
    assert complaint == "error: --model.max_steps: invalid int value: 'many'; --help lists every setting.\n"
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text(json.dumps({}))
    status, _, complaint = script("run_pipeline.py", "--output_dir", tmp_path / "file", *TABLES)
    assert status == 2
    assert "is a file; name a folder" in complaint


def test_an_interrupt_says_how_to_go_on(capfd):
    from console import main

    def run(settings):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        main(run, "A script.", [], ["--output_dir", "a"])
    assert ended.value.code == 130
    assert "The same command goes on where it stopped" in capfd.readouterr().err
