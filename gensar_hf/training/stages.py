"""Completion records of stage folders, and the checkpoints of a killed training."""

import logging
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gensar_hf.errors import InputError
from gensar_hf.files import STAGE_FILE, read_json, write_json

logger = logging.getLogger(__name__)


def finish_stage(
    stage_dir: str | os.PathLike[str], stage: str, inputs_fingerprint: str, seconds: float, details: Mapping[str, Any]
) -> None:
    """Declare a stage finished: write its `stage.json`, after every other file of the folder.

    Args:
        stage_dir: the folder the stage has filled.
        stage: the stage's name.
        inputs_fingerprint: `fingerprint` of everything the stage has read.
        seconds: wall time the stage took.
        details: whatever a reader may want to know (sizes, losses, ...); anything JSON can hold, numpy included.
    """
    record = {
        "stage": stage,
        "inputs_fingerprint": inputs_fingerprint,
        "package_version": _package_version(),
        "seconds": round(float(seconds), 3),
        "details": dict(details),
    }
    write_json(Path(stage_dir) / STAGE_FILE, record)


def is_finished(stage_dir: str | os.PathLike[str], stage: str, inputs_fingerprint: str) -> bool:
    """Whether `stage_dir` holds this stage, complete, and made from the same inputs.

    A `stage.json` that cannot be read counts as absent: the stage is then simply run again.
    """
    stage_file = Path(stage_dir) / STAGE_FILE
    if not stage_file.is_file():
        return False
    try:
        record = read_json(stage_file)
    except InputError as error:
        logger.warning("%s The stage %s is run again.", error, stage)
        return False
    if not isinstance(record, dict):
        return False
    return record.get("stage") == stage and record.get("inputs_fingerprint") == inputs_fingerprint


def _package_version() -> str:
    try:
        return metadata.version("gensar-hf")
    except metadata.PackageNotFoundError:
        return "not installed"
