"""Configuration of SASRec."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SASRecConfig(PreTrainedConfig):
    """Sizes and regularization of a `SASRecModel`; the defaults are those tuned on MovieLens-100k.

    Args:
        num_items: size of the catalogue; the model adds the padding row.
        hidden_size: width of the item embeddings and of every layer.
        num_layers: self-attention blocks.
        num_heads: attention heads; must divide `hidden_size`.
        intermediate_size: width of the feed-forward layer; None = `hidden_size`, as in the SASRec paper.
        max_length: events of a history that are read, the latest ones.
        dropout: on the input embeddings and on the last hidden states.
        event_dropout: share of a training window's events that are left out of it, drawn again in every epoch.
        label_smoothing: of the cross entropy while training.
        initializer_range: standard deviation of the initial weights.
    """

    model_type = "sasrec"

    num_items: int = 1
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 2
    intermediate_size: int | None = None
    max_length: int = 50
    dropout: float = 0.2
    event_dropout: float = 0.0
    label_smoothing: float = 0.1
    initializer_range: float = 0.02

    def validate_sizes(self) -> None:
        """Part of the `@strict` validation: sizes that fit one another, probabilities."""
        for name in ("num_items", "hidden_size", "num_heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        if self.num_layers < 0:
            raise ValueError(f"`num_layers` must not be negative; got {self.num_layers}.")
        if self.hidden_size % self.num_heads != 0:
            raise ValueError(
                "`num_heads` must divide `hidden_size`, because each head gets an equal part of it; "
                f"got {self.num_heads} and {self.hidden_size}."
            )
        for name in ("dropout", "event_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1; got {getattr(self, name)}.")
