"""A decoder alone over trees of tokens that continue its prompts."""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from gensar_hf.decoding.tree_decoder import TreeDecoder


class CausalTreeDecoder(TreeDecoder):
    """Calls the model's own forward, with a mask and positions of its own: a node sees the prompt and its ancestors.

    Args:
        model: a causal language model.
        cache: keys and values of the prompts' tokens; left as it is.
        prompt_mask: `(batch_size, num_prompt_tokens)` bool, the tokens in it that are no padding.
        returns_logits: return the model's own logits in place of the states that its head takes.
    """

    def __init__(
        self, model: PreTrainedModel, cache: DynamicCache, prompt_mask: torch.Tensor, returns_logits: bool
    ) -> None:
        super().__init__(len(prompt_mask), prompt_mask.device)
        self._model, self._prompt_mask, self._returns_logits = model, prompt_mask, returns_logits
        self._first_positions = prompt_mask.sum(dim=1, keepdim=True)
        self._cache = cache_rows(cache)

    def _read(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        prompt = self._prompt_mask[:, None].expand(-1, tokens.shape[1], -1)
        lowest = torch.finfo(self._model.dtype).min
        mask = torch.zeros((), dtype=self._model.dtype, device=tokens.device)
        mask = mask.where(torch.cat([prompt, visible], dim=2), lowest)[:, None]
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": self._first_positions + depths,
            "cache": self._cache,
            "use_cache": True,
        }
        if self._returns_logits:
            return self._model(**inputs).logits
        return self._model.base_model(**inputs).last_hidden_state


def cache_rows(cache: DynamicCache, rows: torch.Tensor | None = None) -> DynamicCache:
    """A cache of its own that begins with the keys and values of some rows, `(num_rows,)` long, or of all."""
    copy = DynamicCache()
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        keys, values = (layer.keys, layer.values) if rows is None else (layer.keys[rows], layer.values[rows])
        copy.update(keys, values, number)
    return copy
