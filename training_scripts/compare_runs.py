"""Runs that differ in a few settings, side by side: comparisons and ablations.

    python training_scripts/compare_runs.py training_scripts/configs/ml-100k-identifiers.yaml
    python training_scripts/compare_runs.py CONFIG.yaml --items items.parquet --model.max_steps 300

The file names a `base` configuration, settings for all runs, `seeds`, and `variants`: name → what differs. Each run has
a folder of its own, with its `config.yaml`, which `run_pipeline.py` takes as well. Stages that have the same settings
up to their own are run once and linked. A killed comparison goes on where it stopped; a run that fails is reported and
the others go on.
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
from rich.console import Console
from run_pipeline import SCRIPTS
from settings import parse_settings
from stages import RESULTS, RQVAE, STAGES, StageReport

from gensar_hf.artifacts import DataError, read_json, write_json, written_aside
from gensar_hf.evaluation.comparison import compare, comparison_tables, save_figures

logger = logging.getLogger("gensar_hf.training_scripts")

KEYS = {"base", "output_dir", "seeds", "settings", "variants"}
SEEDED = (RQVAE, "model")


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


def read_comparison(path: Path) -> tuple[Path, list[Run]]:
    """The comparison's folder and its runs, seed by seed.

    Raises:
        DataError: the file cannot be read, or holds something else than a comparison.
    """
    content = _read_yaml(path)
    unknown = set(content) - KEYS
    if unknown or not isinstance(content.get("variants"), dict) or "output_dir" not in content:
        what = (
            f"the unknown entry '{min(unknown)}'" if unknown else "no `output_dir` or no `variants` (name → settings)"
        )
        raise DataError(f"{path} has {what}; a comparison has {', '.join(sorted(KEYS))}.")
    base = _read_yaml(path.parent / content["base"]) if "base" in content else {}
    folder = Path(content["output_dir"])
    runs = []
    for seed in content.get("seeds", [0]):  # the outer loop: a comparison that is broken off has all variants of a seed
        for variant, differences in content["variants"].items():
            config = merged(base, content.get("settings"), {section: {"seed": seed} for section in SEEDED}, differences)
            config["output_dir"] = str(folder / f"{slug(variant)}-seed-{seed}")
            runs.append(Run(variant, seed, config))
    return folder, runs


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


def execute(run: Run, options: Sequence[str], first_folders: dict[str, Path]) -> list[StageReport]:
    """Run all stages that are not finished."""
    run.folder.mkdir(parents=True, exist_ok=True)
    config_path = run.folder / "config.yaml"
    with written_aside(config_path) as aside:
        aside.write_text(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    link_shared_stages(run, first_folders)
    sections = [script.SECTION for script in SCRIPTS]
    settings = parse_settings(sections, STAGES, "", [str(config_path), *options])
    return [script.run(settings) for script in SCRIPTS]


def main(argv: Sequence[str]) -> int:
    """Run all, compare, save; 1 when a run has failed."""
    if not argv or argv[0].startswith("-"):
        print((__doc__ or "").strip(), file=sys.stderr if argv[:1] != ["--help"] else sys.stdout)
        return 0 if argv[:1] == ["--help"] else 2
    folder, runs = read_comparison(Path(argv[0]))
    console, failures, reports = Console(width=140), {}, []
    first_folders: dict[str, Path] = {}
    for number, run in enumerate(runs, start=1):
        console.print(f"[bold]{number}/{len(runs)} {run.variant}, seed {run.seed}[/bold] ({run.folder})")
        try:
            stages = execute(run, argv[1:], first_folders)
        except DataError as error:
            failures[f"{run.variant}, seed {run.seed}"] = str(error)
            console.print(f"    [red]failed: {error}[/red]")
            continue
        reports.append(_outcome(run, stages))
    if reports:
        _save(compare(reports, failures), folder / RESULTS, console)
    return 1 if failures else 0


def _outcome(run: Run, stages: Sequence[StageReport]) -> dict[str, Any]:
    """What the comparison needs of a finished run."""
    return {
        "variant": run.variant,
        "seed": run.seed,
        "folder": str(run.folder),
        "seconds": {report.stage: report.seconds for report in stages},
        "details": {report.stage: report.details for report in stages},
        "metrics": read_json(run.folder / RESULTS / "metrics.json"),
    }


def _save(comparison: dict[str, Any], folder: Path, console: Console) -> None:
    write_json(folder / "comparison.json", comparison)
    tables = comparison_tables(comparison)
    with written_aside(folder / "comparison.md") as aside:
        aside.write_text(tables, encoding="utf-8")
    figures = save_figures(comparison, folder)
    console.print(tables, markup=False)
    console.print(f"Saved: {folder}/comparison.json, comparison.md, {', '.join(path.name for path in figures)}.")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"The configuration {path} cannot be read ({error.strerror}); give a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"The configuration {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise DataError(f"The configuration {path} must hold entries such as 'output_dir: runs/comparison'.")
    return content


if __name__ == "__main__":
    with reported_errors():
        raise SystemExit(main(sys.argv[1:]))
