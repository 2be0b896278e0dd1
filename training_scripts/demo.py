"""Train on MovieLens-100k, evaluate on the held-out clicks, and answer one user: `make demo`.

The settings are in configs/ml-100k.yaml; any setting can follow the command, as in `--output_dir runs/short --max_steps
100`. A repeated call skips what is finished.
"""

import sys
from pathlib import Path
from typing import Any

from movielens_wheel import TABLES, write_tables
from rich.console import Console

from gensar_hf import train
from gensar_hf.baselines.run_systems import run_systems
from gensar_hf.cli import dataset_and_arguments, exit_status, read_settings, set_up_logging, training_parser
from gensar_hf.data import SEARCH
from gensar_hf.errors import InputError
from gensar_hf.evaluation import evaluate_pipeline, evaluate_query_kinds, gensar_rows
from gensar_hf.evaluation.report import example_tables, metrics_tables, query_kinds_table, stage_table, terminal
from gensar_hf.files import read_json
from gensar_hf.model_card import write_model_card
from gensar_hf.training.stages import COLLABORATIVE, DATA, MODEL, RQVAE, SEMANTIC, StageReport, run_stage

CONFIG = Path(__file__).parent / "configs" / "ml-100k.yaml"
RESULTS, QUERIES_PER_KIND = "demo", 100  # `gensar evaluate` writes the folder "results"


def main() -> None:
    """Run what is not finished; print stages, metrics and answers."""
    set_up_logging()
    console, reports = Console(width=120), list[StageReport]()

    def show(report: StageReport) -> None:
        state = "already finished" if report.skipped else f"{report.seconds:.1f} s"
        console.print(f"[bold]{len(reports) + 1}/6 {report.stage}[/bold]  {state}")
        reports.append(report)

    if not (TABLES / "interactions.parquet").is_file():
        write_tables()
    parser = training_parser("demo.py", "Train and evaluate on MovieLens-100k.")
    dataset, args = dataset_and_arguments(read_settings(parser, ["--config", str(CONFIG), *sys.argv[1:]]).as_dict())
    run_dir = Path(args.output_dir)
    pipe = train(dataset, args, on_stage=show)

    def evaluate(folder: Path, _: Path) -> dict[str, Any]:
        systems = run_systems(run_dir, dataset)
        kinds = evaluate_query_kinds([*gensar_rows(pipe), *systems], dataset, max_requests=QUERIES_PER_KIND)
        kinds.save(folder)
        result = evaluate_pipeline(pipe, dataset, systems=systems, num_negatives=args.num_negatives)
        result.save(folder)
        return {"systems": len(result.systems), "failures": len({*kinds.failures, *result.failures})}

    trained = [run_dir / stage for stage in (DATA, SEMANTIC, COLLABORATIVE, MODEL)]
    show(run_stage(run_dir, RESULTS, [args.num_negatives, QUERIES_PER_KIND, *trained], evaluate))
    metrics, kinds = (read_json(run_dir / RESULTS / f"{name}.json") for name in ("metrics", "query_kinds"))
    if not all(report.skipped for report in reports):
        facts = {"data": "ml-100k", "dataset": dataset, "split": dataset.split_method, "command": "make demo"}
        facts |= {"stages": {report.stage: report.seconds for report in reports}, "identifiers": reports[3].details}
        for stage in (COLLABORATIVE, RQVAE, MODEL):
            try:
                write_model_card(run_dir / stage, {**metrics, "query_kinds": kinds}, **facts)
            except InputError as error:  # somebody has edited the card
                console.print(str(error), markup=False, soft_wrap=True)

    stages = {report.stage: (report.seconds, report.skipped, report.details) for report in reports}
    tables = [stage_table(stages), query_kinds_table(kinds), *metrics_tables(metrics)]
    console.print(terminal([*tables, *example_tables(pipe, dataset.split.test[SEARCH])]))
    console.print(
        f"The model is in {run_dir / MODEL}, metrics, tables and a plot in {run_dir / RESULTS}. Next:\n"
        f'    gensar search {run_dir / MODEL} "star wars"\n'
        f"    gensar recommend {run_dir / MODEL} {' '.join(dataset.item_ids[:2])}\n"
        "    make serve                     (a page to try the model on, and its REST API)\n"
        "    gensar train --items items.csv --interactions clicks.csv --output_dir runs/mine",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_status(main))
