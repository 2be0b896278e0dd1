"""`Trainer` collects garbage when it starts, which takes longer than the short trainings here."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_garbage() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()
