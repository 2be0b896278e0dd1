"""A log of three users over six items, built by hand: two recommended items each, then a search."""

import gc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import pytest

from gensar_hf.data import InteractionDataset
from gensar_hf.data.splits import RECOMMENDATION, SEARCH, Requests, Split
from gensar_hf.data.user_events import UserEvents
from gensar_hf.embeddings import sasrec_training
from gensar_hf.training import trainer

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
    """All items as the candidates of three requests, in a different order for each."""
    return np.array([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4]])


@pytest.fixture(scope="session")
def dataset_of() -> Callable[..., InteractionDataset]:
    """Builds an `InteractionDataset` around a split; `UserEvents` alone are all training events."""

    def build(source: Split | UserEvents, texts: Sequence[str] | None = None) -> InteractionDataset:
        split = source
        if isinstance(source, UserEvents):
            nothing = {task: Requests(task, source, np.zeros(0, dtype=np.int64)) for task in (RECOMMENDATION, SEARCH)}
            split = Split(source, source.offsets[1:], nothing, nothing)
        titles = list(texts) if texts is not None else [f"film number{i}" for i in range(split.events.num_items)]
        dataset = InteractionDataset.__new__(InteractionDataset)
        dataset.items = pd.DataFrame({"item_id": split.events.item_ids, "title": titles})
        dataset.text_columns = ("title",)
        dataset.events, dataset.split = split.events, split
        return dataset

    return build


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """Short trainings; `Trainer` collects garbage when it starts, which would take longer than they do."""
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sasrec_training, "MIN_STEPS", 60)
        patch.setattr(trainer, "MIN_STEPS", 60)
        yield
    gc.unfreeze()
