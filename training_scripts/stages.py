"""A run's stages: their folders, skipping finished ones, going on in killed ones, several processes."""

import dataclasses
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from sections import dataclass_values, training_defaults
from transformers import TrainingArguments

from gensar_hf.data import InteractionLog, Split, UserEvents, events_from_log
from gensar_hf.epoch_rows import rows_per_step
from gensar_hf.errors import InputError
from gensar_hf.files import STAGE_FILE, atomic_path, fingerprint, read_json
from gensar_hf.training.stages import finish_stage, is_finished

STAGES = DATA, SEMANTIC, COLLABORATIVE, RQVAE, MODEL, RESULTS = (
    "data", "semantic", "collaborative", "rqvae", "model", "results",
)  # fmt: skip
BASELINES, FINETUNE = "baselines", "finetune"
SECTIONS = (*STAGES, BASELINES, FINETUNE)  # of a configuration file
CHECKPOINTS = "checkpoints"

# A training goes on from the checkpoints of another division of a step's rows among processes and batches.
_DIVISION = {"per_device_train_batch_size", "gradient_accumulation_steps"}

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
            of them: a finished stage stays finished.
        work: called with the folder to fill and a folder for checkpoints; returns details for `stage.json`.
        is_distributed: whether all processes do the work together (a `Trainer`, an evaluation); what those after the
            first one write is thrown away.

    Raises:
        InputError: an input is missing, or a figure in the details is not finite, as after a training that diverged.
    """
    folder, inputs_fingerprint = run_dir / stage, fingerprint(*[_as_input(value) for value in inputs])
    skipped = _is_complete(folder, stage, inputs_fingerprint)
    checkpoints = None if skipped else _checkpoints(folder, inputs)
    _wait_for_all()  # all have looked before the first one writes
    if checkpoints is not None and process_rank() == 0:
        _run(folder, stage, inputs_fingerprint, work, checkpoints, is_distributed)
    elif checkpoints is not None and is_distributed:
        with tempfile.TemporaryDirectory() as unused:
            work(Path(unused), checkpoints)
        _wait_for_all()  # the first process, in `_run`
    _wait_for_all()
    record = read_json(folder / STAGE_FILE)
    return StageReport(stage, record["seconds"], skipped, record["details"])


def _run(
    folder: Path, stage: str, inputs_fingerprint: str, work: Work, checkpoints: Path, is_distributed: bool
) -> None:
    start = time.perf_counter()
    with atomic_path(folder) as aside:
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


def _checkpoints(folder: Path, inputs: list[Any]) -> Path:
    """Where a stage saves while it trains: never shared by other settings, or by steps of another number of rows.

    However the rows of a step are divided among processes and accumulated batches, they are the same rows, so that
    a killed training goes on with any division of them.
    """
    steps = "-".join(str(rows_per_step(value)) for value in inputs if isinstance(value, TrainingArguments))
    others = fingerprint(*[_as_input(value, _NOT_AN_INPUT | _DIVISION) for value in inputs])[:12]
    place = folder.parent / CHECKPOINTS / f"{folder.name}-{others}-{steps}"
    started = [path.parent for path in place.parent.glob(f"{folder.name}-{others}-*/checkpoint-*")]
    if started and place not in started and process_rank() == 0:
        rows = started[0].name.rpartition("-")[2]
        logger.warning(
            "Stage %s starts anew: its training was stopped at steps of %s rows, and these settings make steps of %s; "
            "to go on, let per_device_train_batch_size × gradient_accumulation_steps × processes (%d) be %s.",
            *(folder.name, rows, steps, process_count(), rows),
        )
    return place


def _as_input(value: Any, passed_over: Collection[str] = _NOT_AN_INPUT) -> Any:
    """A value as `fingerprint` takes it; of `TrainingArguments` what differs from the defaults of this machine."""
    if isinstance(value, TrainingArguments):
        # With another `use_cpu` the second one would set accelerate's processes up anew, each of them alone.
        usual = TrainingArguments(**{**training_defaults(), "use_cpu": value.use_cpu}).to_dict()
        given = value.to_dict()
        return {name: field for name, field in given.items() if field != usual[name] and name not in passed_over}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclass_values(value)
    return value


def _refuse_divergence(stage: str, details: dict[str, Any]) -> None:
    for name, value in details.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"Stage {stage} diverged: its {name} is {value}; lower --{stage}.learning_rate.")


def load_data(run_dir: Path) -> tuple[InteractionLog, UserEvents, Split]:
    """The data stage's log, its events and the split."""
    log = InteractionLog.load(run_dir / DATA)
    events = events_from_log(log)
    return log, events, Split.load(run_dir / DATA, events)


@contextmanager
def damage_reported(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a stage's model is loaded into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (SafetensorError, StrictDataclassError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder} cannot be loaded ({reason}); delete it and run its stage again.") from error


def refuse_sharding(stage: str) -> None:
    """Refuse FSDP and DeepSpeed for a model that is read while it is trained, and too small to be worth it.

    Raises:
        InputError: accelerate was told to spread the weights over the processes.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise InputError(
                f"Stage {stage} trains a small model that is whole in every process, and does not take {name}; run it "
                "by itself, with torchrun or configs/accelerate/multi_gpu.yaml, and then train_generator.py with this."
            )


def process_rank() -> int:
    """This process's number under `torchrun`; 0 without."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes `torchrun` has started; 1 without."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes() -> PartialState:
    """All processes that `torchrun` has started, brought together if no `TrainingArguments` have done so before."""
    return PartialState(cpu=not torch.accelerator.is_available())


def _wait_for_all() -> None:
    if process_count() > 1:
        processes().wait_for_everyone()
