"""Scaling of the trie with the catalogue: building, memory, search.

    OMP_NUM_THREADS=1 python tests/benchmarks/trie_scale.py --output_dir runs/trie-scale

Identifiers have one behavior token and 4 random codes out of 256. The script measures building from sorted and from
shuffled identifiers; memory of the arrays, and of those that only excluded items need; one search of 30 beams with
T5-small's shape and random weights, without and with 50 excluded items; and, for the sizes in `--swap_sizes`, replacing
the catalogue of a running tokenizer (identifier table → token ids and the trie of both kinds). Times are processor
time, the fastest of `--repeats` runs. The script writes `trie_scale.json` and `trie_scale.md` to the output folder.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from decoding_setup import (
    Shape,
    build_model,
    markdown_table,
    measure_interleaved,
    megabytes,
    random_identifiers,
    random_requests,
    write_report,
)
from tqdm.auto import tqdm

from gensar_hf.decoding import Trie, TrieBeamSearch
from gensar_hf.generator.catalogue import BEHAVIOR_TOKENS, Catalogue
from gensar_hf.identifiers import IdentifierTable

NUM_EXCLUDED = 50
TIMES = ("build, sorted", "build, shuffled", "search", "search, 50 excluded", "swap")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[62_882, 1_000_000, 10_000_000], help="items")
    parser.add_argument("--swap_sizes", type=int, nargs="*", default=[62_882, 1_000_000], help="items")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num_beams", type=int, default=30)
    for name, default in (("d_model", 512), ("num_layers", 6), ("num_heads", 8), ("d_ff", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default, help="of the model")
    parser.add_argument("--num_input_tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """Processor time of the fastest of several runs."""
    return measure_interleaved({"": call}, repeats)[""].cpu_seconds


def swap_call(identifiers: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """Replacing the catalogue: everything before the final assignment."""
    codes = (identifiers[:, 1:] - identifiers[:, 1:].min()) % shape.codebook_size
    item_ids = [f"item {row}" for row in range(len(codes))]
    table = IdentifierTable(item_ids, codes, codes, shape.num_levels, shape.codebook_size)
    vocabulary = {token: place for place, token in enumerate((*BEHAVIOR_TOKENS, *table.code_tokens()))}
    return lambda: Catalogue.of_table(table, vocabulary).trie


def measure_size(num_items: int, shape: Shape, searcher: Callable[..., Any], arguments: argparse.Namespace) -> dict:
    """Everything for one size, times in seconds, memory in bytes."""
    identifiers = random_identifiers(num_items, shape, arguments.seed)
    generator = np.random.default_rng(arguments.seed)
    shuffled = identifiers[generator.permutation(num_items)]
    excluded = [generator.choice(num_items, min(NUM_EXCLUDED, num_items // 2), replace=False)]
    trie = Trie(shuffled)
    calls = {
        "build, sorted": lambda: Trie(identifiers),
        "build, shuffled": lambda: Trie(shuffled),
        "search": lambda: searcher(TrieBeamSearch(trie)),
        "search, 50 excluded": lambda: searcher(TrieBeamSearch(trie, excluded=excluded)),
    }
    if num_items in arguments.swap_sizes:
        calls["swap"] = swap_call(identifiers, shape)
    calls["search, 50 excluded"]()  # sorts the items by value, once per trie
    record = {name: seconds_of(call, arguments.repeats) for name, call in calls.items()}
    record["bytes, sorted"] = sum(array.nbytes for array in Trie(identifiers).arrays())
    record["bytes, shuffled"] = sum(array.nbytes for array in trie.arrays())
    record["bytes for exclusion"] = sum(array.nbytes for array in trie._sequences_by_value or ())
    return record


def table_of(record: dict[int, dict[str, float]]) -> str:
    """One row per size."""
    memory = ("bytes, sorted", "bytes, shuffled", "bytes for exclusion")
    rows = [
        [
            f"{num_items:,}",
            *(f"{1000 * own[name]:,.0f} ms" if name in own else "" for name in TIMES),
            *(megabytes(own[name]) for name in memory),
        ]
        for num_items, own in record.items()
    ]
    return markdown_table(["items", *TIMES, *(name.replace("bytes", "memory") for name in memory)], rows)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = parse_arguments(argv)
    shape = Shape(*(getattr(arguments, name) for name in ("d_model", "num_layers", "num_heads", "d_ff")),
                  arguments.num_input_tokens)  # fmt: skip
    model, inputs = build_model(shape, arguments.seed), random_requests(1, shape, arguments.seed)

    def searcher(search: TrieBeamSearch) -> Any:
        return model.generate(
            **inputs, custom_generate=search, num_beams=arguments.num_beams, max_new_tokens=shape.num_levels
        )

    record = {size: measure_size(size, shape, searcher, arguments) for size in tqdm(arguments.sizes, desc="sizes")}
    print(table_of(record))
    write_report(arguments.output_dir, "trie_scale", record, table_of(record))


if __name__ == "__main__":
    main()
