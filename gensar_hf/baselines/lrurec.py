"""LRURec: the next item from the clicked items, read in order by linear recurrent units."""

from functools import partial

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


@strict
class LRURecConfig(NextItemConfig):
    """Configuration of a `LRURecModel`, in addition to `NextItemConfig`.

    Blocks are a recurrence and a feed-forward layer four times as wide as `hidden_size`; dropout follows every layer.

    Args:
        state_size: complex numbers in the state of a recurrence; None = twice `hidden_size`, as in the paper.
        min_radius: smallest absolute value of an initial eigenvalue of the recurrence.
        max_radius: largest absolute value of an initial eigenvalue.
    """

    model_type = "lrurec"

    state_size: int | None = None
    min_radius: float = 0.8
    max_radius: float = 0.99

    def validate_recurrence(self) -> None:
        """Part of the `@strict` validation: a state, and eigenvalues within the unit circle."""
        if self.state_size is not None and self.state_size < 1:
            raise ValueError(f"`state_size` must be at least 1; got {self.state_size}.")
        if not 0 < self.min_radius < self.max_radius < 1:
            raise ValueError(
                "`min_radius` and `max_radius` must be ascending and between 0 and 1, because a recurrence with a "
                f"larger eigenvalue is unstable; got {self.min_radius} and {self.max_radius}."
            )


class LinearRecurrence(nn.Module):
    """Linear recurrent unit: `h_t = λ ⊙ h_{t-1} + γ ⊙ B x_t`, `y_t = Re(C h_t)`, complex, with `h_0 = 0`.

    Orvieto et al., Resurrecting Recurrent Neural Networks for Long Sequences, ICML 2023, sec. 3. The diagonal
    `λ = exp(-exp(ν) + i exp(θ))` is within the unit circle for all values of the parameters ν and θ. The parameter
    `log γ` starts at `log √(1 - |λ|²)`, which keeps the size of the states independent of |λ|.
    """

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        state_size = config.state_size or 2 * config.hidden_size
        self.nu = nn.Parameter(torch.zeros(state_size))
        self.theta = nn.Parameter(torch.zeros(state_size))
        self.log_gamma = nn.Parameter(torch.zeros(state_size))
        # B and C as real matrices over pairs of a real and an imaginary part: weights are saved and decayed as real.
        self.input = nn.Linear(config.hidden_size, 2 * state_size)
        self.output = nn.Linear(2 * state_size, config.hidden_size)

    def eigenvalues(self) -> torch.Tensor:
        """λ, `(state_size,)` complex64."""
        return torch.exp(torch.complex(-self.nu.exp(), self.theta.exp()))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length, hidden_size)` to the same shape; no position sees a later one.

        Training computes all positions at once. Evaluation goes step by step, which needs no padding to a power of two.
        """
        pairs = self.input(hidden).float().unflatten(-1, (-1, 2))  # complex numbers exist in float32 only
        inputs = torch.view_as_complex(pairs) * self.log_gamma.exp()
        scan = parallel_scan if self.training else sequential_scan
        return self.output(torch.view_as_real(scan(inputs, self.eigenvalues())).flatten(-2))


def sequential_scan(inputs: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """States `h_t = decay ⊙ h_{t-1} + inputs_t` one after another; arguments as in `parallel_scan`."""
    state, states = torch.zeros_like(inputs[:, 0]), []
    for step in inputs.unbind(1):
        state = decay * state + step
        states.append(state)
    return torch.stack(states, dim=1)


def parallel_scan(inputs: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """States `h_t = decay ⊙ h_{t-1} + inputs_t` in log2(length) steps (Yue et al. 2024, recursive parallelization).

    The step for spans of `2n` positions takes the states within each half as if it were the start, and adds to the i-th
    of the right half what is left of the last state of the left half, `decay ** i` of it.

    Args:
        inputs: `(batch_size, length, dim)`.
        decay: `(dim,)`, absolute values below 1.

    Returns:
        states, `(batch_size, length, dim)`.
    """
    length = inputs.shape[1]
    full = 1 << (length - 1).bit_length()
    states = F.pad(inputs, (0, 0, 0, full - length))  # on the right, where no earlier state sees it
    powers = decay[None]  # (span, dim): decay ** 1 … decay ** span
    while (span := len(powers)) < full:
        left, right = states.unflatten(1, (-1, 2, span)).unbind(2)  # (batch_size, full / 2 / span, span, dim) each
        states = torch.stack([left, right + powers * left[:, :, -1:]], dim=2).flatten(1, 3)
        powers = torch.cat([powers, powers * powers[-1]])
    return states[:, :length]


class LRURecBlock(nn.Module):
    """A linear recurrence and a feed-forward layer, each with a residual connection and a layer norm behind it."""

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        self.recurrence = LinearRecurrence(config)
        self.recurrence_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward_input = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.feed_forward_output = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length, hidden_size)` to the same shape."""
        hidden = self.recurrence_norm(hidden + self.dropout(self.recurrence(hidden)))
        inner = F.gelu(self.feed_forward_input(hidden))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward_output(inner)))


class LRURecModel(SASRecModel):
    """Predict the next item of a history with linear recurrent units; the item table is input and output.

    Yue, Wang, He, Zeng, McAuley and Wang, Linear Recurrent Units for Sequential Recommendation, WSDM 2024.

    Inputs, loss and scores are those of `SASRecModel`. Histories are padded on the RIGHT with 0, which no earlier
    position sees.

    Differs from the paper: no output bias, no dropout within the feed-forward layer, label smoothing, and a history is
    read from its start for every request, though the state would allow to read only what is new.
    """

    config_class = LRURecConfig
    base_model_prefix = "lrurec"

    def __init__(self, config: LRURecConfig) -> None:
        PreTrainedModel.__init__(self, config)  # without SASRec's layers
        self.item_table = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=PADDING)
        self.input_norm = nn.LayerNorm(config.hidden_size)
        self.blocks = nn.ModuleList(LRURecBlock(config) for _ in range(config.num_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LinearRecurrence):
            # Uniform on the ring between the two radii (Orvieto et al. 2023, lemma 3.2).
            low, high = self.config.min_radius**2, self.config.max_radius**2
            squared_radius = torch.empty_like(module.nu).uniform_(low, high)
            init.copy_(module.nu, torch.log(-0.5 * squared_radius.log()))
            init.copy_(module.theta, torch.log(2 * torch.pi * (1 - torch.rand_like(module.theta))))
            init.copy_(module.log_gamma, 0.5 * torch.log(1 - squared_radius))
        else:
            super()._init_weights(module)

    def _encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length)` to `(batch_size, length, hidden_size)`."""
        hidden = self.dropout(self.input_norm(self.item_table(input_ids)))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


BASELINES = {"lrurec": Baseline(LRURecConfig, partial(fit_next_item_model, LRURecModel, "LRURec"))}
