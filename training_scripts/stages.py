"""What the scripts share: a run's folders, skipping finished stages, reading arguments, errors as exit status 2."""

import argparse
import dataclasses
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gensar_hf.artifacts import DataError, fingerprint, finish_stage, is_finished, read_json, written_aside
from gensar_hf.data import EventLog, InteractionLog, Split, events_from_log
from gensar_hf.precision import bf16_is_faster

DATA, SEMANTIC, COLLABORATIVE, RQVAE, MODEL, RESULTS = "data", "semantic", "collaborative", "rqvae", "model", "results"

# Where a run is trained and how it reports does not change what comes out of it.
_NOT_AN_INPUT = {
    "output_dir",
    "logging_strategy",
    "logging_steps",
    "disable_tqdm",
    "save_steps",
    "dataloader_num_workers",
}


@dataclasses.dataclass
class StageReport:
    """How a stage went."""

    stage: str
    seconds: float
    skipped: bool
    details: dict[str, Any]


def run_stage(
    run_dir: Path, stage: str, inputs: list[Any], work: Callable[[Path, Path], dict[str, Any]]
) -> StageReport:
    """Run one stage into `run_dir/stage`, or skip it when it is finished and was made from the same inputs.

    Args:
        run_dir: the run's folder.
        stage: name of the stage and of its folder.
        inputs: all that the result depends on: arguments, paths of files and folders.
        work: called with the folder to fill and a folder for checkpoints; returns details for `stage.json`.
    """
    folder, inputs_fingerprint = run_dir / stage, fingerprint(*[_as_input(value) for value in inputs])
    if is_finished(folder, stage, inputs_fingerprint):
        record = read_json(folder / "stage.json")
        return StageReport(stage, record["seconds"], True, record["details"])
    run_dir.mkdir(parents=True, exist_ok=True)
    # Checkpoints carry the fingerprint, so that a run with other settings never resumes from them.
    checkpoints = run_dir / "checkpoints" / f"{stage}-{inputs_fingerprint[:12]}"
    start = time.perf_counter()
    with written_aside(folder) as aside:
        aside.mkdir(parents=True, exist_ok=True)
        details = work(aside, checkpoints)
        seconds = time.perf_counter() - start
        finish_stage(aside, stage, inputs_fingerprint, seconds, details)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return StageReport(stage, seconds, False, details)


def _as_input(value: Any) -> Any:
    if isinstance(value, TrainingArguments):
        value = {name: field for name, field in value.to_dict().items() if name not in _NOT_AN_INPUT}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: field for name, field in value.items() if name not in _NOT_AN_INPUT}
    return value


def last_checkpoint(checkpoints: Path) -> str | None:
    """The newest complete checkpoint. The Trainer writes `trainer_state.json` last; a killed write lacks it."""
    complete = [
        path for path in checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (path / "trainer_state.json").is_file()
    ]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


def load_data(run_dir: Path) -> tuple[InteractionLog, EventLog, Split]:
    """The data stage's log, its events and the split."""
    log = InteractionLog.load(run_dir / DATA)
    events = events_from_log(log)
    return log, events, Split.load(run_dir / DATA, events)


def training_arguments(section: dict[str, Any], **defaults: Any) -> TrainingArguments:
    """`TrainingArguments` from a section's values and a stage's defaults; bf16 where it is the faster one."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    values = {"bf16": bf16_is_faster(), "report_to": "none", "save_total_limit": 1, "output_dir": "."}
    values |= defaults | {name: value for name, value in section.items() if name in names}
    (arguments,) = HfArgumentParser(TrainingArguments).parse_dict(values)
    return arguments


def section_arguments(section: dict[str, Any], argument_class: type, stage: str) -> Any:
    """A stage's own dataclass from its section; a name that neither it nor `TrainingArguments` knows is an error."""
    own = {field.name for field in dataclasses.fields(argument_class)}
    unknown = set(section) - own - {field.name for field in dataclasses.fields(TrainingArguments)}
    if unknown:
        raise DataError(
            f"The section '{stage}' has the unknown setting '{sorted(unknown)[0]}'; it takes {', '.join(sorted(own))} "
            "and, where something is trained, the fields of TrainingArguments."
        )
    (arguments,) = HfArgumentParser(argument_class).parse_dict(
        {name: value for name, value in section.items() if name in own}
    )
    return arguments


def parse_command_line(description: str, argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Sections of settings from an optional YAML file and `--section.name value` or `--name value` overrides.

    Returns:
        section → name → value; what stands outside every section is under `""`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="YAML file with one section a stage, see training_scripts/configs")
    known, rest = parser.parse_known_args(argv)
    sections: dict[str, dict[str, Any]] = {"": {}}
    if known.config:
        sections |= _read_config(Path(known.config))
    if len(rest) % 2:
        rest.append("true")
    for option, value in zip(rest[::2], rest[1::2], strict=True):
        if not option.startswith("--"):
            raise DataError(f"'{option}' is not an option; options look like --output_dir runs/mine or --model.seed 1.")
        section, _, name = option[2:].rpartition(".")
        sections.setdefault(section, {})[name.replace("-", "_")] = yaml.safe_load(value)
    return sections


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise DataError(f"The configuration {path} does not exist; see training_scripts/configs.") from None
    except yaml.YAMLError as error:
        raise DataError(f"The configuration {path} is not YAML: {error}".replace("\n", " ")) from None
    if not isinstance(content, dict):
        raise DataError(f"The configuration {path} must hold sections such as 'model:'; got {content!r}.")
    sections: dict[str, dict[str, Any]] = {"": {}}
    for name, value in content.items():
        if isinstance(value, dict):
            sections[name] = value
        else:
            sections[""][name] = value
    return sections


def main(run: Callable[[dict[str, dict[str, Any]]], Any], description: str, argv: list[str] | None = None) -> None:
    """Run a script: arguments in, errors out as one sentence and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("gensar_hf").setLevel(logging.INFO)
    try:
        run(parse_command_line(description, argv))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
