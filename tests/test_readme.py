"""Every command and every snippet of the README, as it stands there, on a small log and with small settings."""

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hub_server import Hub

from gensar_hf import GenSARPipeline
from gensar_hf.generator.tokenization_gensar import GenSARTokenizer

ROOT = Path(__file__).parents[1]
WORDS = ["comedy", "drama", "horror", "space", "crime", "romance", "war", "western", "1970s", "1980s", "1990s"]
NUM_ITEMS = 330  # the README's items, such as 242 and 302, among them
# What is run by whoever runs this test.
NOT_RUN_AGAIN = ("make test",)
SMALL = {
    "semantic": {"batch_size": 32},
    "collaborative": {"max_steps": 3, "per_device_train_batch_size": 8, "hidden_size": 8},
    "rqvae": {"num_train_epochs": 2, "codebook_size": 16, "latent_dim": 8, "hidden_sizes": [16]},
    "model": {
        "max_steps": 3, "per_device_train_batch_size": 2, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1,
        "num_decoder_layers": 1, "num_heads": 2, "text_vocab_size": 80,
    },
    "results": {"num_negatives": 9, "max_users": 10},
}  # fmt: skip


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """One command a line of the README's shell blocks, without comments."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := " ".join(shlex.split(line, comments=True)))]


# ---- snippets, in seconds: a model that was never trained


@pytest.fixture
def untrained(
    tmp_path: Path, make_identifiers: Callable, make_generator: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that the README's snippets load, beside where they are run."""
    table = make_identifiers(12)
    table.item_ids = ["242", "302", "286", "313", *map(str, range(8))]
    tokenizer = GenSARTokenizer.train_from_texts(WORDS, table, vocab_size=100)
    GenSARPipeline(make_generator(tokenizer), tokenizer).save_pretrained(tmp_path / "runs/ml-100k/model")
    monkeypatch.chdir(tmp_path)


def test_the_first_two_snippets_run_and_print_what_is_shown(untrained: None) -> None:
    first, second = blocks("python")[:2]
    printed, names = io.StringIO(), dict[str, object]()
    with contextlib.redirect_stdout(printed):
        exec(first, names)
    shown = blocks("text")[0].splitlines()
    for line, shown_line in zip(printed.getvalue().splitlines(), shown, strict=True):
        assert list(ast.literal_eval(line)) == list(ast.literal_eval(shown_line))
    exec(second, names)
    pipe, history = names["pipe"], names["history"]
    assert isinstance(pipe, GenSARPipeline)
    expected = [answer["item_id"] for answer in pipe.recommend(history)]  # type: ignore[index, arg-type]
    found = names["tokenizer"].decode_items(names["out"])  # type: ignore[attr-defined]
    assert found == expected


def test_the_output_stands_before_line_40() -> None:
    text = (ROOT / "README.md").read_text()
    assert text[: text.index("```text")].count("\n") < 40


# ---- commands, in minutes


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose configurations name a small log and small sizes, and the tables that the commands read."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copytree(ROOT / "training_scripts", folder / "training_scripts")
    for name in ("metrics", "model_cards", "results", "docs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "README.md", folder)
    write_tables(folder)
    for path in (folder / "training_scripts/configs").rglob("*.yaml"):
        if path.parent.name != "accelerate":
            path.write_text(yaml.safe_dump(shrunk(yaml.safe_load(path.read_text())), sort_keys=False))
    return folder


def shrunk(content: dict) -> dict:
    """A configuration with small settings: of a run, of a comparison of runs, or of a baseline."""
    if "baseline" in content:
        if "num_train_epochs" in content.get("settings", {}):
            content["settings"]["num_train_epochs"] = 1
        return {**content, "max_trials": 1}
    if "variants" in content:
        variants = dict(list(content["variants"].items())[:2])
        content = {**content, "seeds": [0], "variants": {name: smaller(part or {}) for name, part in variants.items()}}
        content["settings"] = smaller(content.get("settings", {}))
        if "baselines" in content:
            content["baselines"] = {"names": ["markov", "popularity", "qem", "bm25"], "max_trials": 1}
        return content
    content["data"] = {
        "seed": 0,
        **{name: content["data"][name] for name in ("held_out_items",) if name in content["data"]},
    }
    content = {"items": "items.csv", "interactions": "clicks.csv", **content}
    for section, small in SMALL.items():
        content[section] = {**content.get(section, {}), **small}
    return content


def smaller(sections: dict) -> dict:
    """Of a comparison's settings those that do not set a size."""
    return {
        name: {key: value for key, value in section.items() if key not in SMALL.get(name, {})}
        for name, section in sections.items()
    }


def write_tables(folder: Path) -> None:
    """Items and clicks of two weeks, and what came later: `new_…` without clicks, `newer_…` with clicks."""
    rng = np.random.default_rng(0)
    titles = [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(NUM_ITEMS + 6)]
    items = pd.DataFrame({"item_id": np.arange(1, NUM_ITEMS + 7), "title": titles})
    parts = {"items.csv": items[:NUM_ITEMS], "new_items.csv": items[NUM_ITEMS:-3], "newer_items.csv": items[-3:]}
    for name, part in parts.items():
        part.to_csv(folder / name, index=False)
    old, late = np.arange(NUM_ITEMS), np.r_[:200, NUM_ITEMS + 3 : NUM_ITEMS + 6, NUM_ITEMS + 3 : NUM_ITEMS + 6]
    for name, days, known in (("clicks.csv", range(14), old), ("newer.csv", range(14, 20), late)):
        rows = []
        for user in range(60):
            for day in days:
                item = int(rng.choice(known))
                query = titles[item].split()[0] if rng.random() < 0.4 else ""
                date = pd.Timestamp("2024-01-01") + pd.Timedelta(days=day)
                rows.append((user, item + 1, date.isoformat(), query))
        columns = ["user_id", "item_id", "timestamp", "query"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / name, index=False)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of the commands: this package, and a Hub that is not far."""
    with Hub(token="hf_secret") as hub:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        yield {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": path, "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip


def as_words(command: str) -> list[str]:
    """A command of the README for this interpreter; `make` is asked what it would run."""
    if command.startswith("make "):
        plan = subprocess.run(["make", "-n", *shlex.split(command)[1:]], capture_output=True, text=True, cwd=ROOT)
        (command,) = [line for line in plan.stdout.splitlines() if "training_scripts/" in line]
    words = shlex.split(command)
    if words[0].endswith("torchrun"):
        return [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    return [sys.executable if words[0].endswith("python") else words[0], *words[1:]]


@pytest.mark.slow
def test_every_command_runs_and_then_every_snippet(workshop: Path, environment: dict[str, str]) -> None:
    for command in commands():
        if command in NOT_RUN_AGAIN:
            continue
        done = subprocess.run(as_words(command), capture_output=True, text=True, cwd=workshop, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert "Traceback" not in done.stderr, command
    snippets = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", snippets], capture_output=True, text=True, cwd=workshop, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
