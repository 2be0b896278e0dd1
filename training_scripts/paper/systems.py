"""The systems of a comparison, each trained and evaluated with one seed: variants of GenSAR, and baselines."""

import re
import time
from pathlib import Path
from typing import Any

import yaml

from gensar_hf import train
from gensar_hf.baselines.tuning import fit_baseline, tune_baseline
from gensar_hf.cli import dataset_and_arguments
from gensar_hf.data import InteractionDataset
from gensar_hf.errors import InputError
from gensar_hf.evaluation import Evaluation, gensar_rows
from gensar_hf.evaluation.comparison import RunResult
from gensar_hf.evaluation.query_kinds import MAX_REQUESTS, evaluate_query_kinds
from gensar_hf.training.stages import DATA, MODEL, RQVAE, StageReport, dataset_inputs, run_stage

CONFIGS = Path(__file__).parents[1] / "configs" / "baselines"
RESULTS, OF_CANDIDATES = "results", ("num_negatives", "skip_clicked", "bm25_columns")


def run_variant(name: str, seed: int, settings: dict[str, Any], folder: Path) -> RunResult:
    """Train GenSAR with these settings; stages that another run of `folder` shares are linked."""
    run_dir = folder / f"{'-'.join(re.findall('[a-z0-9]+', name.lower()))}-seed-{seed}"
    evaluation = settings.pop("evaluation", {})
    dataset, args = dataset_and_arguments({**settings, "output_dir": str(run_dir), "seed": seed})
    reports = dict[str, StageReport]()
    pipe = train(dataset, args, reuse=folder, on_stage=lambda report: reports.update({report.stage: report}))
    inputs = [evaluation, *dataset_inputs(dataset), run_dir / MODEL]
    run_stage(run_dir, RESULTS, inputs, lambda out, _: evaluated(gensar_rows(pipe), dataset, evaluation, out))
    seconds = {stage: report.seconds for stage, report in reports.items() if stage != DATA}
    parameters, identifiers = reports[MODEL].details["parameters"], reports[RQVAE].details
    return RunResult(name, seed, run_dir / RESULTS, "GenSAR", seconds, parameters, identifiers)


def run_baseline(
    name: str, seed: int, max_trials: int | None, settings: dict[str, Any], folder: Path, first_seed: int
) -> RunResult:
    """Fit a baseline of `configs/baselines`, with the settings that are best on validation clicks with `first_seed`."""
    evaluation, folder = settings.pop("evaluation", {}), folder / name
    dataset, _ = dataset_and_arguments({**settings, "output_dir": str(folder)})
    search = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    search["max_trials"] = max_trials or search["max_trials"]
    chosen = {setting: values[0] for setting, values in search["space"].items()}
    if search["max_trials"] > 1:
        search |= {key: evaluation[key] for key in OF_CANDIDATES if key in evaluation}

        def tune(*_: Path) -> dict[str, Any]:
            return {"chosen": tune_baseline(name, dataset, seed=first_seed, **search)[1]}

        chosen = run_stage(folder, "search", [search, first_seed, *dataset_inputs(dataset)], tune).details["chosen"]

    def fit(out: Path, _: Path) -> dict[str, Any]:
        start = time.perf_counter()
        scorer: Any = fit_baseline(name, dataset, settings=chosen, seed=seed)
        seconds = time.perf_counter() - start
        evaluated([scorer], dataset, evaluation, out)
        return {"row": scorer.name, "parameters": scorer.num_parameters, "training": seconds}

    stage = f"seed-{seed}"
    details = run_stage(folder, stage, [chosen, seed, evaluation, *dataset_inputs(dataset)], fit).details
    row, seconds = details["row"], {"training": details["training"]}
    return RunResult(row, seed, folder / stage, row, seconds, details["parameters"], settings=chosen)


def evaluated(rows: list[Any], dataset: InteractionDataset, evaluation: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Save the ranks of a system, the first row, and the query kinds of all its rows; a failure is an error."""
    options = dict(evaluation)
    is_full, count = options.pop("full_ranking", False), options.pop("query_kinds", 0)
    count = MAX_REQUESTS if count is True else count
    results: list[Any] = [Evaluation(dataset, **options).run(rows[:1], is_full)]
    if count:
        results.append(evaluate_query_kinds(rows, dataset, options.get("part", "test"), count, options.get("seed", 0)))
    for result in results:
        for name, failures in result.failures.items():
            raise InputError(f"{name} failed in {', '.join(failures)}: {next(iter(failures.values()))}")
        result.save(folder)
    return {}
