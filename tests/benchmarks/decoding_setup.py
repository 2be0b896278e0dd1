"""Shared parts of the decoding benchmarks: a T5 with random weights, a catalogue, requests, and measurements."""

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

from gensar_hf.files import write_json

START, EOS = 0, 1
TEXT_TOKENS = 32_100  # T5's vocabulary, followed by the behavior tokens and the codes
NUM_BEHAVIORS, FIRST_CODE = 3, TEXT_TOKENS + 3
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and its input; default: T5-small, two shared and two specific levels."""

    d_model: int = 512
    num_layers: int = 6
    num_heads: int = 8
    d_ff: int = 2048
    num_input_tokens: int = 128
    num_levels: int = 4
    codebook_size: int = 256

    @property
    def vocab_size(self) -> int:
        """Words, behavior tokens, and the codes of both kinds of identifiers."""
        return FIRST_CODE + 6 * self.codebook_size


def build_model(shape: Shape, seed: int = 0) -> T5ForConditionalGeneration:
    """T5 v1.0 with random weights, fp32."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        d_kv=shape.d_model // shape.num_heads,
        d_ff=shape.d_ff,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        decoder_start_token_id=START,
    )
    return T5ForConditionalGeneration(config).eval()


def random_identifiers(num_items: int, shape: Shape, seed: int = 0) -> np.ndarray:
    """`(num_items, 1 + num_levels)` token ids: a behavior token and random codes, distinct and ascending."""
    num_codes = shape.codebook_size**shape.num_levels
    generator = np.random.default_rng(seed)
    numbers = np.unique(generator.integers(0, num_codes, int(1.05 * num_items) + 10))
    while len(numbers) < num_items:
        numbers = np.union1d(numbers, generator.integers(0, num_codes, num_items))
    numbers = np.sort(generator.choice(numbers, num_items, replace=False))
    identifiers = np.full((num_items, 1 + shape.num_levels), TEXT_TOKENS, dtype=np.int64)
    for level in range(shape.num_levels, 0, -1):
        numbers, codes = np.divmod(numbers, shape.codebook_size)
        identifiers[:, level] = FIRST_CODE + (level - 1) * shape.codebook_size + codes
    return identifiers


def random_requests(batch_size: int, shape: Shape, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of one length, without padding, and the decoder prompt."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(2, TEXT_TOKENS, (batch_size, shape.num_input_tokens), generator=generator)
    prompts = torch.tensor([[START, TEXT_TOKENS]]).expand(batch_size, -1)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "decoder_input_ids": prompts}


def dict_trie(sequences: np.ndarray) -> dict:
    """The sequences as nested dictionaries, one level per token."""
    root: dict = {}
    for sequence in sequences.tolist():
        node = root
        for token in sequence:
            node = node.setdefault(token, {})
    return root


@dataclass(frozen=True)
class Cost:
    """Cost of one call: wall-clock and processor time in seconds, rise of the peak memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: float | None = None


def measure_interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Cost]:
    """The fastest of several runs of each call. The calls take turns, so that all run under the same load."""
    costs: dict[str, list[Cost]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            costs[name].append(Cost(time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Cost(min(cost.seconds for cost in runs), min(cost.cpu_seconds for cost in runs), peak_memory(calls[name]))
        for name, runs in costs.items()
    }


def peak_memory(call: Callable[[], Any]) -> float | None:
    """Rise of the resident memory during a call in bytes; None on systems other than Linux."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # release memory of earlier calls
    reset.write_text("5")  # reset the peak
    before = _status_bytes(status, "VmRSS")
    call()
    return _status_bytes(status, "VmHWM") - before


def _status_bytes(status: Path, name: str) -> float:
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * float(line.split()[1])


def write_report(output_dir: Path, name: str, record: Mapping[str, Any], tables: str) -> None:
    """Write `name.json` and `name.md` to the output folder."""
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / f"{name}.json", dict(record))
    (output_dir / f"{name}.md").write_text(tables, encoding="utf-8")


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table with the first column aligned left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def megabytes(num_bytes: float | None) -> str:
    """The number as text."""
    return "?" if num_bytes is None else f"{num_bytes / _MEGABYTE:,.1f} MB"
