"""Train variants of a configuration, fit baselines, and compare all of them on the same held-out clicks.

    python training_scripts/paper/compare.py training_scripts/configs/ml-100k-table.yaml
    python training_scripts/paper/compare.py CONFIG.yaml --items items.parquet --interactions clicks.parquet

CONFIG names `output_dir`, a `base` file of settings, `settings` for all runs, `evaluation` (arguments of `Evaluation`,
`full_ranking`, and `query_kinds`: true or the requests of a kind), `seeds`, `variants` (name: settings that differ) and
`baselines` (name: most trials, null: as in configs/baselines). Options override settings. What fails is reported.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from systems import run_baseline, run_variant

from gensar_hf.cli import exit_status, set_up_logging
from gensar_hf.errors import InputError
from gensar_hf.evaluation.comparison import RunResult, compare, run_apart, save_comparison
from gensar_hf.evaluation.report import comparison_tables, terminal

KEYS = ("output_dir", "base", "settings", "evaluation", "seeds", "variants", "baselines")


def merged(*parts: dict[str, Any] | None) -> dict[str, Any]:
    """Settings of all parts, later ones over earlier ones; mappings are merged, except `task_weights`."""
    result: dict[str, Any] = {}
    for name, value in [pair for part in parts for pair in (part or {}).items()]:
        is_merged = isinstance(value, dict) and name != "task_weights"
        result[name] = {**(result.get(name) or {}), **value} if is_merged else value
    return result


def read_comparison(path: Path, options: dict[str, Any]) -> tuple[Path, dict[str, partial[RunResult]]]:
    """The folder of the comparison, and a call for each system and seed."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not isinstance(content, dict) or set(content) - {*KEYS} or "output_dir" not in content:
        raise InputError(
            f"{path} is not a comparison: a YAML file with `output_dir` and some of {', '.join(KEYS[1:])}."
        )
    base = yaml.safe_load((path.parent / content["base"]).read_text(encoding="utf-8")) if "base" in content else {}
    common = merged(base, content.get("settings"), {"evaluation": content.get("evaluation", {})}, options)
    folder, seeds, calls = Path(content["output_dir"]), content.get("seeds", [0]), {}
    for seed in seeds:  # a comparison that is stopped has all variants of a seed
        for name, changes in content.get("variants", {}).items():
            calls[f"{name}, seed {seed}"] = partial(run_variant, name, seed, merged(common, changes), folder)
    for name, trials in content.get("baselines", {}).items():
        for seed in seeds:
            calls[f"{name}, seed {seed}"] = partial(run_baseline, name, seed, trials, merged(common), folder, seeds[0])
    return folder, calls


def main(path: str, *options: str) -> int:
    """Run all, compare, save; 1 if a system failed."""
    set_up_logging()
    names = [name.removeprefix("--") for name in options[::2]]
    folder, calls = read_comparison(Path(path), dict(zip(names, map(yaml.safe_load, options[1::2]), strict=True)))
    runs, failures = run_apart(calls, set_up_logging, partial(print, flush=True))
    if runs:
        places = {folder / "results": compare(runs, failures)}
        if all((run.results / "full_ranking").is_dir() for run in runs):
            places[folder / "results" / "full_ranking"] = compare(runs, failures, full_ranking=True)
        for place, comparison in places.items():
            save_comparison(comparison, place)
            tables = terminal(comparison_tables(comparison))
            Console(width=140).print(tables, f"Saved in {place}.", markup=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(exit_status(main, *sys.argv[1:]) if len(sys.argv) % 2 == 0 else __doc__)
