"""What goes wrong between a name and its files on the Hub, in one sentence."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils.hub import cached_file

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def optional_file(path: str | os.PathLike, name: str, **kwargs: Any) -> Path | None:
    """A file of a folder or a repository; None where that has no such file.

    Args:
        path: folder or Hub name.
        name: of the file.
        **kwargs: `revision`, `cache_dir`, …; what has nothing to do with the Hub is passed over.

    Raises:
        OSError: there is no such folder or repository, or it cannot be asked.
    """
    options = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **options)
    return None if found is None else Path(found)


def hub_trouble(path: str | os.PathLike, error: BaseException) -> str:
    """Why a name that is no folder could not be read from the Hub, and what to do, as the rest of a sentence.

    Args:
        path: as the caller gave it.
        error: what the Hub's client raised, with its causes.
    """
    causes = list(_causes(error))

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

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
            "(HF_HUB_OFFLINE), so nothing was downloaded. Switch it off once, or copy the model's folder here."
        )
    return (
        f"there is no folder '{name}', no complete copy of such a repository in the cache, and the Hub could not be "
        "reached or was not asked (`local_files_only`); check the connection, or copy the model's folder here."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
