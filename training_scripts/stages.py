"""A run's stages: their folders, skipping finished ones, going on in killed ones, several processes."""

import dataclasses
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from sections import dataclass_values, training_defaults
from transformers import TrainingArguments

from gensar_hf.artifacts import STAGE_FILE, DataError, fingerprint, finish_stage, is_finished, read_json, written_aside
from gensar_hf.data import EventLog, InteractionLog, Split, events_from_log

STAGES = DATA, SEMANTIC, COLLABORATIVE, RQVAE, MODEL, RESULTS = (
    "data", "semantic", "collaborative", "rqvae", "model", "results",
)  # fmt: skip
BASELINES, FINETUNE = "baselines", "finetune"
SECTIONS = (*STAGES, BASELINES, FINETUNE)  # of a configuration file
CHECKPOINTS = "checkpoints"

# How a stage is trained, watched and saved does not change what comes out of it.
_NOT_AN_INPUT = {
    "output_dir", "run_name", "report_to", "disable_tqdm", "log_level", "log_level_replica", "logging_strategy",
    "logging_steps", "logging_first_step", "save_strategy", "save_steps", "save_total_limit", "use_cpu",
    "ddp_backend", "ddp_timeout", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "dataloader_persistent_workers",
}  # fmt: skip

logger = logging.getLogger("gensar_hf.training_scripts")

Work = Callable[[Path, Path], dict[str, Any]]


@dataclasses.dataclass
class StageReport:
    """How a stage went."""

    stage: str
    seconds: float
    skipped: bool
    details: dict[str, Any]


def run_stage(run_dir: Path, stage: str, inputs: list[Any], work: Work, is_distributed: bool = False) -> StageReport:
    """Run one stage into `run_dir/stage`, or skip it when it is finished and was made from the same inputs.

    Under `torchrun` the first process alone writes; the others join in where the work is distributed, and wait for it
    in any case, so that all of them see the same finished stages.

    Args:
        run_dir: the run's folder.
        stage: name of the stage and of its folder.
        inputs: all that the result depends on: arguments, paths of files and folders. The number of processes is none
            of them: it is part of the checkpoints' name only.
        work: called with the folder to fill and a folder for checkpoints; returns details for `stage.json`.
        is_distributed: whether the work needs all processes (a `Trainer`).

    Raises:
        DataError: an input is missing, or a figure in the details is not finite, as after a training that diverged.
    """
    folder, inputs_fingerprint = run_dir / stage, fingerprint(*[_as_input(value) for value in inputs])
    skipped = _is_complete(folder, stage, inputs_fingerprint)
    if not skipped and process_rank() == 0:
        _run(folder, stage, inputs_fingerprint, work, is_distributed)
    elif not skipped and is_distributed:
        with tempfile.TemporaryDirectory() as unused:
            work(Path(unused), _checkpoints(folder, inputs_fingerprint))
        _wait_for_all()  # the first process, in `_run`
    _wait_for_all()
    record = read_json(folder / STAGE_FILE)
    return StageReport(stage, record["seconds"], skipped, record["details"])


def _run(folder: Path, stage: str, inputs_fingerprint: str, work: Work, is_distributed: bool) -> None:
    checkpoints = _checkpoints(folder, inputs_fingerprint)
    start = time.perf_counter()
    with written_aside(folder) as aside:
        aside.mkdir(parents=True, exist_ok=True)
        details = work(aside, checkpoints)
        if is_distributed:
            _wait_for_all()  # others may still be busy with the last checkpoint, which is deleted below
        _refuse_divergence(stage, details)
        details["files"] = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file())
        finish_stage(aside, stage, inputs_fingerprint, time.perf_counter() - start, details)
    # Checkpoints of other settings, too, and what a killed process had begun to write: of no use any more.
    for leftover in [*checkpoints.parent.glob(f"{stage}-*"), *folder.parent.glob(f".{stage}.aside-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _is_complete(folder: Path, stage: str, inputs_fingerprint: str) -> bool:
    """Finished, and none of its files has been deleted since."""
    if not is_finished(folder, stage, inputs_fingerprint):
        return False
    return all((folder / name).is_file() for name in read_json(folder / STAGE_FILE)["details"].get("files", []))


def _checkpoints(folder: Path, inputs_fingerprint: str) -> Path:
    """Where a stage saves while it trains: never shared by other settings, or by another number of processes."""
    return folder.parent / CHECKPOINTS / f"{folder.name}-{inputs_fingerprint[:12]}-{process_count()}"


def _as_input(value: Any) -> Any:
    """A value as `fingerprint` takes it; of `TrainingArguments` what differs from the defaults of this machine."""
    if isinstance(value, TrainingArguments):
        # With another `use_cpu` the second one would set accelerate's processes up anew, each of them alone.
        usual = TrainingArguments(**{**training_defaults(), "use_cpu": value.use_cpu}).to_dict()
        given = value.to_dict()
        return {name: field for name, field in given.items() if field != usual[name] and name not in _NOT_AN_INPUT}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclass_values(value)
    return value


def _refuse_divergence(stage: str, details: dict[str, Any]) -> None:
    for name, value in details.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"Stage {stage} diverged: its {name} is {value}; lower --{stage}.learning_rate.")


def load_data(run_dir: Path) -> tuple[InteractionLog, EventLog, Split]:
    """The data stage's log, its events and the split."""
    log = InteractionLog.load(run_dir / DATA)
    events = events_from_log(log)
    return log, events, Split.load(run_dir / DATA, events)


@contextmanager
def damage_reported(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a stage's model is loaded into one sentence."""
    try:
        yield
    except DataError:
        raise
    except (SafetensorError, StrictDataclassError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{folder} cannot be loaded ({reason}); delete it and run its stage again.") from error


def process_rank() -> int:
    """This process's number under `torchrun`; 0 without."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes `torchrun` has started; 1 without."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _wait_for_all() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
