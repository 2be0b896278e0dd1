"""Peers of GenSAR on a run's data, held-out requests and candidates: tuned on validation, trained, evaluated.

    python training_scripts/evaluate_baselines.py --output_dir runs/mine
    python training_scripts/evaluate_baselines.py --output_dir runs/mine --baselines.names gru4rec qem
    python training_scripts/evaluate_baselines.py training_scripts/configs/ml-100k.yaml --baselines.seeds 0 1 2

The run's data and semantic stages have to be finished. A baseline is a file of `training_scripts/configs/baselines`: a
module, its fixed settings, and those that are searched. Every trial and every seed has a folder of its own under
RUN/baselines/NAME; a killed run goes on where it stopped, and a baseline that fails is reported while the others go on
(the exit status is then 1).
"""

import itertools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from console import main
from encode_items import EMBEDDINGS_FILE
from evaluate import FULL_RANKING, EvaluationArguments, evaluation_requests, save_result
from rich.console import Console
from sections import Section
from settings import Settings
from stages import BASELINES, DATA, RESULTS, SEMANTIC, load_data, run_stage

from gensar_hf.baselines.baseline import FittedBaseline, TrainingData, fit_by_name, load_module, make_settings
from gensar_hf.data import training_events
from gensar_hf.embeddings.item_embeddings import load_item_embeddings
from gensar_hf.errors import InputError
from gensar_hf.evaluation import evaluate, evaluate_full_ranking
from gensar_hf.evaluation.comparison import Outcome, compare
from gensar_hf.evaluation.comparison_report import comparison_tables, save_figures
from gensar_hf.files import atomic_path, read_json, write_json

CONFIGS = Path(__file__).parent / "configs" / "baselines"
KEYS = {"baseline", "settings", "search", "max_trials"}
CHOSEN_BY = "NDCG@5"


@dataclass
class BaselineArguments:
    """Which baselines, and how often."""

    names: list[str] | None = field(
        default=None, metadata={"help": "files of configs/baselines (without .yaml) or paths; all of them by default."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "of the trainings; the first one tunes."})
    max_trials: int | None = field(
        default=None, metadata={"help": "trials of each search, in place of what its file says; 1: no search."}
    )
    trials: dict | None = field(
        default=None, metadata={"help": "baseline → trials of its search, in place of `max_trials`."}
    )

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must be different numbers, at least one; got {self.seeds}.")
        if self.max_trials is not None and self.max_trials < 1:
            raise ValueError(f"`max_trials` must be at least 1; got {self.max_trials}.")
        for name, number in (self.trials or {}).items():
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"`trials` must give '{name}' a number of at least 1; got {number!r}.")

    def trials_of(self, name: str) -> int | None:
        """How many combinations of a baseline's settings are tried; None: as many as its file says."""
        return (self.trials or {}).get(name, self.max_trials)


SECTION = Section(BASELINES, BaselineArguments)


@dataclass(frozen=True)
class BaselineConfig:
    """A file of `configs/baselines`.

    Attributes:
        name: of the file, and of the folder in the run.
        module: of `gensar_hf.baselines`.
        settings: that differ from the module's defaults.
        search: setting → the values to try.
        max_trials: how many combinations are tried.
    """

    name: str
    module: str
    settings: Mapping[str, Any]
    search: Mapping[str, Sequence[Any]]
    max_trials: int

    def trials(self, max_trials: int | None) -> list[dict[str, Any]]:
        """The combinations to try: all of them, or a seeded draw that holds the first one."""
        grid = [dict(zip(self.search, values, strict=True)) for values in itertools.product(*self.search.values())]
        num_trials = min(len(grid), max_trials or self.max_trials)
        others = np.random.default_rng(0).permutation(np.arange(1, len(grid)))[: num_trials - 1]
        return [{**self.settings, **grid[index]} for index in [0, *sorted(others.tolist())]]


def read_baseline(name: str) -> BaselineConfig:
    """Read and check a file of `configs/baselines`.

    Raises:
        InputError: there is no such file, it holds something else, or its module has no such setting.
    """
    path = Path(name) if name.endswith(".yaml") else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.yaml")))
        raise InputError(f"There is no baseline file {path}; those of the package are {known}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_ScientificLoader) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    unknown = set(content) - KEYS if isinstance(content, dict) else {str(content)}
    if unknown or "baseline" not in content:
        what = f"the unknown entry '{min(unknown)}'" if unknown else "no `baseline`"
        raise InputError(f"{path} has {what}; a baseline has {', '.join(sorted(KEYS))}.")
    search = content.get("search") or {}
    for setting, values in search.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: `search` must list the values of '{setting}' to try; got {values!r}.")
    config = BaselineConfig(
        path.stem, content["baseline"], content.get("settings") or {}, search, content.get("max_trials", 8)
    )
    module = load_module(config.module)
    for trial in config.trials(None):
        make_settings(module, trial)  # checks names and values before anything runs
    return config


class _ScientificLoader(yaml.SafeLoader):
    """Reads 1e-3 as a number; YAML 1.1 wants 1.0e-3."""


_ScientificLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class BaselineRun:
    """One run's data, handed to one baseline after another.

    Args:
        run_dir: the run's folder.
        evaluation: the same settings as the run's own evaluation, and so the same requests and candidates.
        console: for progress.
    """

    def __init__(self, run_dir: Path, evaluation: EvaluationArguments, console: Console) -> None:
        self.run_dir, self.evaluation, self.console = run_dir, evaluation, console
        self.log, events, self.split = load_data(run_dir)
        self.item_texts = self.log.item_texts()
        self.data = TrainingData(
            training_events(self.split),
            self.item_texts,
            load_item_embeddings(run_dir / SEMANTIC / EMBEDDINGS_FILE, events.item_ids),
            read_json(run_dir / SEMANTIC / "config.json")["model"],
        )

    def outcomes(self, config: BaselineConfig, seeds: Sequence[int], max_trials: int | None) -> list[Outcome]:
        """Choose the settings, train with every seed, evaluate on the run's requests."""
        settings = self._choose(config, seeds[0], max_trials)
        return [self._evaluated(config, settings, seed) for seed in seeds]

    def _choose(self, config: BaselineConfig, seed: int, max_trials: int | None) -> dict[str, Any]:
        """The trial that is best on validation requests; one alone is not tried."""
        trials = config.trials(max_trials)
        if len(trials) == 1:
            return trials[0]
        scores = []
        for number, trial in enumerate(trials):
            details = self._stage(config, f"trial-{number}", trial, seed, "validation")
            scores.append(details["score"])
            self.console.print(f"    trial {number + 1}/{len(trials)} {_differences(trial)}: {scores[-1]:.4f}")
        best = int(np.argmax(scores))
        record = {"metric": f"mean {CHOSEN_BY} on validation requests", "seed": seed, "chosen": trials[best]}
        tried = [{"settings": trial, "score": score} for trial, score in zip(trials, scores, strict=True)]
        write_json(self._folder(config) / "search.json", {**record, "trials": tried})
        return trials[best]

    def _evaluated(self, config: BaselineConfig, settings: dict[str, Any], seed: int) -> Outcome:
        details = self._stage(config, f"seed-{seed}", settings, seed, self.evaluation.part)
        return Outcome(
            system=details["name"],
            seed=seed,
            results=self._folder(config) / f"seed-{seed}",
            row=details["name"],
            seconds={"training": details["training seconds"]},
            parameters=details["parameters"],
            settings=settings,
        )

    def _stage(self, config: BaselineConfig, stage: str, settings: dict[str, Any], seed: int, part: str) -> dict:
        """Fit and evaluate in a folder of its own; the details of what was made."""

        def work(folder: Path, checkpoints: Path) -> dict[str, Any]:
            start = time.perf_counter()
            system = fit_by_name(config.module, self.data, settings, seed, folder, checkpoints)
            seconds = time.perf_counter() - start
            return {**self._score(system, part, folder), "training seconds": seconds, "settings": settings}

        # What concerns the run's own model alone does not change what a baseline does.
        evaluation = replace(self.evaluation, baselines=True, bm25_columns=None)
        inputs = [config.module, settings, seed, part, evaluation, self.run_dir / DATA, self.run_dir / SEMANTIC]
        return run_stage(self._folder(config), stage, inputs, work).details

    def _score(self, system: FittedBaseline, part: str, folder: Path) -> dict[str, Any]:
        """Rank the targets and save the ranks; a system that cannot answer has failed."""
        requests, candidates = evaluation_requests(self.log, self.split, part, self.evaluation)
        for task, sets in candidates.items():
            sets.save(folder / f"candidates_{task}.safetensors")
        options = {"seed": self.evaluation.seed, "skip_clicked": self.evaluation.skip_clicked}
        result = evaluate([system], requests, candidates, **options)
        for task, message in result.failures.get(system.name, {}).items():
            raise InputError(f"{system.name} failed in {task}: {message}")
        save_result(result, folder)
        if self.evaluation.full_ranking and part == self.evaluation.part:
            full = {"exclude_history": self.evaluation.skip_clicked, "seed": self.evaluation.seed}
            save_result(evaluate_full_ranking([system], requests, **full), folder / FULL_RANKING)
        tasks = result.metrics()["tasks"].values()
        scores = [task["systems"][system.name][CHOSEN_BY]["value"] for task in tasks if task["systems"]]
        return {"name": system.name, "parameters": system.num_parameters, "score": float(np.mean(scores))}

    def _folder(self, config: BaselineConfig) -> Path:
        return self.run_dir / BASELINES / config.name


def read_baselines(arguments: BaselineArguments) -> list[BaselineConfig]:
    """The files asked for, all of the package's by default."""
    return [read_baseline(name) for name in arguments.names or sorted(path.stem for path in CONFIGS.glob("*.yaml"))]


def _differences(trial: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in trial.items())


def baseline_outcomes(
    run_dir: Path, arguments: BaselineArguments, evaluation: EvaluationArguments, console: Console
) -> tuple[list[Outcome], dict[str, str]]:
    """Outcomes of all baselines asked for, and of those that failed why."""
    configs = read_baselines(arguments)
    run = BaselineRun(run_dir, evaluation, console)
    outcomes: list[Outcome] = []
    failures: dict[str, str] = {}
    for number, config in enumerate(configs, start=1):
        console.print(f"[bold]{number}/{len(configs)} {config.name}[/bold]")
        try:
            outcomes += run.outcomes(config, arguments.seeds, arguments.trials_of(config.name))
        except Exception as error:  # whatever one system breaks on must not cost the figures of the others
            failures[config.name] = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            console.print(f"    [red]failed: {failures[config.name]}[/red]")
    return outcomes, failures


def save_comparisons(outcomes: Sequence[Outcome], failures: Mapping[str, str], folder: Path, console: Console) -> None:
    """Print and save tables and figures; those of a full ranking in a folder of their own, if all have one."""
    rankings = {folder: False}
    if all((outcome.results / FULL_RANKING).is_dir() for outcome in outcomes):
        rankings[folder / FULL_RANKING] = True
    for place, is_full in rankings.items():
        comparison = compare(outcomes, failures, full_ranking=is_full)
        write_json(place / "comparison.json", comparison)
        tables = comparison_tables(comparison)
        with atomic_path(place / "comparison.md") as aside:
            aside.write_text(tables, encoding="utf-8")
        figures = save_figures(comparison, place)
        console.print(tables, markup=False)
        console.print(f"Saved: {place}/comparison.json, comparison.md, {', '.join(path.name for path in figures)}.")


def run(settings: Settings) -> None:
    """Evaluate the baselines; print and save their tables."""
    (arguments, _), (evaluation, _) = settings[BASELINES], settings[RESULTS]
    console = Console(width=140)
    outcomes, failures = baseline_outcomes(settings.run_dir, arguments, evaluation, console)
    if outcomes:
        save_comparisons(outcomes, failures, settings.run_dir / BASELINES, console)
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    from evaluate import SECTION as EVALUATION

    main(run, __doc__, [EVALUATION, SECTION])
