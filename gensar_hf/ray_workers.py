"""Workers of a Ray cluster, each with a model of its own, which take rows one at a time."""

import os
from collections.abc import Iterator
from typing import Any

import ray

from gensar_hf.errors import InputError

_OTHER_CPUS = 1  # for what Ray Data does besides


def check_workers(num_workers: int, num_gpus: float) -> None:
    """Raise `InputError` if there is no worker."""
    if num_workers < 1 or num_gpus < 0:
        raise InputError(f"At least 1 worker with 0 GPUs or more is needed; got {num_workers} and {num_gpus}.")


def work_on_ray(
    worker: type, arguments: dict[str, Any], rows: list[dict[str, Any]], num_workers: int, num_gpus: float
) -> Iterator[dict[str, Any]]:
    """What the workers make of each row, in any order, on the cluster of `RAY_ADDRESS` or one on this machine.

    A worker that dies is replaced, and its row is given to another one.

    Args:
        worker: a class; its objects are called with a batch of one row, column → array.
        arguments: of its constructor.
        rows: of the same columns.
        num_workers: objects of the class, each in a process with one CPU.
        num_gpus: GPUs of each.

    Raises:
        InputError: the cluster has too few CPUs or GPUs.
    """
    is_own = not ray.is_initialized()
    if is_own and os.environ.get("RAY_ADDRESS"):
        ray.init()
    elif is_own:
        ray.init("local", num_cpus=max(os.cpu_count() or 1, num_workers + _OTHER_CPUS), include_dashboard=False)
    try:
        present = ray.cluster_resources()
        for name, wanted in (("CPU", num_workers + _OTHER_CPUS), ("GPU", num_workers * num_gpus)):
            if present.get(name, 0) < wanted:
                raise InputError(
                    f"{num_workers} workers need {wanted:g} {name}s, of which Ray has {present.get(name, 0):g}; start "
                    "a larger cluster or fewer workers."
                )
        ray.data.DataContext.get_current().enable_progress_bars = False
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            worker,
            fn_constructor_kwargs=arguments,
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            batch_size=1,
            num_cpus=1,
            num_gpus=num_gpus or None,
        )
        yield from made.iter_rows()
    finally:
        if is_own:
            ray.shutdown()
