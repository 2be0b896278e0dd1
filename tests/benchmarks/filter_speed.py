"""What a filter costs a request: `OMP_NUM_THREADS=1 python tests/benchmarks/filter_speed.py --output_dir runs/filters`.

A model of the default size with item vectors and random weights, a catalogue of random identifiers, and 10 % of its
items allowed by a filter that `pipe.filter` has prepared. The kinds of requests take turns in one run; times are
processor time, the fastest of `--repeats` runs. The script checks that the answers are allowed, and writes
`filter_speed.json` and `filter_speed.md` to the output folder.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoding_setup import Shape, markdown_table, measure_interleaved, random_identifiers, write_report

from gensar_hf import GenSARConfig, GenSARPipeline, GenSARTokenizer, IdentifierTable
from gensar_hf.generator.initialization import generator_from_scratch

NUM_CLICKS = 20


def build_pipeline(num_items: int, seed: int = 0) -> GenSARPipeline:
    """A pipeline with random weights; identifiers of four random codes out of 256, two of them shared."""
    codes = random_identifiers(num_items, Shape(), seed)[:, 1:]
    codes = (codes - codes.min()) % Shape().codebook_size
    table = IdentifierTable([f"item {row}" for row in range(num_items)], codes, codes, 2, Shape().codebook_size)
    tokenizer = GenSARTokenizer.train_from_texts(["red soap", "blue cream"], table, vocab_size=60)
    torch.manual_seed(seed)
    return GenSARPipeline(generator_from_scratch(GenSARConfig(num_items=num_items), tokenizer), tokenizer)


def measure(pipe: GenSARPipeline, share: float, repeats: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Seconds of each kind of request, without a filter and with some."""
    rng, num_items = np.random.default_rng(seed), pipe.tokenizer.identifiers.num_items
    masks = rng.random((8, num_items)) < share
    filters = [pipe.filter(mask) for mask in masks]
    item_ids = [pipe.tokenizer.identifiers.item_ids[row] for row in np.flatnonzero(masks[0])]
    histories = [[{"item_id": f"item {row}"} for row in rng.integers(num_items, size=NUM_CLICKS)] for _ in range(8)]
    one, plain = histories[0], "no filter"
    requests: dict[str, dict[str, Any]] = {
        "recommend": {plain: {}, "filter": {"among": filters[0]}, "list of ids": {"among": item_ids},
                      "seen excluded": {"exclude_seen": True},
                      "filter, seen excluded": {"among": filters[0], "exclude_seen": True}},
        "recommend, batch of 8": {plain: {}, "filter": {"among": filters[0]}, "8 filters": {"among": filters},
                                  "filter, seen excluded": {"among": filters[0], "exclude_seen": True}},
    }  # fmt: skip
    calls = {
        (kind, name): lambda history=one if kind == "recommend" else histories, own=options: pipe.recommend(
            history, **own
        )
        for kind, variants in requests.items()
        for name, options in variants.items()
    }
    calls |= {
        ("search", name): lambda own=own: pipe.search("red", one, **own) for name, own in requests["recommend"].items()
    }
    allowed = set(item_ids)
    assert all(answer["item_id"] in allowed for answer in calls["search", "filter"]())
    costs = measure_interleaved(calls, repeats)
    record: dict[str, dict[str, float]] = {}
    for (kind, name), cost in costs.items():
        record.setdefault(kind, {})[name] = cost.cpu_seconds
    return record


def table_of(record: dict[str, dict[str, dict[str, float]]]) -> str:
    """One row per size, request and filter, with the ratio to the same request without a filter."""
    rows = [
        [f"{int(size):,}", kind, name, f"{1e3 * seconds:,.1f}", f"{seconds / own['no filter']:.2f}"]
        for size, kinds in record.items()
        for kind, own in kinds.items()
        for name, seconds in own.items()
    ]
    return markdown_table(["items", "request", "filter", "processor ms", "× no filter"], rows)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="items")
    parser.add_argument("--share", type=float, default=0.1, help="of the items that are allowed")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    record = {str(size): measure(build_pipeline(size), arguments.share, arguments.repeats) for size in arguments.sizes}
    print(table_of(record))
    write_report(arguments.output_dir, "filter_speed", record, table_of(record))


if __name__ == "__main__":
    main()
