"""Requests per second of a served model: many clients in a closed loop, in batches and one at a time.

    python tests/benchmarks/serving_load.py runs/ml-100k/model --requests 640

Each client sends its next request when it has the answer to the last one. The servers run in processes of their own and
take turns.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gensar_hf.identifiers import IdentifierTable

KINDS, MIXED = ("recommend", "search", "suggest", "rank"), "mixed"


def bodies(folder: Path, kind: str, number: int, seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Kinds and bodies; histories of up to 20 clicks, searches for words of titles. `MIXED`: all kinds in turn."""
    table, draw = IdentifierTable.load(folder), random.Random(seed)
    titles = table.titles or table.item_ids
    made = []
    for place in range(number):
        own = KINDS[place % len(KINDS)] if kind == MIXED else kind
        history = [{"item_id": draw.choice(table.item_ids)} for _ in range(draw.randint(0, 20))]
        body: dict[str, Any] = {"history": history}
        if own == "search":
            body["query"] = draw.choice(titles).lower()[: draw.randint(3, 30)].strip() or "a"
        elif own == "rank":
            found = [item_id for item_id, is_open in zip(table.item_ids, table.available, strict=True) if is_open]
            body["candidates"] = draw.sample(found, min(100, len(found)))
        made.append((own, body))
    return made


async def closed_loop(
    port: int, requests: list[tuple[str, dict[str, Any]]], clients: int
) -> tuple[float, list[float], Counter[str]]:
    """Seconds in all, the seconds of each request, and the statuses.

    The HTTP is written by hand, since a client library takes as much processor time as the server.
    """
    waiting, seconds, statuses = iter(requests), list[float](), Counter[str]()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for kind, body in waiting:
            data, start = json.dumps(body).encode(), time.perf_counter()
            lines = (
                f"POST /v1/{kind} HTTP/1.1",
                "Host: x",
                "Content-Type: application/json",
                f"Content-Length: {len(data)}",
            )
            writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
            seconds.append(time.perf_counter() - start)
            statuses[head.split()[1]] += 1
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(clients)])
    return time.perf_counter() - start, seconds, statuses


def process_metric(port: int, name: str) -> float:
    """A figure of the server's process, such as its resident bytes."""
    lines = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"process_{name} "))


def resident_mb(port: int) -> float:
    """Memory of the server."""
    return process_metric(port, "resident_memory_bytes") / 2**20


@contextmanager
def served(folder: Path, batch_size: int) -> Iterator[int]:
    """The port of a server with this size of batches."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"port": port, "page": "false", "max_batch_size": batch_size, "timeout_s": 600, "max_queue": 1000}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen([sys.executable, "-m", "gensar_hf", "serve", str(folder), *words]) as process:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.5)
        yield port
        process.terminate()


def measure(options: argparse.Namespace, kind: str, ports: dict[int, int]) -> dict[int, dict[str, Any]]:
    """Size of batches → figures; the servers take turns, so that all see the same load of the machine."""
    made = bodies(options.model, kind, options.requests)
    took, cpu_seconds = Counter[int](), Counter[int]()
    seconds: dict[int, list[float]] = {size: [] for size in ports}
    statuses: dict[int, Counter[str]] = {size: Counter() for size in ports}
    memory: dict[int, list[float]] = {size: [] for size in ports}
    for size, port in ports.items():
        asyncio.run(closed_loop(port, bodies(options.model, kind, 2 * options.clients, seed=1), options.clients))
        memory[size].append(resident_mb(port))
    step = -(-len(made) // options.rounds)
    for start in range(0, len(made), step):
        for size, port in ports.items():
            before = process_metric(port, "cpu_seconds_total")
            own = closed_loop(port, made[start : start + step], options.clients)
            own_took, own_seconds, own_statuses = asyncio.run(own)
            took[size] += own_took
            cpu_seconds[size] += process_metric(port, "cpu_seconds_total") - before
            seconds[size] += own_seconds
            statuses[size] += own_statuses
            memory[size].append(resident_mb(port))
    result = {}
    for size in ports:
        percentiles = statistics.quantiles(seconds[size], n=100)
        result[size] = {
            "requests_per_s": len(seconds[size]) / took[size],
            "p50_ms": 1000 * percentiles[49],
            "p99_ms": 1000 * percentiles[98],
            "statuses": dict(statuses[size]),
            "memory_mb": memory[size],  # after the warm-up and each round
            "cpu_ms": 1000 * cpu_seconds[size] / len(seconds[size]),
        }
    return result


def main() -> None:
    """Print a line per kind of request and size of batches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=640, help="of each kind")
    parser.add_argument("--rounds", type=int, default=4, help="in which the servers take turns")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32], help="first: to compare with")
    parser.add_argument("--kinds", nargs="+", default=[*KINDS, MIXED])
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    print(f"{options.clients} clients, {options.requests} requests of each kind")
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    with ExitStack() as stack:
        ports = {size: stack.enter_context(served(options.model, size)) for size in options.batch_sizes}
        for kind in options.kinds:
            measured[kind] = measure(options, kind, ports)
            show(kind, measured[kind])
    if options.output:
        options.output.write_text(json.dumps(measured, indent=2))


def show(kind: str, results: dict[int, dict[str, Any]]) -> None:
    """Print the figures of one kind of request."""
    alone = next(iter(results.values()))
    for size, own in results.items():
        print(
            f"{kind:<10} batches of {size:>3}: {own['requests_per_s']:7.1f} requests/s "
            f"({own['requests_per_s'] / alone['requests_per_s']:.1f} x), processor {own['cpu_ms']:.1f} ms a request "
            f"({alone['cpu_ms'] / own['cpu_ms']:.1f} x), p50 {own['p50_ms']:.0f} ms, p99 {own['p99_ms']:.0f} ms "
            f"({own['p99_ms'] / own['p50_ms']:.1f} x p50), {own['statuses']}, "
            f"memory {', '.join(f'{value:.0f}' for value in own['memory_mb'])} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
