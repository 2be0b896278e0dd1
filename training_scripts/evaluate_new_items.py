"""Items that were held out of everything, added without training: are they found?

    python training_scripts/evaluate_new_items.py training_scripts/configs/ml-100k-new-items.yaml

Runs the stages that are not finished (data.held_out_items names the share of the items), adds the held-out items to
the catalogue in memory, as add_items.py does on disk, and asks for every click on one of them. Writes
results/new_items.json and results/new_items.md. The model on disk stays as it is.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import run_pipeline
from add_items import WarmItems, encode_new_items, extended_table
from console import main
from new_items_report import markdown_tables, terminal_tables
from prepare_data import HELD_OUT_INTERACTIONS, HELD_OUT_ITEMS
from rich.console import Console
from sections import Section
from settings import Settings
from stages import DATA, MODEL, RESULTS, RQVAE, SEMANTIC, damage_reported, load_data
from tqdm.auto import tqdm

from gensar_hf.baselines import BM25, DenseRetrieval
from gensar_hf.data import SEARCH, InteractionLog, Requests, Split, UserEvents
from gensar_hf.embeddings.cold_items import neighbour_recall
from gensar_hf.errors import InputError
from gensar_hf.evaluation import bm25_candidates, bootstrap_interval, evaluate, random_candidates
from gensar_hf.evaluation.candidates import CandidateSets
from gensar_hf.evaluation.generator_scorer import GeneratorScorer, request_history
from gensar_hf.evaluation.metrics import METRICS, contributions, ndcg
from gensar_hf.evaluation.new_items import new_item_requests, ranks_as_new
from gensar_hf.files import atomic_path, read_json, write_json
from gensar_hf.identifiers import IdentifierTable
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE
from gensar_hf.identifiers.nearest_identifiers import nearest_identifiers
from gensar_hf.pipeline import GenSARPipeline

FILE = "new_items"
DEPTHS = (10, 100)
DEFAULT_LENDERS = 10


@dataclass
class NewItemsArguments:
    """How the added items are asked for."""

    max_requests: int = field(default=1000, metadata={"help": "of either task; a seeded sample of more."})
    max_beam_requests: int = field(default=300, metadata={"help": "of the search over the whole catalogue."})
    nums_neighbors: list[int] = field(
        default_factory=lambda: [5, 10, 20, 40],
        metadata={"help": "numbers of known items that a new one borrows from; chosen on validation clicks."},
    )

    def __post_init__(self) -> None:
        if min(self.max_requests, self.max_beam_requests, *self.nums_neighbors) < 1:
            raise ValueError("`max_requests`, `max_beam_requests` and `nums_neighbors` must be at least 1.")


SECTION = Section("new_items", NewItemsArguments)
STAGE_SCRIPTS = [script for script in run_pipeline.SCRIPTS if script.SECTION.name != RESULTS]


@dataclass
class AddedItems:
    """A finished run with its held-out items added.

    Attributes:
        log, events, split: what the run was trained on.
        held_out: the held-out items and the clicks on them.
        warm: the run's items with their embeddings.
        semantic: `(num_new, semantic_dim)` of the held-out items.
        known: the identifier table of the run's items.
        tables: identifier tables with the new items, by what stood for their collaborative embeddings.
        model: the joint RQ-VAE.
        pipeline: with the catalogue that was trained; its tokenizer is given others.
    """

    log: InteractionLog
    events: UserEvents
    split: Split
    held_out: InteractionLog
    warm: WarmItems
    semantic: np.ndarray
    known: IdentifierTable
    tables: dict[str, IdentifierTable]
    model: JointRQVAE
    pipeline: GenSARPipeline

    @classmethod
    def of_run(cls, run_dir: Path, seed: int) -> "AddedItems":
        """Load the run and add its held-out items, with three kinds of collaborative embedding."""
        log, events, split = load_data(run_dir)
        held_out = load_held_out(run_dir, log)
        warm, semantic = WarmItems.of_run(run_dir), encode_new_items(held_out, run_dir)
        shape = (len(semantic), warm.collaborative.shape[1])
        kinds = {
            "map": warm.collaborative_map(seed).predict(semantic),
            "mean": np.broadcast_to(warm.collaborative.mean(axis=0), shape),
            "zeros": np.zeros(shape, dtype=np.float32),
        }
        known = IdentifierTable.load(run_dir / RQVAE)
        with damage_reported(run_dir / RQVAE):
            model = JointRQVAE.from_pretrained(run_dir / RQVAE).eval()
        with damage_reported(run_dir / MODEL):
            pipeline = GenSARPipeline.from_pretrained(run_dir / MODEL)
        tables = {
            kind: extended_table(known, held_out, semantic, np.array(vectors), run_dir, num_neighbors=0)
            for kind, vectors in kinds.items()
        }
        return cls(log, events, split, held_out, warm, semantic, known, tables, model, pipeline)

    @property
    def num_known(self) -> int:
        """Items that were trained on; the new ones come behind them in every table."""
        return self.events.num_items

    @property
    def item_texts(self) -> list[str]:
        """The texts of all items, new ones behind."""
        return self.log.item_texts() + self.held_out.item_texts()

    def neighbors(self, kind: str, k: int, of_known_items: bool = False) -> np.ndarray:
        """The k nearest known items of every new item, or of every known one."""
        known = np.arange(self.num_known)
        new = np.arange(self.num_known, self.tables[kind].num_items)
        codes = self.tables[kind].semantic_codes
        return nearest_identifiers(codes, self.model, known if of_known_items else new, known, k)

    def pipeline_over(self, kind: str, num_neighbors: int = 0) -> GenSARPipeline:
        """The pipeline with a table, whose new items borrow or (0) rely on their own identifiers; one at a time."""
        neighbors = self.neighbors(kind, num_neighbors) if num_neighbors else None
        self.pipeline.set_catalogue(replace(self.tables[kind], neighbors=neighbors))
        return self.pipeline

    def pipeline_over_known(self) -> GenSARPipeline:
        """The pipeline with the items that it was trained on."""
        self.pipeline.set_catalogue(self.known)
        return self.pipeline

    @property
    def can_rely_on_identifiers(self) -> bool:
        """Whether new items can do without borrowing; where items have vectors, new ones have none of their own."""
        return self.pipeline.model.encoder.items is None

    def scorer(self, kind: str, name: str = "GenSAR", num_neighbors: int = 0) -> GeneratorScorer:
        """The generator over a table, see `pipeline_over`."""
        return GeneratorScorer(self.pipeline_over(kind, num_neighbors), name)


def load_held_out(run_dir: Path, log: InteractionLog) -> InteractionLog:
    """The items and clicks that prepare_data.py kept out.

    Raises:
        InputError: it kept none.
    """
    paths = [run_dir / DATA / name for name in (HELD_OUT_ITEMS, HELD_OUT_INTERACTIONS)]
    if not all(path.is_file() for path in paths):
        raise InputError(f"{run_dir} has no held-out items; make it with a share of them: --data.held_out_items 0.05.")
    items, interactions = map(pd.read_parquet, paths)
    return InteractionLog(items, interactions, log.text_columns)


def sample(requests: Requests, max_requests: int, seed: int) -> Requests:
    """A seeded sample of requests, in their order."""
    if len(requests) <= max_requests:
        return requests
    return requests.subset(np.sort(np.random.default_rng(seed).choice(len(requests), max_requests, replace=False)))


def candidates_for(requests: Requests, item_texts: list[str], num_negatives: int, seed: int) -> CandidateSets:
    """BM25-hard for search, random for recommendation."""
    if requests.task == SEARCH:
        return bm25_candidates(requests, item_texts, num_negatives, seed)
    return random_candidates(requests, num_negatives, seed)


def figures(ranks: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Metric → value and interval; items are drawn again and not users, because what is new is the items."""
    values = np.stack(list(contributions(ranks).values()), axis=1)
    low, high = bootstrap_interval(values, seed=seed, groups=groups)
    columns = zip(METRICS, values.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: {"value": value, "low": least, "high": most} for name, value, least, most in columns}


def try_nums_neighbors(added: AddedItems, task: str, arguments: NewItemsArguments, seed: int) -> dict[int, float]:
    """NDCG@10 of known items' validation clicks, their items ranked as if they were new, by number of neighbors.

    Empty where there are no validation clicks.
    """
    requests = sample(added.split.validation[task], arguments.max_requests, seed)
    nums = [num for num in arguments.nums_neighbors if num < added.num_known]
    if not len(requests) or not nums:
        return {}
    texts = added.log.item_texts()
    sets = candidates_for(requests, texts, min(99, added.num_known - 1), seed)
    generator = GeneratorScorer(added.pipeline_over_known())
    neighbors = added.neighbors("map", max(nums), of_known_items=True)
    return {num: ndcg(ranks, 10) for num, ranks in ranks_as_new(generator, requests, sets, neighbors, nums).items()}


def candidate_figures(
    added: AddedItems, requests: Requests, settings: Settings, num_neighbors: int, encoder: str
) -> Any:
    """Every system's figures for one task, on sampled candidates."""
    arguments, seed = settings[RESULTS][0], settings[RESULTS][0].seed
    sets = candidates_for(requests, added.item_texts, arguments.num_negatives, seed)
    systems: list[Any] = []
    if requests.task == SEARCH:
        embeddings = np.concatenate([added.warm.semantic, added.semantic])
        systems = [BM25(added.item_texts), DenseRetrieval(embeddings, encoder)]
    ranks = ranks_of(systems, requests, sets)
    if added.can_rely_on_identifiers:
        ranks |= ranks_of([added.scorer("map", "GenSAR, own identifiers")], requests, sets)
    for kind, suffix in (("map", ""), ("mean", ", mean for map"), ("zeros", ", zeros for map")):
        ranks |= ranks_of([added.scorer(kind, f"GenSAR, borrowed{suffix}", num_neighbors)], requests, sets)
    every_rank = np.arange(1, sets.candidates.shape[1] + 1)
    chance = {name: {"value": float(values.mean())} for name, values in contributions(every_rank).items()}
    return {
        "protocol": sets.protocol,
        "num_requests": len(requests),
        "num_items": len(np.unique(requests.target_items)),
        "num_users": len(np.unique(requests.users)),
        "systems": {"Chance": chance}
        | {name: figures(values, requests.target_items, seed) for name, values in ranks.items()},
    }


def ranks_of(systems: Any, requests: Requests, sets: CandidateSets) -> dict[str, np.ndarray]:
    """System → ranks of the targets.

    Raises:
        InputError: a system failed.
    """
    result = evaluate(list(systems), {requests.task: requests}, {requests.task: sets})
    for name, failure in result.failures.items():
        raise InputError(f"{name} failed: {failure[requests.task]}")
    return {name: by_task[requests.task] for name, by_task in result.ranks.items()}


def beam_figures(added: AddedItems, task: str, requests: Requests, num_neighbors: int) -> dict[str, Any]:
    """Answers out of the whole catalogue: are new items among the first, with and without borrowing?"""
    variants = [("New, own identifiers", 0)] if added.can_rely_on_identifiers else []
    answers = {
        name: [rows for rows, _ in found_rows(added.pipeline_over("map", num), requests)]
        for name, num in (*variants, ("New, borrowed", num_neighbors))
    }
    shares = {name: reach(rows, requests.target_items, added.num_known) for name, rows in answers.items()}
    known = sample(added.split.test[task], len(requests), seed=0)
    if len(known):
        known_answers = [rows for rows, _ in found_rows(added.pipeline, known)]
        shares["Known, for comparison"] = reach(known_answers, known.target_items, added.num_known)
    return shares


def found_rows(pipeline: GenSARPipeline, requests: Requests) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per request the rows of the items found, best first, and their scores."""
    row_of = pipeline.tokenizer.identifiers.index_of
    found = []
    for start in tqdm(range(0, len(requests), pipeline.batch_size), desc="all items", leave=False, delay=2):
        chunk = range(start, min(start + pipeline.batch_size, len(requests)))
        histories = [request_history(requests, row) for row in chunk]
        if requests.task == SEARCH:
            answers = pipeline.search([requests.query_texts[row] for row in chunk], histories, top_k=max(DEPTHS))
        else:
            answers = pipeline.recommend(histories, top_k=max(DEPTHS))
        for own_answers in answers:
            rows = np.array([row_of(answer["item_id"]) for answer in own_answers], dtype=np.int64)
            found.append((rows, np.array([answer["score"] for answer in own_answers])))
    return found


def reach(answers: list[np.ndarray], targets: np.ndarray, num_known: int) -> dict[str, float]:
    """Shares of requests and of new items whose target is found, and of the answers that new items are."""
    found: dict[str, float] = {}
    for depth in DEPTHS:
        hit = np.array([target in rows[:depth] for rows, target in zip(answers, targets, strict=True)])
        places = np.concatenate([rows[:depth] for rows in answers])
        found[f"requests@{depth}"] = float(hit.mean())
        found[f"items@{depth}"] = len(np.unique(targets[hit])) / len(np.unique(targets))
        found[f"places@{depth}"] = float((places >= num_known).mean())
    return found


def new_item_figures(added: AddedItems, settings: Settings, encoder: str) -> dict[str, Any]:
    """All that is written to the file."""
    arguments, _ = settings[SECTION.name]
    seed = settings[RESULTS][0].seed
    num_new = added.tables["map"].num_items - added.num_known
    warm = added.warm
    result: dict[str, Any] = {"num_known_items": added.num_known, "num_new_items": num_new, "tasks": {}}
    result["neighbours"] = neighbour_recall(warm.semantic, warm.collaborative, seed, warm.num_clicks)
    result["added"] = {kind: table.build_report["added"][-1] for kind, table in added.tables.items()}
    for task, requests in new_item_requests(added.log, added.split, added.held_out).items():
        if not len(requests):
            continue
        by_neighbors = try_nums_neighbors(added, task, arguments, seed)
        num_neighbors = max(
            by_neighbors, key=lambda num: by_neighbors[num], default=min(DEFAULT_LENDERS, added.num_known)
        )
        asked = sample(requests, arguments.max_requests, seed)
        result["tasks"][task] = {
            "num_neighbors": num_neighbors,
            "validation_ndcg@10_by_num_neighbors": by_neighbors,
            **candidate_figures(added, asked, settings, num_neighbors, encoder),
            "known_items": known_item_figures(added, task, settings),
            "whole_catalogue": beam_figures(
                added, task, sample(requests, arguments.max_beam_requests, seed), num_neighbors
            ),
        }
    return result


def known_item_figures(added: AddedItems, task: str, settings: Settings) -> dict[str, Any] | None:
    """GenSAR's figures for the test clicks on known items, to compare with; other requests, so another table."""
    arguments, requests = settings[RESULTS][0], added.split.test[task]
    if not len(requests):
        return None
    sets = candidates_for(requests, added.log.item_texts(), arguments.num_negatives, arguments.seed)
    ranks = ranks_of([GeneratorScorer(added.pipeline_over_known())], requests, sets)["GenSAR"]
    return figures(ranks, requests.users, arguments.seed)


def run(settings: Settings) -> None:
    """Train what is missing, add the held-out items, ask for them, save and print the figures."""
    console = Console(width=min(120, Console().width) if Console().is_terminal else 120)
    if not settings[DATA][0].held_out_items and not (settings.run_dir / DATA / HELD_OUT_ITEMS).is_file():
        raise InputError("No items are held out; name a share of them, such as --data.held_out_items 0.05.")
    for script in STAGE_SCRIPTS:
        report = script.run(settings)
        state = "already finished" if report.skipped else f"{report.seconds:.1f} s"
        console.print(f"{script.SECTION.name}: {state}")
    start = time.perf_counter()
    encoder = read_json(settings.run_dir / SEMANTIC / "config.json")["model"]
    result = new_item_figures(AddedItems.of_run(settings.run_dir, settings[RESULTS][0].seed), settings, encoder)
    result["seconds"] = time.perf_counter() - start
    write_json(settings.run_dir / RESULTS / f"{FILE}.json", result)
    with atomic_path(settings.run_dir / RESULTS / f"{FILE}.md") as aside:
        aside.write_text(markdown_tables(result), encoding="utf-8")
    for table in terminal_tables(result):
        console.print(table)
    console.print(f"The figures are in {settings.run_dir / RESULTS}, {FILE}.json and {FILE}.md.", markup=False)


if __name__ == "__main__":
    main(run, __doc__, [*(script.SECTION for script in run_pipeline.SCRIPTS), SECTION])
