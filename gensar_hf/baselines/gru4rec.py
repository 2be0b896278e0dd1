"""GRU4Rec: the next item from the clicked items, read in order by a recurrent network."""

from functools import partial

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from gensar_hf.baselines.registry import Baseline
from gensar_hf.baselines.sequential import fit_next_item_model
from gensar_hf.embeddings.configuration_sasrec import NextItemConfig
from gensar_hf.embeddings.modeling_sasrec import PADDING, SASRecModel


@strict
class GRU4RecConfig(NextItemConfig):
    """Configuration of a `GRU4RecModel`, in addition to `NextItemConfig`; `hidden_size` is that of the GRU's state.

    Args:
        embedding_size: width of the item embeddings.
    """

    model_type = "gru4rec"

    embedding_size: int = 64
    hidden_size: int = 128
    num_layers: int = 1

    def validate_embedding(self) -> None:
        """Part of the `@strict` validation."""
        if self.embedding_size < 1:
            raise ValueError(f"`embedding_size` must be at least 1; got {self.embedding_size}.")


class GRU4RecModel(SASRecModel):
    """Predict the next item of a history with a GRU; the item table is input and output ("constrained embedding").

    Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, ICLR 2016; Hidasi and Karatzoglou,
    Recurrent Neural Networks with Top-k Gains for Session-based Recommendations, CIKM 2018.

    Inputs, loss and scores are those of `SASRecModel`, with a GRU in place of the attention. Histories are
    padded on the RIGHT with 0, which no earlier position sees.

    Differs from the papers: full-softmax cross entropy at every position instead of a ranking loss with sampled
    negatives (for GRU4Rec compared by Petrov and Macdonald, RecSys 2022, arXiv:2207.02643; for SASRec by Klenitskiy
    and Vasilev, RecSys 2023); users' windows with zero initial state and backpropagation through all of a window
    instead of session-parallel batches; a linear projection from the state to the item table's width; AdamW instead
    of Adagrad; no output bias.
    """

    config_class = GRU4RecConfig
    base_model_prefix = "gru4rec"

    def __init__(self, config: GRU4RecConfig) -> None:
        PreTrainedModel.__init__(self, config)  # without SASRec's layers
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
                init.zeros_(parameter) if "bias" in name else init.xavier_uniform_(parameter)

    def _encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length)` to `(batch_size, length, embedding_size)`."""
        # Scaled, because a table small enough for the output would leave the GRU nothing to read.
        embedded = self.dropout(self.item_table(input_ids) * self.config.embedding_size**0.5)
        states, _ = self.gru(embedded)
        return self.dropout(self.projection(states))


BASELINES = {"gru4rec": Baseline(GRU4RecConfig, partial(fit_next_item_model, GRU4RecModel, "GRU4Rec"))}
