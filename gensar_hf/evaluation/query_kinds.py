"""Does search find what people type? Each kind of query on its own, the target among all items.

Four kinds are made from an item's text and look for this item: its title, the two rarest words of the title, the same
with a typing error, and words of its description. Two kinds fit many items, so that the history decides: attributes
(genre, brand, decade) and the log's own queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gensar_hf.data.splits import SEARCH, TASKS, Requests
from gensar_hf.data.text_queries import TextQueries, misspell
from gensar_hf.errors import InputError
from gensar_hf.evaluation.plots import plot_query_kinds
from gensar_hf.evaluation.protocol import EvaluationResult, evaluate
from gensar_hf.evaluation.report import QUERY_KINDS, query_kinds_table, terminal, write_markdown
from gensar_hf.evaluation.scorer import GeneratorScorer, Scorer
from gensar_hf.files import write_json
from gensar_hf.folders import saving

if TYPE_CHECKING:
    from rich.console import Group

    from gensar_hf.data.dataset import InteractionDataset
    from gensar_hf.pipeline import GenSARPipeline

TITLE_KINDS = ("title", "part", "misspelled")
"""Kinds made from the title: items with the same title words are equally right, so only the target is ranked."""
QUERY_KINDS_FILE = "query_kinds.json"
MAX_REQUESTS = 1000


@dataclass(frozen=True, eq=False)
class QueryRequests(Requests):
    """Requests with a query and a target of their own, and the history of a held-out click.

    `targets` are the event indices of these clicks, -1 for no user and an empty history.
    """

    queries: Sequence[str]
    items: np.ndarray  # (num_requests,) int64, what each query looks for
    kind: str = ""  # one of `QUERY_KINDS`

    @property
    def query_texts(self) -> list[str]:
        """The query of each request."""
        return list(self.queries)

    @property
    def target_items(self) -> np.ndarray:
        """The item that each query looks for, `(num_requests,)` int64."""
        return self.items

    def history(self, row: int) -> np.ndarray:
        """The history of the click of request `row`, as in `Requests`; empty without a click."""
        return super().history(row) if self.targets[row] >= 0 else np.empty(0, dtype=np.int64)

    def subset(self, rows: np.ndarray | Sequence[int]) -> QueryRequests:
        """The requests at `rows` (indices or a mask), in that order."""
        chosen = np.arange(len(self))[rows] if len(rows) else np.empty(0, dtype=np.int64)
        queries = [self.queries[row] for row in chosen]
        return replace(self, targets=self.targets[chosen], queries=queries, items=self.items[chosen])


class WithoutHistory:
    """A system that gets the query alone, without the user and the history; `name` is its row in tables."""

    def __init__(self, scorer: Scorer, name: str) -> None:
        self.scorer, self.name, self.tasks = scorer, name, scorer.tasks

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """The system's scores for requests with empty histories, `(num_requests, num_candidates)`."""
        return self.scorer.score(without_history(requests), candidates)


def without_history(requests: Requests) -> QueryRequests:
    """The same requests of nobody, with empty histories."""
    nobody = np.full(len(requests), -1, dtype=np.int64)
    return QueryRequests(requests.task, requests.events, nobody, requests.query_texts, requests.target_items)


def gensar_rows(pipe: GenSARPipeline) -> list[Scorer]:
    """The rows of a model in the tables of query kinds: with the history, without, and by parts of its scores alone.

    The ranks are those of the items that a search answers with, as a user sees them.
    """
    from gensar_hf.generator.text_matching import CHANNELS  # tables are rendered without torch

    scorer = GeneratorScorer(pipe, as_answered=True)
    rows: list[Scorer] = [scorer, WithoutHistory(scorer, f"{scorer.name}, no history")]
    if getattr(pipe.model.config, "num_items", 0):
        parts = {"identifiers alone": ["identifier"], "vectors alone": ["vector"]}
        if pipe.tokenizer.catalogue.texts is not None:
            parts["texts alone"] = list(CHANNELS)
        rows += [
            GeneratorScorer(pipe, f"{scorer.name}, {name}", names, as_answered=True) for name, names in parts.items()
        ]
    return rows


def query_kind_requests(
    dataset: InteractionDataset, part: str = "test", max_requests: int = MAX_REQUESTS, seed: int = 0
) -> dict[str, Requests]:
    """Requests of each kind, in the order of `QUERY_KINDS`; a kind without requests (no descriptions, say) is left out.

    Of the kinds `title`, `part`, `misspelled` and `description`, the targets are a sample of the catalogue, each item
    as likely as any other. An item comes with the history of a user whose held-out click is on it, and with an empty
    history if there is none. Of the kinds `attributes` and `log`, targets and histories are those of held-out clicks.
    `part` is `"test"` or `"validation"`; `max_requests` is that of each kind.

    Raises:
        InputError: an argument is out of range.
    """
    if part not in ("test", "validation"):
        raise InputError(f"`part` must be test or validation; got {part!r}.")
    if max_requests < 1:
        raise InputError(f"`max_requests` must be at least 1; got {max_requests}.")
    texts, held_out = TextQueries.of_dataset(dataset), getattr(dataset.split, part)
    events, generator = dataset.events, np.random.default_rng(seed)
    items = generator.permutation(len(texts))
    clicks = generator.permutation(np.concatenate([held_out[task].targets for task in TASKS]))
    searches = generator.permutation(held_out[SEARCH].targets)
    click_of_item = np.full(len(texts), -1, dtype=np.int64)
    click_of_item[events.items[clicks]] = clicks  # of several clicks on an item, the last one stays

    # Kind → target, click with its history, and query, one after another as they are needed.
    rng = {kind: np.random.default_rng([seed, number]) for number, kind in enumerate(QUERY_KINDS)}
    made: dict[str, tuple[np.ndarray, np.ndarray, Callable[[int, int], str]]] = {
        "title": (items, click_of_item[items], lambda item, _: texts.title(item)),
        "part": (items, click_of_item[items], lambda item, _: texts.part(item)),
        "misspelled": (items, click_of_item[items], lambda item, _: misspell(texts.part(item), rng["misspelled"])),
        "attributes": (events.items[clicks], clicks, lambda item, _: texts.attributes(item, rng["attributes"])),
        "description": (items, click_of_item[items], lambda item, _: texts.description(item, rng["description"])),
        "log": (events.items[searches], searches, lambda _, click: events.query_texts[events.queries[click]]),
    }
    requests: dict[str, Requests] = {}
    for kind, (targets, histories, query_of) in made.items():
        pairs = zip(targets.tolist(), histories.tolist(), strict=True)
        with_query = ((item, click, query) for item, click in pairs if (query := query_of(item, click)))
        if rows := list(islice(with_query, max_requests)):
            chosen, chosen_clicks, queries = zip(*rows, strict=True)
            requests[kind] = QueryRequests(
                SEARCH, events, np.array(chosen_clicks), list(queries), np.array(chosen), kind
            )
    return requests


@dataclass
class QueryKindsResult:
    """Ranks of the targets among all items, by every system for every kind of query."""

    result: EvaluationResult  # its tasks are the kinds
    examples: Mapping[str, tuple[str, str]]  # kind → a query and the title that it looks for
    part: str = "test"

    @property
    def failures(self) -> dict[str, dict[str, str]]:
        """System → kind → text of the exception."""
        return self.result.failures

    def metrics(self) -> dict[str, Any]:
        """All metrics as plain values: the content of `query_kinds.json`.

        As `EvaluationResult.metrics`, with `kinds` in place of the tasks, each with an `example`, and without systems
        that do not search.
        """
        report = self.result.metrics()
        kinds = {}
        for kind, facts in report.pop("tasks").items():
            query, title = self.examples[kind]
            with_history = int((self.result.requests[kind].users >= 0).sum())
            counts = {name: facts[name] for name in ("num_requests", "num_candidates")}
            example = {"query": query, "title": title}
            kinds[kind] = {**counts, "num_with_history": with_history, "example": example, "systems": facts["systems"]}
        del report["empty_tasks"]
        searching = {*self.result.ranks, *self.result.failures}
        systems = [system for system in report["systems"] if system in searching]
        return {**report, "part": self.part, "systems": systems, "kinds": kinds}

    def terminal_table(self) -> Group:
        """HR@1 and HR@10 of every system for every kind, for `rich.console.Console().print`."""
        return terminal([query_kinds_table(self.metrics())])

    def save(self, folder: str | Path) -> None:
        """Write `query_kinds.json`, `query_kinds.md` and, with matplotlib, `query_kinds.png`."""
        metrics = self.metrics()
        with saving(folder) as aside:
            write_markdown(aside / "query_kinds.md", [query_kinds_table(metrics)])
            plot_query_kinds(metrics, aside / "query_kinds.png")
            write_json(aside / QUERY_KINDS_FILE, metrics)


def evaluate_query_kinds(
    systems: Sequence[Scorer],
    dataset: InteractionDataset,
    part: str = "test",
    max_requests: int = MAX_REQUESTS,
    seed: int = 0,
) -> QueryKindsResult:
    """Rank the target of every query among all items by every system that searches.

    For queries made from titles, items whose title has the same words as the target's are left out: nobody can tell
    which of them is meant. A system that fails is reported in `failures`, and the others are evaluated. The systems
    have distinct names, such as `gensar_rows(pipe)`; the other arguments are those of `query_kind_requests`.

    Raises:
        InputError: an argument is out of range.
    """
    requests = query_kind_requests(dataset, part, max_requests, seed)
    texts, titles = TextQueries.of_dataset(dataset), dataset.titles
    keys = [" ".join(texts.title_words(item)).casefold() for item in range(len(texts))]
    title_codes, _ = pd.factorize(np.array(keys, dtype=object))

    def same_title(chunk: Requests) -> np.ndarray:
        is_title_kind = isinstance(chunk, QueryRequests) and chunk.kind in TITLE_KINDS
        return (title_codes == title_codes[chunk.target_items, None]) & is_title_kind

    result = evaluate(systems, requests, excluded=same_title, seed=seed)
    examples = {kind: (each.query_texts[0], titles[int(each.target_items[0])]) for kind, each in requests.items()}
    return QueryKindsResult(result, examples, part)
