"""Stage 6: the trained systems on the held-out requests → metrics.json, ranks.parquet, tables and a figure.

python training_scripts/evaluate.py --output_dir runs/mine
torchrun --nproc_per_node 2 training_scripts/evaluate.py --output_dir runs/mine
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from console import main
from encode_items import EMBEDDINGS_FILE
from sections import Section
from settings import Settings
from stages import (
    COLLABORATIVE,
    DATA,
    MODEL,
    RESULTS,
    SEMANTIC,
    StageReport,
    damage_reported,
    load_data,
    processes,
    run_stage,
)

from gensar_hf.baselines import BM25, DenseRetrieval, Popularity, SASRecScorer
from gensar_hf.data import RECOMMENDATION, SEARCH, InteractionLog, Requests, Split, UserEvents, training_events
from gensar_hf.data.splits import TASKS
from gensar_hf.embeddings.item_embeddings import load_item_embeddings
from gensar_hf.embeddings.modeling_sasrec import SASRecModel
from gensar_hf.errors import InputError
from gensar_hf.evaluation import bm25_candidates, evaluate, evaluate_full_ranking, random_candidates
from gensar_hf.evaluation.candidates import CandidateSets
from gensar_hf.evaluation.generator_scorer import GeneratorScorer
from gensar_hf.evaluation.protocol import EvaluationResult
from gensar_hf.evaluation.report import markdown_report, save_figure
from gensar_hf.files import atomic_path, read_json
from gensar_hf.pipeline import GenSARPipeline

FULL_RANKING = "full_ranking"  # the folder of its figures


@dataclass
class EvaluationArguments:
    """Which held-out requests, against which candidates."""

    part: Literal["test", "validation"] = field(
        default="test", metadata={"help": "test, or validation to choose settings with."}
    )
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": "recommendation, search, or both."})
    num_negatives: int = field(default=99, metadata={"help": "candidates beside the target."})
    bm25_columns: list[str] | None = field(
        default=None, metadata={"help": "columns of the items table for a second BM25 row, beside the item's text."}
    )
    max_users: int | None = field(
        default=None, metadata={"help": "size of a seeded sample of the users to evaluate; all of them by default."}
    )
    baselines: bool = field(default=True, metadata={"help": "evaluate the other systems, too, and not GenSAR alone."})
    skip_clicked: bool = field(
        default=False,
        metadata={"help": "all systems put items behind the others that the user has clicked before."},
    )
    full_ranking: bool = field(default=False, metadata={"help": "rank the whole catalogue, too; takes longer."})
    seed: int = field(default=0, metadata={"help": "of the candidates and the bootstrap."})

    def __post_init__(self) -> None:
        unknown = set(self.tasks) - set(TASKS)
        if unknown or not self.tasks:
            raise ValueError(f"`tasks` must be some of {', '.join(TASKS)}; got {', '.join(self.tasks) or 'none'}.")
        if self.num_negatives < 1:
            raise ValueError(f"`num_negatives` must be at least 1; got {self.num_negatives}.")
        if self.max_users is not None and self.max_users < 1:
            raise ValueError(f"`max_users` must be at least 1; got {self.max_users}.")


SECTION = Section(RESULTS, EvaluationArguments)


def sampled_requests(requests: dict[str, Requests], max_users: int | None, seed: int) -> dict[str, Requests]:
    """The requests of at most `max_users` users, the same users in every task."""
    users = np.unique(np.concatenate([part.users for part in requests.values()]))
    if max_users is None or len(users) <= max_users:
        return requests
    chosen = np.random.default_rng(seed).choice(users, size=max_users, replace=False)
    return {task: part.subset(np.flatnonzero(np.isin(part.users, chosen))) for task, part in requests.items()}


def evaluation_requests(
    log: InteractionLog, split: Split, part: str, arguments: EvaluationArguments
) -> tuple[dict[str, Requests], dict[str, CandidateSets]]:
    """The requests of a part, and the candidates that every system ranks for them; tasks without requests have none."""
    requests = sampled_requests(getattr(split, part), arguments.max_users, arguments.seed)
    requests = {task: requests[task] for task in TASKS if task in arguments.tasks}
    num_negatives, seed = arguments.num_negatives, arguments.seed
    candidates = {}
    if len(requests.get(RECOMMENDATION, ())):
        candidates[RECOMMENDATION] = random_candidates(requests[RECOMMENDATION], num_negatives, seed)
    if len(requests.get(SEARCH, ())):
        candidates[SEARCH] = bm25_candidates(requests[SEARCH], log.item_texts(), num_negatives, seed)
    return requests, candidates


def scorers(
    run_dir: Path,
    log: InteractionLog,
    events: UserEvents,
    split: Split,
    arguments: EvaluationArguments,
) -> list:
    """GenSAR and the systems it is compared with."""
    with damage_reported(run_dir / MODEL):
        pipeline = GenSARPipeline.from_pretrained(run_dir / MODEL)
    with damage_reported(run_dir / COLLABORATIVE):
        sasrec = SASRecModel.from_pretrained(run_dir / COLLABORATIVE)
    generator = GeneratorScorer(pipeline)
    if not arguments.baselines:
        return [generator]
    bm25_columns = arguments.bm25_columns
    missing = [column for column in bm25_columns or [] if column not in log.items]
    if missing:
        raise InputError(f"`bm25_columns`: the items table has no column '{missing[0]}'; it has {list(log.items)}.")
    semantic = load_item_embeddings(run_dir / SEMANTIC / EMBEDDINGS_FILE, events.item_ids)
    encoder = read_json(run_dir / SEMANTIC / "config.json")["model"]
    texts = log.item_texts()
    systems = [
        generator,
        SASRecScorer(sasrec),
        Popularity(training_events(split)),
        BM25(texts),
        DenseRetrieval(semantic, encoder),
    ]
    if bm25_columns:
        richer = replace(log, text_columns=(*log.text_columns, *bm25_columns))
        systems.append(BM25(richer.item_texts(), name=f"BM25 + {', '.join(bm25_columns)}"))
    return systems


def run(settings: Settings) -> StageReport:
    """Draw candidates, let every system rank them, save the figures."""
    run_dir, (arguments, _) = settings.run_dir, settings[RESULTS]

    def work(folder: Path, checkpoints: Path) -> dict:
        log, events, split = load_data(run_dir)
        requests, candidates = evaluation_requests(log, split, arguments.part, arguments)
        systems, sharing = scorers(run_dir, log, events, split, arguments), processes()
        options = {"seed": arguments.seed, "processes": sharing}
        result = evaluate(systems, requests, candidates, skip_clicked=arguments.skip_clicked, **options)
        full = None
        if arguments.full_ranking:
            full = evaluate_full_ranking(systems, requests, exclude_history=arguments.skip_clicked, **options)
        if sharing.is_main_process:
            for task, sets in candidates.items():
                sets.save(folder / f"candidates_{task}.safetensors")
            save_result(result, folder)
            if full is not None:
                save_result(full, folder / FULL_RANKING)
        counts = {f"{task} requests": len(requests[task]) for task in requests}
        return {**counts, "failures": result.failures}

    inputs = [arguments, run_dir / DATA, run_dir / SEMANTIC, run_dir / COLLABORATIVE]
    made = ("config.json", "model.safetensors", "identifiers.parquet", "tokenizer.json")
    inputs += [run_dir / MODEL / name for name in made]
    return run_stage(run_dir, RESULTS, inputs, work, is_distributed=True)


def save_result(result: EvaluationResult, folder: Path) -> None:
    """Write `metrics.json`, `ranks.parquet`, the tables and the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    result.save(folder)
    metrics = result.metrics()
    with atomic_path(folder / "tables.md") as aside:
        aside.write_text(markdown_report(metrics), encoding="utf-8")
    save_figure(metrics, folder / "ndcg.png")


if __name__ == "__main__":
    main(run, __doc__, [SECTION])
