"""FMLP-Rec: the next item from the clicked items, mixed by learned filters in the frequency domain."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from gensar_hf.baselines.registry import Baseline
from gensar_hf.baselines.sequential import fit_next_item_model
from gensar_hf.embeddings.configuration_sasrec import NextItemConfig
from gensar_hf.embeddings.modeling_sasrec import PADDING, SASRecModel
from gensar_hf.embeddings.sasrec_training import PrefixWindows


@strict
class FMLPRecConfig(NextItemConfig):
    """Configuration of a `FMLPRecModel`, the settings of `NextItemConfig`.

    Every history is padded to `max_length`. Blocks are a filter and a feed-forward layer four times as wide as
    `hidden_size`; dropout follows every layer.
    """

    model_type = "fmlp_rec"

    dropout: float = 0.3


class FMLPRecBlock(nn.Module):
    """A filter and a feed-forward layer, each with dropout, a residual connection and a layer norm behind it.

    The filter multiplies the spectrum of each channel over the window by learned complex weights (Zhou et al. 2022,
    sec. 3.2). This is a circular convolution with a kernel as long as the window: every position reads all others.
    """

    def __init__(self, config: FMLPRecConfig) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.zeros(config.max_length // 2 + 1, config.hidden_size, 2))  # real, imaginary
        self.filter_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward_input = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.feed_forward_output = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def mix(self, hidden: torch.Tensor) -> torch.Tensor:
        """The filter layer, `(batch_size, max_length, hidden_size)` to the same shape."""
        spectrum = torch.fft.rfft(hidden.float(), dim=1) * torch.view_as_complex(self.filter.float())
        filtered = torch.fft.irfft(spectrum, n=hidden.shape[1], dim=1)
        return self.filter_norm(hidden + self.dropout(filtered))

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The feed-forward layer of each position, `(…, hidden_size)` to the same shape."""
        inner = F.gelu(self.feed_forward_input(hidden))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward_output(inner)))


class FMLPRecModel(SASRecModel):
    """Predict the next item of a history with filters in the frequency domain; the item table is input and output.

    Zhou, Yu, Zhao and Wen, Filter-enhanced MLP is All You Need for Sequential Recommendation, WWW 2022.

    Inputs, loss and scores are those of `SASRecModel`, but only the last position of a history has a state: at another
    one the filters would have read the label. So each training example is a prefix of a history with one label
    (`PrefixWindows`). Histories are moved to the end of a window of `max_length`, as in the paper, where a filter's
    weights stand for distances from the last event.

    Differs from the paper: full-softmax cross entropy with label smoothing instead of one sampled negative; GELU; no
    dropout within the feed-forward layer.
    """

    config_class = FMLPRecConfig
    base_model_prefix = "fmlp_rec"

    def __init__(self, config: FMLPRecConfig) -> None:
        PreTrainedModel.__init__(self, config)  # without SASRec's layers
        self.item_table = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=PADDING)
        self.position_table = nn.Embedding(config.max_length, config.hidden_size)
        self.input_norm = nn.LayerNorm(config.hidden_size)
        self.blocks = nn.ModuleList(FMLPRecBlock(config) for _ in range(config.num_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FMLPRecBlock):
            init.normal_(module.filter, mean=0.0, std=self.config.initializer_range)

    def _encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length)` to `(batch_size, length, hidden_size)`: zero but for each history's last position."""
        lengths = (input_ids != PADDING).sum(dim=1)
        places = torch.arange(self.config.max_length, device=input_ids.device) - self.config.max_length
        places = places + lengths[:, None]  # in `input_ids`, of each place of the window
        window = input_ids.gather(1, places.clamp(min=0)).masked_fill(places < 0, PADDING)
        hidden = self.dropout(self.input_norm(self.item_table(window) + self.position_table.weight))
        blocks: list[Any] = list(self.blocks)
        *earlier, last_block = blocks
        for block in earlier:
            hidden = block.feed_forward(block.mix(hidden))
        last = last_block.feed_forward(last_block.mix(hidden)[:, -1])  # (batch_size, hidden_size)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        states = last.new_zeros(*input_ids.shape, last.shape[-1])
        return states.index_put((rows, (lengths - 1).clamp(min=0)), last)


BASELINES = {
    "fmlp_rec": Baseline(
        FMLPRecConfig,
        partial(fit_next_item_model, FMLPRecModel, "FMLP-Rec", windows_class=PrefixWindows),
        {"num_train_epochs": 3, "per_device_train_batch_size": 256},
    )
}
