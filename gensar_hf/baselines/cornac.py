"""Next-item models of the library cornac: independent implementations of published baselines."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gensar_hf.baselines.registry import Baseline
from gensar_hf.baselines.sequential import clicked_items
from gensar_hf.data.splits import RECOMMENDATION, Requests, training_events
from gensar_hf.embeddings.text_encoder import MINILM, TextEncoder
from gensar_hf.errors import InputError, extra_installed

if TYPE_CHECKING:
    from gensar_hf.data.dataset import InteractionDataset

ID_MODELS = ("SASRec", "GRU4Rec", "BERT4Rec", "TransformerRec", "FPMC", "SPop")
TEXT_MODELS = ("TIGER", "RPG")  # read embeddings of the item texts and generate semantic IDs


@dataclass
class CornacConfig:
    """A next-item model of cornac and its arguments.

    Args:
        model: class in `cornac.models`, one of `ID_MODELS` or `TEXT_MODELS`. DiffGRM is not among them, since it gives
            a score to the items of its beam only, nor is LETTER, which needs embeddings that another model has made.
        arguments: of its constructor, where they differ from cornac's defaults, such as `{"n_epochs": 5}`.
    """

    model: str = "SASRec"
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model not in ID_MODELS + TEXT_MODELS:
            raise ValueError(f"`model` must be one of {', '.join(ID_MODELS + TEXT_MODELS)}; got {self.model!r}.")
        if not isinstance(self.arguments, dict):
            raise ValueError(
                f"`arguments` must hold arguments of cornac's {self.model} by name; got {self.arguments!r}."
            )


class CornacScorer:
    """Score = what a model of cornac gives the candidate after the user's clicks.

    Clicks after a search are part of the history like others. Queries are not read. A user without clicks gets equal
    scores, that is, a random order.
    """

    tasks = frozenset({RECOMMENDATION})

    def __init__(self, recommender: Any, name: str) -> None:
        self.recommender, self.name = recommender, name
        weights = recommender.model.parameters() if hasattr(recommender, "model") else ()
        self.num_parameters = sum(parameter.numel() for parameter in weights)

    def score(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        """Score of each candidate, `(num_requests, num_candidates)` float32."""
        scores = np.empty(candidates.shape, dtype=np.float32)
        users = requests.users.tolist()
        with torch.inference_mode():
            for row, clicks in enumerate(clicked_items(requests)):
                scores[row] = self.recommender.score(users[row], clicks.tolist())[candidates[row]]
        return scores


def fit_cornac(dataset: "InteractionDataset", config: CornacConfig, training: Mapping[str, Any]) -> CornacScorer:
    """Train a model of cornac (Salah, Truong and Lauw, JMLR 21, 2020); see `Baseline.fit`.

    All training clicks of a user are one session. Clicks after a search count like others. Queries are left out. Loss,
    optimizer and sampling of negatives are cornac's. `TEXT_MODELS` read the default encoder's embeddings of the item
    texts, and score by the likelihood of an item's semantic ID instead of a beam, which knows a few items only.

    Raises:
        InputError: cornac (for RPG also faiss) is missing, the model refuses its arguments, or no user has two clicks.
    """
    with extra_installed("cornac"):
        from cornac import models
        from cornac.data import FeatureModality, SequentialDataset
    events, seed = training_events(dataset.split), training["seed"]
    is_click = events.items >= 0
    users, items = events.event_users()[is_click], events.items[is_click].tolist()
    if not (users[1:] == users[:-1]).any():
        raise InputError(
            f"Cannot train {config.model}: none of the {events.num_users} users has two training clicks; give longer "
            "histories."
        )
    scoring = {"scoring": "exact"} if config.model in TEXT_MODELS else {}
    with _refusals_named(config):
        recommender = getattr(models, config.model)(seed=seed, **{**scoring, **config.arguments})
    # With all users and items in our order, indices are ours, and items without clicks have scores as well.
    user_index, item_index = ({index: index for index in range(n)} for n in (events.num_users, events.num_items))
    clicks = list(zip(users.tolist(), users.tolist(), items, range(len(items)), strict=True))
    data = SequentialDataset.build(clicks, fmt="USIT", global_uid_map=user_index, global_iid_map=item_index, seed=seed)
    if config.model in TEXT_MODELS:
        embeddings = TextEncoder.load(MINILM).encode(dataset.item_texts())
        data.add_modalities(item_feature=FeatureModality(features=np.asarray(embeddings)))
    with _refusals_named(config), extra_installed("faiss"), torch.random.fork_rng():  # RPG trains with faiss
        torch.manual_seed(seed)
        recommender.fit(data)
    return CornacScorer(recommender, f"{config.model} (cornac)")


@contextmanager
def _refusals_named(config: CornacConfig) -> Iterator[None]:
    """Say which model and arguments an error is about, which may come as late as in its training."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"cornac's {config.model} refuses its `arguments` {config.arguments}: {error}") from error


BASELINES = {
    f"cornac_{model.lower()}": Baseline(CornacConfig, fit_cornac, {"model": model})
    for model in ("SASRec", "GRU4Rec", "BERT4Rec", *TEXT_MODELS)
}
