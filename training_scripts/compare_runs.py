"""Runs that differ in a few settings, and baselines beside them: comparisons and ablations.

    python training_scripts/compare_runs.py training_scripts/configs/ml-100k-identifiers.yaml
    python training_scripts/compare_runs.py CONFIG.yaml --items items.parquet --model.max_steps 300

The file names a `base` configuration, settings for all runs, `seeds`, and `variants`: name → what differs. Each run has
a folder of its own, with its `config.yaml`, which `run_pipeline.py` takes as well. Stages that have the same settings
up to their own are run once and linked. `baselines` (settings of `evaluate_baselines.py`) adds those systems, on the
first run's data and candidates and with the same seeds. A killed comparison goes on where it stopped; a run that fails
is reported and the others go on (the exit status is then 1).
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from console import reported_errors
from evaluate_baselines import BaselineArguments, baseline_outcomes, save_comparisons
from rich.console import Console
from run_pipeline import SCRIPTS
from settings import Settings, parse_settings
from stages import BASELINES, DATA, MODEL, RESULTS, RQVAE, SECTIONS, STAGES, StageReport

from gensar_hf.errors import InputError
from gensar_hf.evaluation.comparison import Outcome
from gensar_hf.files import atomic_path

logger = logging.getLogger("gensar_hf.training_scripts")

KEYS = {"base", "baselines", "output_dir", "seeds", "settings", "variants"}
SEEDED = (RQVAE, MODEL)


@dataclass(frozen=True)
class Run:
    """One variant with one seed: its name, and its configuration (section → setting → value), `output_dir` included."""

    variant: str
    seed: int
    config: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config["output_dir"])


@dataclass(frozen=True)
class Comparison:
    """What a file asks for: the folder, the runs seed by seed, and the baselines' settings (None: no baselines)."""

    folder: Path
    runs: list[Run]
    baselines: BaselineArguments | None


def read_comparison(path: Path) -> Comparison:
    """Read a comparison's file.

    Raises:
        InputError: the file cannot be read, or holds something else than a comparison.
    """
    content = _read_yaml(path)
    unknown = set(content) - KEYS
    if unknown or not isinstance(content.get("variants"), dict) or "output_dir" not in content:
        what = (
            f"the unknown entry '{min(unknown)}'" if unknown else "no `output_dir` or no `variants` (name → settings)"
        )
        raise InputError(f"{path} has {what}; a comparison has {', '.join(sorted(KEYS))}.")
    base = _read_yaml(path.parent / content["base"]) if "base" in content else {}
    folder, seeds = Path(content["output_dir"]), content.get("seeds", [0])
    runs = []
    for seed in seeds:  # the outer loop: a comparison that is broken off has all variants of a seed
        for variant, differences in content["variants"].items():
            config = merged(base, content.get("settings"), {section: {"seed": seed} for section in SEEDED}, differences)
            config["output_dir"] = str(folder / f"{slug(variant)}-seed-{seed}")
            runs.append(Run(variant, seed, config))
    if BASELINES not in content:
        return Comparison(folder, runs, None)
    try:
        return Comparison(folder, runs, BaselineArguments(**{"seeds": seeds, **(content[BASELINES] or {})}))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the section 'baselines': {error}") from None


def merged(*configs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Sections of all configurations, a later one's settings over an earlier one's."""
    result: dict[str, Any] = {}
    for config in configs:
        for name, value in (config or {}).items():
            result[name] = {**result.get(name, {}), **value} if isinstance(value, dict) else value
    return result


def slug(name: str) -> str:
    """A variant's name as part of a folder's.

    >>> slug("RQ-VAE, random start (paper)")
    'rq-vae-random-start-paper'
    """
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def link_shared_stages(run: Run, first_folders: dict[str, Path]) -> None:
    """Link the stages that an earlier run has with the same settings, up to and with the stage's own."""
    for position, stage in enumerate(STAGES):
        upstream = {
            name: value for name, value in run.config.items() if name not in (*STAGES[position + 1 :], "output_dir")
        }
        key = json.dumps([stage, upstream], sort_keys=True, default=str)
        first = first_folders.setdefault(key, run.folder)
        link = run.folder / stage
        if first == run.folder:
            if link.is_symlink():  # of a comparison in which another run came first
                link.unlink()
        elif not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(first / stage, run.folder), target_is_directory=True)


def run_settings(run: Run, options: Sequence[str]) -> Settings:
    """The run's settings from its `config.yaml`, which is written first."""
    run.folder.mkdir(parents=True, exist_ok=True)
    config_path = run.folder / "config.yaml"
    with atomic_path(config_path) as aside:
        aside.write_text(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return parse_settings([script.SECTION for script in SCRIPTS], SECTIONS, "", [str(config_path), *options])


def main(argv: Sequence[str]) -> int:
    """Run all, compare, save; 1 when a run has failed."""
    if not argv or argv[0].startswith("-"):
        print((__doc__ or "").strip(), file=sys.stderr if argv[:1] != ["--help"] else sys.stdout)
        return 0 if argv[:1] == ["--help"] else 2
    comparison, console = read_comparison(Path(argv[0])), Console(width=140)
    failures: dict[str, str] = {}
    outcomes: list[Outcome] = []
    first_folders: dict[str, Path] = {}
    for number, run in enumerate(comparison.runs, start=1):
        console.print(f"[bold]{number}/{len(comparison.runs)} {run.variant}, seed {run.seed}[/bold] ({run.folder})")
        try:
            settings = run_settings(run, argv[1:])
            link_shared_stages(run, first_folders)
            outcomes.append(_outcome(run, [script.run(settings) for script in SCRIPTS]))
        except InputError as error:
            failures[f"{run.variant}, seed {run.seed}"] = str(error)
            console.print(f"    [red]failed: {error}[/red]")
    if comparison.baselines and outcomes:
        evaluation, _ = run_settings(comparison.runs[0], argv[1:])[RESULTS]
        run_dir = outcomes[0].results.parent
        found, failed = baseline_outcomes(run_dir, comparison.baselines, evaluation, console)
        outcomes, failures = outcomes + found, failures | failed
    if outcomes:
        outcomes.sort(key=lambda outcome: _place(outcome.system, comparison.runs))  # baselines last, in their order
        save_comparisons(outcomes, failures, comparison.folder / RESULTS, console)
    return 1 if failures else 0


def _place(system: str, runs: Sequence[Run]) -> int:
    variants = list(dict.fromkeys(run.variant for run in runs))
    return variants.index(system) if system in variants else len(variants)


def _outcome(run: Run, stages: Sequence[StageReport]) -> Outcome:
    """What the comparison needs of a finished run."""
    details = {report.stage: report.details for report in stages}
    return Outcome(
        system=run.variant,
        seed=run.seed,
        results=run.folder / RESULTS,
        seconds={report.stage: report.seconds for report in stages if report.stage not in (DATA, RESULTS)},
        parameters=details[MODEL]["parameters"],
        identifiers=details[RQVAE],
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The configuration {path} cannot be read ({error.strerror}); give a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"The configuration {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise InputError(f"The configuration {path} must hold entries such as 'output_dir: runs/comparison'.")
    return content


if __name__ == "__main__":
    with reported_errors():
        raise SystemExit(main(sys.argv[1:]))
