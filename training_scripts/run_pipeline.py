"""All stages: a log → a model that searches and recommends, and what it is worth on held-out clicks.

    python training_scripts/run_pipeline.py --items items.csv --interactions clicks.csv --output_dir runs/mine
    python training_scripts/run_pipeline.py training_scripts/configs/ml-100k.yaml

A finished stage is skipped when the command is given again; a killed training goes on from its last checkpoint. Every
setting of a section can be overridden: --model.learning_rate 1e-3 --data.split chronological.
"""

import os
from pathlib import Path

import encode_items
import evaluate
import prepare_data
import train_generator
import train_rqvae
import train_sasrec
from rich.console import Console
from showcase import show_answers
from stage_table import stage_table
from stages import COLLABORATIVE, DATA, MODEL, RESULTS, RQVAE, SEMANTIC, StageReport, main

from gensar_hf.artifacts import DataError, read_json
from gensar_hf.evaluation.report import terminal_table

STAGES = {
    DATA: prepare_data.run,
    SEMANTIC: encode_items.run,
    COLLABORATIVE: train_sasrec.run,
    RQVAE: train_rqvae.run,
    MODEL: train_generator.run,
    RESULTS: evaluate.run,
}


def run(sections: dict[str, dict]) -> None:
    """Run what is not finished, then print the stages, the figures and one user's answers."""
    if "output_dir" not in sections[""]:
        raise DataError("Name the folder of the run with --output_dir, such as runs/mine.")
    unknown = set(sections) - set(STAGES) - {""}
    if unknown:
        raise DataError(f"Unknown section '{sorted(unknown)[0]}'; sections are {', '.join(STAGES)}.")
    console = Console(width=min(120, Console().width) if Console().is_terminal else 120)
    reports: list[StageReport] = []
    for number, (stage, run_one) in enumerate(STAGES.items(), start=1):
        console.print(f"[bold]{number}/{len(STAGES)} {stage}[/bold]")
        report = run_one(sections)
        state = "already finished" if report.skipped else f"{report.seconds:.1f} s"
        console.print(f"    {state}")
        reports.append(report)
    run_dir = Path(sections[""]["output_dir"])
    console.print(stage_table(reports))
    console.print(terminal_table(read_json(run_dir / RESULTS / "metrics.json")))
    show_answers(console, run_dir)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(run, __doc__)
