"""Weights laid out once for oneDNN's matrix products, where torch would lay them out anew at every call.

torch has no public call for it: the two operators are those that its own compiler emits, so their presence is checked,
and without them the model stays what it is.
"""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.functional import linear

SLICE_TOKENS = 2048  # rows of a large table that are multiplied at a time: the product stays in the cache
# With few rows, laying out the weights is a large part of a product. With many it is not, and on processors without
# AVX-512 the library that torch calls by itself is then the faster one.
_MAX_ROWS_WITHOUT_AVX512 = 64

Model = TypeVar("Model", bound=nn.Module)


def can_pack() -> bool:
    """Whether this build of torch has the operators."""
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def pack_linears(model: Model) -> Model:
    """A copy of a model for inference on a CPU in fp32, its linear layers packed; equal up to rounding.

    The copy shares all parameters with the model and holds the packed weights besides, so that it takes about as much
    memory again as the linear layers. It does not follow later changes of the weights: pack again after training.

    Args:
        model: left as it is.

    Returns:
        the copy; the model itself where nothing can be packed.
    """
    names = [name for name, module in model.named_modules() if _is_packable(module)]
    if not names or not can_pack():
        return model
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    packed = copy.deepcopy(model, shared).eval()
    for name in names:
        packed.set_submodule(name, PackedLinear(packed.get_submodule(name)))  # type: ignore[arg-type]
    return packed


class PackedLinear(nn.Module):
    """A linear layer with packed weights.

    Args:
        layer: on the CPU, fp32; its parameters are shared.

    Attributes:
        products: `(..., in_features)` → the product with up to `SLICE_TOKENS` of the weight's rows, in their order.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
        max_rows = None if has_avx512 else _MAX_ROWS_WITHOUT_AVX512
        self.products = [_product(rows, max_rows) for rows in layer.weight.detach().split(SLICE_TOKENS)]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(..., in_features)` → `(..., out_features)`."""
        slices = [product(states) for product in self.products]
        result = slices[0] if len(slices) == 1 else torch.cat(slices, dim=-1)
        return result if self.bias is None else result + self.bias


def _product(weight: torch.Tensor, max_rows: int | None) -> Callable[[torch.Tensor], torch.Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def multiply(states: torch.Tensor) -> torch.Tensor:
        if max_rows is not None and states.numel() > max_rows * weight.shape[1]:
            return linear(states, weight)
        return torch.ops.mkldnn._linear_pointwise(states, packed, None, "none", [], "")

    return multiply


def _is_packable(module: nn.Module) -> bool:
    """A plain linear layer: with an adapter, a hook or another precision it keeps its own code."""
    if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return False
    return module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"
