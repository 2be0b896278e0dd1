import logging
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPTS_DIR = Path(__file__).parents[2] / "training_scripts"
sys.path.insert(0, str(SCRIPTS_DIR))

WORDS = ["red", "blue", "green", "cream", "soap", "lotion", "brush", "shampoo", "gel", "mask", "oil", "balm"]
TINY = [
    "--collaborative.max_steps=3", "--collaborative.per_device_train_batch_size=8", "--collaborative.hidden_size=8",
    "--rqvae.num_train_epochs=2", "--rqvae.codebook_size=8", "--rqvae.latent_dim=8", "--rqvae.hidden_sizes", "16",
    "--model.max_steps=3", "--model.per_device_train_batch_size=2", "--model.d_model=16", "--model.d_kv=8",
    "--model.d_ff=16", "--model.num_layers=1", "--model.num_decoder_layers=1", "--model.num_heads=2",
    "--model.text_vocab_size=60", "--results.num_negatives=9",
]  # fmt: skip


def make_tables(num_users=12, num_items=30, num_clicks=10, query_share=0.4, seed=0):
    """Items with titles only and string ids; clicks with ISO dates and typed queries."""
    rng = np.random.default_rng(seed)
    titles = [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(num_items)]
    items = pd.DataFrame({"item_id": [f"B004ZT{item:04d}" for item in range(num_items)], "title": titles})
    rows = []
    for user in range(num_users):
        for day in range(num_clicks):
            item = int(rng.integers(num_items))
            query = titles[item].split()[0] if rng.random() < query_share else ""
            date = pd.Timestamp("2024-01-01") + pd.Timedelta(days=day, hours=user % 24)
            rows.append((f"user {user}", items["item_id"][item], date.isoformat(), query))
    return items, pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "query"])


@pytest.fixture
def tables(tmp_path):
    """Paths of the two tables as CSV."""
    items, interactions = make_tables()
    items.to_csv(tmp_path / "items.csv", index=False)
    interactions.to_csv(tmp_path / "clicks.csv", index=False)
    return tmp_path / "items.csv", tmp_path / "clicks.csv"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A real sentence-transformers folder of a few kB: the mean of random word vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).standard_normal((len(vocabulary), 16)).astype(np.float32)
    folder = tmp_path_factory.mktemp("encoder") / "static"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(str(folder))
    return folder


@pytest.fixture
def script(monkeypatch, capfd):
    """Runs a script as `__main__` in this process; returns its exit status, what it printed and what it complained."""
    from transformers.utils.logging import enable_progress_bar

    root, package = logging.getLogger(), logging.getLogger("gensar_hf")
    before = root.handlers[:], root.level, package.level

    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        status = 0
        try:
            runpy.run_path(str(SCRIPTS_DIR / name), run_name="__main__")
        except SystemExit as ended:
            status = ended.code or 0
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    yield run
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    package.setLevel(before[2])
    enable_progress_bar()


def start(name, *argv, launcher=(sys.executable,), **options):
    """A script in a process of its own."""
    words = [*launcher, str(SCRIPTS_DIR / name), *map(str, argv)]
    # A suite that a shell has started in the background ignores interrupts, and its children would, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def prepared_run(tmp_path_factory, encoder):
    """A run whose stages before the generator are finished, and the options it was made with."""
    folder = tmp_path_factory.mktemp("prepared")
    items, interactions = make_tables(num_users=40, num_clicks=14)
    items.to_parquet(folder / "items.parquet")
    interactions.to_parquet(folder / "clicks.parquet")
    tables = ["--items", folder / "items.parquet", "--interactions", folder / "clicks.parquet"]
    common = ["--output_dir", folder / "run"]
    tiny = {section: _options(section) for section in ("collaborative", "rqvae")}
    for name, options in (
        ("prepare_data.py", tables),
        ("encode_items.py", ["--semantic.model", encoder]),
        ("train_sasrec.py", tiny["collaborative"]),
        ("train_rqvae.py", tiny["rqvae"]),
    ):
        process = start(name, *common, *options)
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint
    return folder / "run"


def _options(section):
    """The tiny settings of one section."""
    chosen, inside = [], False
    for word in TINY:
        inside = word.startswith(f"--{section}.") if word.startswith("--") else inside
        chosen += [word] if inside else []
    return chosen


@pytest.fixture(scope="session")
def start_script():
    """Starts a script in a process of its own: `start_script(name, *argv, launcher=...)`."""
    return start


@pytest.fixture(scope="session")
def tiny():
    """Options of a run of seconds; `tiny(section)` gives those of one section."""
    return lambda section=None: list(TINY) if section is None else _options(section)


@pytest.fixture(scope="session")
def tables_of():
    """Makes the two tables in memory."""
    return make_tables
