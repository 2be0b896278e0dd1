"""Time and memory of requests by the number of items: `OMP_NUM_THREADS=1 python tests/benchmarks/request_scale.py`.

    python tests/benchmarks/request_scale.py --checkouts ../before . --sizes 63000 1000000 --repeats 5

A model of the default size with item vectors and random weights, a catalogue of random identifiers, histories of up to
30 clicks. Each checkout is measured by processes of its own, which take turns, so that all run under the same load;
times are processor time a request, the median over the processes of the fastest of `--repeats` calls.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

BATCH, MAX_CLICKS, NUM_CANDIDATES = 32, 30, 100
NUM_WORDS, NUM_QUERIES, NUM_RANKED = 50_000, 32, 16


def requests_of(num_items: int, number: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Histories of 1 to 30 clicks."""
    rng = np.random.default_rng(seed)
    return [
        [{"item_id": f"item {row}"} for row in rng.integers(num_items, size=rng.integers(1, MAX_CLICKS + 1))]
        for _ in range(number)
    ]


def full_ranking(pipe: Any, num_items: int) -> Callable[[], Any]:
    """The rank of a click among all items, for some users of 20 clicks."""
    from gensar_hf.data import Behavior, UserEvents
    from gensar_hf.data.splits import RECOMMENDATION, Requests
    from gensar_hf.evaluation.protocol import rank_requests
    from gensar_hf.evaluation.scorer import GeneratorScorer

    size = 20 * NUM_RANKED
    events = UserEvents(
        user_ids=[str(user) for user in range(NUM_RANKED)],
        item_ids=[f"item {row}" for row in range(num_items)],
        query_texts=[],
        offsets=np.arange(0, size + 1, 20),
        behaviors=np.full(size, Behavior.RECOMMENDED_ITEM, dtype=np.int8),
        items=np.random.default_rng(2).integers(num_items, size=size),
        queries=np.full(size, -1),
        timestamps=np.arange(size, dtype=np.float64),
    )
    requests = Requests(RECOMMENDATION, events, np.arange(19, size, 20))
    return lambda: rank_requests(GeneratorScorer(pipe), requests)


def distinct_queries(num_items: int) -> Callable[[], Any]:
    """The best hits of queries of three words, of items with titles of seven words as frequent as in language."""
    from gensar_hf.evaluation import BM25Index

    rng = np.random.default_rng(3)
    titles = [" ".join(f"word{word}" for word in row) for row in (rng.zipf(1.2, (num_items, 7)) - 1) % NUM_WORDS]
    queries = [" ".join(rng.choice(titles[row].split(), 3)) for row in rng.integers(num_items, size=NUM_QUERIES)]
    index = BM25Index(titles)
    return lambda: index.retrieve(queries, NUM_CANDIDATES)


def by_vector(pipe: Any, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with identifiers that weigh nothing, as validation clicks choose on Amazon Beauty: without a decoder."""

    def weighted() -> Any:
        before = pipe.model.config.identifier_weight
        pipe.model.config.identifier_weight = 0.0
        try:
            return call()
        finally:
            pipe.model.config.identifier_weight = before

    return weighted


def with_index(pipe: Any, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with an index of as many clusters as the square root of the number of items."""

    def indexed() -> Any:
        if not built:
            num_items = len(pipe.model.encoder.items.bias)
            pipe.build_index(f"IVF{round(num_items**0.5)},SQ8")
            built.append(pipe._index)
        pipe._index = built[0]
        try:
            return call()
        finally:
            pipe._index = None

    built: list[Any] = []
    return indexed


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Processor time of the fastest call."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def measure(num_items: int, repeats: int, with_full_ranking: bool) -> dict[str, float]:
    """Milliseconds a request of each kind, and memory in MiB."""
    from filter_speed import build_pipeline

    torch.set_num_threads(1)
    pipe = build_pipeline(num_items)
    many, rng = requests_of(num_items, BATCH), np.random.default_rng(1)
    candidates = rng.integers(num_items, size=(BATCH, NUM_CANDIDATES))
    is_allowed = rng.random(num_items) < 0.1

    def one_by_one() -> None:
        for history in many[:8]:
            pipe.recommend(history)

    kinds: dict[str, tuple[int, Callable[[], Any]]] = {
        "recommend, single": (8, one_by_one),
        "recommend, batch of 32": (BATCH, lambda: pipe.recommend(many)),
        "batch, seen excluded": (BATCH, lambda: pipe.recommend(many, exclude_seen=True)),
        "100 candidates, batch of 32": (BATCH, lambda: pipe.score_items(many, candidates)),
        "BM25, each distinct query": (NUM_QUERIES, distinct_queries(num_items)),
    }
    if hasattr(pipe, "filter"):  # earlier checkouts have none
        allowed = pipe.filter(is_allowed)
        kinds["batch, 10 % allowed"] = BATCH, lambda: pipe.recommend(many, among=allowed)
    if hasattr(pipe, "build_index"):
        kinds |= {
            "single, by vector alone": (8, by_vector(pipe, one_by_one)),
            "single, with an index": (8, with_index(pipe, one_by_one)),
            "single, both": (8, by_vector(pipe, with_index(pipe, one_by_one))),
            "batch, by vector alone": (BATCH, by_vector(pipe, lambda: pipe.recommend(many))),
            "batch, with an index": (BATCH, with_index(pipe, lambda: pipe.recommend(many))),
        }
    if with_full_ranking:
        kinds["full ranking"] = NUM_RANKED, full_ranking(pipe, num_items)
    pipe.recommend(many[:1])
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record = {kind: 1e3 * cpu_seconds(call, repeats) / number for kind, (number, call) in kinds.items()}
    return {**record, "MiB, loaded": loaded, "MiB, peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measured_in_turn(
    checkouts: Sequence[Path], sizes: Sequence[int], repeats: int, rounds: int, *options: str
) -> dict[str, Any]:
    """Size → kind → the median of each checkout."""
    record: dict[str, Any] = {}
    for size in sizes:
        runs: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
        for _ in range(rounds):
            for checkout in checkouts:
                here = Path(__file__).resolve()
                environment = {
                    **os.environ,
                    "PYTHONPATH": f"{checkout.resolve()}:{here.parent}",
                    "OMP_NUM_THREADS": "1",
                }
                command = [sys.executable, str(here), "--one", str(size), "--repeats", str(repeats), *options]
                output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                runs[checkout].append(json.loads(output.splitlines()[-1]))
        record[f"{size:,}"] = {
            kind: [median(run[kind] for run in own) if kind in own[0] else float("nan") for own in runs.values()]
            for kind in next(reversed(runs.values()))[0]
        }
    return record


def main(argv: list[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[Path(__file__).parents[2]])
    parser.add_argument("--sizes", type=int, nargs="+", default=[63_000, 1_000_000], help="items")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full_ranking", action="store_true", help="seconds a request where it scores every item")
    parser.add_argument("--output_dir", type=Path, help="for request_scale.json and request_scale.md")
    parser.add_argument("--one", type=int, help="measure one size in this process")
    arguments = parser.parse_args(argv)
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.repeats, arguments.full_ranking)))
        return
    options = ["--full_ranking"] if arguments.full_ranking else []
    record = measured_in_turn(arguments.checkouts, arguments.sizes, arguments.repeats, arguments.rounds, *options)
    if arguments.output_dir:
        from decoding_setup import markdown_table, write_report

        kinds_of_all = list(next(iter(record.values())))
        rows = [[kind, *(f"{kinds[kind][-1]:,.1f}" for kinds in record.values())] for kind in kinds_of_all]
        header = ["processor ms a request", *(f"{size} items" for size in record)]
        write_report(arguments.output_dir, "request_scale", record, markdown_table(header, rows))
    for size, kinds in record.items():
        for kind, values in kinds.items():
            print(f"{size:>10}  {kind:30}", *(f"{value:10.1f}" for value in values), f"{values[-1] / values[0]:6.2f}")


if __name__ == "__main__":
    main()
