"""What a baseline is: one module with its settings and a function that learns from training events alone.

A module `gensar_hf.baselines.NAME` that can be trained and evaluated by its name has

- `NAME`, its row's name in tables, and `REFERENCE`, the paper it comes from;
- `Settings`, a dataclass whose fields all have defaults, and which checks them;
- `fit(data, settings, seed, folder, checkpoints)`, which learns from a `TrainingData`, saves what it has learnt into
  `folder`, and returns an `evaluation.protocol.Scorer` that has a `num_parameters` besides.

Nothing has to be registered: the configuration file names the module.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gensar_hf.data.splits import Requests
from gensar_hf.data.user_events import UserEvents
from gensar_hf.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a baseline may learn from; held-out events are not part of it.

    Attributes:
        events: `data.training_events(split)`.
        item_texts: one text per item in catalogue order.
        item_embeddings: `(num_items, dim)` the texts' embeddings.
        text_encoder: name or path of the sentence-transformers model that made them.
    """

    events: UserEvents
    item_texts: Sequence[str]
    item_embeddings: np.ndarray
    text_encoder: str


class FittedBaseline(Protocol):
    """A `Scorer` that says how large it is."""

    name: str
    tasks: frozenset[str]
    num_parameters: int
    """Learnt numbers that scoring needs; 0 for counts and indexes."""

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """`(num_requests, num_candidates)`, higher is better."""
        ...


def load_module(name: str) -> "ModuleType":
    """The module of a baseline.

    Raises:
        InputError: there is no baseline of this name.
    """
    try:
        module = importlib.import_module(f"gensar_hf.baselines.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"gensar_hf.baselines.{name}":
            raise  # the baseline is there, but something that it needs is not
        module = None
    if module is None or not hasattr(module, "fit"):
        known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef fit(" in path.read_text())
        raise InputError(f"There is no baseline '{name}'; baselines are {', '.join(known)}.")
    return module


def make_settings(module: "ModuleType", values: Mapping[str, Any]) -> Any:
    """A baseline's `Settings` from plain values.

    Raises:
        InputError: a setting that the baseline does not have, or a value out of range.
    """
    known = [field.name for field in dataclasses.fields(module.Settings)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise InputError(
            f"{module.NAME} has no setting '{unknown[0]}'; its settings are {', '.join(known) or 'none at all'}."
        )
    try:
        return module.Settings(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{module.NAME}: {error}") from None


def fit_by_name(
    name: str, data: TrainingData, values: Mapping[str, Any], seed: int, folder: Path, checkpoints: Path
) -> FittedBaseline:
    """Fit the baseline of a module.

    Args:
        name: of the module.
        data: to learn from.
        values: settings that differ from the defaults.
        seed: of all that is drawn.
        folder: for the model; it exists.
        checkpoints: where a training that was killed is taken up again.
    """
    module = load_module(name)
    return module.fit(data, make_settings(module, values), seed, folder, checkpoints)
