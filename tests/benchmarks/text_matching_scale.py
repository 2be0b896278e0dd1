"""Memory and time of text matching by the number of items: `python tests/benchmarks/text_matching_scale.py 1000000`.

Titles of five random words of a vocabulary with frequencies as in language (Zipf), random embeddings of 384 dimensions,
one thread. The text encoder's own time does not depend on the catalogue and is left out.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gensar_hf.embeddings.text_encoder import TextEncoder
from gensar_hf.generator.text_matching import TextIndex

DIM, NUM_QUERIES, NUM_WORDS = 384, 20, 50_000


class RandomEncoder(TextEncoder):
    """Embeds anything at random."""

    def encode(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """`(num_texts, DIM)` random numbers."""
        return np.random.default_rng(len(texts)).normal(size=(len(texts), DIM)).astype(np.float32)


def resident_mib() -> float:
    """Memory of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(sizes: list[int]) -> None:
    """One line a size."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(["".join(rng.choice(letters, rng.integers(3, 10))) for _ in range(NUM_WORDS)])
    for size in sizes:
        titles = [" ".join(vocabulary[(rng.zipf(1.2, 5) - 1) % NUM_WORDS]) for _ in range(size)]
        vectors = rng.standard_normal((size, DIM), dtype=np.float32).astype(np.float16)
        before = resident_mib()
        index = TextIndex(titles, titles, vectors, RandomEncoder(None))
        start = time.perf_counter()
        index.scores(["first query"])
        built = time.perf_counter() - start
        seconds, hashed = [], resident_mib() - before
        for number in range(NUM_QUERIES):
            start = time.perf_counter()
            index.match([f"{titles[number]} {number}"])
            seconds.append(time.perf_counter() - start)
        print(
            f"{size:,} items: {vectors.nbytes / 2**20:,.0f} MiB of embeddings, {hashed:,.0f} MiB of hashed texts "
            f"and copies in float32, {built:.1f} s to build, {1e3 * np.median(seconds):.1f} ms a query"
        )


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [10_000, 100_000])
