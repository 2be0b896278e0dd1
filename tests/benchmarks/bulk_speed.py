"""Bulk answers against the pipeline's own batches: `OMP_NUM_THREADS=1 python tests/benchmarks/bulk_speed.py`.

A model of the default size with item vectors and random weights answers the same users by one call of `pipe.recommend`,
and from a Parquet file into a folder by `write_answers`, which also takes fingerprints of model and file. The
two take turns; times are processor time, the fastest of `--repeats` runs.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from decoding_setup import measure_interleaved
from filter_speed import NUM_CLICKS, build_pipeline

from gensar_hf.serving.bulk import BulkAnswers, write_answers


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_items", type=int, default=10_000)
    parser.add_argument("--num_users", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args(argv)
    pipe, rng = build_pipeline(arguments.num_items), np.random.default_rng(0)
    rows = rng.integers(arguments.num_items, size=(arguments.num_users, NUM_CLICKS))
    histories = [[{"item_id": f"item {row}"} for row in own] for own in rows.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        source, number = Path(folder) / "histories.parquet", iter(range(1000))
        pd.DataFrame({"user_id": range(len(histories)), "history": histories}).to_parquet(source)
        calls = {
            "pipe.recommend": lambda: pipe.recommend(histories),
            "write_answers": lambda: write_answers(BulkAnswers(pipe), source, Path(folder) / str(next(number))),
        }
        costs = measure_interleaved(calls, arguments.repeats)
    for name, cost in costs.items():
        share = costs["pipe.recommend"].cpu_seconds / cost.cpu_seconds
        print(f"{name}: {arguments.num_users / cost.cpu_seconds:.1f} users/s, {share:.0%} of pipe.recommend")


if __name__ == "__main__":
    main()
