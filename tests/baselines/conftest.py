"""A log of three users over six items, built by hand: two recommended items each, then a search."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer

from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests, Split
from gensar_hf.data.user_events import UserEvents

CLICKS = [[0, 1, 2], [0, 3, 4], [0, 1, 5]]  # each user's: training, recommendation request, search request
QUERIES = ["space comedy", "war drama", "space comedy"]


@pytest.fixture
def split() -> Split:
    events = UserEvents(
        user_ids=["ann", "bob", "cem"],
        item_ids=[f"film-{item}" for item in range(6)],
        query_texts=["space comedy", "war drama"],
        offsets=np.array([0, 4, 8, 12]),
        behaviors=np.tile([0, 0, 1, 2], 3).astype(np.int8),
        items=np.array([item for user in CLICKS for item in (*user[:2], -1, user[2])]),
        queries=np.array([-1, -1, 0, 0, -1, -1, 1, 1, -1, -1, 0, 0]),
        timestamps=np.arange(12, dtype=np.float64),
    )
    test = {
        RECOMMENDATION: Requests(RECOMMENDATION, events, np.array([1, 5, 9])),
        SEARCH: Requests(SEARCH, events, np.array([3, 7, 11])),
    }
    nothing = {task: requests.subset(np.zeros(0, dtype=np.int64)) for task, requests in test.items()}
    return Split(events, train_ends=np.array([1, 5, 9]), validation=nothing, test=test)


@pytest.fixture
def catalogue() -> np.ndarray:
    """All items as the candidates of three requests, in a row order of their own."""
    return np.array([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4]])


@pytest.fixture
def training_killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager]:
    """`with training_killed_at(step=3): …` lets a `Trainer` do two steps and interrupts it in the third."""

    @contextmanager
    def killed(step: int) -> Iterator[None]:
        steps = iter(range(1, step))
        train_step = Trainer.training_step

        def dying(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return train_step(self, *args, **kwargs)

        with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            patched.setattr(Trainer, "training_step", dying)
            yield
            pytest.fail(f"The training ended before step {step}.")

    return killed
