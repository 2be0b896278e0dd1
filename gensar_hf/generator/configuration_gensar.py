"""Configuration of the generator."""

from huggingface_hub.dataclasses import strict
from transformers import T5Config

HISTORY_ENCODINGS = ("events", "tokens")


@strict
class GenSARConfig(T5Config):
    """A T5 that reads a mixed history of search and recommendation (GenSAR, Shi et al., RecSys 2025).

    Args:
        history_encoding: `"tokens"`, the paper's: every token is a position of the encoder, which looks both ways;
            right for pretrained T5 weights. `"events"`, ours: the embeddings of one event's tokens are pooled into
            one position, and the encoder is causal, so that one history trains as many targets as it has events.
        recency_slope: with which the position bias of the encoder's first head starts, logits an event, less in the
            other heads (`recency_bias`); 0: T5's random start. Only with `"events"`.
        num_items: items that have a vector of their own beside their identifiers (`ItemVectors`); 0: identifiers
            alone, as in the paper. Only with `"events"`.
        item_dropout: on those vectors, and on what is compared with them.
        item_recurrence: a recurrent layer reads the clicked items' vectors beside the encoder's attention.
        item_weight: of the log-probability by vectors beside the identifier's, where items are scored; 0: identifiers
            alone find and rank.

    All other arguments are those of `T5Config`.
    """

    model_type = "gensar"

    history_encoding: str = "events"
    recency_slope: float = 0.5
    num_items: int = 0
    item_dropout: float = 0.35
    item_recurrence: bool = True
    item_weight: float = 2.0
    decoder_start_token_id: int | None = 0

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
        if not self.recency_slope >= 0:
            raise ValueError(f"`recency_slope` must not be negative; got {self.recency_slope}.")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"`dropout_rate` must be at least 0 and below 1; got {self.dropout_rate}.")

    def validate_items(self) -> None:
        """Called by `@strict` after every change."""
        if self.num_items < 0 or (self.num_items and self.history_encoding != "events"):
            raise ValueError(
                f"`num_items` must be 0, or the number of items with history_encoding='events'; got {self.num_items} "
                f"with {self.history_encoding!r}."
            )
        if not 0 <= self.item_dropout < 1:
            raise ValueError(f"`item_dropout` must be at least 0 and below 1; got {self.item_dropout}.")
        if not self.item_weight >= 0:
            raise ValueError(f"`item_weight` must not be negative; got {self.item_weight}.")
