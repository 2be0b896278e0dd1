"""The systems of a comparison, each trained and evaluated with one seed: variants of GenSAR, and baselines."""

import re
import time
from pathlib import Path
from typing import Any

import yaml

from gensar_hf import InteractionDataset, train
from gensar_hf.baselines.tuning import fit_baseline, tune_baseline
from gensar_hf.cli import dataset_and_arguments
from gensar_hf.errors import InputError
from gensar_hf.evaluation import Evaluation, GeneratorScorer, gensar_rows
from gensar_hf.evaluation.comparison import RunResult
from gensar_hf.evaluation.query_kinds import MAX_REQUESTS, evaluate_query_kinds
from gensar_hf.training.stages import DATA, MODEL, RQVAE, StageReport, dataset_inputs, run_stage

CONFIGS, RESULTS = Path(__file__).parents[1] / "configs" / "baselines", "results"


def run_variant(name: str, seed: int, settings: dict[str, Any], folder: Path) -> RunResult:
    """Train GenSAR with these settings; stages that another run of `folder` shares are linked."""
    run_dir = folder / f"{'-'.join(re.findall('[a-z0-9]+', name.lower()))}-seed-{seed}"
    evaluation = settings.pop("evaluation", {})
    dataset, args = dataset_and_arguments({**settings, "output_dir": str(run_dir), "seed": seed})
    reports: dict[str, StageReport] = {}
    pipe = train(dataset, args, reuse=folder, on_stage=lambda report: reports.update({report.stage: report}))
    inputs = [evaluation, *dataset_inputs(dataset), run_dir / MODEL]
    rows = [GeneratorScorer(pipe), *gensar_rows(pipe)]  # candidates are scored, and queries of all kinds are answered
    seconds = {stage: report.seconds for stage, report in reports.items() if stage != DATA}
    reports[RESULTS] = run_stage(run_dir, RESULTS, inputs, lambda out, _: evaluated(rows, dataset, evaluation, out))
    size, memory = reports[MODEL].details["parameters"], max(r.memory or 0 for r in reports.values())
    facts = {"identifiers": reports[RQVAE].details, "was_finished": reports[RESULTS].skipped}
    return RunResult(name, seed, run_dir / RESULTS, "GenSAR", seconds, size, memory, **facts)


def run_baseline(
    name: str, seed: int, max_trials: int | None, settings: dict[str, Any], folder: Path, first_seed: int
) -> RunResult:
    """Fit a baseline of `configs/baselines`, with the settings that are best on validation clicks with `first_seed`."""
    folder, evaluation = folder / name, settings.pop("evaluation", {})
    dataset, _ = dataset_and_arguments({**settings, "output_dir": str(folder)})
    search = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    search["max_trials"] = max_trials or search["max_trials"]
    seed = seed if search.pop("random", True) else first_seed  # what draws nothing is the same with every seed
    baseline, chosen = search.pop("baseline", name), {setting: values[0] for setting, values in search["space"].items()}
    if search["max_trials"] > 1:
        search |= {key: evaluation[key] for key in {"num_negatives", "skip_clicked", "bm25_columns"} & {*evaluation}}

        def tune(*_: Path) -> dict[str, Any]:
            return {"chosen": tune_baseline(baseline, dataset, seed=first_seed, **search)[1]}

        chosen = run_stage(folder, "search", [search, first_seed, *dataset_inputs(dataset)], tune).details["chosen"]

    def fit(out: Path, _: Path) -> dict[str, Any]:
        start = time.perf_counter()
        scorer: Any = fit_baseline(baseline, dataset, settings=chosen, seed=seed)
        details = {"row": scorer.name, "parameters": scorer.num_parameters, "training": time.perf_counter() - start}
        evaluated([scorer], dataset, evaluation, out)
        return details

    report = run_stage(folder, f"seed-{seed}", [chosen, seed, evaluation, *dataset_inputs(dataset)], fit)
    row, size, seconds = (report.details[name] for name in ("row", "parameters", "training"))
    facts: Any = {"settings": chosen, "was_finished": report.skipped}
    return RunResult(row, seed, folder / f"seed-{seed}", row, {"training": seconds}, size, report.memory, **facts)


def evaluated(rows: list[Any], dataset: InteractionDataset, evaluation: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Save the ranks of the first row, and the query kinds of the others, or of the only one; a failure is an error."""
    options = {"full_ranking": False, "query_kinds": 0, **evaluation}
    is_full, count = options.pop("full_ranking"), options.pop("query_kinds")
    ranked, kinds = Evaluation(dataset, **options).run(rows[:1], is_full), None
    if count:
        part = options.get("part", "test"), MAX_REQUESTS if count is True else count, options.get("seed", 0)
        kinds = evaluate_query_kinds(rows[1:] or rows, dataset, *part)
    for name, failures in [pair for result in (ranked, kinds) if result for pair in result.failures.items()]:
        raise InputError(f"{name} failed in {', '.join(failures)}: {next(iter(failures.values()))}")
    ranked.save(folder, trec_runs=True)
    return {} if kinds is None else kinds.save(folder) or {}
