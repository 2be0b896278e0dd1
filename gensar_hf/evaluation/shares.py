"""Requests split over processes, each of them asked exactly once, and the answers put together again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# A multiple of the batch sizes of the package's scorers: a share is then made of the very batches that one process
# alone would make, and its scores are the same to the last bit.
_BLOCK_SIZE = 256


class Processes(Protocol):
    """What `accelerate.PartialState` says of the processes."""

    @property
    def process_index(self) -> int:
        """This process's number, from 0."""
        ...

    @property
    def num_processes(self) -> int:
        """How many there are."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """A process that works by itself, whatever others there are."""

    process_index: int = 0
    num_processes: int = 1


ALONE = OneProcess()


def own_rows(num_requests: int, processes: Processes) -> np.ndarray:
    """Which requests this process is to answer, ascending: blocks are dealt out in turns.

    Unlike with torch's `DistributedSampler`, which repeats requests until all processes have equally many, shares may
    differ in size, and none of a small number of requests may be left for some process.

    Args:
        num_requests: of all processes.
        processes: that share them.
    """
    block_size = min(_BLOCK_SIZE, max(1, -(-num_requests // processes.num_processes)))
    rows = np.arange(num_requests)
    return rows[rows // block_size % processes.num_processes == processes.process_index]


def gathered_outcomes(outcome: np.ndarray | str, num_requests: int, processes: Processes) -> np.ndarray | str:
    """All processes' answers; all of them have to call this.

    Args:
        outcome: `(num_own_rows,)` for `own_rows`, or why there are no answers.
        num_requests: of all processes.
        processes: that share them.

    Returns:
        `(num_requests,)`, or the first process's reason for having no answers.
    """
    if processes.num_processes == 1:
        return outcome
    from accelerate.utils import gather_object

    return joined(gather_object([outcome]), num_requests)


def joined(outcomes: Sequence[np.ndarray | str], num_requests: int) -> np.ndarray | str:
    """What `gathered_outcomes` makes of the outcomes of all processes, in their order."""
    reasons = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if reasons:
        return reasons[0]
    answers = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    whole = np.empty(num_requests, dtype=np.result_type(*answers))
    for index, share in enumerate(answers):
        whole[own_rows(num_requests, OneProcess(index, len(answers)))] = share
    return whole
