"""Configuration of SASRec, and what it shares with other models that predict the next item of a history."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class NextItemConfig(PreTrainedConfig):
    """Sizes and regularization of a next-item model.

    Args:
        num_items: size of the catalogue; the model adds the padding row.
        hidden_size: width of the layers and, in most models, of the item embeddings.
        num_layers: blocks.
        max_length: events of a history that are read, the latest ones.
        dropout: on the input embeddings and where the model says.
        event_dropout: share of a training window's events that are left out of it, drawn again in every epoch.
        label_smoothing: of the cross entropy while training.
        initializer_range: standard deviation of the initial weights.
    """

    model_type = "next_item"
    least_layers: ClassVar[int] = 1

    num_items: int = 1
    hidden_size: int = 64
    num_layers: int = 2
    max_length: int = 50
    dropout: float = 0.2
    event_dropout: float = 0.0
    label_smoothing: float = 0.1
    initializer_range: float = 0.02

    def validate_ranges(self) -> None:
        """Part of the `@strict` validation: sizes are counts, probabilities lie in [0, 1)."""
        for name in ("num_items", "hidden_size", "num_layers", "max_length"):
            least = self.least_layers if name == "num_layers" else 1
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}.")
        for name in ("dropout", "event_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1; got {getattr(self, name)}.")


@strict
class SASRecConfig(NextItemConfig):
    """Configuration of a `SASRecModel`, in addition to `NextItemConfig`; the defaults were tuned on MovieLens-100k.

    Args:
        num_heads: attention heads; must divide `hidden_size`.
        intermediate_size: width of the feed-forward layer; None = `hidden_size`, as in the SASRec paper.
    """

    model_type = "sasrec"
    least_layers = 0

    num_heads: int = 2
    intermediate_size: int | None = None

    def validate_heads(self) -> None:
        """Part of the `@strict` validation: sizes that fit one another."""
        if self.num_heads < 1:
            raise ValueError(f"`num_heads` must be at least 1; got {self.num_heads}.")
        if self.hidden_size % self.num_heads != 0:
            raise ValueError(
                "`num_heads` must divide `hidden_size`, because each head gets an equal part of it; "
                f"got {self.num_heads} and {self.hidden_size}."
            )
