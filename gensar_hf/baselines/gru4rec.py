"""GRU4Rec: the next item from the clicked items, read in order by a recurrent network."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from gensar_hf.embeddings.modeling_sasrec import PADDING, last_states, next_item_loss


@strict
class GRU4RecConfig(PreTrainedConfig):
    """Sizes and regularization of a `GRU4RecModel`.

    Args:
        num_items: size of the catalogue; the model adds the padding row.
        embedding_size: width of the item embeddings.
        hidden_size: width of the GRU's state.
        num_layers: stacked GRU layers.
        max_length: latest events of a history that are read.
        dropout: on the input embeddings, between layers and on the projected states.
        event_dropout: fraction of a training window's events that are dropped, drawn for every epoch.
        label_smoothing: label smoothing of the training loss.
        initializer_range: standard deviation of the initial embeddings.
    """

    model_type = "gru4rec"

    num_items: int = 1
    embedding_size: int = 64
    hidden_size: int = 128
    num_layers: int = 1
    max_length: int = 50
    dropout: float = 0.2
    event_dropout: float = 0.0
    label_smoothing: float = 0.1
    initializer_range: float = 0.02

    def validate_sizes(self) -> None:
        """Part of the `@strict` validation: sizes are counts."""
        for name in ("num_items", "embedding_size", "hidden_size", "num_layers", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")

    def validate_shares(self) -> None:
        """Part of the `@strict` validation: probabilities lie in [0, 1)."""
        for name in ("dropout", "event_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1; got {getattr(self, name)}.")


@dataclass
class GRU4RecOutput(ModelOutput):
    """Output of `GRU4RecModel`.

    loss: scalar, None without labels. logits: `(batch_size, length, num_items)`, column `i` is item `i`; None with
    labels.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class GRU4RecModel(PreTrainedModel):
    """Predict the next item of a history with a GRU; the item table is input and output ("constrained embedding").

    Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, ICLR 2016; Hidasi and Karatzoglou,
    Recurrent Neural Networks with Top-k Gains for Session-based Recommendations, CIKM 2018.

    Histories are padded on the RIGHT with 0, which no earlier position sees.

    Differs from the papers: full-softmax cross entropy at every position instead of a ranking loss with sampled
    negatives (for GRU4Rec compared by Petrov and Macdonald, RecSys 2022, arXiv:2207.02643; for SASRec by Klenitskiy
    and Vasilev, RecSys 2023); users' windows with zero initial state and backpropagation through all of a window
    instead of session-parallel batches; a linear projection from the state to the item table's width; AdamW instead
    of Adagrad; no output bias.
    """

    config_class = GRU4RecConfig
    base_model_prefix = "gru4rec"
    accepts_loss_kwargs = True  # `num_items_in_batch` makes the loss exact under gradient accumulation

    def __init__(self, config: GRU4RecConfig) -> None:
        super().__init__(config)
        self.item_table = nn.Embedding(config.num_items + 1, config.embedding_size, padding_idx=PADDING)
        between = config.dropout if config.num_layers > 1 else 0.0
        self.gru = nn.GRU(
            config.embedding_size, config.hidden_size, config.num_layers, batch_first=True, dropout=between
        )
        self.projection = nn.Linear(config.hidden_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            init.zeros_(module.weight[PADDING])
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters():
                if "bias" in name:
                    init.zeros_(parameter)
                else:
                    init.xavier_uniform_(parameter)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> GRU4RecOutput:
        """Compute next-item logits, or with labels the loss at every labeled position.

        Args:
            input_ids: `(batch_size, length)` item index + 1, 0 = padding, on the right.
            labels: `(batch_size, length)` the item that follows each position, index + 1; 0 and -100 are ignored.
            num_items_in_batch: labels in the whole batch, as Trainer counts them; default: the labels of this call.

        Returns:
            the loss (mean cross entropy over the catalogue) with labels, the logits without.
        """
        hidden = self._encode(input_ids)
        if labels is None:
            return GRU4RecOutput(logits=F.linear(hidden, self.item_embeddings()))
        smoothing = self.config.label_smoothing * self.training
        return GRU4RecOutput(loss=next_item_loss(hidden, self.item_embeddings(), labels, smoothing, num_items_in_batch))

    def _encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length)` to `(batch_size, length, embedding_size)`."""
        # Scaled, because a table small enough for the output would leave the GRU nothing to read.
        embedded = self.dropout(self.item_table(input_ids) * self.config.embedding_size**0.5)
        states, _ = self.gru(embedded)
        return self.dropout(self.projection(states))

    def item_embeddings(self) -> torch.Tensor:
        """The item table without its padding row, `(num_items, embedding_size)`."""
        return self.item_table.weight[1:]

    def score(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Score the whole catalogue as the next item of each history; an empty one scores all items 0.

        Args:
            input_ids: `(batch_size, length)`, coded as in `forward`.

        Returns:
            `(batch_size, num_items)` logits.
        """
        return F.linear(last_states(self._encode(input_ids), input_ids), self.item_embeddings())
