"""Uploads to the Hub, and explanations of Hub errors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gensar_hf.errors import InputError, shown


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str,
    create_pr: bool = False,
) -> str:
    """Upload a folder in one commit to a model repository; repository and branch are created if missing.

    Args:
        folder: whose files are uploaded.
        repo_id: such as `"me/films"`.
        revision: a branch, made from `main`.
        private: whether a new repository is private.
        token: of an account that may write; default: the one that is logged in.
        commit_message: of the commit.
        create_pr: propose the commit as a pull request.

    Returns:
        the address of the commit.

    Raises:
        InputError: the Hub refuses, or cannot be reached.
    """
    api = HfApi(token=token)
    with push_errors_reported(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )
    return commit.commit_url


@contextmanager
def push_errors_reported(repo_id: str) -> Iterator[None]:
    """Report whatever the Hub's client raises as one sentence.

    Raises:
        InputError: the Hub refuses, or cannot be reached.
    """
    try:
        yield
    except Exception as error:  # the client's transport raises its own kinds of errors
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"Nothing was pushed to {shown(repo_id)} ({reason[:200]}); check the name, the connection, and that the "
            "account may write there: log in with `hf auth login`, or pass `token`."
        ) from error


def explain_hub_error(path: str | os.PathLike, error: BaseException) -> str:
    """The end of a sentence that explains why the name `path` could not be read from the Hub, and what to do."""
    causes: list[type[BaseException]] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(type(cause))
        cause = cause.__cause__ or cause.__context__

    def is_a(kind: type[BaseException]) -> bool:
        return any(issubclass(cause, kind) for cause in causes)

    name = os.fspath(path)
    if is_a(GatedRepoError):
        return f"'{name}' is gated on the Hub; accept its conditions there and pass `token`."
    if is_a(RevisionNotFoundError):
        return f"the repository '{name}' has no such revision; name one of its branches, tags or commits."
    if is_a(RepositoryNotFoundError):
        return (
            f"there is no folder '{name}', nor a repository of that name on the Hub that this account may read; check "
            "the name, or pass `token` if it is private."
        )
    if is_a(HFValidationError) or name.count("/") > 1 or name.startswith((".", "/")):
        return f"there is no folder '{name}', and no repository on the Hub can have that name."
    if constants.HF_HUB_OFFLINE or is_a(OfflineModeIsEnabled):
        return (
            f"there is no folder '{name}', and no copy of such a repository in the cache; offline mode is on "
            "(HF_HUB_OFFLINE), so nothing was downloaded. Switch it off once, or copy the folder here."
        )
    return (
        f"there is no folder '{name}', no complete copy of such a repository in the cache, and the Hub could not be "
        "reached or was not asked (`local_files_only`); check the connection, or copy the folder here."
    )
