"""Item vectors: one trained vector per item, in addition to its identifiers."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from gensar_hf.catalogue_loss import is_sampled
from gensar_hf.generator.configuration_gensar import GenSARConfig

NO_ITEM = -1
ITEM_VECTOR_STD = 0.1  # of new vectors, so that their logits are small compared with the biases


class ItemVectors(nn.Module):
    """Vectors of clicked items for the encoder, and scores of all items from the encoder's state of a request.

    One table serves both, as in SASRec. Differs from the paper, whose items have identifiers only: items share codes,
    so that identifiers alone separate the items of a small catalogue less well (docs/results.md). Generative and dense
    retrieval in one model follows LIGER (Yang et al. 2024, "Unifying generative and dense retrieval for sequential
    recommendation"), whose item vectors are computed from texts.
    """

    def __init__(self, config: GenSARConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.num_items, config.d_model)
        self.bias = nn.Parameter(torch.zeros(config.num_items))
        self.read = nn.Linear(config.d_model, config.d_model, bias=False)
        self.request = nn.Linear(config.d_model, 2 * config.d_model, bias=False)
        self.dropout = nn.Dropout(config.item_dropout)
        self.gru = nn.GRU(config.d_model, config.d_model, batch_first=True) if config.item_recurrence else None
        self.gru_projection = nn.Linear(config.d_model, config.d_model, bias=False) if config.item_recurrence else None

    def look_up(self, rows: torch.Tensor) -> torch.Tensor:
        """Vectors `(…, d_model)` of items of any shape."""
        if not (is_sampled(len(self.bias)) and parametrize.is_parametrized(self.table, "weight")):
            return self.table(rows)
        # Of a large catalogue the features of some rows are mapped, in place of the whole table.
        rest, feature_map = self.get_parameter(_REST), self.get_parameter(_MAP)
        with torch.autocast(rest.device.type, enabled=False):
            own = F.embedding(rows, rest, sparse=self.table.sparse)
            return own + F.embedding(rows, _features(self)) @ feature_map

    def scaled_look_up(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Items of any shape → their vectors `(…, d_model)`, of variance 1."""
        if is_sampled(len(self.bias)):
            return lambda rows: self.look_up(rows) / ITEM_VECTOR_STD
        scaled = self.table.weight / ITEM_VECTOR_STD
        return lambda rows: F.embedding(rows, scaled)

    def event_vectors(self, event_items: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_positions)` items, -1 for none → `(…, d_model)`, to be added to the pooled events."""
        vectors = self.read(self.dropout(self.look_up(event_items.clamp(min=0))))
        return vectors * (event_items >= 0)[:, :, None]

    def click_states(self, event_items: torch.Tensor, starts: torch.Tensor | None = None) -> torch.Tensor:
        """States of a recurrent layer over the clicks up to each position (as in GRU4Rec).

        A gated state learns in far fewer steps than attention that the latest clicks count most. It reads clicks only,
        so that the queries of a session do not displace the clicks before them.

        Args:
            event_items: `(batch_size, num_positions)` long, the item that each position is a click on, -1 for none.
            starts: `(batch_size, num_positions)` long, the first position of the example that each position belongs to,
                if several are packed into one row; default 0.

        Returns:
            `(batch_size, num_positions, d_model)`, to be added to the encoder's states; zeros before the first click
            of an example, and everywhere without the layer.
        """
        is_click = event_items >= 0
        if starts is None and self.gru is not None and self.gru_projection is not None:
            return self._click_states_of_rows(event_items, is_click)
        if self.gru is None or self.gru_projection is None or not is_click.any():
            return self.read.weight.new_zeros(*event_items.shape, len(self.read.weight))
        examples, num_clicks = _clicks_so_far(is_click, starts)
        rows, positions = torch.nonzero(is_click, as_tuple=True)
        owners, order = examples[rows, positions], num_clicks[rows, positions] - 1
        vectors = self.dropout(self.look_up(event_items[rows, positions])) / ITEM_VECTOR_STD
        histories = vectors.new_zeros(int(owners.max()) + 1, int(order.max()) + 1, vectors.shape[1])
        states, _ = self.gru(histories.index_put((owners, order), vectors))
        states = F.pad(states, (0, 0, 1, 0))  # before the first click
        num_clicks = num_clicks.clamp(max=states.shape[1] - 1)  # padding counts the clicks of other examples
        return self.gru_projection(self.dropout(states[examples, num_clicks]))

    def _click_states_of_rows(self, event_items: torch.Tensor, is_click: torch.Tensor) -> torch.Tensor:
        """`click_states` of rows with one example each, in sizes that do not depend on values."""
        if self.gru is None or self.gru_projection is None:
            raise ValueError("The model has no recurrent layer.")
        num_clicks = is_click.cumsum(dim=1)
        vectors = self.dropout(self.look_up(event_items.clamp(min=0))) / ITEM_VECTOR_STD
        # The clicks move to the left; what is no click goes to one place behind them.
        places = torch.where(is_click, num_clicks - 1, is_click.shape[1])[:, :, None].expand_as(vectors)
        histories = vectors.new_zeros(vectors.shape[0], is_click.shape[1] + 1, vectors.shape[2])
        states, _ = self.gru(histories.scatter(1, places, vectors)[:, :-1])
        states = F.pad(states, (0, 0, 1, 0))  # before the first click
        own = states.gather(1, num_clicks[:, :, None].expand_as(vectors))
        return self.gru_projection(self.dropout(own))

    def logits(
        self, states: torch.Tensor, is_searched: torch.Tensor, among: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(num_requests, num_items)` logits of all items, or of some.

        Args:
            states: `(num_requests, d_model)` of the encoder at the last position of each request.
            is_searched: `(num_requests,)` long, 1 where the click answers a query, 0 where it is a recommendation.
            among: `(num_items,)` items; default: all.
        """
        requests = self.request(self.dropout(states)).view(len(states), 2, states.shape[1])
        requests = requests[torch.arange(len(states), device=states.device), is_searched]
        if among is not None:
            return F.linear(requests, self.look_up(among), self.bias[among])
        return F.linear(requests, self.table.weight, self.bias)


def _clicks_so_far(is_click: torch.Tensor, starts: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The example of each position, numbered among the examples with clicks, and the number of clicks up to it.

    All are `(batch_size, num_positions)`. A position of an example without clicks has any number, and 0 clicks.
    """
    starts = torch.zeros_like(is_click, dtype=torch.long) if starts is None else starts
    total = is_click.cumsum(dim=1)
    before = (total - is_click.long()).gather(1, starts)
    keys = torch.arange(len(is_click), device=is_click.device)[:, None] * is_click.shape[1] + starts
    with_clicks = keys[is_click].unique()
    examples = torch.searchsorted(with_clicks, keys).clamp(max=len(with_clicks) - 1)
    return examples, total - before


def item_vectors_of(model: nn.Module) -> ItemVectors:
    """The item vectors of a model. Raises `ValueError` if it has none."""
    for module in model.modules():
        if isinstance(module, ItemVectors):
            return module
    raise ValueError("The model has no item vectors; set `num_items` in its config.")


def add_item_vectors(items: ItemVectors, neighbors: np.ndarray) -> None:
    """Append items, in place; their vectors and biases start as the means of those of their neighbors.

    `neighbors`: `(num_new, k)` rows of other items, see `IdentifierTable`. The caller sets `config.num_items`. Raises
    `ValueError` for a neighbor that does not exist.
    """
    num_items = items.table.num_embeddings
    if len(neighbors) and not 0 <= neighbors.min() <= neighbors.max() < num_items:
        raise ValueError(
            f"Neighbors must be rows of the {num_items} items; got {neighbors.min()} to {neighbors.max()}."
        )
    rows = torch.from_numpy(neighbors).to(items.bias.device)
    with torch.no_grad():
        vectors = torch.cat([items.table.weight, items.table.weight[rows].mean(dim=1)])
        items.bias = nn.Parameter(torch.cat([items.bias, items.bias[rows].mean(dim=1)]))
    items.table = nn.Embedding.from_pretrained(vectors, freeze=False)


# ---- item features that are shared in training


class _FeatureMap(nn.Module):
    """Parametrization of item vectors: a linear map of the items' features, plus a rest for each item."""

    features: torch.Tensor

    def __init__(self, features: torch.Tensor, feature_map: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.map = nn.Parameter(feature_map)

    def forward(self, rest: torch.Tensor) -> torch.Tensor:
        """`(num_items, d_model)` in and out; float32 under autocast, because it is a weight."""
        with torch.autocast(rest.device.type, enabled=False):
            return rest + self.features @ self.map

    def right_inverse(self, vectors: torch.Tensor) -> torch.Tensor:
        """The rests that give these vectors."""
        return vectors - self.features @ self.map


_REST, _MAP = "table.parametrizations.weight.original", "table.parametrizations.weight.0.map"
FEATURE_MAP = "feature_map"  # its name among saved weights, where it stands next to the plain vectors


def share_features(items: ItemVectors, features: torch.Tensor, feature_map: torch.Tensor) -> None:
    """Train the item vectors as a map of the items' features, which all items share, plus a rest for each item.

    A click then trains all items with a similar text, and weight decay draws an item of few clicks towards its features
    instead of towards zero. The vectors keep their values. Saved weights are plain (`plain_weights`), and are divided
    again when they are loaded into a model whose features are shared, so that a training can be resumed.

    Args:
        items: changed in place.
        features: `(num_items, num_features)`.
        feature_map: `(num_features, d_model)`, the map to start from.
    """
    weight = items.table.weight
    shared = _FeatureMap(features.to(weight), feature_map.to(weight))
    parametrize.register_parametrization(items.table, "weight", shared)
    items.register_load_state_dict_pre_hook(_divide_plain_weights)


def merge_features(items: ItemVectors) -> None:
    """End the sharing, in place: the vectors become plain parameters with the values that they have."""
    if parametrize.is_parametrized(items.table, "weight"):
        parametrize.remove_parametrizations(items.table, "weight", leave_parametrized=True)


def plain_weights(items: ItemVectors, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same state dict with plain item vectors, and, where features are shared, the `feature_map`.

    Args:
        items: the module whose features are taken.
        weights: state dict of `items` or of a model that holds them, possibly gathered from several processes.
    """
    if not parametrize.is_parametrized(items.table, "weight") or not any(name.endswith(_REST) for name in weights):
        return weights
    (prefix,) = (name.removesuffix(_REST) for name in weights if name.endswith(_REST))
    plain = {name: value for name, value in weights.items() if name not in (prefix + _REST, prefix + _MAP)}
    rest, feature_map = weights[prefix + _REST], weights[prefix + _MAP]
    plain[f"{prefix}table.weight"] = rest + _features(items).to(rest) @ feature_map
    plain[prefix + FEATURE_MAP] = feature_map
    return plain


def _divide_plain_weights(items: ItemVectors, weights: dict[str, torch.Tensor], prefix: str, *unused: object) -> None:
    """Before a state dict is loaded: plain vectors → map and rest."""
    if not parametrize.is_parametrized(items.table, "weight") or f"{prefix}table.weight" not in weights:
        return
    vectors = weights.pop(f"{prefix}table.weight")
    feature_map = weights.pop(prefix + FEATURE_MAP, items.get_parameter(_MAP).detach()).to(vectors)
    weights[prefix + _REST] = vectors - _features(items).to(vectors) @ feature_map
    weights[prefix + _MAP] = feature_map


def _features(items: ItemVectors) -> torch.Tensor:
    return items.get_buffer("table.parametrizations.weight.0.features")
