"""Requests per second of a served model: many clients in a closed loop, in batches and one at a time.

    python tests/benchmarks/serving_load.py runs/ml-100k/model --requests 640

Each client sends its next request when it has the answer to the last one. The server runs in a process of its own.
"""

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from gensar_hf.identifiers import IdentifierTable


def bodies(folder: Path, kind: str, number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Requests with histories of up to 20 clicks; searches are for words of titles."""
    table, draw = IdentifierTable.load(folder), random.Random(seed)
    titles = table.titles or table.item_ids
    made = []
    for _ in range(number):
        history = [{"item_id": draw.choice(table.item_ids)} for _ in range(draw.randint(0, 20))]
        body: dict[str, Any] = {"history": history}
        if kind == "search":
            body["query"] = draw.choice(titles).lower()[: draw.randint(3, 30)].strip() or "a"
        elif kind == "rank":
            found = [item_id for item_id, is_open in zip(table.item_ids, table.available, strict=True) if is_open]
            body["candidates"] = draw.sample(found, min(100, len(found)))
        made.append(body)
    return made


async def closed_loop(url: str, requests: list[dict[str, Any]], clients: int) -> tuple[float, list[float], Counter]:
    """Seconds in all, the seconds of each request, and the statuses."""
    waiting, seconds, statuses = iter(requests), list[float](), Counter[str]()

    async def client(session: httpx.AsyncClient) -> None:
        for body in waiting:
            start = time.perf_counter()
            try:
                status = str((await session.post(url, json=body)).status_code)
            except httpx.HTTPError as error:
                status = type(error).__name__
            seconds.append(time.perf_counter() - start)
            statuses[status] += 1

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(limits=limits, timeout=600) as session:
        start = time.perf_counter()
        await asyncio.gather(*[client(session) for _ in range(clients)])
        return time.perf_counter() - start, seconds, statuses


def resident_mb(port: int) -> float:
    """Memory of the server."""
    lines = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes ")) / 2**20


def measure(folder: Path, options: argparse.Namespace, batch_size: int) -> dict[str, dict[str, Any]]:
    """Kind of request → figures of a server with this size of batches."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"port": port, "page": "false", "max_batch_size": batch_size, "timeout_s": 600, "max_queue": 1000}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    result: dict[str, dict[str, Any]] = {}
    with subprocess.Popen([sys.executable, "-m", "gensar_hf", "serve", str(folder), *words]) as process:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.5)
        for kind in options.kinds:
            url, made = f"http://127.0.0.1:{port}/v1/{kind}", bodies(folder, kind, options.requests)
            asyncio.run(closed_loop(url, made[: 2 * options.clients], options.clients))  # warm-up
            before = resident_mb(port)
            took, seconds, statuses = asyncio.run(closed_loop(url, made, options.clients))
            percentiles = statistics.quantiles(seconds, n=100)
            result[kind] = {
                "requests_per_s": len(seconds) / took,
                "p50_ms": 1000 * percentiles[49],
                "p99_ms": 1000 * percentiles[98],
                "statuses": dict(statuses),
                "memory_growth_mb": resident_mb(port) - before,
            }
        process.terminate()
    return result


def main() -> None:
    """Print a line per kind of request and size of batches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=640, help="of each kind")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16], help="first: to compare with")
    parser.add_argument("--kinds", nargs="+", default=["recommend", "search", "suggest", "rank"])
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    measured = {size: measure(options.model, options, size) for size in options.batch_sizes}
    alone = measured[options.batch_sizes[0]]
    print(f"{options.clients} clients, {options.requests} requests of each kind")
    for kind in options.kinds:
        for size, result in measured.items():
            own = result[kind]
            print(
                f"{kind:<10} batches of {size:>3}: {own['requests_per_s']:7.1f} requests/s "
                f"({own['requests_per_s'] / alone[kind]['requests_per_s']:.1f} x), p50 {own['p50_ms']:6.0f} ms, "
                f"p99 {own['p99_ms']:6.0f} ms ({own['p99_ms'] / own['p50_ms']:.1f} x p50), {own['statuses']}, "
                f"memory {own['memory_growth_mb']:+.1f} MB"
            )
    if options.output:
        options.output.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
