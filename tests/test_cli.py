"""The command `gensar`: what it does on small tables, its help, and one sentence for each mistake."""

import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny_runs
import yaml

from gensar_hf import GenSARPipeline
from gensar_hf.cli import COMMANDS, main

TABLES = ["--items", "items.csv", "--interactions", "clicks.csv"]


@pytest.fixture
def gensar(capfd):
    """Runs a command in this process; returns its exit status, what it printed and what it complained."""
    from transformers.utils.logging import enable_progress_bar

    root = logging.getLogger()
    before = root.handlers[:], root.level

    def run(*words):
        capfd.readouterr()
        status = main([str(word) for word in words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    yield run
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    enable_progress_bar()


@pytest.mark.parametrize(("word", "status"), [("--help", 0), ("日本", 2)])
def test_a_terminal_that_lacks_characters_ends_no_command(word, status, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main([word]) == status


def write_tables(folder, **options):
    items, clicks = tiny_runs.make_tables(**options)
    clicks["timestamp"] = (pd.Timestamp("2024-01-01") + pd.to_timedelta(clicks["timestamp"], unit="D")).astype(str)
    folder.mkdir(parents=True, exist_ok=True)
    items.to_csv(folder / "items.csv", index=False)
    clicks.to_csv(folder / "clicks.csv", index=False)
    return ["--items", folder / "items.csv", "--interactions", folder / "clicks.csv"]


@pytest.fixture
def tables(tmp_path):
    return write_tables(tmp_path)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The settings of a training of a few seconds, in YAML."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_runs.SETTINGS))
    return path


@pytest.fixture
def run(tiny_run, tmp_path):
    """A finished run."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def assert_one_sentence(result, *words):
    status, printed, complaint = result
    assert (status, printed) == (2, "")
    assert "Traceback" not in complaint
    last = complaint.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith((".", "?"))
    assert len(last) < 500
    for word in words:
        assert word in last


# ---- what the commands do


def test_train_evaluate_and_ask(gensar, tables, config, tmp_path):
    command = ["train", *tables, "--config", config, "--output_dir", tmp_path / "run"]
    status, printed, complaint = gensar(*command)
    assert status == 0, complaint
    assert [line.split()[0] for line in printed.splitlines()[:5]] == [
        "data", "semantic", "collaborative", "rqvae", "model",
    ]  # fmt: skip
    assert "Recommended:" in printed
    assert f"gensar evaluate {tmp_path / 'run'}" in printed
    for noise in ("DEBUG", "pin_memory", "Writing model shards", "Loading weights", "train_runtime", "Traceback"):
        assert noise not in printed + complaint
    status, printed, _ = gensar(*command)
    assert (status, printed.count("already finished")) == (0, 5)

    options = ["--num_negatives=9", "--baselines=false", "--full_ranking=true", "--trec_runs=true"]
    status, printed, complaint = gensar("evaluate", tmp_path / "run", *options)
    assert status == 0, complaint
    assert printed.index("by kind of query") < printed.index("random-9, 10 candidates")
    assert "alone" in printed  # parts of the scores
    written = {path.name for path in (tmp_path / "run" / "results").iterdir()}
    assert written >= {"ranks.parquet", "query_kinds.json", "query_kinds.md", "full_ranking", "trec"}
    status, _, complaint = gensar("evaluate", tmp_path / "run", "--queries_per_kind=-1")
    assert (status, complaint.count("\n")) == (2, 1)
    assert "--queries_per_kind must not be negative; got -1" in complaint
    options = ["--baselines=false", "--queries_per_kind=0", "--bm25_columns=[title]", "--num_negatives=9"]
    status, printed, complaint = gensar("evaluate", tmp_path / "run", *options)
    assert status == 0, complaint
    assert "by kind of query" not in printed
    assert "bm25-hard(title)-9" in printed
    of_one = {path.name for path in (tmp_path / "run" / "results").iterdir() if not path.name.startswith(".")}
    assert not of_one & {"query_kinds.json", "full_ranking", "trec"}  # of the evaluation before


def test_files_of_others_are_neither_replaced_nor_made(gensar, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run / "results").mkdir()
    (run / "results" / "tables.md").write_text("mine")
    assert_one_sentence(gensar("evaluate", run), "results/tables.md would be replaced")
    assert [path.read_text() for path in (run / "results").iterdir()] == ["mine"]
    assert_one_sentence(gensar("add-items", "me/films", "--remove", "[B01]"), "There is no folder me/films to change")
    assert not (tmp_path / "me").exists()
    (tmp_path / "config.json").write_text("mine")
    command = ["add-items", run, "--remove", "[B01]", "--output_dir"]
    assert_one_sentence(gensar(*command, tmp_path), "config.json would be replaced")
    assert_one_sentence(gensar(*command, tmp_path / "config.json" / "x"), "cannot be made (Not a directory)")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "config.json"}


@pytest.mark.slow
def test_evaluate_compares_with_other_systems(gensar, run):
    status, printed, complaint = gensar("evaluate", run, "--num_negatives=9", "--full_ranking=true", "--max_users=5")
    assert status == 0, complaint
    for system in ("GenSAR", "SASRec", "Popularity", "BM25", "Dense"):
        assert system in printed


def test_search_and_recommend(gensar, tiny_run):
    status, printed, _ = gensar("search", tiny_run, "red", "--history", "[B01,B02]", "--top_k", "3")
    assert status == 0
    assert len(printed.splitlines()) == 3
    status, printed, _ = gensar("recommend", tiny_run / "model", "B01", "B02", "--top_k=4")
    assert status == 0
    assert len(printed.splitlines()) == 4
    assert "[B01]" not in printed


def test_files_of_histories_and_queries(gensar, tiny_run, tmp_path):
    pipe = GenSARPipeline.from_pretrained(tiny_run / "model", device="cpu")
    histories = [["B01", "B02"], ["B03"], []]
    rows = pd.DataFrame({"user_id": [1, 2, 3], "history": histories, "query": ["red", "soap", "blue gel"]})
    rows.to_parquet(tmp_path / "rows.parquet")
    pd.DataFrame({"item_id": ["B01", "B04", "B05", "B06"]}).to_csv(tmp_path / "stock.csv", index=False)
    options = ["--top_k=3", "--among", tmp_path / "stock.csv"]
    for task in ("recommend", "search"):
        folder = tmp_path / task
        for _ in range(2):
            status, printed, complaint = gensar(task, tiny_run, tmp_path / "rows.parquet", folder, *options)
            assert (status, printed) == (0, f"3 requests are answered in {folder}.\n"), complaint
        (part,) = folder.glob("part-*.parquet")
        found = pd.read_parquet(part)
        events = [[{"item_id": item_id} for item_id in own] for own in histories]
        among = {"among": ["B01", "B04", "B05", "B06"], "top_k": 3}
        expected = pipe.search(rows["query"].tolist(), events, **among)
        if task == "recommend":
            expected = pipe.recommend(events, exclude_seen=True, **among)
        assert found["item_id"].tolist() == [answer["item_id"] for own in expected for answer in own]
        assert found["user_id"].unique().tolist() == ["1", "2", "3"]
        assert_one_sentence(
            gensar(task, tiny_run, tmp_path / "rows.parquet", folder), "another top_k, among; name a new"
        )
    status, printed, _ = gensar("recommend", tiny_run, "B01", *options)
    assert (status, len(printed.splitlines())) == (0, 3)
    assert_one_sentence(gensar("recommend", tiny_run, tmp_path / "rows.parquet"), "Name one folder for the answers")
    assert_one_sentence(gensar("recommend", tiny_run, "B01", "--among", tmp_path / "no.csv"), "does not exist")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["search", "  "], "A query must be text with at least one word"),
        (["search", "red", "--top_k", "0"], "--top_k must be at least 1; got 0"),
        (["recommend", "B01", "--top_k", "-3"], "--top_k must be at least 1; got -3"),
        (["recommend", "-abc"], "'-abc' begins like a setting; write such ids and queries at the end, after --"),
        (["recommend", "--", "-abc", "--def"], "items are not in the model's identifier table, first '-abc'"),
        (["search", "--top_k", "0", "--", "--def"], "--top_k must be at least 1; got 0"),
    ],
)
def test_requests_that_cannot_be_answered_are_one_sentence(gensar, tiny_run, arguments, sentence):
    command, *rest = arguments
    status, printed, complaint = gensar(command, tiny_run, *rest)
    assert (status, printed, complaint.count("\n")) == (2, "", 1)
    assert sentence in complaint


def test_items_are_added_removed_and_restored(gensar, run, tmp_path):
    new = pd.DataFrame({"item_id": ["N1", "N2"], "title": ["red soap oil", "blue cream mask"]})
    new.to_csv(tmp_path / "new.csv", index=False)
    before = {path: path.read_bytes() for path in (run / "model").rglob("*") if path.is_file()}
    status, printed, complaint = gensar("add-items", run, tmp_path / "new.csv", "--remove", "[B03]")
    assert status == 0, complaint
    assert "N1  red soap oil" in printed
    assert "now finds 31 items" in printed
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"identifiers.parquet", "text_vectors.safetensors", "stage.json"}
    pipe = GenSARPipeline.from_pretrained(run / "model", device="cpu")
    found = {answer["item_id"] for answer in pipe.recommend([], top_k=32)}
    assert {"N1", "N2"} <= found
    assert "B03" not in found

    status, printed, _ = gensar("add-items", run / "model", "--restore=[B03]", "--output_dir", tmp_path / "other")
    assert (status, "now finds 32 items" in printed) == (0, True)
    assert GenSARPipeline.from_pretrained(tmp_path / "other").tokenizer.identifiers.num_available == 32
    assert GenSARPipeline.from_pretrained(run / "model").tokenizer.identifiers.num_available == 31

    assert_one_sentence(gensar("add-items", run, tmp_path / "new.csv"), "'N1'", "is in the model's catalogue")
    assert_one_sentence(gensar("add-items", run, "--remove", "[NOWHERE]"), "NOWHERE", "cannot be removed")
    assert_one_sentence(gensar("add-items", run), "Nothing to do")
    assert_one_sentence(gensar("add-items", run, "--remove", "-abc"), "'-abc' begins like a setting", "=[-abc]")
    assert_one_sentence(gensar("add-items", run, "--remove=[-abc]"), "'-abc' cannot be removed")


def test_push(gensar, tiny_run, monkeypatch):
    sent = []
    monkeypatch.setattr("gensar_hf.pipeline.push_folder", lambda folder, name, **options: sent.append((name, options)))
    status, _, complaint = gensar("push", tiny_run, "me/films", "--private", "true", "--revision", "v2")
    assert status == 0, complaint
    ((name, options),) = sent
    assert (name, options["private"], options["revision"]) == ("me/films", True, "v2")


# ---- help and configurations


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen(gensar, command):
    status, printed, _ = gensar(command, "--help")
    assert status == 0
    lines = printed.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith(f"usage: gensar {command} ")
    assert "(type:" not in printed
    assert "SUPPRESS" not in printed


def test_help_of_train_lists_our_settings(gensar):
    from gensar_hf import GenSARTrainingArguments

    _, printed, _ = gensar("train", "--help")
    for name in [*GenSARTrainingArguments.own_settings(), "output_dir", "split", "search_fraction", "max_steps"]:
        assert f"  --{name} " in printed
    assert "--weight_decay" not in printed
    assert "[leave_one_out]" in printed


def test_usage(gensar):
    status, printed, _ = gensar("--help")
    assert status == 0
    for command in COMMANDS:
        assert f"  {command}  " in printed
    assert gensar("--version")[0] == 0
    assert gensar()[0] == 2
    assert_one_sentence(gensar("trian"), "There is no command 'trian'", "train")


def test_a_printed_configuration_reads_back_to_the_same(gensar, tmp_path):
    words = [
        *TABLES, "--output_dir", "films", "--seed", "3", "--learning_rate=1e-3", "--text_encoder=null",
        "--generator_config.d_model", "32", "--text_columns", "[title, year]", "--eval_strategy", "steps",
        "--task_weights", "{next_query: 0.5}", "--save_strategy", "no", "--history_encoding", "events",
    ]  # fmt: skip
    status, printed, _ = gensar("train", *words, "--print_config")
    assert status == 0
    settings = yaml.safe_load(printed)
    assert (settings["seed"], settings["learning_rate"], settings["text_encoder"]) == (3, 1e-3, None)
    assert (settings["generator_config"], settings["text_columns"]) == ({"d_model": 32}, ["title", "year"])
    path = tmp_path / "films.yaml"
    path.write_text(printed)
    assert gensar("train", "--config", path, "--print_config") == (0, printed, "")
    _, changed, _ = gensar("train", "--config", path, "--seed", "4", "--print_config")
    assert yaml.safe_load(changed) == {**settings, "seed": 4}


def test_numbers_in_yaml_have_their_types(gensar, tmp_path):
    path = tmp_path / "films.yaml"
    path.write_text("learning_rate: 1e-3\nmax_steps: 9\nsinkhorn_epsilon: 0\ntask_weights: {next_query: 1}\n")
    settings = yaml.safe_load(gensar("train", "--config", path, "--print_config")[1])
    assert (settings["learning_rate"], settings["max_steps"], settings["sinkhorn_epsilon"]) == (1e-3, 9, 0)


# ---- mistakes

ARGUMENTS = {
    "--items items.csv --interactions clicks.csv": "Name the output dir with --output_dir",
    "--output_dir a --interactions clicks.csv": "Name the items with --items",
    "--items": "--items: expected one argument",
    "--output_dir a --max_steps": "--max_steps: expected one argument",
    "--output_dir a --max_steps many": "--max_steps takes a whole number; got many",
    "--output_dir a --max_stepz 3": "There is no setting --max_stepz; did you mean --max_steps?",
    "--output_dir a --history_encoding words": "--history_encoding takes one of events, tokens; got words",
    "--output_dir a --task_weights many": "--task_weights takes a mapping {name: value}; got many",
    "--output_dir a --exclude_seen 3": "--exclude_seen takes true or false; got 3",
    "--output_dir a extra.csv": "extra.csv",
    "--output_dir -abc": "'-abc' begins like a setting; write such ids and queries at the end, after --",
    "--output_dir a --task_weights '{swim: 1}'": "the unknown task 'swim'",
    "--output_dir a --codebook_size 1": "`codebook_size` must be at least 2",
    "--output_dir a --sasrec_config.num_heads 3": "`num_heads` must divide `hidden_size`",
    "--output_dir a --generator_config.d_modle 3": "did you mean 'd_model'?",
    "--output_dir a --lora_rank=-1": "`lora_rank` must not be negative; got -1",
    "--output_dir a --save_strategy never": "never is not a valid SaveStrategy",
    "--output_dir a --report_to abacus": "`report_to` names 'abacus'",
    "--config missing.yaml": "missing.yaml cannot be read (No such file or directory)",
    "--output_dir a --items nothing.csv --interactions clicks.csv": "nothing.csv does not exist",
}


@pytest.mark.parametrize("words", ARGUMENTS)
def test_a_mistake_in_a_setting_is_one_sentence(gensar, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    tables = TABLES if words.startswith("--output_dir a ") and ".csv" not in words else []
    assert_one_sentence(gensar("train", *tables, *shlex.split(words)), ARGUMENTS[words])
    assert not list(tmp_path.iterdir())


CONFIGS = {
    "a: [1\n": "films.yaml is not YAML",
    "- 1\n- 2\n": "films.yaml must hold settings",
    "output_dir: a\ncodebook_sise: 3\n": "no setting --codebook_sise in films.yaml; did you mean --codebook_size?",
    "max_steps: many\n": "--max_steps takes a whole number; got many",
    "save_strategy: no\n": "--save_strategy takes one of no, steps, epoch, best (in quotes)",
    "text_columns: title\n": "--text_columns takes a list [a, b]; got title",
    "output_dir:\nseed: 3\n": "Name the output dir with --output_dir",
}  # fmt: skip


@pytest.mark.parametrize("text", CONFIGS)
def test_a_mistake_in_a_configuration_is_one_sentence(gensar, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("films.yaml").write_text(text)
    assert_one_sentence(gensar("train", *TABLES, "--config", "films.yaml"), CONFIGS[text])


def with_cell(row, column, value):
    def edit(frame):
        frame.loc[row - 1, column] = value
        return frame

    return edit


TABLE_MISTAKES = {
    "missing column": ("clicks.csv", lambda t: t.drop(columns="user_id"), ["clicks.csv", "user_id"]),
    "duplicate item": ("items.csv", with_cell(4, "item_id", "B00"), ["items.csv", "row 4", "item_id", "B00", "row 1"]),
    "unknown item": ("clicks.csv", with_cell(18, "item_id", "NOWHERE"), ["clicks.csv", "row 18", "NOWHERE"]),
    "empty table": ("clicks.csv", lambda t: t[:0], ["clicks.csv", "no rows"]),
    "missing time": ("clicks.csv", with_cell(7, "timestamp", ""), ["clicks.csv", "row 7", "timestamp", "missing"]),
    "bad time": ("clicks.csv", with_cell(3, "timestamp", "yesterday"), ["row 3", "timestamp", "yesterday"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", TABLE_MISTAKES)
def test_a_mistake_in_a_table_is_one_sentence_and_the_run_stays(gensar, tables, tmp_path, run, mistake):
    name, edit, words = TABLE_MISTAKES[mistake]
    frame = pd.read_csv(tmp_path / name, dtype=str, keep_default_na=False)
    edit(frame).to_csv(tmp_path / name, index=False)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert_one_sentence(gensar("train", *tables, "--output_dir", run), *words)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_settings_of_the_dataset_are_checked(gensar, tables, tmp_path):
    command = ["train", *tables, "--output_dir", tmp_path / "run"]
    assert_one_sentence(gensar(*command, "--min_interactions=-1"), "`min_interactions` counts clicks")
    assert_one_sentence(gensar(*command, "--search_fraction=1.5"), "search_fraction")
    assert_one_sentence(gensar(*command, "--search_fraction=0.4"), "categories")
    assert_one_sentence(gensar(*command, "--text_columns=[name]"), "name")


def test_a_damaged_table_is_one_sentence(gensar, tables, tmp_path):
    pd.read_csv(tmp_path / "items.csv").to_parquet(tmp_path / "items.parquet")
    content = (tmp_path / "items.parquet").read_bytes()
    (tmp_path / "items.parquet").write_bytes(content[: len(content) // 2])
    words = ["--items", tmp_path / "items.parquet", *tables[2:], "--output_dir", tmp_path / "run"]
    assert_one_sentence(gensar("train", *words), "items.parquet", "cannot be read")


def test_requests_are_checked(gensar, tiny_run, tmp_path):
    assert_one_sentence(gensar("recommend", tiny_run, "NOWHERE"), "NOWHERE")
    assert_one_sentence(gensar("search", tiny_run, "red", "--top_k", "0"), "--top_k must be at least 1; got 0")
    assert_one_sentence(gensar("search", tmp_path, "red"), "cannot be loaded")
    assert_one_sentence(gensar("search", tiny_run), "query")
    assert_one_sentence(gensar("evaluate", tmp_path), "holds no finished run")
    assert_one_sentence(gensar("evaluate", tiny_run, "--part", "training"), "`part` must be test or validation")
    assert_one_sentence(gensar("evaluate", tiny_run, "--num_negatives", "0"), "must be at least 1")
    assert not (tiny_run / "results").exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")]
)
def test_too_little_memory_is_one_sentence(gensar, monkeypatch, error):
    def recommend(*_, **__):
        raise error

    monkeypatch.setattr("gensar_hf.cli.load_pipeline", recommend)
    assert_one_sentence(gensar("recommend", "films"), "There is too little memory; give smaller sizes or batches")


def test_a_defect_shows_where_it_is(gensar, tables, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("`looks like a setting`, but is a defect")

    monkeypatch.setattr("gensar_hf.training.stages.train", broken)
    with pytest.raises(ValueError, match="is a defect"):
        gensar("train", *tables, "--output_dir", tmp_path / "run")
    # A ValueError of another library in the midst of reading data is no sentence about a setting.
    monkeypatch.setattr("gensar_hf.data.dataset._check_interactions", lambda *args: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        gensar("train", *tables, "--output_dir", tmp_path / "run")


def test_an_interrupt_says_how_to_continue(gensar, tables, tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("gensar_hf.training.stages.train", stopped)
    status, _, complaint = gensar("train", *tables, "--output_dir", tmp_path / "run")
    assert status == 130
    assert complaint.endswith("Stopped. The same command continues where it stopped.\n")


# ---- processes


def start(*words, launcher=(sys.executable,)):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, "-m", "gensar_hf", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_the_module_is_the_command(tmp_path):
    done = start("train", "--output_dir", tmp_path / "run", "--max_stepz", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: There is no setting --max_stepz; did you mean --max_steps? --help lists the settings.\n"
    )


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.slow
def test_two_processes_train_one_model(tables, config, tmp_path):
    command = ["train", *tables, "--config", config, "--output_dir", tmp_path / "run"]
    done = start(*command, "--per_device_train_batch_size", "2", launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("semantic ") == 1  # the first process alone prints
    record = json.loads((tmp_path / "run" / "model" / "stage.json").read_text())
    assert record["details"]["steps"] == 4
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "data", "semantic", "collaborative", "rqvae", "model",
    }  # fmt: skip
    pipe = GenSARPipeline.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert len(pipe.recommend([], top_k=3)) == 3
    written = (tmp_path / "run" / "model" / "stage.json").stat().st_mtime_ns
    done = start(*command, "--per_device_train_batch_size", "2")  # the number of processes is no input
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "stage.json").stat().st_mtime_ns == written
