"""What a module of this folder says of its baselines, so that one more needs no line elsewhere."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gensar_hf.evaluation import Scorer


@dataclass(frozen=True)
class Baseline:
    """How to fit one baseline.

    `fit` takes the dataset, of which it reads the training events (`training_events(dataset.split)`) and the item
    texts, the configuration and the training arguments (`seed`, and the training settings of models that have any). The
    scorer that it returns has `num_parameters` as well.
    """

    config_class: type  # its fields are the baseline's settings
    fit: Callable[..., Scorer]
    defaults: Mapping[str, Any] = field(default_factory=dict)  # that are not those of the configuration


def found_baselines(package: str, folders: Sequence[str]) -> dict[str, Baseline]:
    """The `BASELINES` of all modules of a package, by name, in alphabetical order."""
    found: dict[str, Baseline] = {}
    for module in pkgutil.iter_modules(folders):
        found |= getattr(importlib.import_module(f"{package}.{module.name}"), "BASELINES", {})
    return dict(sorted(found.items()))
