"""Configuration of the generator."""

import copy
from typing import Any

import numpy as np
from huggingface_hub.dataclasses import strict
from transformers import T5Config

HISTORY_ENCODINGS = ("events", "tokens")
_MOST_WEIGHT = 1e6  # far above any useful one; products with log-probabilities stay finite
_REMOVED_SETTINGS = ("recency_slope",)  # in config.json files of version 0.1


@strict
class GenSARConfig(T5Config):
    """A T5 that reads a mixed history of search and recommendation (GenSAR, Shi et al., RecSys 2025).

    The defaults are the published MovieLens-100k model.

    Args:
        history_encoding: `"tokens"`, as in the paper: every token is a position of a bidirectional encoder; for
            pretrained T5 weights. `"events"` (differs from the paper): the embeddings of an event's tokens are pooled
            into one position of a causal encoder, so that one history trains as many targets as it has events.
        num_items: number of item vectors (`ItemVectors`), for all items known in training; 0: identifiers only, as in
            the paper. Requires `"events"`.
        num_decoder_layers: one by default. A decoder of four codes takes half of a training step with two layers, and
            finds nothing that it does not find with one.
        item_dropout: on item vectors and on the states that are compared with them.
        item_recurrence: add a recurrent layer over the vectors of clicked items to the encoder's attention.
        item_weight: weight of the item vectors' log-probability in an item's score; one number, or one for
            recommendation and one for search. 0: items are found and ranked by identifiers only.
        identifier_weight: the same for the log-probability of the identifier. 0: the decoder is not asked.
        text_dim: width of the sentence embeddings that queries are read with (`TextMatching`); 0: no text matching.
            Requires `"events"`.

    All other arguments are those of `T5Config`.
    """

    model_type = "gensar"

    d_model: int = 128
    d_kv: int = 32
    d_ff: int = 256
    num_layers: int = 2
    num_decoder_layers: int | None = 1
    num_heads: int = 4
    dropout_rate: float | int = 0.0
    history_encoding: str = "events"
    num_items: int = 0
    item_dropout: float = 0.35
    item_recurrence: bool = True
    item_weight: float | int | list = 2.0
    identifier_weight: float | int | list = 1.0
    text_dim: int = 0
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**{name: value for name, value in kwargs.items() if name not in _REMOVED_SETTINGS})

    def validate_history_encoding(self) -> None:
        """Called by `@strict` after every change."""
        if self.history_encoding not in HISTORY_ENCODINGS:
            raise ValueError(
                f"`history_encoding` must be one of {', '.join(HISTORY_ENCODINGS)}; got {self.history_encoding!r}."
            )

    def validate_sizes(self) -> None:
        """Called by `@strict` after every change."""
        for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"`dropout_rate` must be at least 0 and below 1; got {self.dropout_rate}.")

    def validate_items(self) -> None:
        """Called by `@strict` after every change."""
        if self.num_items < 0 or (self.num_items and self.history_encoding != "events"):
            raise ValueError(
                "`num_items` must not be negative, and must be 0 without history_encoding='events'; got "
                f"{self.num_items} with {self.history_encoding!r}."
            )
        if not 0 <= self.item_dropout < 1:
            raise ValueError(f"`item_dropout` must be at least 0 and below 1; got {self.item_dropout}.")
        if self.text_dim < 0 or (self.text_dim and self.history_encoding != "events"):
            raise ValueError(
                "`text_dim` must not be negative, and must be 0 without history_encoding='events'; got "
                f"{self.text_dim} with {self.history_encoding!r}."
            )
        for name in ("item_weight", "identifier_weight"):
            weights = np.atleast_1d(getattr(self, name))
            is_number = weights.dtype.kind in "fi" and weights.shape in ((1,), (2,))
            if not is_number or not ((weights >= 0) & (weights <= _MOST_WEIGHT)).all():
                raise ValueError(
                    f"`{name}` must be a number from 0 to {_MOST_WEIGHT:.0f}, or one for recommendation and one for "
                    f"search; got {getattr(self, name)}."
                )
        if self.num_items and not all(any(self.score_weights(is_search)) for is_search in (False, True)):
            raise ValueError(
                "`identifier_weight` and `item_weight` must not both be 0 for a task, which leaves nothing to rank by; "
                f"got {self.identifier_weight} and {self.item_weight}."
            )

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "GenSARConfig":
        """As in transformers, with the depth of the decoder, by which `generate` makes its cache."""
        config = super().get_text_config(decoder, encoder)
        if decoder and not encoder and self.num_decoder_layers:
            config = copy.deepcopy(config)
            config.num_layers = self.num_decoder_layers
        return config

    def score_weights(self, is_search: bool) -> tuple[float, float]:
        """The weights of the identifier's and of the item vector's log-probability in an item's score."""
        pairs = (np.broadcast_to(weights, 2) for weights in (self.identifier_weight, self.item_weight))
        identifier, item = (float(pair[int(is_search)]) for pair in pairs)
        return identifier, item
