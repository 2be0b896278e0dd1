"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018, arXiv:1808.09781)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from gensar_hf.catalogue_loss import catalogue_losses
from gensar_hf.embeddings.configuration_sasrec import NextItemConfig, SASRecConfig
from gensar_hf.model_folder import CheckedLoading

PADDING = 0
IGNORED_LABEL = -100


@dataclass
class SASRecOutput(ModelOutput):
    """What `SASRecModel` returns: with labels the loss, without them the logits."""

    loss: torch.Tensor | None = None  # scalar
    logits: torch.Tensor | None = None  # (batch_size, length, num_items), column i is item i
    last_hidden_state: torch.Tensor | None = None  # (batch_size, length, hidden_size)


class SASRecBlock(nn.Module):
    """Causal self-attention and a feed-forward layer, each with a layer norm before it and a residual connection."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        intermediate_size = config.intermediate_size or config.hidden_size
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.attention_output = nn.Linear(config.hidden_size, config.hidden_size)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward_input = nn.Linear(config.hidden_size, intermediate_size)
        self.feed_forward_output = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length, hidden_size)` to the same shape; padding on the right needs no mask."""
        hidden = hidden + self._attend(self.attention_norm(hidden))
        inner = F.gelu(self.feed_forward_input(self.feed_forward_norm(hidden)))
        return hidden + self.feed_forward_output(inner)

    def _attend(self, hidden: torch.Tensor) -> torch.Tensor:
        batch_size, length, hidden_size = hidden.shape
        heads = self.query_key_value(hidden).view(batch_size, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_output(attended.transpose(1, 2).reshape(batch_size, length, hidden_size))


class SASRecModel(CheckedLoading, PreTrainedModel):  # type: ignore[misc]  # its `from_pretrained` loads completely
    """Predict the next item of a history; the item table is input and output, and the collaborative embedding.

    Histories are padded on the RIGHT with 0: then causal attention alone keeps padding out of every real position.

    Differs from the paper: full-softmax cross entropy instead of one sampled negative (Klenitskiy and Vasilev,
    RecSys 2023, arXiv:2309.07602), GELU, and dropout only at both ends, because `nn.Dropout` costs more than a
    matrix product on a CPU.
    """

    config_class: type[NextItemConfig] = SASRecConfig
    base_model_prefix = "sasrec"
    accepts_loss_kwargs = True  # `num_items_in_batch` makes the loss exact under gradient accumulation

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__(config)
        self.item_table = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=PADDING)
        self.position_table = nn.Embedding(config.max_length, config.hidden_size)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> SASRecOutput:
        """Read histories; with labels, the mean cross entropy over the catalogue at every labelled position.

        Args:
            input_ids: `(batch_size, length)` item index + 1, 0 = padding, on the right; length at most `max_length`.
            labels: `(batch_size, length)` the item that follows each position, index + 1; 0 and -100 are ignored.
            num_items_in_batch: labels in the whole batch, as Trainer counts them; default: those of this call.

        Raises:
            ValueError: histories longer than `max_length`.
        """
        hidden = self._encode(input_ids)
        if labels is None:
            return SASRecOutput(logits=F.linear(hidden, self.item_embeddings()), last_hidden_state=hidden)
        # The catalogue's logits are the largest tensor by far, so only labelled positions get any.
        is_labelled = labels > PADDING
        losses = catalogue_losses(
            hidden[is_labelled],
            labels[is_labelled] - 1,
            self.item_table.weight,
            label_smoothing=self.config.label_smoothing * self.training,
            present=input_ids[is_labelled] - 1 if self.training else None,
            sparse=self.item_table.sparse,
        )
        loss_sum = losses.sum()
        num_labels = is_labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return SASRecOutput(loss=loss_sum / num_labels, last_hidden_state=hidden)

    def _encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        length = input_ids.shape[1]
        if length > self.config.max_length:
            raise ValueError(
                f"`input_ids` holds histories of {length} events, but SASRec was built for `max_length` "
                f"{self.config.max_length}; keep the latest {self.config.max_length} (`pad_histories` does)."
            )
        positions = self.position_table.weight[:length]
        hidden = self.dropout(self.item_table(input_ids) * self.config.hidden_size**0.5 + positions)
        for block in self.blocks:
            hidden = block(hidden)
        return self.dropout(self.final_norm(hidden))

    def item_embeddings(self) -> torch.Tensor:
        """The item table without its padding row, `(num_items, hidden_size)`: the collaborative embeddings."""
        return self.item_table.weight[1:]

    def score(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits `(batch_size, num_items)` of the next item, 0 for an empty history; `input_ids` as in `forward`."""
        hidden, lengths = self._encode(input_ids), (input_ids != PADDING).sum(dim=1)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        last = hidden[rows, (lengths - 1).clamp(min=0)] * (lengths > 0)[:, None]  # (batch_size, hidden_size)
        return F.linear(last, self.item_embeddings())


def pad_histories(histories: list[np.ndarray], max_length: int) -> torch.Tensor:
    """The latest `max_length` items of each history, oldest first, as `input_ids`; at least one column."""
    kept = [np.asarray(history)[-max_length:] for history in histories]
    table = np.full((len(kept), max([1, *map(len, kept)])), PADDING, dtype=np.int64)
    for row, history in zip(table, kept, strict=True):
        row[: len(history)] = history + 1
    return torch.from_numpy(table)


AutoConfig.register(SASRecConfig.model_type, SASRecConfig)
AutoModel.register(SASRecConfig, SASRecModel)
