"""How time and memory of the data stage grow with the log: in memory, and grouped on disk by DuckDB.

    python tests/benchmarks/large_log.py --output_dir runs/large-log --rows 2000000 5000000 20000000

For each size: write a synthetic log in Parquet parts of a million rows, then read and check it, make the events and the
split, and save the dataset, as the data stage of `gensar train` does, both ways and each in its own process. Printed:
CPU seconds of the process (all threads), its peak memory, of which `imports` is that of the libraries alone, and the
sizes on disk.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PART_ROWS = 1_000_000
WAYS = ("imports", "memory", "disk")


def write_log(folder: Path, num_rows: int, seed: int = 0) -> None:
    """`items.parquet` and `log/part-*.parquet`: 12 rows a user, 40 an item, 46 % of them with a query."""
    rng = np.random.default_rng(seed)
    num_users, num_items, num_queries = num_rows // 12, max(1000, num_rows // 40), max(100, num_rows // 100)
    (folder / "log").mkdir(parents=True)
    user_ids, item_ids, queries = (
        pa.array([f"{prefix}{number:0{width}d}" for number in range(count)])
        for prefix, count, width in (("A", num_users, 8), ("B", num_items, 9), ("red shoes ", num_queries, 1))
    )
    titles = [f"word{item % 2000} word{item * 7 % 2000} {item}" for item in range(num_items)]
    pq.write_table(pa.table({"item_id": item_ids, "title": titles}), folder / "items.parquet")
    for number, start in enumerate(range(0, num_rows, PART_ROWS)):
        size = min(PART_ROWS, num_rows - start)

        drawn = [(len(texts) * rng.random(size) ** 2).astype(np.int64) for texts in (user_ids, item_ids, queries)]
        columns = {
            "user_id": user_ids.take(pa.array(drawn[0])),
            "item_id": item_ids.take(pa.array(drawn[1])),
            "timestamp": 1_300_000_000 + rng.integers(0, 90_000_000, size),
            "query": queries.take(pa.array(drawn[2], mask=rng.random(size) > 0.46)),
        }
        pq.write_table(pa.table(columns), folder / "log" / f"part-{number:05d}.parquet")


def run_way(folder: Path, way: str) -> dict[str, Any]:
    """The data stage in this process."""
    from gensar_hf.data import InteractionDataset
    from gensar_hf.training.stages import dataset_inputs, save_dataset

    start, facts = time.process_time(), {}
    if way != "imports":
        log_dir = folder / "grouped" if way == "disk" else None
        dataset = InteractionDataset(folder / "items.parquet", folder / "log", log_dir=log_dir)
        dataset_inputs(dataset)
        facts = save_dataset(dataset, folder / f"data-{way}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    return {"cpu": time.process_time() - start, "peak": peak, "events": facts.get("events")}


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000, 5_000_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--in_process", action="store_true", help="measure the one way in this process")
    given = parser.parse_args()
    if given.in_process:
        print(json.dumps(run_way(given.output_dir, given.ways[0])))
        return
    print("| rows | way | events | CPU s | µs a row | peak GiB | saved MB |\n|---|---|---|---|---|---|---|", flush=True)
    for num_rows in given.rows:
        folder = given.output_dir / str(num_rows)
        shutil.rmtree(folder, ignore_errors=True)
        write_log(folder, num_rows)
        for way in given.ways:
            command = [sys.executable, __file__, "--output_dir", folder, "--ways", way, "--in_process"]
            done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
            facts = json.loads(done.stdout.splitlines()[-1])
            saved = sum(path.stat().st_size for path in (folder / f"data-{way}").rglob("*") if path.is_file()) / 1e6
            print(
                f"| {num_rows:,} | {way} | {facts['events'] or 0:,} | {facts['cpu']:.1f} | "
                f"{1e6 * facts['cpu'] / num_rows:.2f} | {facts['peak']:.2f} | {saved:,.0f} |",
                flush=True,
            )
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
