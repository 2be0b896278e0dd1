"""Answers for many users by several workers: `BulkAnswers` on Ray Data."""

import json
import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from gensar_hf.files import atomic_path, write_json
from gensar_hf.pipeline import GenSARPipeline
from gensar_hf.ray_workers import check_workers, work_on_ray
from gensar_hf.serving.bulk import PART_SIZE, RAY_DIR, RECORD_FILE, BulkAnswers, Request, answers_opened, part_path


class _Worker:
    """An actor with its own model, which answers parts."""

    def __init__(self, model: str, num_beams: int, batch_size: int, task: str, options: dict[str, Any]) -> None:
        pipe = GenSARPipeline.from_pretrained(model, num_beams=num_beams, batch_size=batch_size)
        self.answer = BulkAnswers(pipe, task, **options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Of rows with the paths `requests` and `part`."""
        numbers = []
        for requests, part in zip(batch["requests"], batch["part"], strict=True):
            rows = pq.read_table(requests).to_pylist()
            if not Path(part).exists():  # a worker that was killed after it had written
                self.answer.write(
                    [Request(row["user_id"], json.loads(row["history"]), row["query"]) for row in rows], Path(part)
                )
            numbers.append(len(rows))
        return {"num_requests": numbers}


def write_answers_on_ray(
    answer: BulkAnswers,
    source: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    part_size: int = PART_SIZE,
    num_workers: int = 2,
    num_gpus: float = 0.0,
) -> int:
    """As `write_answers`, by several workers of a Ray cluster: that of `RAY_ADDRESS`, or one on this machine.

    A worker answers a part at a time. The parts that are there are the checkpoints, as with `write_answers`, so that
    either can continue what the other has begun. Requests and model lie in a folder `.ray` next to the parts until all
    are written; it must be visible from all machines.

    Args:
        answer: the model and its settings, of which each worker loads a copy.
        source: see `read_requests`.
        output_dir: for the answers.
        part_size: requests per part.
        num_workers: copies of the model.
        num_gpus: GPUs of each.

    Returns:
        the number of requests.

    Raises:
        InputError: as for `write_answers`, or the cluster has too few CPUs or GPUs.
    """
    source, folder = Path(source), Path(output_dir).resolve()
    check_workers(num_workers, num_gpus)
    with answers_opened(answer, source, folder, part_size) as record:
        work = folder / RAY_DIR
        if not (work / "requests").exists():
            with atomic_path(work / "requests") as aside:
                _write_requests(answer, source, aside, part_size, folder)
        parts = {path: folder / f"part-{path.name}" for path in sorted((work / "requests").iterdir())}
        number = sum(pq.read_metadata(path).num_rows for path in parts)
        rows = [{"requests": str(path), "part": str(part)} for path, part in parts.items() if not part.exists()]
        if rows:
            name = answer.pipe.name_or_path
            answer.pipe.save_pretrained(work / "model")
            answer.pipe.name_or_path = name
            arguments = {
                "model": str(work / "model"),
                "num_beams": answer.pipe.num_beams,
                "batch_size": answer.pipe.batch_size,
                "task": answer.task,
                "options": answer.arguments(),
            }
            with tqdm(desc=answer.task, unit=" requests", total=number) as bar:
                for row in work_on_ray(_Worker, arguments, rows, num_workers, num_gpus):
                    bar.update(row["num_requests"])
        write_json(folder / RECORD_FILE, {**record, "num_requests": number})
        shutil.rmtree(work)
    return number


def _write_requests(answer: BulkAnswers, source: Path, aside: Path, part_size: int, folder: Path) -> None:
    """Write the requests of each part into a Parquet file, after a check of their items."""
    aside.mkdir()
    number, requests = 0, answer.requests(source, folder)
    while part := list(islice(requests, part_size)):
        answer.check(part)
        columns = {
            "user_id": pa.array([request.user_id for request in part], pa.string()),
            "history": pa.array([json.dumps(request.history) for request in part], pa.string()),
            "query": pa.array([request.query for request in part], pa.string()),
        }
        name = part_path(folder, number, number + len(part)).name.removeprefix("part-")
        pq.write_table(pa.table(columns), aside / name)
        number += len(part)
