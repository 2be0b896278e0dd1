"""Adapters: LoRA and trainable token rows on top of a model that stays as it is (PEFT).

An adapter's folder holds what PEFT writes (`adapter_config.json`, `adapter_model.safetensors`) and `adapter_base.json`:
which model it was made for, and how that model is enlarged before the adapter fits. Nothing in it is pickled, and of
`adapter_config.json` only the fields that are needed are read, as others may name modules to import.

Works on encoder-decoders (T5, with tied or untied output tables) and on decoders alone (Llama, Qwen, …).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from gensar_hf.errors import InputError
from gensar_hf.files import CARD_FILE, fingerprint, read_json, write_json
from gensar_hf.generator.item_vectors import ItemVectors, add_item_vectors
from gensar_hf.hub import optional_file

if TYPE_CHECKING:  # takes seconds to import, and few models have an adapter
    from peft import LoraConfig, PeftModel

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_BASE_FILE = "adapter_base.json"
_FORMAT_VERSION = 1
_SAMPLED_VALUES = 64
_CONFIG_FIELDS = ("r", "lora_alpha", "lora_dropout", "target_modules", "trainable_token_indices")
# PEFT knows those of the models in transformers.
_TARGET_MODULES = {"gensar": ("q", "v")}


@dataclass(frozen=True)
class AdapterBase:
    """The model that an adapter belongs to, and how it is enlarged before the adapter fits.

    Attributes:
        name: folder, absolute or as seen from the adapter's, or Hub name of the model.
        fingerprint: of the model as it lies there, see `model_fingerprint`.
        vocab_size: rows of the token tables, at least as many as the model has there.
        neighbors: `(num_new, k)` rows of the model's item table; a new item's vector begins as the mean of them. Empty
            where there are no new items, or items have no vectors.
    """

    name: str
    fingerprint: str
    vocab_size: int
    neighbors: np.ndarray

    @classmethod
    def of(
        cls, model: PreTrainedModel, name: str, vocab_size: int | None = None, neighbors: np.ndarray | None = None
    ) -> "AdapterBase":
        """Note a model that was just loaded, before anything is changed.

        Args:
            model: as it was loaded.
            name: where from.
            vocab_size: that the adapter needs; default: the model's.
            neighbors: see the class.
        """
        neighbors = np.zeros((0, 0), dtype=np.int64) if neighbors is None else np.asarray(neighbors, dtype=np.int64)
        return cls(name, model_fingerprint(model), max(_num_tokens(model), vocab_size or 0), neighbors)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `adapter_base.json`."""
        record = {
            "format_version": _FORMAT_VERSION,
            "base_model": self.name,
            "base_fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "neighbors": self.neighbors,
        }
        write_json(Path(folder) / ADAPTER_BASE_FILE, record)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AdapterBase":
        """Read what `save` wrote, from the file itself.

        Raises:
            InputError: the file is missing, damaged, or of another format.
        """
        record = read_json(path)
        try:
            if record["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"its format_version is {record['format_version']}")
            neighbors = np.array(record["neighbors"] or np.zeros((0, 0)), dtype=np.int64)
            if neighbors.ndim != 2:
                raise ValueError("its neighbors are no table")
            base = cls(str(record["base_model"]), str(record["base_fingerprint"]), int(record["vocab_size"]), neighbors)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not say which model the adapter was made for ({error}).") from None
        return base


def model_fingerprint(model: PreTrainedModel) -> str:
    """What tells a model's weights from others: a hash of names, shapes and some values of all parameters.

    The values are rounded to bfloat16, so that a model that is loaded in that precision keeps its fingerprint, and
    sampled, so that a large one does not take longer than a second or two.
    """
    parts: list[Any] = [model.config.model_type]
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        places = torch.linspace(0, len(values) - 1, min(_SAMPLED_VALUES, len(values)), dtype=torch.float64).long()
        sample = values[places.to(values.device)].to(torch.bfloat16).cpu().view(torch.int16)
        parts += [name, tuple(parameter.shape), sample.numpy()]
    return fingerprint(*parts)


def lora_config(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    item_rows: Sequence[int] = (),
) -> "LoraConfig":
    """LoRA (Hu et al. 2021) on some layers, and some rows of the token and item tables that are trained as they are.

    Args:
        model: that the adapter is for.
        token_ids: tokens whose embeddings are trained, such as `tokenizer.code_token_ids`; in the output table, too,
            where that is another one.
        rank: of the LoRA matrices.
        alpha: their product counts `alpha / rank` times.
        dropout: before them.
        target_modules: names of the layers; default: the queries and values of all attention.
        item_rows: rows of the item table that are trained, of a model with item vectors.
    """
    from peft import LoraConfig

    names = {id(module): name for name, module in model.named_modules()}
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    rows = {names[id(inputs)]: [int(token) for token in token_ids]}
    if outputs is not None and outputs.weight is not inputs.weight:
        rows[names[id(outputs)]] = rows[names[id(inputs)]]
    if len(item_rows):
        rows[names[id(_item_vectors(model).table)]] = [int(row) for row in item_rows]
    targets = target_modules or _TARGET_MODULES.get(model.config.model_type)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=None if targets is None else list(targets),
        trainable_token_indices=rows,
    )


def add_adapter(model: PreTrainedModel, config: "LoraConfig") -> "PeftModel":
    """Put an adapter on a model, in place: it alone is trained.

    Returns:
        the model with the adapter, for `Trainer`; `get_base_model()` of it is what answers requests.
    """
    from peft import get_peft_model

    _declare_ties(model)
    return get_peft_model(model, config)


def grow_to(model: PreTrainedModel, base: AdapterBase) -> PreTrainedModel:
    """Give a base model the rows that an adapter needs, in place: of new tokens, and of new items.

    Raises:
        ValueError: new items for a model without item vectors, or a lender that it does not have.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if base.vocab_size > _num_tokens(model):
        # An output table of its own would be dropped where the configuration says "tied", as T5 v1.1's does.
        model.config.tie_word_embeddings = outputs is None or outputs.weight is inputs.weight
        model.resize_token_embeddings(base.vocab_size, mean_resizing=False)  # the adapter holds the new rows
    if len(base.neighbors):
        add_item_vectors(_item_vectors(model), base.neighbors)
        model.config.num_items = _item_vectors(model).table.num_embeddings
    return model


def save_adapter(model: "PeftModel", folder: str | os.PathLike[str], base: AdapterBase) -> None:
    """Write an adapter: PEFT's two files, and which model it was made for.

    Args:
        model: with the adapter.
        folder: made if it is not there; the tokenizer is saved there by itself.
        base: noted before the model was changed.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base.name
    # "auto" would compare vocabularies with the base model's, and save whole tables where it has been enlarged.
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (Path(folder) / CARD_FILE).unlink(missing_ok=True)  # PEFT's template, which says nothing of this adapter
    base.save(folder)


def adapter_base(path: str | os.PathLike[str], **kwargs: Any) -> AdapterBase | None:
    """What `adapter_base.json` of a folder or a repository says; None where that holds no adapter.

    Raises:
        InputError: there is an adapter, but the file is missing or damaged.
        OSError: there is no such folder or repository, or it cannot be asked.
    """
    if optional_file(path, ADAPTER_CONFIG_FILE, **kwargs) is None:
        return None
    found = optional_file(path, ADAPTER_BASE_FILE, **kwargs)
    if found is None:
        raise InputError(
            f"{path} holds an adapter, but no {ADAPTER_BASE_FILE}, which says what model it was made for; copy the "
            "file from where the adapter was trained."
        )
    return AdapterBase.load(found)


def load_adapter(model: PreTrainedModel, path: str | os.PathLike[str], **kwargs: Any) -> "PeftModel":
    """Put a saved adapter on the model that it was made for, in place.

    Args:
        model: as it was loaded.
        path: folder or Hub name of the adapter.
        **kwargs: `revision`, `cache_dir`, `token`, `subfolder`, …

    Raises:
        InputError: no or a damaged adapter, or one that was made for another model.
        OSError: there is no such folder or repository, or it cannot be asked.
    """
    base = adapter_base(path, **kwargs)
    weights_path = optional_file(path, ADAPTER_WEIGHTS_FILE, **kwargs)
    if base is None or weights_path is None:
        missing = ADAPTER_CONFIG_FILE if base is None else ADAPTER_WEIGHTS_FILE
        raise InputError(f"{path} holds no {missing}; give the folder of an adapter that `save_adapter` wrote.")
    if model_fingerprint(model) != base.fingerprint:
        raise InputError(
            f"The adapter in {path} was made for another model than the one it is put on: that one lay in "
            f"{base.name}, and its weights were others; load the model that the adapter was trained with."
        )
    config_path = optional_file(path, ADAPTER_CONFIG_FILE, **kwargs)
    try:
        with_adapter = add_adapter(grow_to(model, base), _read_config(config_path))
        _load_weights(with_adapter, load_file(weights_path))
    except InputError:
        raise
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"The adapter in {path} is damaged ({reason}); copy its files again.") from error
    return with_adapter


def merge_adapter(model: "PeftModel") -> PreTrainedModel:
    """The model with its adapter worked into its weights, in place: it answers the same, and needs no PEFT."""
    return model.merge_and_unload()


def _read_config(path: Path | None) -> "LoraConfig":
    from peft import LoraConfig

    record = read_json(path) if path is not None else {}
    if record.get("peft_type") != "LORA":
        raise ValueError(f"{ADAPTER_CONFIG_FILE} has the peft_type {record.get('peft_type')!r}, and not 'LORA'")
    return LoraConfig(**{name: record[name] for name in _CONFIG_FIELDS})


def _load_weights(model: "PeftModel", weights: dict[str, torch.Tensor]) -> None:
    """Raises ValueError where they are not those of the adapter, one for one."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    if _shapes(weights) != _shapes(expected):
        raise ValueError(f"{ADAPTER_WEIGHTS_FILE} does not hold the weights that {ADAPTER_CONFIG_FILE} speaks of")
    set_peft_model_state_dict(model, weights)


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _declare_ties(model: PreTrainedModel) -> None:
    """Let the model say truthfully which of its tables are one, which is what PEFT goes by.

    A T5 v1.1 says that its output table is its input table, although it was loaded with one of its own.
    """
    declared: dict[str, str] = getattr(model, "_tied_weights_keys", None) or {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = {
        name: source
        for name, source in declared.items()
        if name in parameters and parameters[name] is parameters.get(source)
    }
    model._tied_weights_keys = tied
    model.config.tie_word_embeddings = bool(tied)


def _num_tokens(model: PreTrainedModel) -> int:
    """Rows of the input table, which may be more than the tokenizer has tokens."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return len(weight)


def _item_vectors(model: nn.Module) -> ItemVectors:
    found = next((module for module in model.modules() if isinstance(module, ItemVectors)), None)
    if found is None:
        raise ValueError("The model has no item vectors, so there are no rows of new items to train.")
    return found
