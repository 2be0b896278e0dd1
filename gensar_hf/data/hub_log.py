"""A log as a dataset repository, for the Hub and for `datasets.load_dataset`: two tables, `log.json`, a card."""

import os
import tempfile
from pathlib import Path

from huggingface_hub import snapshot_download

from gensar_hf.data.interactions import InteractionLog
from gensar_hf.errors import InputError
from gensar_hf.files import CARD_FILE, atomic_path
from gensar_hf.hub import hub_trouble, push_folder

TABLES = ("items", "interactions")


def export_log(log: InteractionLog, folder: str | os.PathLike[str], card: str) -> None:
    """Write a log as a dataset folder: `datasets.load_dataset(folder, "items")` reads its tables.

    Args:
        log: as the data stage wrote it.
        folder: for `items.parquet`, `interactions.parquet`, `log.json` and `README.md`.
        card: the content of `README.md`; its front matter names the tables as configurations.
    """
    log.save(folder)
    with atomic_path(Path(folder) / CARD_FILE) as aside:
        aside.write_text(card, encoding="utf-8")


def push_log(
    log: InteractionLog,
    repo_id: str,
    card: str,
    *,
    private: bool = True,
    token: str | bool | None = None,
    commit_message: str = "Upload a log of searches and recommendations",
) -> str:
    """Upload a log in one commit.

    Args:
        log: as the data stage wrote it.
        repo_id: of a dataset repository; created if it is not there.
        card: as for `export_log`.
        private: whether a new repository is private. So by default: a log is about people.
        token: of an account that may write; default: the one that is logged in.
        commit_message: of the commit.

    Returns:
        the address of the commit.

    Raises:
        InputError: the Hub refuses, or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        export_log(log, folder, card)
        return push_folder(
            folder, repo_id, repo_type="dataset", private=private, token=token, commit_message=commit_message
        )


def log_from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> InteractionLog:
    """The log of a dataset repository that `push_log` wrote.

    Args:
        repo_id: of the dataset repository.
        revision: branch, tag or commit.
        cache_dir: where downloads are kept.
        token: for a private repository.
        local_files_only: take what is in the cache.

    Raises:
        InputError: there is no such repository, or it holds no log.
    """
    try:
        folder = snapshot_download(
            repo_id,
            repo_type="dataset",
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=["log.json", *(f"{name}.parquet" for name in TABLES)],
        )
    except (OSError, ValueError) as error:
        raise InputError(f"The log cannot be loaded: {hub_trouble(repo_id, error)}") from error
    return InteractionLog.load(folder)
