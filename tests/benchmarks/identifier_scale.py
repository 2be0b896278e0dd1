"""How time and memory of the identifiers grow with the catalogue, on synthetic clustered embeddings.

    python tests/benchmarks/identifier_scale.py --output_dir runs/identifier-scale
    python tests/benchmarks/identifier_scale.py --output_dir runs/identifier-scale-rqvae --quantizer rq-vae --epochs 10

For each size: train the joint RQ-VAE, encode all items, make the identifiers unique, save the table, load it, build the
trie over both kinds, add new items. Every stage runs in its own process on the files of the stages before it, so that
its peak memory includes only Python, the libraries, its input and its work. Loading libraries and inputs is not timed.
Written to the output folder, after each stage: `identifier_scale.json`, and at the end `identifier_scale.md`.
"""

import argparse
import json
import logging
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments, set_seed

from gensar_hf.decoding import Trie
from gensar_hf.files import load_arrays, save_arrays, write_json
from gensar_hf.identifiers.assignment import JointCodes, assign_unique_identifiers
from gensar_hf.identifiers.configuration_joint_rqvae import JointRQVAEConfig
from gensar_hf.identifiers.identifier_table import IdentifierTable
from gensar_hf.identifiers.joint_rqvae_training import train_joint_rqvae
from gensar_hf.identifiers.modeling_joint_rqvae import JointRQVAE

logger = logging.getLogger(__name__)

KINDS = ("semantic", "collaborative")
DIMS = {"semantic": 256, "collaborative": 64}
NUM_FACTORS = 48  # what an item is like; both embeddings show it, in part the same of it
NUM_CENTRES = 4000
CHUNK_ROWS = 65_536
NUM_NEW_ITEMS = 1000
Record = dict[str, Any]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="items")
    parser.add_argument("--quantizer", choices=["rq-kmeans", "rq-vae"], default="rq-kmeans")
    parser.add_argument("--epochs", type=float, default=10, help="of rq-vae")
    parser.add_argument("--batch_size", type=int, default=1024, help="of rq-vae")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of rq-vae")
    parser.add_argument("--codebook_size", type=int, default=256)
    parser.add_argument("--num_shared_levels", type=int, default=2)
    parser.add_argument("--num_specific_levels", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.4, help="spread inside a cluster over that of the centres")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=list(STAGES), help="run only this stage of the last size, in this process")
    return parser.parse_args(argv)


def write_embeddings(work_dir: Path, num_items: int, noise: float, seed: int, prefix: str = "") -> None:
    """Write both kinds' embeddings, `(num_items, dim)` float32, chunk by chunk, as `.npy` files.

    An item is a point of a Gaussian mixture over factors of falling weight; each kind is a random linear map of two
    thirds of the factors, plus a little noise. The mixture and the maps depend on the kind only, so that items of
    another seed are new items of the same catalogue.
    """
    world = np.random.default_rng(12345)
    scales = (1 + np.arange(NUM_FACTORS)) ** -0.5
    centres = world.standard_normal((NUM_CENTRES, NUM_FACTORS)) * scales
    maps = {kind: world.standard_normal((NUM_FACTORS, dim)) / NUM_FACTORS**0.5 for kind, dim in DIMS.items()}
    maps["semantic"][0::3] = 0
    maps["collaborative"][1::3] = 0
    generator = np.random.default_rng(seed)
    files = {
        kind: np.lib.format.open_memmap(work_dir / f"{prefix}{kind}.npy", "w+", np.float32, (num_items, dim))
        for kind, dim in DIMS.items()
    }
    for start in range(0, num_items, CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, num_items))
        num_rows = rows.stop - rows.start
        factors = centres[generator.integers(NUM_CENTRES, size=num_rows)]
        factors = factors + noise * scales * generator.standard_normal((num_rows, NUM_FACTORS))
        for kind, dim in DIMS.items():
            files[kind][rows] = factors @ maps[kind] + 0.02 * generator.standard_normal((num_rows, dim))


def read_embeddings(work_dir: Path, prefix: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Both kinds, in memory."""
    semantic, collaborative = (torch.from_numpy(np.load(work_dir / f"{prefix}{kind}.npy")) for kind in KINDS)
    return semantic, collaborative


def reconstruction_errors(model: JointRQVAE, work_dir: Path, quantized: np.ndarray) -> dict[str, float]:
    """`JointRQVAE.reconstruction_error` of all items, chunk by chunk."""
    totals = dict.fromkeys(KINDS, 0.0)
    tables = [np.load(work_dir / f"{kind}.npy", mmap_mode="r") for kind in KINDS]
    for start in range(0, len(quantized), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        semantic, collaborative = (torch.from_numpy(np.array(table[rows])) for table in tables)
        errors = model.reconstruction_error(semantic, collaborative, quantized[rows])
        totals = {kind: totals[kind] + errors[kind] * len(quantized[rows]) for kind in KINDS}
    return {kind: total / len(quantized) for kind, total in totals.items()}


class Clock:
    """Seconds inside the `with` block, and peak memory of this process until its end."""

    def __enter__(self) -> "Clock":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.record = {"seconds": time.perf_counter() - self._start, "peak_gb": peak_memory_gb()}


def peak_memory_gb() -> float:
    """Peak memory of this process, in GB (10⁹ bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: on Linux that remembers the process before exec
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # macOS counts bytes


def generate(arguments: argparse.Namespace, size: int, work_dir: Path) -> Record:
    """The embeddings; not part of what is measured, but its time is noted."""
    with Clock() as clock:
        write_embeddings(work_dir, size, arguments.noise, arguments.seed)
        write_embeddings(work_dir, NUM_NEW_ITEMS, arguments.noise, arguments.seed + 1, "new_")
    return clock.record


def train(arguments: argparse.Namespace, size: int, work_dir: Path) -> Record:
    """Standardization, codebooks and, with rq-vae, epochs of gradient descent."""
    import sklearn.cluster  # noqa: F401 (the first k-means would import it while the clock runs)

    semantic, collaborative = read_embeddings(work_dir)
    set_seed(arguments.seed)
    sizes = {name: getattr(arguments, name) for name in ("codebook_size", "num_shared_levels", "num_specific_levels")}
    dims = {f"{kind}_dim": dim for kind, dim in DIMS.items()}
    model = JointRQVAE(JointRQVAEConfig(**dims, **sizes, quantizer=arguments.quantizer))
    training_args = TrainingArguments(
        output_dir=str(work_dir / "trainer"),
        per_device_train_batch_size=arguments.batch_size,
        num_train_epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        save_strategy="no",
        report_to="none",
    )
    with Clock() as clock:
        train_joint_rqvae(model, semantic, collaborative, training_args)
    model.save_pretrained(work_dir / "model")
    return clock.record


def encode(arguments: argparse.Namespace, size: int, work_dir: Path) -> Record:
    """Nearest codes of all items."""
    model = JointRQVAE.from_pretrained(work_dir / "model")
    semantic, collaborative = read_embeddings(work_dir)
    with Clock() as clock:
        codes = model.encode(semantic, collaborative)
    save_arrays(work_dir / "codes.safetensors", vars(codes))
    quantized = codes.quantized(codes.semantic_codes, codes.collaborative_codes)
    return {**clock.record, "reconstruction_error": reconstruction_errors(model, work_dir, quantized)}


def assign(arguments: argparse.Namespace, size: int, work_dir: Path) -> Record:
    """Unique identifiers; its record holds the report of the assignment."""
    import scipy.optimize  # noqa: F401 (as for k-means)

    codes = JointCodes(**load_arrays(work_dir / "codes.safetensors"))
    with Clock() as clock:
        unique = assign_unique_identifiers(codes)
    identifiers = {"semantic_codes": unique.semantic_codes, "collaborative_codes": unique.collaborative_codes}
    save_arrays(work_dir / "identifiers.safetensors", identifiers)
    model = JointRQVAE.from_pretrained(work_dir / "model")
    errors = reconstruction_errors(model, work_dir, codes.quantized(**identifiers))
    return {**clock.record, "reconstruction_error": errors, "report": unique.report}


def save(arguments: argparse.Namespace, size: int, work_dir: Path) -> Record:
    """Check the identifiers and write the table."""
    identifiers = load_arrays(work_dir / "identifiers.safetensors")
    item_ids = [f"B{row:09d}" for row in range(size)]
    with Clock() as clock:
        table = IdentifierTable(
            item_ids,
            **identifiers,
            num_shared_levels=arguments.num_shared_levels,
            codebook_size=arguments.codebook_size,
        )
        path = table.save(work_dir)
    return {**clock.record, "file_mb": path.stat().st_size / 1e6}


def load(arguments: argparse.Namespace, size: int, work_dir: Path) -> Record:
    """Read the table and check it."""
    with Clock() as clock:
        IdentifierTable.load(work_dir)
    return clock.record


def build_trie(arguments: argparse.Namespace, size: int, work_dir: Path) -> Record:
    """The trie over [behavior token, code 1 … code L] of both kinds, as the tokenizer builds it."""
    table = IdentifierTable.load(work_dir)
    levels = np.arange(table.num_levels)  # the tokens of a level follow those of the level before: M…, S…, R…
    num_specific = table.num_levels - table.num_shared_levels
    collaborative_levels = np.where(levels < table.num_shared_levels, levels, levels + num_specific)
    with Clock() as clock:
        recommended = np.insert(
            2 + collaborative_levels * table.codebook_size + table.collaborative_codes, 0, 0, axis=1
        )
        searched = np.insert(2 + levels * table.codebook_size + table.semantic_codes, 0, 1, axis=1)
        rows = np.arange(size)
        Trie(np.concatenate([recommended, searched]), values=np.concatenate([rows, rows]))
    return clock.record


def add(arguments: argparse.Namespace, size: int, work_dir: Path) -> Record:
    """`add_items` of items that the model has not seen."""
    import scipy.optimize  # noqa: F401 (as for k-means)

    table = IdentifierTable.load(work_dir)
    model = JointRQVAE.from_pretrained(work_dir / "model")
    embeddings = read_embeddings(work_dir, "new_")
    with Clock() as clock:
        added = table.add_items(embeddings, [f"new {row}" for row in range(NUM_NEW_ITEMS)], model)
    return {**clock.record, "report": added.build_report["added"][0]}


STAGES: dict[str, Callable[[argparse.Namespace, int, Path], Record]] = {
    "generate": generate,
    "train": train,
    "encode": encode,
    "assign": assign,
    "save": save,
    "load": load,
    "trie": build_trie,
    "add": add,
}


def work_dir_of(arguments: argparse.Namespace, size: int) -> Path:
    """Where the stages of one size leave what the next ones read."""
    return arguments.output_dir / "work" / str(size)


def run_stage_here(arguments: argparse.Namespace, size: int, stage: str) -> Record:
    """Run a stage in this process."""
    return STAGES[stage](arguments, size, work_dir_of(arguments, size))


def run_stage_apart(arguments: argparse.Namespace, size: int, stage: str) -> Record:
    """Run a stage in a new process, which writes its record into the work folder."""
    options = vars(arguments) | {"sizes": size, "stage": stage}
    command = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, __file__, *command], check=True)
    return json.loads((work_dir_of(arguments, size) / f"{stage}.json").read_text())


def measure(
    arguments: argparse.Namespace, run_stage: Callable[[argparse.Namespace, int, str], Record] = run_stage_apart
) -> dict[int, dict[str, Record]]:
    """All stages of all sizes; the results so far are written after each."""
    results: dict[int, dict[str, Record]] = {}
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output_dir", "stage")}
    for size in arguments.sizes:
        work_dir_of(arguments, size).mkdir(parents=True, exist_ok=True)
        results[size] = {}
        for stage in STAGES:
            record = results[size][stage] = run_stage(arguments, size, stage)
            logger.info("%9d items, %-8s %8.2f s %6.2f GB", size, stage, record["seconds"], record["peak_gb"])
            write_json(arguments.output_dir / "identifier_scale.json", {"settings": settings, "results": results})
        shutil.rmtree(work_dir_of(arguments, size))
    return results


def table_rows(results: dict[int, dict[str, Record]]) -> list[str]:
    """Markdown: seconds and peak memory by stage, then what the identifiers are like."""
    stages = [stage for stage in STAGES if stage != "generate"]
    rows = ["| items | " + " | ".join(f"{stage}, s (GB)" for stage in stages) + " |", "|---" * (len(stages) + 1) + "|"]
    for size, records in results.items():
        cells = [f"{records[stage]['seconds']:.2f} ({records[stage]['peak_gb']:.2f})" for stage in stages]
        rows.append(f"| {size:,} | " + " | ".join(cells) + " |")
    rows += [
        "",
        "| items | kind | raw collisions | items moved | distortion | reconstruction error |",
        "|---" * 6 + "|",
    ]
    for size, records in results.items():
        for kind in KINDS:
            report = records["assign"]["report"][kind]
            before, after = (records[stage]["reconstruction_error"][kind] for stage in ("encode", "assign"))
            added = report["distortion_after"] / report["distortion_before"] - 1
            rows.append(
                f"| {size:,} | {kind} | {report['collision_rate_before']:.2%} | {report['items_moved'] / size:.2%} | "
                f"{added:+.2%} | {before:.4f} → {after:.4f} |"
            )
    return rows


def report(arguments: argparse.Namespace, results: dict[int, dict[str, Record]]) -> None:
    """Write the table."""
    rows = table_rows(results)
    (arguments.output_dir / "identifier_scale.md").write_text("\n".join(rows) + "\n")
    logger.info("\n".join(rows))


def main() -> None:
    """Run the benchmark, or the one stage of `--stage`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments()
    if arguments.stage:
        (size,) = arguments.sizes
        record = run_stage_here(arguments, size, arguments.stage)
        write_json(work_dir_of(arguments, size) / f"{arguments.stage}.json", record)
    else:
        report(arguments, measure(arguments))


if __name__ == "__main__":
    main()
