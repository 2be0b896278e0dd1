"""All stages: a log → a model that searches and recommends, and what it is worth on held-out clicks.

    python training_scripts/run_pipeline.py --items items.csv --interactions clicks.csv --output_dir runs/mine
    python training_scripts/run_pipeline.py training_scripts/configs/ml-100k.yaml

A finished stage is skipped when the command is given again; a killed training goes on from its last checkpoint. Every
setting of a section can be overridden: --model.learning_rate 1e-3 --data.split chronological.
"""

from console import main
from rich.console import Console
from settings import Settings
from showcase import show_answers
from stage_table import stage_table
from stages import RESULTS, StageReport, process_rank
from write_cards import SCRIPTS, write_cards

from gensar_hf.evaluation.report import terminal_table
from gensar_hf.files import read_json


def run(settings: Settings) -> None:
    """Run what is not finished, then print the stages, the figures and one user's answers."""
    console = Console(width=min(120, Console().width) if Console().is_terminal else 120, quiet=process_rank() != 0)
    reports: list[StageReport] = []
    for number, script in enumerate(SCRIPTS, start=1):
        console.print(f"[bold]{number}/{len(SCRIPTS)} {script.SECTION.name}[/bold]")
        report = script.run(settings)
        state = "already finished" if report.skipped else f"{report.seconds:.1f} s"
        console.print(f"    {state}")
        reports.append(report)
    if process_rank() != 0:
        return
    run_dir = settings.run_dir
    if not all(report.skipped for report in reports):  # a card that somebody has edited stays
        write_cards(settings)
    console.print(stage_table(reports))
    console.print(terminal_table(read_json(run_dir / RESULTS / "metrics.json")))
    show_answers(console, run_dir)


if __name__ == "__main__":
    main(run, __doc__, [script.SECTION for script in SCRIPTS])
